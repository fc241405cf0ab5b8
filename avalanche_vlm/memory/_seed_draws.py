"""Draws around seeds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm.memory._seed_store import SeedStore


class SeedDraw(NamedTuple):
    """Samples from a memory of seeds.

    Attributes:
        visual: (B, D), embeddings around seeds, as long as those that the seeds stand for.
        labels: int64 (B,).
        rows: int64 (B,), the seed that each comes from.
    """

    visual: Tensor
    labels: Tensor
    rows: Tensor


def around(store: SeedStore, rows: Tensor, jitter: float, generator: torch.Generator) -> SeedDraw:
    """Draw around the seeds int64 (B,) of a store, ``jitter`` deviations of their class away."""
    visual, numbers = store.visual.rows(rows), store.numbers
    if jitter > 0:
        noise = torch.randn(visual.shape, generator=generator)
        visual = F.normalize(visual + jitter * numbers.spreads[rows, None] * noise, dim=1)
    return SeedDraw(visual * numbers.lengths[rows, None], numbers.labels[rows], rows)


def rows_of_each_class(store: SeedStore, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` seeds of each class, by how many features they stand for: int64 (K · count,)."""
    labels, counts = store.numbers.labels, store.numbers.counts
    classes, positions, sizes = labels.unique(return_inverse=True, return_counts=True)
    order = positions.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(order)) - starts[positions[order]]
    weights = torch.zeros(len(classes), int(sizes.max()))
    weights[positions[order], place] = counts[order]
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    return order[(starts[:, None] + drawn).flatten()]
