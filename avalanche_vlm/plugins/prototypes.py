"""Keeping the visual prototypes of a head, and moving them with the image tower."""

from __future__ import annotations

from typing import Any, final

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_vlm._checks import check_number, check_type, wrong_value
from avalanche_vlm._host import eval_loader, trained_experiences
from avalanche_vlm.functional import transferred_prototypes
from avalanche_vlm.models import CLIPClassifier, DualPathHead
from avalanche_vlm.models.modes import in_eval_mode
from avalanche_vlm.plugins.regularizer import autocast_of
from avalanche_vlm.regularizers import AdversarialAnchors, ImageTextPairs
from avalanche_vlm.regularizers.pairs import is_frozen

_IMAGES_AT_ONCE = 128


class PrototypePlugin(SupervisedPlugin[Any]):
    r"""Adds the mean visual features of the classes of each experience to a `DualPathHead`.

    .. math:: p_c = \frac{1}{n_c} \sum_{i: y_i = c} h(x_i)

    That happens at the end of the experience, with the model as it is then, each sample once with its
    eval transform. A class that comes again has the mean of all its samples, each as the model saw it at
    the time. Prototypes of earlier classes stay where they are, however far the image tower moves:
    `PrototypeTransferPlugin` moves them too. What other plugins replay does not count.

    Raises:
        ValueError: in training, a model with another head.

    References:
        SeGP-CL (arXiv 2603.12055), visual prototypes; Rebuffi et al., iCaRL: Incremental Classifier and
        Representation Learning, CVPR 2017, for means of features.

    Deviations:
        None.

    >>> plugins = [PrototypePlugin()]
    """

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse a model without prototypes before it is trained in vain."""
        prototype_head(strategy.model)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the prototypes of the experience."""
        head = prototype_head(strategy.model)
        for experience in trained_experiences(strategy):
            dataset: Any = experience.dataset.eval()
            for x, y, *_ in eval_loader(dataset, _IMAGES_AT_ONCE):
                head.update(_visual_features(strategy, x), y)


@final
class PrototypeTransferPlugin(PrototypePlugin):
    r"""Moves prototypes as the features of probe images near them move, and adds those of new classes.

    .. math:: p_c \leftarrow p_c + \eta_c \sum_a \omega_{a,c} \, \bigl( h_t(a) - h_{t-1}(a) \bigr)

    with the features of probe images a before the experience and after it: see
    `functional.transferred_prototypes`. Probes are any images that stay the same for an experience:
    adversarial anchors in the paper, ``AdversarialAnchors(steps=0)`` for images of the experience as they
    are, or `SyntheticPairs`. They are asked for before training, and let go of after it.

    Args:
        probes: None for `AdversarialAnchors` with its defaults; give it the anchors that a distillation
            has, and they are made once.
        temperature: of the weights ω.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a temperature that is not positive; in training, a model without a `DualPathHead`, or
            probes that change from batch to batch.

    References:
        SeGP-CL (arXiv 2603.12055), anchor-induced prototype transfer.

    Deviations:
        Those of `functional.transferred_prototypes`.

    >>> anchors = AdversarialAnchors()
    >>> plugins = [PrototypeTransferPlugin(anchors)]
    """

    # In slots, which checkpoints pass over: an experience that goes on measures again.
    __slots__ = ("_before", "_images", "_stands_for")
    _images: Tensor | None
    _before: Tensor
    _stands_for: Tensor | None

    def __init__(self, probes: ImageTextPairs | None = None, *, temperature: float = 0.1) -> None:
        super().__init__()
        check_type("probes", probes, (ImageTextPairs, type(None)))
        check_number("temperature", temperature, above=0)
        self.probes: ImageTextPairs = AdversarialAnchors() if probes is None else probes
        self.temperature = temperature
        self._images = None

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure the probes before they move."""
        super().before_training_exp(strategy, *args, **kwargs)
        self._images = None
        with autocast_of(strategy):
            self.probes.pre_adapt(strategy, strategy.experience)
        if not self.probes.is_active or is_frozen(strategy.model.backbone.image_tower):
            return  # nothing to move, or nothing that moves it
        self._images, self._stands_for = self.probes.fixed_images, self.probes.fixed_classes
        if self._images is None:
            raise wrong_value(
                "probes",
                "images that stay the same for an experience",
                f"{type(self.probes).__name__}, which change from batch to batch",
                "Use AdversarialAnchors, with steps=0 for images of the experience as they are, or "
                "SyntheticPairs.",
            )
        self._before = self._measured(strategy)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Move earlier prototypes, then add those of the experience."""
        if self._images is not None:
            after = self._measured(strategy)
            self._images = None
            self._move(prototype_head(strategy.model), after)
        self.probes.post_adapt(strategy, strategy.experience)
        super().after_training_exp(strategy, *args, **kwargs)

    @torch.no_grad()
    def _move(self, head: DualPathHead, after: Tensor) -> None:
        classes = head.classes_with_prototype
        if len(classes) == 0:
            return
        place = torch.full((len(head.counts),), -1, dtype=torch.int64, device=classes.device)
        place[classes] = torch.arange(len(classes), device=classes.device)
        head.prototypes[classes] = transferred_prototypes(
            head.prototypes[classes],
            self._before.to(classes.device),
            after.to(classes.device),
            stands_for=None if self._stands_for is None else place[self._stands_for.to(classes.device)],
            temperature=self.temperature,
        )

    def _measured(self, strategy: Any) -> Tensor:
        """Return the visual features (N, D') of the probes as the model is now."""
        assert self._images is not None
        return torch.cat([_visual_features(strategy, part) for part in self._images.split(_IMAGES_AT_ONCE)])

    @property
    def nbytes(self) -> int:
        """Number of bytes that the probes keep; prototypes are the model's."""
        return self.probes.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return what the probes keep from one experience to the next."""
        return {"probes": self.probes.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over such a state."""
        self.probes.load_state_dict(state["probes"])


def prototype_head(model: Any) -> DualPathHead:
    """Return the head of a classifier that keeps prototypes; refuse another."""
    if not isinstance(model, CLIPClassifier) or not isinstance(model.head, DualPathHead):
        head = type(model.head).__name__ if isinstance(model, CLIPClassifier) else None
        raise wrong_value(
            "model",
            "a CLIPClassifier with a DualPathHead, which keeps prototypes",
            f"one with a {head}" if head else f"a {type(model).__name__}",
            "Wrap the head: CLIPClassifier(backbone, DualPathHead(head)).",
        )
    return model.head


@torch.no_grad()
def _visual_features(strategy: Any, x: Tensor) -> Tensor:
    """Return the features (B, D') of images or embeddings that the model's prototypes are made of."""
    model, head = strategy.model, prototype_head(strategy.model)
    with in_eval_mode(model), autocast_of(strategy):
        if head.reads_raw_features:
            embeddings, raw = model.encode_with_raw(x.to(strategy.device))
        else:
            embeddings, raw = model.encode(x.to(strategy.device)), None
        return head.visual_features(model.adapted(embeddings), raw).float()
