"""Heads whose class weights are vectors: given ones, and trainable ones that start from text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from avalanche_vlm._checks import check_type, wrong_type, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.heads import TextHead, adds_names, with_rows_kept
from avalanche_vlm.models.modes import in_eval_mode
from avalanche_vlm.models.parts import part_config, part_from_config
from avalanche_vlm.text import ClassNames, normalize_text


class TextFeatureHead(TextHead):
    """Fixed class weights (C, D) that were computed elsewhere, e.g. beside stored embeddings.

    Args:
        features: float (C, D), one row per class id; any scale, finite, no row of zeros.

    Raises:
        TypeError: not a float tensor.
        ValueError: not two-dimensional, not finite, or a row of zeros (a class without text).

    >>> TextFeatureHead(torch.eye(3)).features.shape
    torch.Size([3, 3])
    """

    features: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        if not isinstance(features, Tensor) or not features.is_floating_point():
            advice = "Make one of an array with torch.from_numpy(array).float()."
            raise wrong_type("features", "a float tensor (C, D)", features, advice)
        if features.ndim != 2:
            raise wrong_value("features", "of shape (C, D)", tuple(features.shape))
        bad = ~features.isfinite().all(dim=1) | (features == 0).all(dim=1)
        if bad.any():
            raise wrong_value(
                "features",
                "finite rows, none of zeros",
                f"rows {bad.nonzero().flatten().tolist()[:8]} that are not",
                "Leave out the classes without a text feature.",
            )
        self.register_buffer("features", features.detach().float().clone())

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Take the names; there must be one for each row, of the backbone's width.

        The same names in another order take their rows with them.
        """
        class_names.check_count(len(self.features), "these text features")
        if self.features.shape[1] != backbone.embed_dim:
            raise wrong_value(
                "features", f"of the backbone's width {backbone.embed_dim}", tuple(self.features.shape)
            )
        earlier = self.class_names
        if earlier is not None and earlier != class_names:
            places = [_spellings(each) for each in (earlier, class_names)]
            if sorted(places[0]) == sorted(places[1]):
                order = torch.tensor([places[0].index(each) for each in places[1]])
                self.features.copy_(self.features[order.to(self.features.device)])
        super().set_classes(class_names, backbone)

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the given rows (K, D)."""
        return self.features[class_ids.to(self.features.device)]

    def config(self) -> dict[str, Any]:
        """Return the shape; the features themselves are in the state dict."""
        return {"shape": list(self.features.shape)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the head with placeholders that a state dict replaces."""
        return cls(torch.ones(config["shape"]))


def _spellings(names: ClassNames) -> list[tuple[str, str]]:
    """Return the data set and the name of each class, as tokenizers read it."""
    datasets = names.datasets or [""] * len(names)
    return [(dataset, normalize_text(name)) for dataset, name in zip(datasets, names, strict=True)]


class HeadFromText(TextHead):
    """Trainable class weights (C, D) that start from those of another head.

    Args:
        initial: the head whose class weights are taken when the names are set; it is then left
            alone.

    Raises:
        TypeError: ``initial`` is not a `TextHead`.
    """

    def __init__(self, initial: TextHead) -> None:
        super().__init__()
        check_type(
            "initial", initial, TextHead, f"Wrap vectors: {type(self).__name__}(TextFeatureHead(features))."
        )
        # In a tuple, so that it is no sub-module: its parameters neither train nor count.
        self._initial = (initial,)
        self.weight: nn.Parameter | None = None

    def start(self, weights: Tensor) -> Tensor:
        """Return what training starts from, given the weights (C, D) of the initial head."""
        return weights

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Start the weights from the initial head; those of earlier classes are kept."""
        initial = self._initial[0].to(backbone.logit_scale.device)
        initial.set_classes(class_names, backbone)
        with torch.no_grad(), in_eval_mode(initial):  # the start is what is evaluated before any training
            weight = self.start(initial(backbone)).clone()
        self.weight = with_rows_kept(self.weight, weight, adds_names(self.class_names, class_names))
        super().set_classes(class_names, backbone)

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the rows (K, D) of the weights."""
        if self.weight is None:  # forward has checked that names are set
            raise RuntimeError("set_classes comes first")
        return self.weight.index_select(0, class_ids.to(self.weight.device))

    def config(self) -> dict[str, Any]:
        """Return the kind and configuration of the initial head."""
        return {"initial": part_config(self._initial[0])}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the head; a state dict replaces its weights."""
        return cls(part_from_config(config["initial"], TextHead, "head"))


class CosineHead(HeadFromText):
    """Trainable class weights (C, D) that start as those of another head.

    Args:
        initial: the head whose class weights are taken when the names are set; it is then left
            alone.

    Raises:
        TypeError: ``initial`` is not a `TextHead`.

    References:
        Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, section 2 (a linear
        classifier that starts from the text encoder's class weights).

    Deviations:
        The weights are compared by cosine, like every head's, at any length.

    >>> CosineHead(TextFeatureHead(torch.eye(3))).weight is None  # until the classes have names
    True
    """
