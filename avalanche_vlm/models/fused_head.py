"""Two scorers in one head: one over all names, and one over the classes that have been learned."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from avalanche_vlm._checks import check_type
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.fusion_rules import (
    FusionRule,
    as_fusion,
    fusion_config,
    fusion_from_config,
)
from avalanche_vlm.models.heads import TextHead
from avalanche_vlm.models.parts import part_config, part_from_config
from avalanche_vlm.models.zero_shot_head import ZeroShotHead
from avalanche_vlm.text import ClassNames, PromptTemplate


class FusedHead(TextHead):
    """Logits of a head over all names, fused with scores of visual features over the classes learned.

    A subclass has `second_scores`, and `fusion_rule`, which says how the two are put together. Texts, class
    weights and templates are those of the first head.

    Args:
        first: the head that scores all classes by their text; None for `ZeroShotHead`.

    Raises:
        TypeError: ``first`` is no head.
    """

    _FIRST = "zero_shot"
    """The attribute, and the argument, that holds the first head."""

    def __init__(self, first: TextHead | None) -> None:
        super().__init__()
        check_type(self._FIRST, first, (TextHead, type(None)))
        setattr(self, self._FIRST, ZeroShotHead() if first is None else first)

    @property
    def first(self) -> TextHead:
        """The head that scores all classes."""
        return getattr(self, self._FIRST)

    fusion_weight: Any
    """How the two are put together, as the constructor was given it: a weight or a rule."""

    @property
    def fusion_rule(self) -> FusionRule:
        """How the two are put together."""
        return as_fusion(self.fusion_weight)

    @abstractmethod
    def second_scores(
        self, backbone: VisionLanguageBackbone, embeddings: Tensor, raw: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return class ids (K,) and their scores (B, K), of embeddings (B, D) and raw features (B, D_raw)."""

    @property
    def is_fused(self) -> bool:
        """Whether the second scorer counts now."""
        return True

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Take the names of all classes."""
        self.first.set_classes(class_names, backbone)
        super().set_classes(class_names, backbone)

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the class weights (K, D) of the first head."""
        return self.first.encode(backbone, class_ids)

    def compare(self, backbone: VisionLanguageBackbone, embeddings: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B, C) of the first head for weights (C, D) of it."""
        return self.first.compare(backbone, embeddings, weights)

    def logits(self, backbone: VisionLanguageBackbone, embeddings: Tensor) -> Tensor:
        """Map un-normalised embeddings (B, D) to logits (B, C), where there are no raw features."""
        return self.logits_with_raw(backbone, embeddings, None)

    def logits_with_raw(
        self, backbone: VisionLanguageBackbone, embeddings: Tensor, raw: Tensor | None
    ) -> Tensor:
        """Map un-normalised embeddings (B, D) and raw features (B, D_raw) to logits (B, C)."""
        first = self.first.logits_with_raw(backbone, embeddings, raw)
        if not self.is_fused:
            return first
        # Weights of a closed form are large and cancel: half precision would leave nothing of them.
        with torch.autocast(embeddings.device.type, enabled=False):
            classes, scores = self.second_scores(backbone, embeddings, raw)
            if len(classes) == 0:
                return first
            return self.fusion_rule(first.float(), scores.float(), classes)

    @property
    def reads_raw_features(self) -> bool:
        """Whether the first head reads them."""
        return self.first.reads_raw_features

    @property
    def text_part(self) -> TextHead:
        """That of the first head."""
        return self.first.text_part

    @property
    def has_class_weights(self) -> bool:
        """Whether the first head has some."""
        return self.first.has_class_weights

    def templates_of(self, dataset: str) -> tuple[PromptTemplate, ...]:
        """Return those of the first head."""
        return self.first.templates_of(dataset)

    def adapt(self, classes_seen: Tensor) -> None:
        """Pass on the classes seen."""
        self.first.adapt(classes_seen)

    @abstractmethod
    def own_config(self) -> dict[str, Any]:
        """Return the arguments, the first head and the fusion aside."""

    def config(self) -> dict[str, Any]:
        """Return the arguments, the first head by kind and configuration."""
        fusion = {"fusion_weight": fusion_config(self.fusion_weight)}
        return {self._FIRST: part_config(self.first), **fusion, **self.own_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the head; a state dict fills in what was learned."""
        own = {name: value for name, value in config.items() if name != cls._FIRST}
        own["fusion_weight"] = fusion_from_config(own["fusion_weight"])
        return cls(part_from_config(config[cls._FIRST], TextHead, "head"), **own)
