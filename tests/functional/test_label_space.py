"""Label spaces against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as nnF

from avalanche_vlm.functional import (
    LABEL_SPACES,
    label_space_columns,
    label_space_cross_entropy,
    label_space_evaluation_loss,
    label_space_predictions,
)


def reference(logits, targets, columns, smoothing):
    """Cross-entropy with the label's mass smoothed over the space, by loop."""
    space = sorted({*columns, *targets})
    total = 0.0
    for row, label in zip(logits, targets, strict=True):
        top = max(row[c] for c in space)
        normaliser = top + math.log(sum(math.exp(row[c] - top) for c in space))
        for c in space:
            mass = smoothing / len(space) + (1 - smoothing) * (c == label)
            total -= mass * (row[c] - normaliser)
    return total / len(targets)


@st.composite
def batches(draw):
    classes = draw(st.integers(2, 7))
    size = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, classes, (size,), generator=generator)
    columns = draw(st.lists(st.integers(0, classes - 1), unique=True))
    return logits, targets, torch.tensor(sorted(columns), dtype=torch.int64)


@settings(max_examples=40, deadline=None)
@given(batches(), st.sampled_from([0.0, 0.1, 0.5]))
def test_cross_entropy_equals_the_loop(batch, smoothing):
    logits, targets, columns = batch
    loss = label_space_cross_entropy(logits, targets, columns, label_smoothing=smoothing)
    expected = reference(logits.tolist(), targets.tolist(), columns.tolist(), smoothing)
    assert float(loss) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(batches(), st.sampled_from([0.0, 0.1, 0.5]))
def test_the_loss_of_evaluation_is_that_of_each_sample_alone(batch, smoothing):
    logits, targets, columns = batch
    losses = label_space_evaluation_loss(
        logits, targets, columns, label_smoothing=smoothing, reduction="none"
    )
    space = columns.tolist()
    expected = [
        reference([row], [label], space, smoothing) if label in space else math.nan
        for row, label in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    assert losses.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)
    for reduction in ("mean", "sum"):
        value = label_space_evaluation_loss(
            logits, targets, columns, label_smoothing=smoothing, reduction=reduction
        )
        torch.testing.assert_close(value, getattr(losses, reduction)(), equal_nan=True)


def test_a_label_without_a_column_is_refused_in_evaluation_too():
    logits = torch.zeros(2, 3)
    for columns in ([0, 1, 2], [0], []):
        with pytest.raises(ValueError, match="from 0 to 7"):
            label_space_evaluation_loss(
                logits, torch.tensor([0, 7]), torch.tensor(columns, dtype=torch.int64)
            )
    with pytest.raises(ValueError, match="`reduction`"):
        label_space_evaluation_loss(logits, torch.tensor([0, 1]), torch.tensor([0]), reduction="median")


@settings(max_examples=40, deadline=None)
@given(batches(), st.data())
def test_nan_among_the_columns_is_no_prediction(batch, data):
    logits, _, columns = batch
    broken = data.draw(
        st.sets(st.tuples(st.integers(0, len(logits) - 1), st.integers(0, logits.shape[1] - 1)))
    )
    expected = label_space_predictions(logits, columns)
    for row, column in broken:
        logits[row, column] = math.nan
        if column in columns.tolist():
            expected[row] = -1
    assert torch.equal(label_space_predictions(logits, columns), expected)


def test_replayed_labels_outside_the_space_stay_finite():
    logits = torch.tensor([[50.0, -50.0, 0.0, 3.0]] * 2)
    targets, columns = torch.tensor([3, 1]), torch.tensor([2, 3])
    for smoothing in (0.0, 0.2):
        assert label_space_cross_entropy(logits, targets, columns, label_smoothing=smoothing).isfinite()


def test_columns_outside_the_space_have_no_influence_and_no_gradient():
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets, columns = torch.tensor([1, 2, 1, 2]), torch.tensor([1, 2, 4])
    loss = label_space_cross_entropy(logits, targets, columns, label_smoothing=0.3)
    loss.backward()
    assert torch.equal(logits.grad[:, [0, 3]], torch.zeros(4, 2, dtype=torch.float64))
    assert (logits.grad[:, [1, 2, 4]] != 0).all()
    changed = logits.detach().clone()
    changed[:, [0, 3]] = 1e30
    assert torch.equal(
        label_space_cross_entropy(changed, targets, columns, label_smoothing=0.3), loss.detach()
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_all_columns_are_plain_cross_entropy(smoothing):
    logits, targets = torch.randn(6, 5), torch.randint(0, 5, (6,))
    columns = label_space_columns("all", class_count=5)
    torch.testing.assert_close(
        label_space_cross_entropy(logits, targets, columns, label_smoothing=smoothing),
        nnF.cross_entropy(logits, targets, label_smoothing=smoothing),
        rtol=0,
        atol=0,
    )


@settings(max_examples=30, deadline=None)
@given(batches())
def test_predictions_equal_the_loop(batch):
    logits, _, columns = batch
    predictions = label_space_predictions(logits, columns)
    for row, prediction in zip(logits.tolist(), predictions.tolist(), strict=True):
        assert prediction == max(columns.tolist(), key=lambda c: row[c], default=-1)


def test_columns_of_each_space():
    seen = torch.tensor([True, False, True, False, False])
    current, datasets = torch.tensor([3, 3]), torch.tensor([0, 0, 1, 1, 2])
    given_all = {"class_count": 5, "seen": seen, "current": current, "dataset_of_class": datasets}
    columns = {space: label_space_columns(space, **given_all).tolist() for space in LABEL_SPACES}
    assert columns == {"seen": [0, 2], "all": [0, 1, 2, 3, 4], "experience": [3], "dataset": [2, 3]}
    assert label_space_columns("dataset", class_count=3, current=current).tolist() == [0, 1, 2]


def test_what_a_space_needs_is_asked_for():
    with pytest.raises(ValueError, match="`seen` must be given for the space 'seen'"):
        label_space_columns("seen", class_count=2)
    for space in ("experience", "dataset"):
        with pytest.raises(ValueError, match=f"`current` must be given for the space '{space}'"):
            label_space_columns(space, class_count=2)
    with pytest.raises(ValueError, match="Did you mean 'seen'"):
        label_space_columns("sen", class_count=2)


def test_labels_without_a_column_are_named():
    logits, columns = torch.zeros(2, 3), torch.arange(3)
    for targets, message in (([0, 7], "from 0 to 7"), ([-100, 1], "from -100 to 2")):
        with pytest.raises(ValueError, match=message):
            label_space_cross_entropy(logits, torch.tensor(targets), columns)
    with pytest.raises(TypeError, match="`targets`"):
        label_space_cross_entropy(logits, torch.tensor([0.0, 1.0]), columns)
    with pytest.raises(ValueError, match="`reduction`"):
        label_space_cross_entropy(logits, torch.tensor([0, 1]), columns, reduction="median")


def test_smoothing_is_a_mass():
    """With all of it spread, the label does not count."""
    logits, columns = torch.tensor([[1.0, 0.0, -2.0]]), torch.arange(3)
    losses = {
        float(label_space_cross_entropy(logits, torch.tensor([label]), columns, label_smoothing=1))
        for label in range(3)
    }
    assert max(losses) - min(losses) < 1e-6
    for smoothing in (-0.1, 1.1):
        with pytest.raises(ValueError, match="`label_smoothing` must be a finite number and at least 0"):
            label_space_cross_entropy(logits, torch.tensor([0]), columns, label_smoothing=smoothing)


def test_reductions():
    logits, targets = torch.randn(5, 4), torch.tensor([0, 1, 3, 3, 0])
    each = label_space_cross_entropy(logits, targets, torch.tensor([0, 1]), reduction="none")
    assert each.shape == (5,)
    for reduction, expected in (("sum", each.sum()), ("mean", each.mean())):
        value = label_space_cross_entropy(logits, targets, torch.tensor([0, 1]), reduction=reduction)
        torch.testing.assert_close(value, expected)
