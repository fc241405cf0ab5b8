"""A head whose text features pass a small trainable network."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Self

from avalanche_vlm._checks import check_type, wrong_value
from avalanche_vlm.models.adapters import EmbeddingAdapter, ResidualAdapter
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.heads import TextHead
from avalanche_vlm.models.parts import part_config, part_from_config
from avalanche_vlm.models.zero_shot_head import ZeroShotHead
from avalanche_vlm.text import ClassNames, PromptTemplate


class AdaptedTextHead(TextHead):
    r"""Class weights that are another head's, behind an adapter.

    .. math:: w_c = A(w^0_c), \qquad A(w) = w + \alpha\, W_2 \max(W_1 w, 0) \text{ by default}

    Stored text features pass the same adapter (`adapted_text`). With an ``image_adapter`` in the classifier
    both modalities have one.

    Args:
        text: the head inside; None for `ZeroShotHead`.
        adapter: None for `ResidualAdapter` with its defaults. It belongs to one head.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: ``text`` compares in another way than by cosine, or is an `AdaptedTextHead` itself.

    References:
        Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, 2021, equation 6.

    Deviations:
        Those of the adapter.

    >>> import torch
    >>> from avalanche_vlm.models import CLIPClassifier, EmbeddingBackbone, TextFeatureHead
    >>> head = AdaptedTextHead(TextFeatureHead(torch.eye(3)))
    >>> model = CLIPClassifier(EmbeddingBackbone(3), head, class_names=["cat", "dog", "cow"])
    >>> sum(parameter.numel() for parameter in model.parameters())
    6
    """

    def __init__(self, text: TextHead | None = None, *, adapter: EmbeddingAdapter | None = None) -> None:
        super().__init__()
        check_type("text", text, (TextHead, type(None)))
        check_type("adapter", adapter, (EmbeddingAdapter, type(None)))
        self.text = ZeroShotHead() if text is None else text
        if isinstance(self.text, AdaptedTextHead) or not self.text.compares_by_cosine:
            expected = "a head that compares by cosine, without an adapter of its own"
            got = f"a {type(self.text).__name__}"
            raise wrong_value("text", expected, got, "Let that head wrap this one.")
        self.adapter = ResidualAdapter() if adapter is None else adapter

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Take the names; the adapter stays as it is."""
        self.text.set_classes(class_names, backbone)
        self.adapter.set_width(backbone.embed_dim, backbone.logit_scale.device)
        super().set_classes(class_names, backbone)

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the class weights (K, D) behind the adapter."""
        return self.adapter(self.text(backbone, class_ids))

    def frozen_text(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the class weights (K, D) before the adapter."""
        return self.text(backbone, class_ids)

    def adapted_text(self, features: Tensor) -> Tensor:
        """Return text features (K, D) behind the adapter."""
        return self.adapter(features)

    @property
    def has_class_weights(self) -> bool:
        """Whether the head inside has some."""
        return self.text.has_class_weights

    def templates_of(self, dataset: str) -> tuple[PromptTemplate, ...]:
        """Return those of the head inside."""
        return self.text.templates_of(dataset)

    def adapt(self, classes_seen: Tensor) -> None:
        """Pass on the classes seen."""
        self.text.adapt(classes_seen)

    def config(self) -> dict[str, Any]:
        """Return the two parts by kind and configuration."""
        return {"text": part_config(self.text), "adapter": part_config(self.adapter)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the head; a state dict fills in the weights."""
        text = part_from_config(config["text"], TextHead, "head")
        return cls(text, adapter=part_from_config(config["adapter"], EmbeddingAdapter, "head"))
