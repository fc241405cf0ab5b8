"""Layers of small networks, started from a generator of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class ChannelAffine(nn.Module):
    r"""A factor and an offset for each channel, :math:`y = \gamma \odot x + \beta`.

    Args:
        channels: number of channels, the last axis of x (..., channels).

    >>> ChannelAffine(3)(torch.ones(2, 3)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., channels) scaled and shifted."""
        return x * self.weight + self.bias


def seeded_linear(inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with torch's usual start, U(±1/√inputs), drawn from ``generator``."""
    layer: Any = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    bound = 1 / math.sqrt(inputs)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer
