"""Drawing a share of the samples of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_vlm._checks import check_number


def shuffled_by_class(targets: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Return the positions (n,) of the samples of each class, by class id, each in a random order.

    Args:
        targets: int64 (N,), class ids.
        generator: of the orders; a class with one sample draws nothing from it.

    >>> [len(own) for own in shuffled_by_class(torch.tensor([7, 4, 7, 7]), torch.Generator())]
    [1, 3]
    """
    shuffled: list[Tensor] = []
    for label in targets.unique().tolist():
        own = (targets == label).nonzero().flatten()
        shuffled.append(own[torch.randperm(len(own), generator=generator)])
    return shuffled


def held_out_positions(targets: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Return the sorted positions (V,) of a share of each class, drawn at random.

    Of a class with n samples they are round(fraction · n), and at least one is drawn and one left. A class
    with one sample keeps it.

    Args:
        targets: int64 (N,), class ids.
        fraction: the share, between 0 and 1, both excluded.
        generator: of the draw, which depends on it and on the order of the samples alone.

    Returns:
        int64 (V,); empty where no class has two samples.

    Raises:
        ValueError: ``fraction`` is out of its range.

    >>> targets = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> held_out_positions(targets, 0.5, torch.Generator().manual_seed(0))
    tensor([0, 1, 4])
    """
    check_number("fraction", fraction, above=0, below=1)
    drawn = [
        own[: min(max(round(fraction * len(own)), 1), len(own) - 1)]
        for own in shuffled_by_class(targets, generator)
    ]
    return torch.cat([torch.empty(0, dtype=torch.int64, device=targets.device), *drawn]).sort().values
