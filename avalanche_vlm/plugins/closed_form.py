"""Keeping the sums of a closed form up to date, under any strategy."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import trained_experiences
from avalanche_vlm.models import ClosedFormHead, GaussianDiscriminantHead
from avalanche_vlm.models.modes import is_frozen
from avalanche_vlm.plugins.latent_features import embeddings_of
from avalanche_vlm.plugins.required_head import required_head


class ClosedFormPlugin(SupervisedPlugin[Any]):
    """Adds the embeddings of each experience to the sums of a `ClosedFormHead`.

    That happens before the experience is trained on, so that what trains learns what the closed form
    leaves: with ``GaussianDiscriminantHead(CosineHead(...))`` as head and generative replay beside this
    plugin, weights are trained on top of the closed form. Each sample counts once, with its eval
    transform; training on an experience again counts its samples again. What other plugins make of the
    data of an experience (replay, synthetic embeddings) does not count. Streams may be images, which go
    through the frozen image tower, or embeddings.

    Raises:
        ValueError: in training, a model with another head, or an image tower or adapter that trains.

    References:
        Those of the head: `GaussianDiscriminantHead`, `RidgeRegressionHead`, `NearestClassMeanHead`.

    Deviations:
        Those of the head.

    >>> plugins = [ClosedFormPlugin()]
    """

    HEAD: type[ClosedFormHead] = ClosedFormHead
    """The kind of head that is kept up to date."""

    def after_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the samples."""
        model = strategy.model
        head = closed_form_head(model, self.HEAD)
        model.check_experience(strategy.experience)
        for experience in trained_experiences(strategy):
            for embeddings, labels, _ in embeddings_of(strategy, experience.dataset):
                with torch.no_grad():
                    head.update(model.adapted(embeddings.to(strategy.device)), labels)
        head.settle(model.backbone)


class GaussianDiscriminantPlugin(ClosedFormPlugin):
    """`ClosedFormPlugin` for a `GaussianDiscriminantHead`.

    Raises:
        ValueError: in training, a model with another head, or an image tower or adapter that trains.

    References:
        Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024
        (arXiv 2402.04087); Hayes and Kanan, Lifelong Machine Learning with Deep Streaming Linear
        Discriminant Analysis, CVPRW 2020.

    Deviations:
        See `GaussianDiscriminantHead`.

    >>> plugins = [GaussianDiscriminantPlugin()]
    """

    HEAD = GaussianDiscriminantHead


def closed_form_head(model: Any, kind: type[ClosedFormHead] = ClosedFormHead) -> ClosedFormHead:
    """Return the head of a classifier whose embeddings stay what they are; refuse another."""
    head = required_head(model, kind)
    if not is_frozen(model.image_adapter):
        raise wrong_value(
            "model",
            "a classifier whose image adapter is fixed",
            "one whose adapter trains, and so moves embeddings after they were counted",
            "Leave out image_adapter, or freeze its parameters.",
        )
    return head
