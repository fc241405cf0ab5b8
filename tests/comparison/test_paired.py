"""Intervals of paired differences, against SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from avalanche_vlm.comparison import PairedDifference, paired_difference

values = st.floats(0, 1, allow_subnormal=False)
pairs = st.dictionaries(st.integers(0, 20), st.tuples(values, values), min_size=2)


def apart(numbers):
    return {seed: a for seed, (a, _) in numbers.items()}, {seed: b for seed, (_, b) in numbers.items()}


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_the_interval_is_that_of_scipy(count, confidence):
    generator = np.random.default_rng(count)
    first, second = generator.random(count), generator.random(count)
    found = paired_difference(dict(enumerate(first)), dict(enumerate(second)), confidence=confidence)
    expected = ttest_rel(first, second).confidence_interval(confidence)
    assert found.pairs == count
    assert found.mean == pytest.approx(np.mean(first - second))
    assert found.mean - found.half_width == pytest.approx(expected.low)
    assert found.mean + found.half_width == pytest.approx(expected.high)


@settings(deadline=None)  # the machine may be busy
@given(pairs)
def test_the_other_way_round_it_has_the_other_sign(numbers):
    first, second = apart(numbers)
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (there.mean, there.half_width, there.pairs) == (-back.mean, back.half_width, back.pairs)


@settings(deadline=None)  # the machine may be busy
@given(pairs, st.floats(-1, 1))
def test_what_both_have_more_says_nothing(numbers, shift):
    first, second = apart(numbers)
    there = paired_difference(first, second)
    moved = paired_difference(
        {seed: value + shift for seed, value in first.items()},
        {seed: value + shift for seed, value in second.items()},
    )
    assert moved.mean == pytest.approx(there.mean, abs=1e-12)
    assert moved.half_width == pytest.approx(there.half_width, abs=1e-12)


@settings(deadline=None)  # the machine may be busy
@given(pairs, st.randoms())
def test_the_order_of_seeds_says_nothing(numbers, random):
    first, second = apart(numbers)
    order = list(first)
    random.shuffle(order)
    assert paired_difference({seed: first[seed] for seed in order}, second) == paired_difference(
        first, second
    )


def test_only_seeds_that_both_have_count():
    found = paired_difference({0: 0.5, 1: 0.75, 7: 0.0}, {1: 0.5, 0: 0.5, 8: 1.0})
    assert (found.mean, found.pairs) == (0.125, 2)
    one = paired_difference({0: 0.5, 1: 0.75}, {1: 0.5})
    assert (one.mean, one.pairs) == (0.25, 1)
    assert math.isnan(one.half_width)
    none = paired_difference({0: 0.5}, {1: 0.5})
    assert none.pairs == 0
    assert math.isnan(none.mean)
    assert math.isnan(none.half_width)


@pytest.mark.parametrize("confidence", [-0.1, 1.5, math.nan])
def test_a_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="`confidence` must be a finite number and above 0.0 and below 1.0"):
        paired_difference({}, {}, confidence=confidence)
    with pytest.raises(TypeError, match="`confidence` must be a number"):
        paired_difference({}, {}, confidence="95 %")


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (PairedDifference(math.nan, math.nan, 0), "–"),
        (PairedDifference(-0.0123, math.nan, 1), "-1.2 (1 pair)"),
        (PairedDifference(0.0123, 0.5, 2), "+1.2 (2 pairs)"),
        (PairedDifference(-0.0123, 0.0456, 3), "-1.2 ± 4.6"),
    ],
)
def test_few_pairs_are_told_without_an_interval(difference, text):
    assert difference.text(100) == text


def test_the_scale_is_of_both_numbers():
    assert PairedDifference(2.0, 1.0, 5).text() == "+2.0 ± 1.0"
    assert PairedDifference(2.0, 1.0, 5).text(scale=0.5) == "+1.0 ± 0.5"


def test_numbers_that_were_not_measured_make_no_pair():
    nan = float("nan")
    assert paired_difference({0: 1.0, 1: nan, 2: 3.0}, {0: 0.5, 1: 1.0, 2: 2.0}).pairs == 2
    assert paired_difference({0: nan}, {0: 1.0}).text() == "–"
