"""The mean of the weights along the way."""

from __future__ import annotations

from typing import Any, final

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_vlm._checks import check_count


@final
class WeightEnsemblePlugin(SupervisedPlugin[Any]):
    r"""Ends each experience with the mean of the weights before it and of those every few steps.

    .. math:: \bar\theta = \frac{1}{n + 1} \Big(\theta_0 + \sum_{k=0}^{n-1} \theta_{F + k I}\Big)

    with the weights :math:`\theta_i` after i steps of the experience, and n the number of members that it is
    long enough for. Training goes on with the live weights; the mean takes their place at the end.

    Args:
        every: I, a number of steps.
        first: F, after how many steps the first member is taken; None for I, as the paper says. An
            experience with fewer steps ends with the weights that it has.

    Raises:
        TypeError: an argument is not a whole number.
        ValueError: an argument is smaller than 1.

    References:
        Zheng et al., Preventing Zero-Shot Transfer Degradation in Continual Learning of
        Vision-Language Models (ZSCL), ICCV 2023, section 4.2 (weight ensemble), every 100 steps.

    Deviations:
        The authors' code takes the weights after the first step too, and from there every I steps: θ₀, θ₁,
        θ₁₀₁, ... That is ``first=1``, as `avalanche_vlm.presets.zscl_setting` has it.
    """

    def __init__(self, every: int = 100, *, first: int | None = None) -> None:
        super().__init__()
        check_count("every", every)
        if first is not None:
            check_count("first", first)
        self.every = every
        self.first = every if first is None else first
        self._mean: dict[str, Tensor] = {}
        self._steps = 0
        self._members = 0

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin with the weights as they are."""
        self._mean = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}
        self._steps, self._members = 0, 1

    @torch.no_grad()
    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take in the weights after ``first`` steps, and every ``every`` from there."""
        self._steps += 1
        if self._steps < self.first or (self._steps - self.first) % self.every:
            return
        self._members += 1
        for name, parameter in strategy.model.named_parameters():
            if name in self._mean:
                self._mean[name].lerp_(parameter, 1 / self._members)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Give the model the mean."""
        if self._members > 1:
            for name, parameter in strategy.model.named_parameters():
                if name in self._mean:
                    parameter.copy_(self._mean[name])
        self._mean = {}
