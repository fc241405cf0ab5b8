"""What the laws are made of: a run, the tensors that it leaves, and what differs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Snapshot = dict[str, Tensor]


class LawBroken(AssertionError):
    """A component breaks a law; the message says which and where."""


def require(condition: bool, message: str) -> None:
    """Raise `LawBroken` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise LawBroken(message)


def snapshot(model: nn.Module) -> Snapshot:
    """Return copies of all parameters and buffers, the non-persistent ones included."""
    tensors = [*nn.Module.named_parameters(model), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def differing(before: Snapshot, after: Snapshot) -> list[str]:
    """Return the names that are in one only, or whose values differ in any bit."""
    names = before.keys() | after.keys()
    return sorted(
        name
        for name in names
        if name not in before or name not in after or not torch.equal(before[name], after[name])
    )


def run(strategy: Any, benchmark: Any, *, seed: int = 0) -> Snapshot:
    """Train a strategy on every experience, evaluating after each, and return its model's tensors.

    The global generator, from which the host shuffles, is seeded and put back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
    return snapshot(strategy.model)
