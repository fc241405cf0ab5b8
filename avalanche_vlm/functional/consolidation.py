"""How much weights matter to a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalised_importance(squared_gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    r"""Return importances with mean 1 in each tensor, from squared gradients.

    .. math:: F_i = \frac{g_i^2}{\frac1n \sum_{i'} g_{i'}^2}

    over the n entries of a tensor. A tensor whose gradient is 0 everywhere gets importances of 0, and
    None, a tensor that the loss does not depend on, stays None.

    References:
        The code of Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models,
        CVPR 2025: the paper's equation has no mean, and without it the strength of the penalty would
        hang on the scale of the loss.

    Deviations:
        That code gives a tensor without gradient an importance of 1e-6, here it has none.

    >>> normalised_importance([torch.tensor([1.0, 3.0]), torch.zeros(2), None])
    [tensor([0.5000, 1.5000]), tensor([0., 0.]), None]
    """
    return [None if square is None else square / _positive(square.mean()) for square in squared_gradients]


def _positive(mean: Tensor) -> Tensor:
    return torch.where(mean > 0, mean, torch.ones_like(mean))
