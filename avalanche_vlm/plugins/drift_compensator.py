"""Moving stored features as the features of probe images move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_number, check_type, wrong_value
from avalanche_vlm._stateful import Stateful
from avalanche_vlm.functional import transferred_prototypes
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.models.dual_path_head import VISUAL_SPACES, VisualSpace
from avalanche_vlm.models.modes import is_frozen
from avalanche_vlm.plugins.regularizer import autocast_of
from avalanche_vlm.plugins.visual_features import visual_features
from avalanche_vlm.regularizers import AdversarialAnchors, ImageTextPairs
from avalanche_vlm.regularizers.pairs import ENCODED_AT_ONCE


@final
class DriftCompensator(Stateful):
    r"""Measures how far probe images move in an experience, and moves stored features along.

    .. math:: x \leftarrow x + \eta_x \sum_a \omega_{a,x} \, \bigl( h_t(a) - h_{t-1}(a) \bigr)

    with the features h of probe images a before the experience and after it, nearer ones with more weight:
    see `functional.transferred_prototypes`. Whatever keeps features of images while the image tower
    trains can ask it: call `begin` before training, `end` after it, and then `moved`.
    `PrototypeTransferPlugin` does so for the prototypes of a `DualPathHead`. Where nothing trains that
    images pass, features stay as they are. The probes belong to one run.

    Args:
        probes: images that stay the same for an experience; None for `AdversarialAnchors` with its
            defaults, ``AdversarialAnchors(steps=0)`` for images of the experience as they are.
        visual_space: which features are kept: ``"embedding"``, as the head sees them, or ``"raw"``, before
            the projection.
        temperature: of the weights ω.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an unknown space, or a temperature that is not positive; in training, probes that change
            from batch to batch.

    References:
        SeGP-CL (arXiv 2603.12055), anchor-induced prototype transfer; Yu et al., Semantic Drift
        Compensation for Class-Incremental Learning, CVPR 2020.

    Deviations:
        Those of `functional.transferred_prototypes`; the sources move prototypes only.
    """

    # In slots, which checkpoints pass over: an experience that goes on measures again.
    __slots__ = ("_after", "_before", "_images", "_stands_for")
    _images: Tensor | None
    _before: Tensor | None
    _after: Tensor | None
    _stands_for: Tensor | None

    def __init__(
        self,
        probes: ImageTextPairs | None = None,
        *,
        visual_space: VisualSpace = "embedding",
        temperature: float = 0.1,
    ) -> None:
        check_type("probes", probes, (ImageTextPairs, type(None)))
        check_choice("visual_space", visual_space, VISUAL_SPACES)
        check_number("temperature", temperature, above=0)
        self.probes: ImageTextPairs = AdversarialAnchors() if probes is None else probes
        self.visual_space: VisualSpace = visual_space
        self.temperature = temperature
        self._images = self._before = self._after = self._stands_for = None

    def begin(self, strategy: Any) -> None:
        """Measure the probes before a strategy trains on its experience."""
        self._images = self._before = self._after = None
        with autocast_of(strategy):
            self.probes.pre_adapt(strategy, strategy.experience)
        if not self.probes.is_active or not self._may_move(strategy.model):
            return
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

    def _may_move(self, model: CLIPClassifier) -> bool:
        """Return whether something trains that images pass on their way to the features."""
        adapter = model.image_adapter if self.visual_space == "embedding" else None
        return not (is_frozen(model.backbone.image_tower) and is_frozen(adapter))

    def end(self, strategy: Any) -> None:
        """Measure them after it, and let go of the images."""
        if self._images is not None:
            self._after = self._measured(strategy)
            self._images = None
        self.probes.post_adapt(strategy, strategy.experience)

    def moved(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return features as they would be now.

        Args:
            features: (K, D), from before the experience that has ended.
            classes: int64 (K,), the class of each.

        Returns:
            (K, D); the same where nothing has moved.
        """
        if self._before is None or self._after is None or len(features) == 0:
            return features
        device = features.device
        return transferred_prototypes(
            features,
            self._before.to(device),
            self._after.to(device),
            classes=classes.to(device),
            stands_for=None if self._stands_for is None else self._stands_for.to(device),
            temperature=self.temperature,
        )

    def _measured(self, strategy: Any) -> Tensor:
        assert self._images is not None
        parts = self._images.split(ENCODED_AT_ONCE)
        return torch.cat([visual_features(strategy, part, self.visual_space) for part in parts])

    @property
    def nbytes(self) -> int:
        """Number of bytes that the probes keep from one experience to the next."""
        return self.probes.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return what the probes keep from one experience to the next."""
        return {"probes": self.probes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        self.probes.load_state_dict(state["probes"])
