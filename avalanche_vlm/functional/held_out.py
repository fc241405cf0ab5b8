"""How two scorers are fused best, by rows that were left out."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
TEMPERATURES = (0.3, 0.5, 0.7, 1.0, 1.5)


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
    first, second = first.double(), F.log_softmax(second.double(), dim=1)
    right_first, right_second = (each.gather(1, targets[:, None])[:, 0] for each in (first, second))
    reference = first.logsumexp(dim=1) - right_first
    found: list[Tensor] = []
    for a, t in fusion_grid():
        mass = torch.add(t * first, second, alpha=a).logsumexp(dim=1)
        found.append(mass - t * right_first - a * right_second - reference)
    return torch.stack(found, dim=1)


def chosen_fusion(sums: Tensor, products: Tensor, count: int) -> tuple[float, float]:
    """Return the pair (a, t) of the smallest a / t whose mean loss is within a standard error of the least.

    The standard error is that of the mean paired difference to the pair with the least loss. Fewer than two
    rows choose the first scorer alone, (0, 1).

    Args:
        sums: float64 (J,), the sum of `left_out_differences` over rows.
        products: float64 (J, J), the sum of the products of those of each row.
        count: number of rows.
    """
    if count < 2:
        return 0.0, 1.0
    means = sums / count
    best = int(means.argmin())
    squares = products.diagonal() - 2 * products[best] + products[best, best]
    gaps = means - means[best]
    errors = ((squares / count - gaps**2).clamp_min(0) / (count - 1)).sqrt()
    return fusion_grid()[int((gaps <= errors).nonzero()[0])]
