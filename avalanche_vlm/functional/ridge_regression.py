"""Ridge regression of one-hot labels on features, from sums that add up in any order."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_vlm._checks import check_number
from avalanche_vlm.functional.discriminant import FeatureSums

LEAST_RIDGE = 1e-9
"""Below it a second moment of a few thousand features has no Cholesky factor in float64."""


def ridge_regression_weights(of: FeatureSums, *, ridge: float) -> tuple[Tensor, Tensor]:
    r"""Return the classes (K,) that have rows, and the weights (M, K) of the regression on their labels.

    .. math::
        w = (G + \lambda I)^{-1} Q, \qquad \lambda = \rho \, \frac{\mathrm{tr}\, G}{M}, \qquad
        G = \sum_i h_i h_i^T, \qquad Q_c = \sum_{i: y_i = c} h_i

    which is the least of :math:`\sum_i \lVert h_i^T w - e_{y_i} \rVert^2 + \lambda \lVert w \rVert^2`, with
    the unit vector :math:`e_c` of class c. Multiplying all features by a number leaves :math:`h^T w` as it
    is, and so does repeating all rows. Without any spread (all features zero) the weights are zero.

    Args:
        of: sums over at least one row: counts (C,), Q as ``sums`` (C, M), G as ``second_moment`` (M, M).
        ridge: the factor :math:`\rho`, at least 1e-9.

    Raises:
        TypeError: ``ridge`` is no number.
        ValueError: it is out of its range.

    References:
        McDonnell et al., RanPAC, NeurIPS 2023 (arXiv 2307.02251), section 4.

    Deviations:
        There λ is chosen among powers of ten on the last rows of each experience, so that the result depends
        on the order of experiences; here it is a multiple of the mean second moment of a feature.
    """
    check_number("ridge", ridge, at_least=LEAST_RIDGE)
    classes = of.counts.nonzero().flatten()
    targets = of.sums[classes].T.double()
    mean = float(of.second_moment.trace()) / max(len(of.second_moment), 1)
    if mean == 0:
        return classes, torch.zeros_like(targets)
    system = of.second_moment.double() / mean
    system.diagonal().add_(ridge)
    return classes, torch.cholesky_solve(targets / mean, torch.linalg.cholesky(system))
