"""How classes lie to each other in the text space."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_count, check_number, wrong_value
from avalanche_vlm.functional.cross_modal import soft_label_divergence


def nearest_classes(features: Tensor, rows: Tensor, count: int) -> Tensor:
    r"""Return the classes that are nearest to some classes by the cosine of their features.

    Args:
        features: (C, D), of all classes that count.
        rows: int64 (R,), the classes whose neighbours are asked for, as rows of ``features``.
        count: how many neighbours; all other classes if there are fewer.

    Returns:
        int64 (R, min(count, C - 1)), rows of ``features``, nearest first; none is its own neighbour.

    Raises:
        ValueError: a count smaller than 1.

    >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> nearest_classes(features, torch.tensor([0, 2]), 1)
    tensor([[1],
            [1]])
    """
    check_count("count", count)
    unit = F.normalize(features, dim=1)
    cosines = unit[rows] @ unit.T
    cosines[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
    return cosines.topk(min(count, len(features) - 1), dim=1).indices


def neighbour_cosines(features: Tensor, rows: Tensor, neighbours: Tensor) -> Tensor:
    """Return the cosines (R, k) of some rows (R,) of features (C, D) with their neighbours (R, k)."""
    unit = F.normalize(features, dim=1)
    return (unit[rows, None] * unit[neighbours]).sum(dim=2)


def text_geometry_divergence(student: Tensor, teacher: Tensor, *, temperature: float = 0.05) -> Tensor:
    r"""Return how far the neighbourhoods of classes are from what they were, a scalar.

    .. math:: L = \frac1R \sum_c KL\big( \sigma(\rho'_c / \tau) \,\big\|\, \sigma(\rho_c / \tau) \big)

    with the cosines ρ of a class with its neighbours, those of the teacher with a prime.

    Args:
        student: cosines (R, k).
        teacher: cosines (R, k), without a gradient.
        temperature: τ.

    Raises:
        ValueError: different shapes, or a temperature that is not positive.

    References:
        SeGP-CL (arXiv 2603.12055), text semantic-geometry regularisation.

    >>> cosines = torch.tensor([[0.9, 0.7]])
    >>> float(text_geometry_divergence(cosines, cosines))
    0.0
    """
    check_number("temperature", temperature, above=0)
    if student.shape != teacher.shape or student.ndim != 2:
        raise wrong_value("teacher", f"cosines (R, k) like {tuple(student.shape)}", tuple(teacher.shape))
    # Not with the factor τ² of a distillation.
    return soft_label_divergence(student / temperature, teacher / temperature, temperature=1.0)
