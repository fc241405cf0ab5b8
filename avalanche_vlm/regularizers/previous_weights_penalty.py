"""The distance of the weights from those before the experience."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm.models import CLIPClassifier, WeightSnapshot
from avalanche_vlm.regularizers.regularizer import Regularizer


@final
class PreviousWeightsPenalty(Regularizer):
    r"""Keeps all weights near those before the experience: the ℓ2 baseline.

    .. math:: R = \sum_i (\theta_i - \theta^{t-1}_i)^2

    References:
        The baseline "l2" of Zheng et al., Preventing Zero-Shot Transfer Degradation in Continual
        Learning of Vision-Language Models (ZSCL), ICCV 2023.

    Deviations:
        None.
    """

    __slots__ = ("_weights",)  # passed over by checkpoints, and taken again
    _weights: WeightSnapshot | None

    def __init__(self) -> None:
        self._weights = None

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Take the weights as they are."""
        self._weights = WeightSnapshot.shared(agent)

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Let go of them."""
        self._weights = None

    def __call__(self, model: CLIPClassifier, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the squared distance."""
        assert self._weights is not None
        origin = self._weights.tensors
        parts = [(p - origin[name]).square().sum() for name, p in model.named_parameters() if name in origin]
        return torch.stack(parts).sum()
