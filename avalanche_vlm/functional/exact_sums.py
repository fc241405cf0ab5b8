"""Sums of features that are the same to the last bit in whatever order and pieces they are taken."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_vlm.functional.discriminant import FeatureSums

UNIT = 2.0**-16
"""Unit features are rounded to multiples of this."""
MOMENT_UNIT = UNIT * UNIT
MOST_ROWS = 2**31 - 1
"""So many rows can be summed exactly; their second moment then fills an int64."""
_ROWS_AT_ONCE = 2**20  # a float64 product of so many rows is exact: it has at most 2 ** 52 units
_MASK = (1 << 64) - 1
_FIRST_SIGN = 12  # bits of a row's hash: the lowest choose its fold


class ExactSums(NamedTuple):
    """Sums of rounded unit features, in F folds; those of two lots of rows are added entry by entry.

    Attributes:
        counts: int64 (F, C), number of rows of each class.
        sums: float64 (F, C, D), their sum, a multiple of 2⁻¹⁶; exact for up to 2³⁷ rows of a class.
        second_moment: int64 (F, D, D), the sum of the products of all rows with themselves, in units of
            2⁻³²; exact for up to 2³¹ - 1 rows.
    """

    counts: Tensor
    sums: Tensor
    second_moment: Tensor

    def total(self, without: int | None = None) -> FeatureSums:
        """Return the sums over all folds, or over all but one, as float64."""
        folds = [fold for fold in range(len(self.counts)) if fold != without]
        counts, sums, moment = (each[folds].sum(dim=0) for each in self)
        return FeatureSums(counts, sums, moment.double() * MOMENT_UNIT)


def rounded_unit_rows(features: Tensor) -> Tensor:
    r"""Return :math:`u = \mathrm{round}(2^{16} x / \lVert x \rVert) / 2^{16}` (N, D), in float64.

    Each row depends on itself alone, to the last bit: the squares are added in a fixed order, whatever the
    number of rows. Zeros stay zeros.
    """
    x = features.detach().double()
    squares = x * x
    while squares.shape[1] > 1:
        if squares.shape[1] % 2:
            squares = torch.cat([squares, squares.new_zeros(len(squares), 1)], dim=1)
        half = squares.shape[1] // 2
        squares = squares[:, :half] + squares[:, half:]
    return (x / squares.sqrt().clamp_min(1e-300) / UNIT).round() * UNIT


def row_hashes(unit: Tensor) -> Tensor:
    """Return a number from 0 to 2³¹ - 1 of each rounded row (N, D) that depends on its values alone."""
    whole = (unit / UNIT).to(torch.int64)
    mixed = (whole * _multipliers(unit.shape[1]).to(unit.device)).sum(dim=1)  # modulo 2 ** 64
    mixed = (mixed ^ (mixed >> 29)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> 32)) * _signed(0x94D049BB133111EB)
    return (mixed >> 33) & (2**31 - 1)


def exact_sums(unit: Tensor, labels: Tensor, class_count: int, *, folds: int = 1) -> ExactSums:
    r"""Return the sums of rounded unit rows, in folds that a hash of each row chooses.

    .. math:: n_{fc} = \sum_{i} 1, \qquad s_{fc} = \sum_i u_i, \qquad M_f = \sum_i u_i u_i^T

    over the rows i of fold f (and class c). Bit for bit the same for any order of the rows, and the sum of
    the results for any split of them.

    Args:
        unit: (N, D), from `rounded_unit_rows`.
        labels: int64 (N,), in 0..C-1.
        class_count: number C of classes.
        folds: number F of folds.
    """
    width = unit.shape[1]
    fold = row_hashes(unit) % folds
    place = fold * class_count + labels
    counts = place.bincount(minlength=folds * class_count).reshape(folds, class_count)
    sums = unit.new_zeros(folds * class_count, width).index_add_(0, place, unit)
    moment = torch.zeros(folds, width, width, dtype=torch.int64, device=unit.device)
    for number in range(folds):
        for part in unit[fold == number].split(_ROWS_AT_ONCE):
            moment[number] += (part.T @ part / MOMENT_UNIT).to(torch.int64)
    return ExactSums(counts, sums.reshape(folds, class_count, width), moment)


class Sketches(NamedTuple):
    """What is kept of the spread of each class; those of two lots of rows are added entry by entry.

    Attributes:
        rows: float64 (C, h, D), h sums over the rows of a class, each with signs of its own.
        signs: float64 (C, h), the sums of these signs.
    """

    rows: Tensor
    signs: Tensor


def sketches(unit: Tensor, labels: Tensor, class_count: int, *, size: int) -> Sketches:
    r"""Return random sums of the rows of each class.

    .. math:: B_{cj} = \sum_{i: y_i = c} \epsilon_{ij} u_i, \qquad \epsilon_{ij} \in \{-1, 1\}

    with signs from a hash of the row, so that :math:`B_c^T B_c / h` is the second moment of the class in the
    mean over signs. Exact as `exact_sums`.

    Args:
        unit: (N, D), from `rounded_unit_rows`.
        labels: int64 (N,), in 0..C-1.
        class_count: number C of classes.
        size: number h of sums, 1 to 16.
    """
    bits = row_hashes(unit)[:, None] >> torch.arange(_FIRST_SIGN, _FIRST_SIGN + size, device=unit.device)
    signs = (1 - 2 * (bits & 1)).to(unit)
    rows = unit.new_zeros(class_count, size, unit.shape[1])
    for j in range(size):
        rows[:, j].index_add_(0, labels, signs[:, j : j + 1] * unit)
    return Sketches(rows, unit.new_zeros(class_count, size).index_add_(0, labels, signs))


def _signed(number: int) -> int:
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number


@lru_cache(maxsize=32)
def _multipliers(width: int) -> Tensor:
    """Return odd numbers of 64 bits (D,), from SplitMix64."""
    found: list[int] = []
    for index in range(1, width + 1):
        z = (index * 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        found.append(_signed((z ^ (z >> 31)) | 1))
    return torch.tensor(found, dtype=torch.int64)
