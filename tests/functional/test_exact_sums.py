"""Sums that are the same to the last bit, whatever order and pieces they come in."""

from fractions import Fraction

import pytest
import torch

from avalanche_vlm.functional.exact_sums import (
    MOMENT_UNIT,
    UNIT,
    ExactSums,
    exact_sums,
    rounded_unit_rows,
    row_hashes,
)


def rows(count=60, width=9, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw) * 7, torch.randint(0, 4, (count,), generator=draw)


def test_rows_are_of_unit_length_and_rounded():
    x, _ = rows()
    unit = rounded_unit_rows(x)
    expected = torch.nn.functional.normalize(x.double(), dim=1)
    assert (unit - expected).abs().max() <= UNIT / 2
    assert torch.equal(unit / UNIT, (unit / UNIT).round())
    assert not rounded_unit_rows(torch.zeros(2, 5)).any()


@pytest.mark.parametrize("width", [1, 2, 7, 512, 513])
def test_a_row_depends_on_itself_alone(width):
    x, _ = rows(40, width)
    whole = rounded_unit_rows(x)
    one_by_one = torch.cat([rounded_unit_rows(row[None]) for row in x])
    assert torch.equal(one_by_one, whole)
    assert torch.equal(rounded_unit_rows(x.T.contiguous().T[::2]), whole[::2])  # strides do not count
    assert torch.equal(row_hashes(whole), torch.cat([row_hashes(row[None]) for row in whole]))


def test_sums_equal_fractions():
    x, y = rows(30, 4)
    unit = rounded_unit_rows(x)
    made = exact_sums(unit, y, 5, folds=3)
    fold = (row_hashes(unit) % 3).tolist()
    for f in range(3):
        own = [row for row in range(30) if fold[row] == f]
        moment = [
            [sum(Fraction(u[i]) * Fraction(u[j]) for u in unit[own].tolist()) for j in range(4)]
            for i in range(4)
        ]
        assert [
            [Fraction(v) * Fraction(MOMENT_UNIT) for v in r] for r in made.second_moment[f].tolist()
        ] == moment
        for c in range(5):
            of_class = [row for row in own if int(y[row]) == c]
            assert int(made.counts[f, c]) == len(of_class)
            total = [sum((Fraction(unit[row, d].item()) for row in of_class), Fraction(0)) for d in range(4)]
            assert [Fraction(v) for v in made.sums[f, c].tolist()] == total


def test_any_order_and_any_split_give_the_same_bits():
    x, y = rows(200, 33)
    whole = exact_sums(rounded_unit_rows(x), y, 4, folds=4)
    for seed in range(50):
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(200, generator=draw)
        cuts = sorted(set(torch.randint(1, 200, (seed % 7,), generator=draw).tolist()))
        parts = torch.tensor_split(order, cuts)
        made = [exact_sums(rounded_unit_rows(x[part]), y[part], 4, folds=4) for part in parts]
        total = ExactSums(*(sum(each[1:], start=each[0]) for each in zip(*made, strict=True)))
        assert all(torch.equal(a, b) for a, b in zip(total, whole, strict=True))


def test_folds_are_of_about_the_same_size_and_add_up():
    x, y = rows(4000, 8)
    unit = rounded_unit_rows(x)
    made = exact_sums(unit, y, 4, folds=4)
    assert (made.counts.sum(dim=1) - 1000).abs().max() < 120  # four standard deviations
    total, without = made.total(), made.total(without=2)
    assert torch.equal(total.counts, y.bincount(minlength=4))
    torch.testing.assert_close(total.second_moment, unit.T @ unit, rtol=0, atol=0)
    assert torch.equal(without.sums, total.sums - made.sums[2])
