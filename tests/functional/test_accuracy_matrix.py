"""The metrics against plain loops over their equations, and their behaviour when entries are missing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_vlm import functional as F

METRICS = {
    "average_accuracy": F.average_accuracy,
    "average_incremental_accuracy": F.average_incremental_accuracy,
    "last_accuracy": F.last_accuracy,
    "transfer": F.transfer,
    "ci_transfer": F.ci_transfer,
    "forgetting": F.forgetting,
    "backward_transfer": F.backward_transfer,
    "forward_transfer": F.forward_transfer,
    "zero_shot_accuracy": F.zero_shot_accuracy,
}
NAN = float("nan")


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else NAN


def reference(name, a, counts=None):
    """The equation as written: rows from 0, experiences from 1."""
    T = len(a[0])
    n = [None, *(counts or [1] * T)]

    def e(t, j):
        return a[t][j - 1]

    ts = range(1, T + 1)
    return {
        "average_accuracy": lambda: mean(e(t, j) for t in ts for j in ts),
        "average_incremental_accuracy": lambda: mean(
            sum(n[j] * e(t, j) for j in range(1, t + 1)) / sum(n[1 : t + 1]) for t in ts
        ),
        "last_accuracy": lambda: sum(n[j] * e(T, j) for j in ts) / sum(n[1:]),
        "transfer": lambda: mean(mean(e(t, j) for t in range(1, j)) for j in range(2, T + 1)),
        "ci_transfer": lambda: mean(mean(e(t, j) for j in range(t + 1, T + 1)) for t in range(1, T)),
        "forgetting": lambda: mean(max(e(t, j) for t in range(j, T)) - e(T, j) for j in range(1, T)),
        "backward_transfer": lambda: mean(e(T, j) - e(j, j) for j in range(1, T)),
        "forward_transfer": lambda: mean(e(j - 1, j) - e(0, j) for j in range(2, T + 1)),
        "zero_shot_accuracy": lambda: mean(e(0, j) for j in ts),
    }[name]()


def needed(name, T):
    """Which entries (row, column) enter each equation, column from 0."""
    square = [(t, j) for t in range(1, T + 1) for j in range(T)]
    return {
        "average_accuracy": square,
        "average_incremental_accuracy": [(t, j) for t, j in square if j < t],
        "last_accuracy": [(T, j) for j in range(T)],
        "transfer": [(t, j) for t, j in square if j >= t],
        "ci_transfer": [(t, j) for t, j in square if j >= t],
        "forgetting": [(t, j) for t, j in square if j < t and j < T - 1],
        "backward_transfer": [(t, j) for t, j in square if j < T - 1 and t in (j + 1, T)],
        "forward_transfer": [(t, j) for j in range(1, T) for t in (0, j)],
        "zero_shot_accuracy": [(0, j) for j in range(T)],
    }[name]


@st.composite
def matrices(draw):
    size = draw(st.integers(1, 6))
    value = st.floats(0, 1, width=32)
    row = st.lists(value, min_size=size, max_size=size)
    return draw(st.lists(row, min_size=size + 1, max_size=size + 1))


@settings(max_examples=30, deadline=None)
@given(matrices())
@pytest.mark.parametrize("name", METRICS)
def test_equals_the_equation(name, rows):
    value = METRICS[name](torch.tensor(rows, dtype=torch.float64))
    assert value.shape == ()
    assert float(value) == pytest.approx(reference(name, rows), abs=1e-12, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(matrices(), st.data())
@pytest.mark.parametrize("name", ["average_incremental_accuracy", "last_accuracy"])
def test_counts_pool_samples(name, rows, data):
    size = len(rows[0])
    counts = data.draw(st.lists(st.integers(1, 50), min_size=size, max_size=size))
    value = METRICS[name](torch.tensor(rows, dtype=torch.float64), torch.tensor(counts))
    assert float(value) == pytest.approx(reference(name, rows, counts), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(matrices(), st.data())
@pytest.mark.parametrize("name", METRICS)
def test_is_nan_exactly_when_a_needed_entry_is(name, rows, data):
    size = len(rows[0])
    everywhere = [(t, j) for t in range(size + 1) for j in range(size)]
    t, j = data.draw(st.sampled_from(everywhere))
    matrix = torch.tensor(rows, dtype=torch.float64)
    before = float(METRICS[name](matrix))
    matrix[t, j] = NAN
    after = float(METRICS[name](matrix))
    if (t, j) in needed(name, size):
        assert math.isnan(after)
    else:
        assert after == pytest.approx(before, abs=1e-12, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(matrices())
def test_relations(rows):
    matrix = torch.tensor(rows, dtype=torch.float64)
    if matrix.shape[1] > 1:
        assert F.forgetting(matrix) >= -F.backward_transfer(matrix) - 1e-12
    equal = torch.full((matrix.shape[1],), 7)
    torch.testing.assert_close(F.last_accuracy(matrix, equal), F.last_accuracy(matrix))
    torch.testing.assert_close(
        F.average_incremental_accuracy(matrix, equal), F.average_incremental_accuracy(matrix)
    )


def test_by_hand():
    matrix = torch.tensor(
        [
            [0.50, 0.60, 0.70],
            [0.90, 0.50, 0.60],
            [0.70, 0.80, 0.40],
            [0.80, 0.60, 1.00],
        ],
        dtype=torch.float64,
    )
    expected = {
        "average_accuracy": (0.9 + 0.5 + 0.6 + 0.7 + 0.8 + 0.4 + 0.8 + 0.6 + 1.0) / 9,
        "average_incremental_accuracy": (0.9 + 0.75 + 0.8) / 3,
        "last_accuracy": 0.8,
        "transfer": (0.5 + 0.5) / 2,  # experience 2: 0.5; experience 3: mean(0.6, 0.4)
        "ci_transfer": (0.55 + 0.4) / 2,  # after 1: mean(0.5, 0.6); after 2: 0.4
        "forgetting": (0.1 + 0.2) / 2,
        "backward_transfer": (-0.1 - 0.2) / 2,
        "forward_transfer": ((0.5 - 0.6) + (0.4 - 0.7)) / 2,
        "zero_shot_accuracy": 0.6,
    }
    assert {name: float(metric(matrix)) for name, metric in METRICS.items()} == pytest.approx(expected)
    pooled = F.average_incremental_accuracy(matrix, torch.tensor([1, 3, 4]))
    assert float(pooled) == pytest.approx((0.9 + (0.7 + 2.4) / 4 + (0.8 + 1.8 + 4.0) / 8) / 3)


def test_joint_training_has_zero_shot_and_last_only():
    matrix = torch.full((4, 3), NAN)
    matrix[0], matrix[3] = 0.5, 0.75
    defined = {name for name, metric in METRICS.items() if not metric(matrix).isnan()}
    assert defined == {"zero_shot_accuracy", "last_accuracy"}


def test_seen_space_has_the_class_incremental_metrics_only():
    matrix = torch.rand(5, 4)
    for t in range(5):
        matrix[t, t:] = NAN
    defined = {name for name, metric in METRICS.items() if not metric(matrix).isnan()}
    assert defined == {
        "average_incremental_accuracy",
        "last_accuracy",
        "forgetting",
        "backward_transfer",
    }


def test_summary_holds_every_metric():
    matrix, counts = torch.rand(4, 3, dtype=torch.float64), torch.tensor([5, 1, 2])
    summary = F.accuracy_matrix_summary(matrix, space="all", counts=counts)
    assert {name: summary[name] for name in METRICS} == {
        name: float(METRICS[name](matrix)) for name in METRICS
    }
    assert summary["pooled_last_accuracy"] == float(F.last_accuracy(matrix, counts))
    assert summary["pooled_average_incremental_accuracy"] == float(
        F.average_incremental_accuracy(matrix, counts)
    )
    missing = {
        space: set(METRICS) - set(F.accuracy_matrix_summary(matrix, space=space)) for space in F.LABEL_SPACES
    }
    assert missing == {
        "all": set(),
        "dataset": {"ci_transfer"},
        "experience": {"ci_transfer"},
        "seen": {"average_accuracy", "transfer", "ci_transfer", "forward_transfer", "zero_shot_accuracy"},
    }
    with pytest.raises(ValueError, match="`space` must be one of"):
        F.accuracy_matrix_summary(matrix, space="sen")


def test_the_matrix_is_left_as_it_is():
    matrix = torch.rand(4, 3)
    matrix[0, 1] = NAN
    before = matrix.clone()
    F.accuracy_matrix_summary(matrix, space="all", counts=torch.tensor([1, 2, 3]))
    assert torch.equal(matrix.nan_to_num(-1), before.nan_to_num(-1))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("shape", [(3, 3), (1, 0), (3,), (2, 3)])
def test_wrong_shapes_are_refused(name, shape):
    with pytest.raises(ValueError, match="`accuracies` must be a matrix"):
        METRICS[name](torch.zeros(shape))


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="`accuracies` must be a tensor of floats"):
        F.transfer(torch.ones(2, 1, dtype=torch.int64))
    with pytest.raises(TypeError, match="`accuracies` must be Tensor"):
        F.transfer([[0.0], [1.0]])
    with pytest.raises(ValueError, match="`counts` must be one number"):
        F.last_accuracy(torch.ones(2, 1), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="`counts` must be numbers of samples"):
        F.last_accuracy(torch.ones(2, 1), torch.tensor([-1]))
