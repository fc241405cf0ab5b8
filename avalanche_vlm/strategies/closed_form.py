"""A closed form on embeddings: one pass, no gradient, no forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import Unpack

from avalanche_vlm._checks import check_type
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.plugins import ClosedFormPlugin, GaussianDiscriminantPlugin
from avalanche_vlm.plugins.closed_form import closed_form_head
from avalanche_vlm.strategies.template_arguments import TemplateArguments, check_plugins
from avalanche_vlm.strategies.zero_shot import Untrained


class ClosedForm(Untrained):
    """Add the embeddings of each experience to the sums of a `ClosedFormHead`; train nothing.

    Each sample is looked at once, with its eval transform, whatever ``train_epochs`` is. The result is
    that of all experiences at once, in any order of samples, classes and experiences, but for what the head
    says of itself; training on the same experience again counts its samples again. It is `ClosedFormPlugin`
    on a strategy that takes no steps.

    Args:
        model: a classifier with a `ClosedFormHead`: `GaussianDiscriminantHead`, `RidgeRegressionHead`,
            `NearestClassMeanHead`.
        plugins: further plugins of ours or the host's.
        **template: the host's arguments.

    Raises:
        TypeError: ``model`` is not a `CLIPClassifier`.
        ValueError: it has another head, or an image adapter that trains; in training, an image tower that
            trains.

    References:
        Those of the head.

    Deviations:
        Those of the head.
    """

    PLUGIN: type[ClosedFormPlugin] = ClosedFormPlugin
    """The plugin that keeps the head up to date."""

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        plugins: Sequence[Any] = (),
        **template: Unpack[TemplateArguments],
    ) -> None:
        check_type("model", model, CLIPClassifier)
        closed_form_head(model, self.PLUGIN.HEAD)
        check_plugins(plugins)
        super().__init__(model=model, plugins=[*plugins, self.PLUGIN()], **template)


class GaussianDiscriminant(ClosedForm):
    """`ClosedForm` with a `GaussianDiscriminantHead`.

    Args:
        model: a classifier with a `GaussianDiscriminantHead`.
        plugins: further plugins of ours or the host's.
        **template: the host's arguments.

    Raises:
        TypeError: ``model`` is not a `CLIPClassifier`.
        ValueError: it has another head, or an image adapter that trains; in training, an image tower that
            trains.

    References:
        Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024
        (arXiv 2402.04087); Hayes and Kanan, Lifelong Machine Learning with Deep Streaming Linear
        Discriminant Analysis, CVPRW 2020.

    Deviations:
        See `GaussianDiscriminantHead`.
    """

    PLUGIN = GaussianDiscriminantPlugin
