"""How gradients become a step: mixed precision, batches that are added up, clipping."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final, get_args

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from avalanche_vlm._checks import check_choice, check_count, check_number, wrong_value
from avalanche_vlm._precision import AUTOCAST_TYPES, Precision

# Below it the scale makes numbers too small for fp16, which it is there to prevent: it halves at each step
# that is left out, and that of torch begins at 2^16.
_SMALLEST_SCALE = 2.0**-14


@final
class GradientStep:
    r"""Autocast, backward and optimizer step of a strategy; parameters and gradients stay fp32.

    The gradient of a step over n batches is that of one batch of all their samples,

    .. math:: g = \frac{\sum_b B_b \, g_b}{\sum_b B_b}

    with the gradient g_b of the mean loss of batch b of B_b samples.

    Args:
        precision: type of the forward pass and the criterion.
        max_gradient_norm: largest norm of all gradients together; None for no limit.
        accumulate_batches: number n of batches of a step.
        device: where the model is.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        precision: Precision,
        max_gradient_norm: float | None,
        accumulate_batches: int,
        device: torch.device,
    ) -> None:
        check_choice("precision", precision, get_args(Precision))
        if max_gradient_norm is not None:
            check_number("max_gradient_norm", max_gradient_norm, above=0)
        check_count("accumulate_batches", accumulate_batches)
        self.precision = precision
        self.max_gradient_norm = max_gradient_norm
        self.accumulate_batches = accumulate_batches
        self.gradient_scaler = GradScaler(device.type) if precision == "fp16" else None
        self._device = device.type
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._batches = 0
        self._samples = 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass and of the criterion."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device, dtype=AUTOCAST_TYPES[self.precision])

    def backward(self, loss: Tensor, optimizer: Optimizer, *, retain_graph: bool) -> None:
        """Add the gradient of a loss to the parameters'; under fp16 it was scaled, and no longer is."""
        scaler = self.gradient_scaler
        if scaler is None:
            loss.backward(retain_graph=retain_graph)
            return
        scaler.scale(loss).backward(retain_graph=retain_graph)
        # Not `unscale_`, which a scaler allows once a step: plugins see every batch's true gradient.
        # A scale is a power of two, so that dividing and multiplying lose nothing.
        _multiply(optimizer, 1 / scaler.get_scale())

    def add_batch(self, optimizer: Optimizer, sample_count: int, *, last: bool) -> bool:
        """Take in the gradient of a batch; True if the parameters now have that of a step.

        Args:
            optimizer: its parameters' gradients are those of this batch alone.
            sample_count: number of samples in the batch.
            last: whether no batch follows in this epoch.
        """
        if self.accumulate_batches == 1:
            return True
        for parameter in _with_gradient(optimizer):
            assert parameter.grad is not None
            weighted = parameter.grad * sample_count
            self._sums[parameter] = self._sums[parameter] + weighted if parameter in self._sums else weighted
        self._batches += 1
        self._samples += sample_count
        if self._batches < self.accumulate_batches and not last:
            return False
        for parameter, total in self._sums.items():
            parameter.grad = total / self._samples
        self.forget_batches()
        return True

    def forget_batches(self) -> None:
        """Drop the gradients of batches that have not become a step."""
        self._sums, self._batches, self._samples = {}, 0, 0

    def step(self, optimizer: Optimizer) -> None:
        """Clip, and step; under fp16 a step with gradients that are not finite is left out.

        Raises:
            ValueError: so many steps were left out that it is not the scale.
        """
        if self.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_([*_with_gradient(optimizer)], self.max_gradient_norm)
        scaler = self.gradient_scaler
        if scaler is None:
            optimizer.step()
            return
        _multiply(optimizer, scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < _SMALLEST_SCALE:
            raise wrong_value(
                "precision",
                "'fp32' or 'bf16' for a loss whose gradients are not finite at any scale",
                f"'fp16', which left out one step after the other, down to a scale of {scaler.get_scale()}",
                "Lower the learning rate, or look at the terms that plugins add to the loss.",
            )


def _with_gradient(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from (parameter for parameter in group["params"] if parameter.grad is not None)


def _multiply(optimizer: Optimizer, factor: float) -> None:
    with torch.no_grad():
        for parameter in _with_gradient(optimizer):
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
