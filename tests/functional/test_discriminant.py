"""The discriminant against loops in float64 from its equations, and against scikit-learn's."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from avalanche_vlm.functional.discriminant import (
    FeatureSums,
    discriminant_weights,
    feature_sums,
    fused_logits,
    shrunk_covariance,
)


def clusters(count=90, size=7, classes=3, seed=0, unequal=True):
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    if unequal:
        y[: count // 4] = 0
    centres = torch.randn(classes, size, generator=draw)
    return centres[y] + 0.7 * torch.randn(count, size, generator=draw), y


def unit(x):
    return x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)


def loop_covariance(x, y, ridge):
    """Return S from the equation, sample by sample."""
    u, labels = unit(x), y.tolist()
    size, present = u.shape[1], sorted(set(labels))
    means = {c: np.mean([u[i] for i in range(len(u)) if labels[i] == c], axis=0) for c in present}
    scatter = np.zeros((size, size))
    for i, c in enumerate(labels):
        scatter += np.outer(u[i] - means[c], u[i] - means[c])
    freedom = len(u) - len(present)
    within = scatter / freedom
    return within + ridge * size / freedom * np.trace(within) / size * np.eye(size), means


@pytest.mark.parametrize("ridge", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("count", [90, 8])
def test_covariance_and_weights_equal_the_loop(count, ridge):
    x, y = clusters(count)
    of = feature_sums(x, y, 4)
    expected, means = loop_covariance(x, y, ridge)
    torch.testing.assert_close(
        shrunk_covariance(of, ridge=ridge), torch.from_numpy(expected), atol=1e-12, rtol=0
    )
    for prior in ("uniform", "counts"):
        classes, weights, biases = discriminant_weights(of, ridge=ridge, prior=prior)
        assert classes.tolist() == [0, 1, 2]  # class 3 has no features
        for row, c in enumerate(classes.tolist()):
            w = np.linalg.inv(expected) @ means[c]
            b = -0.5 * means[c] @ w + (math.log((y == c).sum().item() / len(y)) if prior == "counts" else 0)
            np.testing.assert_allclose(weights[row].numpy(), w, rtol=1e-9)
            np.testing.assert_allclose(float(biases[row]), b, rtol=1e-9)


def test_scikit_learn_finds_the_same_discriminant():
    """Its shrinkage g mixes (1 - g) W + g tr(W)/D I, W over N; ours is W + r tr(W)/D I, W over N - K."""
    x, y = clusters(unequal=False)
    size, total, freedom = x.shape[1], len(x), len(x) - 3
    ratio = size / freedom  # r, of ridge 1
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=ratio / (1 + ratio)).fit(unit(x), y.numpy())
    _, weights, biases = discriminant_weights(feature_sums(x, y, 3))
    ours = torch.from_numpy(unit(x)) @ weights.T + biases
    scale = (1 + ratio) * total / freedom
    difference = ours.numpy() * scale - theirs.decision_function(unit(x))
    # Equal up to what all classes of a sample share.
    np.testing.assert_allclose(difference - difference.mean(axis=1, keepdims=True), 0, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(30)), cuts=st.lists(st.integers(1, 29), max_size=4))
def test_any_order_and_any_split_give_the_same_weights(order, cuts):
    x, y = clusters(30)
    whole = discriminant_weights(feature_sums(x, y, 3))
    edges = [0, *sorted(cuts), 30]
    parts = [order[a:b] for a, b in itertools.pairwise(edges) if b > a]
    sums = [feature_sums(x[part], y[part], 3) for part in parts]
    total = FeatureSums(*(sum(values) for values in zip(*sums, strict=True)))
    for ours, expected in zip(discriminant_weights(total), whole, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)


def test_without_spread_the_nearest_mean_decides():
    for x, y in (
        (torch.eye(4)[:3], torch.tensor([0, 1, 2])),  # one feature each
        (torch.eye(4)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])),  # equal features
        (torch.ones(1, 4), torch.tensor([1])),  # one in all
    ):
        covariance = shrunk_covariance(feature_sums(x, y, 3))
        torch.testing.assert_close(covariance, covariance[0, 0] * torch.eye(4, dtype=torch.float64))
        assert 0 < float(covariance[0, 0]) <= 0.25
        _, weights, biases = discriminant_weights(feature_sums(x, y, 3))
        scores = torch.from_numpy(unit(x)) @ weights.T + biases
        assert scores.isfinite().all()
        assert (scores.argmax(dim=1) == y.unique(return_inverse=True)[1]).all()


def test_fusion_equals_the_loop():
    draw = torch.Generator().manual_seed(1)
    zero_shot = 20 * torch.randn(5, 6, generator=draw, dtype=torch.float64)
    scores, classes, a = (
        9 * torch.randn(5, 3, generator=draw, dtype=torch.float64),
        torch.tensor([4, 0, 3]),
        0.4,
    )
    fused = fused_logits(zero_shot, scores, classes, fusion_weight=a).log_softmax(dim=1)
    for row in range(5):
        e = [math.exp(z) for z in zero_shot[row].tolist()]
        p0 = [each / sum(e) for each in e]
        q = [math.exp(s) for s in scores[row].tolist()]
        q = {c: each / sum(q) for c, each in zip(classes.tolist(), q, strict=True)}
        products = {c: p0[c] * q[c] ** a for c in q}
        mass = sum(p0[c] for c in q)
        for c in range(6):
            p = mass * products[c] / sum(products.values()) if c in q else p0[c]
            assert float(fused[row, c]) == pytest.approx(math.log(p), abs=1e-10)


def test_fusion_without_classes_or_weight_is_zero_shot():
    zero_shot = torch.randn(3, 4)
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(fused_logits(zero_shot, torch.zeros(3, 0), none, fusion_weight=1), zero_shot)
    classes = torch.tensor([0, 2])
    fused = fused_logits(zero_shot, torch.randn(3, 2), classes, fusion_weight=0)
    torch.testing.assert_close(fused, zero_shot)


def test_a_loss_over_fitted_classes_has_no_gradient_to_others():
    zero_shot = torch.randn(8, 6, requires_grad=True)
    classes = torch.tensor([1, 2, 5])
    fused = fused_logits(zero_shot, torch.randn(8, 3), classes, fusion_weight=0.3)
    torch.nn.functional.cross_entropy(fused[:, classes], torch.arange(8) % 3).backward()
    assert zero_shot.grad[:, classes].abs().min() > 0
    assert torch.equal(zero_shot.grad[:, [0, 3, 4]], torch.zeros(8, 3))


def test_extreme_scores_stay_finite():
    fused = fused_logits(
        torch.tensor([[300.0, -300.0, 0.0]]),
        torch.tensor([[-1e4, 1e4]]),
        torch.tensor([0, 1]),
        fusion_weight=1,
    )
    assert fused.isfinite().all()


def test_each_wrong_argument_is_named():
    of = feature_sums(*clusters(), 3)
    for ridge in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="`ridge`"):
            shrunk_covariance(of, ridge=ridge)
    with pytest.raises(ValueError, match="`prior`"):
        discriminant_weights(of, prior="equal")
    with pytest.raises(ValueError, match="`of` must be sums over at least one feature"):
        discriminant_weights(FeatureSums(of.counts * 0, of.sums * 0, of.second_moment * 0))
