"""What the learned part of a prompt is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.text import ClassNames


class PromptContext(nn.Module, ABC):
    """One part of the context of a `HybridPromptHead`: m vectors in the place of m tokens.

    A part has its names before its parameters: `set_classes` makes them, once, so that they exist
    when an optimizer is made.

    Attributes:
        length: m, the number of vectors for each class.
    """

    length: int

    @abstractmethod
    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone, *, added: bool) -> None:
        """Take the names of all classes.

        Args:
            class_names: the names.
            backbone: says the width of a token.
            added: whether the names that were set before are the first of these: what was learned
                for them is kept then.
        """

    @abstractmethod
    def forward(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the vectors (K, m, W) of classes, or (1, m, W) if all have the same."""

    def begin_classes(self, classes: Tensor) -> None:
        """Take note of the classes (C,), bool, that an experience brings first; most need not know."""

    def classes_that_learn(self) -> Tensor | None:
        """Return for which classes (C,), bool, prompts take a gradient, those of all parts; None for all."""
        return None

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return JSON-serialisable constructor arguments."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the part from what `config` returned; a state dict replaces its weights."""
        return cls(**config)
