"""A term that is added to the training loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from avalanche.training.regularization import RegularizationMethod
from torch import Tensor

from avalanche_vlm._stateful import Stateful
from avalanche_vlm.models import CLIPClassifier


class Regularizer(Stateful, RegularizationMethod, ABC):
    """A scalar that is added to the loss of each batch, with the host's lifecycle.

    `RegularizerPlugin` adds it; `AdaptiveWeightConsolidationPlugin` adds it and asks which weights it
    depends on.

    Attributes:
        advice: what to do where nothing that trains has an influence on it.
    """

    advice: ClassVar[str] = "Let CLIPClassifier train what the regularizer depends on."

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Get ready for an experience, before its first batch.

        Args:
            agent: the strategy.
            exp: the experience.
        """

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Let go of what only the experience needed, and take note of it; arguments as before."""

    @property
    def is_active(self) -> bool:
        """Whether there is anything to add in this experience."""
        return True

    @abstractmethod
    def __call__(self, model: CLIPClassifier, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the term, a scalar with a gradient.

        Args:
            model: the model in training.
            x: the batch, images (B, 3, H, W) or embeddings (B, D).
            y: its labels int64 (B,).
            logits: (B, C), what the model said.
        """
