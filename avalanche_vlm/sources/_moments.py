"""Moments of all classes at once, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Numbers that a group of padded classes may hold: 128 MB in float64.
_MOST_NUMBERS = 2**24


def means_and_deviations(features: Tensor, positions: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means (K, D) of K classes, and what each feature (N, D) differs from that of its class.

    A dimension that is constant in a class differs by exactly 0.
    """
    features = features.double()
    sums = features.new_zeros(len(counts), features.shape[1]).index_add_(0, positions, features)
    means = sums / counts[:, None]
    return means, features - means[positions]


def sums_of_squares(deviations: Tensor, positions: Tensor, counts: Tensor) -> Tensor:
    """Return the sum (K, D) of the squared deviations of each class."""
    sums = deviations.new_zeros(len(counts), deviations.shape[1])
    return sums.index_add_(0, positions, deviations.square())


def degrees_of_freedom(counts: Tensor) -> Tensor:
    """Return the divisor (K,) of sums of squares; a class with one sample has sums of 0, and gets 1."""
    return (counts - 1).clamp(min=1)


def padded_groups(positions: Tensor, counts: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the classes in groups of like size, each padded to its largest.

    Args:
        positions: int64 (N,), which class each row belongs to.
        counts: int64 (K,), how many rows each class has.
        width: D; a group has room for its rows (m, D) and a matrix (D, D) a class.

    Yields:
        The classes (g,), the rows (g, m) of each, and which of these (g, m) are no padding.
    """
    rows = positions.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    by_size = counts.argsort(descending=True, stable=True)
    sizes: list[int] = counts[by_size].tolist()
    begin = 0
    while begin < len(sizes):
        largest = sizes[begin]
        group = by_size[begin : begin + max(1, _MOST_NUMBERS // ((largest + width) * width))]
        begin += len(group)
        steps = torch.arange(largest, device=positions.device)
        inside = steps < counts[group][:, None]
        yield group, rows[(starts[group][:, None] + steps).clamp(max=len(rows) - 1)], inside


def padded_deviations(
    deviations: Tensor, positions: Tensor, counts: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield groups of classes (g,) with their deviations (g, m, D), padded by zeros."""
    for group, rows, inside in padded_groups(positions, counts, deviations.shape[1]):
        yield group, deviations[rows].masked_fill_(~inside[..., None], 0)


def multiplied(noise: Tensor, components: Tensor, factors: Callable[[Tensor], Tensor], width: int) -> Tensor:
    """Return the product (B, D) of each row of ``noise`` with the factor of its component.

    A factor is made once for all rows of its component, and not once a row.

    Args:
        noise: float32 (B, k).
        components: int64 (B,).
        factors: components (g,) -> float32 (g, k, D).
        width: D.
    """
    used, positions, counts = components.unique(return_inverse=True, return_counts=True)
    product = noise.new_empty(len(noise), width)
    for group, rows, inside in padded_groups(positions, counts, width):
        product[rows[inside]] = (noise[rows] @ factors(used[group]))[inside]
    return product
