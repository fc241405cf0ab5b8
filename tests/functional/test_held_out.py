"""How fusions are compared on left-out rows, against loops from the definition."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from avalanche_vlm.functional.held_out import (
    LeftOutScores,
    chosen_fusion,
    fusion_grid,
    left_out_differences,
    left_out_scores,
)


def scores(count=40, classes=7, seed=0, scale=8.0):
    draw = torch.Generator().manual_seed(seed)
    first, second = (scale * torch.randn(count, classes, generator=draw) for _ in range(2))
    return first, second, torch.randint(0, classes, (count,), generator=draw)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_differences_equal_cross_entropies(scale):
    first, second, y = scores(scale=scale)
    made = left_out_differences(first, second, y)
    z, g = first.double(), second.double().log_softmax(dim=1)
    alone = F.cross_entropy(z, y, reduction="none")
    for column, (a, t) in enumerate(fusion_grid()):
        expected = F.cross_entropy(t * z + a * g, y, reduction="none") - alone
        torch.testing.assert_close(made[:, column], expected, atol=1e-4, rtol=1e-6)
    assert left_out_differences(first[:0], second[:0], y[:0]).shape == (0, len(fusion_grid()))


def choice_by_definition(differences, weights):
    grid = fusion_grid()
    d, w = differences.numpy(), np.asarray(weights, dtype=float)
    if w.sum() ** 2 < 2 * (w * w).sum():
        return 0.0, 1.0
    means = [(w * d[:, j]).sum() / w.sum() for j in range(len(grid))]
    best = int(np.argmin(means))

    def error(j):
        gap = d[:, j] - d[:, best]
        centre = (w * gap).sum() / w.sum()
        return np.sqrt((w * w * (gap - centre) ** 2).sum()) / w.sum()

    alone = grid.index((0.0, 1.0))
    if means[alone] - means[best] > 4 * error(alone):
        return grid[best]
    return next(pair for j, pair in enumerate(grid) if means[j] - means[best] <= error(j) + 1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_equals_the_definition(seed):
    """With rows that the second scorer helps with a little, much, or not at all, of different weights."""
    lots, sums = [], None
    for number, classes in enumerate((3, 5, 9)):
        first, second, y = scores(10 + 30 * number, classes, seed + number, scale=1.5)
        second = second + (seed % 4) * F.one_hot(y, classes)
        differences = left_out_differences(first, second, y)
        more = left_out_scores(differences, classes)
        sums = more if sums is None else LeftOutScores(*(a + b for a, b in zip(sums, more, strict=True)))
        lots.append((differences, [classes] * len(y)))
    differences = torch.cat([each for each, _ in lots])
    weights = [weight for _, each in lots for weight in each]
    assert chosen_fusion(sums) == choice_by_definition(differences, weights)


def test_few_rows_and_useless_scorers_leave_the_first_alone():
    first, second, y = scores(1)
    assert chosen_fusion(left_out_scores(left_out_differences(first, second, y), 7)) == (0.0, 1.0)
    empty = left_out_scores(left_out_differences(first[:0], second[:0], y[:0]), 7)
    assert chosen_fusion(empty) == (0.0, 1.0)
    y = torch.arange(200) % 7
    first = 6 * F.one_hot(y, 7) + scores(200)[0] / 8
    assert chosen_fusion(left_out_scores(left_out_differences(first, scores(200)[1], y), 7))[0] == 0.0


def test_the_grid_begins_with_the_safest():
    assert fusion_grid()[0] == (0.0, 1.0)
    ratios = [a / t for a, t in fusion_grid()]
    assert ratios == sorted(ratios)
    assert len(set(fusion_grid())) == 75
