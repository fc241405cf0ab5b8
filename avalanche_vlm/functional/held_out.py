"""How two scorers are fused best, by rows that were left out."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
TEMPERATURES = (0.3, 0.5, 0.7, 1.0, 1.5)
NO_DOUBT = 4.0  # standard errors
_ENTRIES_AT_ONCE = 2**18
_LEAST_EXPONENT = -350.0  # two of them make no zero


@lru_cache(maxsize=1)
def fusion_grid() -> tuple[tuple[float, float], ...]:
    """Return the pairs (a, t) that are tried, the safest first: by a / t, then by t nearest 1."""
    pairs = [(a, t) for a in WEIGHTS for t in TEMPERATURES]
    return tuple(sorted(pairs, key=lambda pair: (pair[0] / pair[1], abs(math.log(pair[1])))))


def left_out_differences(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    r"""Return how much better or worse each fusion of the grid does than the first scorer, (N, J).

    .. math:: d_{ij} = \mathrm{CE}_i(a_j, t_j) - \mathrm{CE}_i(0, 1), \qquad
        \mathrm{CE}_i(a, t) = -\log \mathrm{softmax}(t z^0_i + a \log q_i)_{y_i}

    Args:
        first: logits (N, K) of the first scorer over the classes that the second knows.
        second: logits (N, K) of the second.
        targets: int64 (N,), the columns of the right classes.
    """
    grid = fusion_grid()
    weights, temperatures = (first.new_tensor(each).double() for each in (WEIGHTS, TEMPERATURES))
    column = [WEIGHTS.index(a) + TEMPERATURES.index(t) * len(WEIGHTS) for a, t in grid]
    found: list[Tensor] = []
    at_once = max(1, _ENTRIES_AT_ONCE // max(first.shape[1], 1))
    for z, g, y in zip(*(each.split(at_once) for each in (first, second, targets)), strict=True):
        z, g = (F.log_softmax(each.double(), dim=1) for each in (z, g))
        # Sums of products in place of 75 sums of exponentials.
        parts = [
            (scale[:, None, None] * each).clamp_min(_LEAST_EXPONENT).exp()
            for scale, each in ((temperatures, z), (weights, g))
        ]
        mass = torch.einsum("tnk,ank->nta", *parts).log().flatten(1)[:, column]
        right_z, right_g = (each.gather(1, y[:, None]) for each in (z, g))
        a, t = (first.new_tensor([pair[k] for pair in grid]).double() for k in (0, 1))
        found.append(mass - t * right_z - a * right_g + right_z)
    return torch.cat(found) if found else first.new_zeros(0, len(grid)).double()


class LeftOutScores(NamedTuple):
    """How the fusions of the grid did on rows that were left out; those of two lots of rows add up.

    Each row weighs as much as there were classes to choose from, because a fusion that is good among few
    classes need not be among many.

    Attributes:
        sums: float64 (2, J), the weighted sum of `left_out_differences`, and that with squared weights.
        products: float64 (J, J), the sum of the products of those of each row, with squared weights.
        weights: float64 (2,), the sum of the weights, and of their squares.
    """

    sums: Tensor
    products: Tensor
    weights: Tensor


def left_out_scores(differences: Tensor, weight: float) -> LeftOutScores:
    """Return the sums over rows whose `left_out_differences` are given, (N, J), and which all weigh alike."""
    total, count, square = differences.sum(dim=0), len(differences), weight * weight
    return LeftOutScores(
        torch.stack([weight * total, square * total]),
        square * differences.T @ differences,
        differences.new_tensor([weight * count, square * count]),
    )


def chosen_fusion(scores: LeftOutScores) -> tuple[float, float]:
    r"""Return the pair (a, t) that left-out rows speak for, and zero-shot where they leave doubt.

    The pair with the least mean cross-entropy, if that is better than the first scorer alone by more than
    four standard errors; else the smallest a / t whose mean is within one standard error of the least. The
    standard errors are those of the paired differences to the least. Rows that together weigh less than two
    choose the first scorer alone, (0, 1).

    Args:
        scores: from `left_out_scores`.
    """
    grid, (weight, square) = fusion_grid(), scores.weights.tolist()
    if square == 0 or weight * weight < 2 * square:
        return 0.0, 1.0
    means = scores.sums[0] / weight
    best = int(means.argmin())
    gaps = means - means[best]
    both = scores.sums[1] - scores.sums[1, best]
    squares = scores.products.diagonal() - 2 * scores.products[best] + scores.products[best, best]
    errors = (squares - 2 * gaps * both + gaps**2 * square).clamp_min(0).sqrt() / weight
    alone = grid.index((0.0, 1.0))
    if gaps[alone] > NO_DOUBT * errors[alone]:
        return grid[best]
    return grid[int((gaps <= errors).nonzero()[0])]
