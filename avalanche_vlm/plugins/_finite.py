"""What refuses to train on with numbers that are not finite, in our strategies and with our criterion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import position_in_training, trained_experiences


def check_settings(optimizer: Any) -> None:
    """Raise `ValueError` unless learning rates, weight decays, momenta, ... of an optimizer are finite.

    Tensors elsewhere than in the memory of the CPU are not looked at, which would wait for the device.
    """
    for index, group in enumerate(_groups(optimizer)):
        for name, value in group.items():
            if name != "params" and not all(map(math.isfinite, _numbers(value))):
                raise wrong_value(
                    "strategy.optimizer",
                    "one whose settings are finite numbers",
                    f"{name}={value} in group {index}",
                    "Look at the arguments of the optimizer and at what sets them: schedules and plugins.",
                )


def check_loss(strategy: Any) -> None:
    """Raise `ValueError` unless the loss of the iteration at hand is finite; to be called before the step.

    Under fp16 one may overflow: the gradient scaler leaves its step out, and `GradientStep` refuses to go on
    where all are left out.

    This waits for the device, once a step. Our criterion waits for it anyway, when it looks at the labels,
    and what is still to be done then is little beside the forward pass: the steps of a tower take as long.
    """
    loss: Tensor = strategy.loss.detach()
    if getattr(strategy, "gradient_scaler", None) is not None or bool(loss.isfinite().all()):
        return
    rates = sorted({float(group["lr"]) for group in _groups(strategy.optimizer) if "lr" in group})
    raise wrong_value(
        "strategy.loss",
        "finite at each iteration",
        f"{loss.sum().item()} at iteration {strategy.clock.train_exp_iterations} of "
        f"{_place(strategy)}, with the learning rate {', '.join(map(str, rates)) or 'unknown'}",
        "Nothing was learned of this batch. Lower the learning rate, or look at its samples and at the terms "
        "that plugins add.",
    )


def check_weights(strategy: Any) -> None:
    """Raise `ValueError` unless the weights that train are finite; to be called after an epoch."""
    names = {id(parameter): name for name, parameter in strategy.model.named_parameters()}
    parameters = [each for group in _groups(strategy.optimizer) for each in group["params"]]
    bad = [each for each, finite in zip(parameters, _all_finite(parameters), strict=True) if not finite]
    if bad:
        shown = ", ".join(names.get(id(each), f"a tensor {tuple(each.shape)}") for each in bad[:4])
        raise wrong_value(
            "strategy.model",
            "one whose weights stay finite",
            f"{len(bad)} of {len(parameters)} that are not, {shown} among them, after an epoch of "
            f"{_place(strategy)}",
            "A finite loss may have a gradient that is not; lower the learning rate, or look at the terms "
            "that plugins add.",
        )


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    return getattr(optimizer, "param_groups", [])  # some of the host's strategies have no optimizer


def _place(strategy: Any) -> str:
    places = [position_in_training(each.logging()) for each in trained_experiences(strategy)]
    return f"experience{'s' * (len(places) > 1)} {', '.join(map(str, places))}"


def _all_finite(tensors: Iterable[Tensor]) -> list[bool]:
    """Return whether each tensor is finite, waiting for a device once."""
    found = [tensor.detach().isfinite().all() for tensor in tensors]
    return torch.stack(found).tolist() if found else []


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (float, int)):
        yield float(value)
    elif isinstance(value, Tensor):
        if value.device.type == "cpu" and not value.is_complex():
            yield from value.detach().double().flatten().tolist()
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _numbers(each)
