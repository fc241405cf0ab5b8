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

    .. math:: \bar\theta = \frac{1}{n + 1} \sum_{k=0}^{n} \theta_{k I}

    with the weights :math:`\theta_i` after i steps of the experience, and n the number of whole I steps
    in it. Training goes on with the live weights; the mean takes their place at the end.

    Args:
        every: I, a number of steps. An experience with fewer ends with the weights that it has.

    Raises:
        ValueError: ``every`` is smaller than 1.

    References:
        Zheng et al., Preventing Zero-Shot Transfer Degradation in Continual Learning of
        Vision-Language Models (ZSCL), ICCV 2023, section 4.2 (weight ensemble), every 100 steps.

    Deviations:
        None.
    """

    def __init__(self, every: int = 100) -> None:
        super().__init__()
        check_count("every", every)
        self.every = every
        self._mean: dict[str, Tensor] = {}
        self._steps = 0
        self._members = 0

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin with the weights as they are."""
        self._mean = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}
        self._steps, self._members = 0, 1

    @torch.no_grad()
    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take in the weights after every ``every`` steps."""
        self._steps += 1
        if self._steps % self.every:
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
