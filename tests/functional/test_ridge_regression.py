"""The regression against the least squares of the augmented system, and against its limits."""

import numpy as np
import pytest
import torch

from avalanche_vlm.functional.discriminant import FeatureSums
from avalanche_vlm.functional.ridge_regression import LEAST_RIDGE, ridge_regression_weights


def rows(count=40, width=9, classes=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, classes - 1, (count,), generator=draw)
    return features, labels + (labels >= 2).long()  # class 2 has no rows


def sums(features, labels, classes=5):
    by_class = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    for row, label in zip(features, labels.tolist(), strict=True):
        by_class[label] += row
    return FeatureSums(labels.bincount(minlength=classes), by_class, features.T @ features)


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("count", [40, 6])  # more and fewer rows than features
def test_it_is_the_least_squares_of_the_augmented_system(count, ridge):
    features, labels = rows(count)
    classes, weights = ridge_regression_weights(sums(features, labels), ridge=ridge)
    assert classes.tolist() == sorted(set(labels.tolist()))
    x = features.numpy()
    penalty = np.sqrt(ridge * np.mean([sum(r[j] ** 2 for r in x) for j in range(x.shape[1])]))
    targets = np.array([[float(y == c) for c in classes.tolist()] for y in labels.tolist()])
    stacked = np.concatenate([x, penalty * np.eye(x.shape[1])])
    zeros = np.zeros((x.shape[1], targets.shape[1]))
    expected = np.linalg.lstsq(stacked, np.concatenate([targets, zeros]), rcond=None)[0]
    torch.testing.assert_close(weights, torch.from_numpy(expected), atol=1e-9, rtol=1e-9)


def test_no_other_weights_have_a_smaller_loss():
    features, labels = rows()
    of = sums(features, labels)
    classes, weights = ridge_regression_weights(of, ridge=0.1)
    penalty = 0.1 * float(of.second_moment.trace()) / 9

    def loss(w):
        total = penalty * float(w.square().sum())
        for row, label in zip(features, labels, strict=True):
            total += float((row @ w - (classes == label).double()).square().sum())
        return total

    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        assert loss(weights) < loss(
            weights + 1e-3 * torch.randn(weights.shape, generator=draw, dtype=weights.dtype)
        )


def test_of_infinite_ridge_the_sums_alone_are_left():
    features, labels = rows()
    of = sums(features, labels)
    classes, weights = ridge_regression_weights(of, ridge=1e9)
    mean = float(of.second_moment.trace()) / 9
    torch.testing.assert_close(weights * 1e9 * mean, of.sums[classes].T, atol=1e-6, rtol=1e-6)
    # So that of one constant feature the scores are as the counts of the classes.
    ones = torch.ones(len(labels), 1, dtype=torch.float64)
    _, weights = ridge_regression_weights(sums(ones, labels), ridge=1e9)
    counts = of.counts[classes].double()
    torch.testing.assert_close(weights[0] / weights.sum(), counts / counts.sum())


def test_scale_and_repetition_of_rows_cancel():
    features, labels = rows()
    _, once = ridge_regression_weights(sums(features, labels), ridge=0.1)
    _, twice = ridge_regression_weights(sums(features.repeat(2, 1), labels.repeat(2)), ridge=0.1)
    _, longer = ridge_regression_weights(sums(8 * features, labels), ridge=0.1)
    torch.testing.assert_close(twice, once)
    torch.testing.assert_close(8 * longer, once)


def test_edges_are_finite():
    features, labels = rows()
    _, none = ridge_regression_weights(sums(0 * features, labels), ridge=0.1)
    assert torch.equal(none, torch.zeros(9, 4, dtype=torch.float64))
    wide = torch.ones(3, 500, dtype=torch.float64)  # of rank one
    _, weights = ridge_regression_weights(sums(wide, torch.tensor([0, 1, 1])), ridge=LEAST_RIDGE)
    torch.testing.assert_close(wide[0] @ weights, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    classes, weights = ridge_regression_weights(sums(features[:0], labels[:0]), ridge=0.1)
    assert (len(classes), tuple(weights.shape)) == (0, (9, 0))


@pytest.mark.parametrize("ridge", [0, -1, 1e-12, float("nan"), float("inf"), "much", None])
def test_a_wrong_ridge_is_named(ridge):
    with pytest.raises((TypeError, ValueError), match="`ridge`"):
        ridge_regression_weights(sums(*rows()), ridge=ridge)
