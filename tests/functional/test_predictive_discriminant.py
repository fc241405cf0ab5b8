"""The discriminant with text-predicted means, against loops in float64 from its equations."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from avalanche_vlm.functional.discriminant import FeatureSums, feature_sums
from avalanche_vlm.functional.exact_sums import exact_sums, rounded_unit_rows, row_hashes, sketches
from avalanche_vlm.functional.predictive_discriminant import (
    TEXT_RIDGES,
    fit_predictive_discriminant,
    predicted_means,
    shrunk_second_moment,
)

D, C = 6, 5


def data(per_class, seed=0, size=D, classes=C):
    """Return unequal numbers of unit rows around means that follow from text, and the text."""
    draw = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(classes + 1, size, generator=draw, dtype=torch.float64), dim=1)
    means = text @ torch.randn(size, size, generator=draw).double() + 0.3 * torch.randn(
        classes + 1, size, generator=draw
    )
    counts = per_class if isinstance(per_class, list) else [per_class] * classes
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    x = F.normalize(means[y] + 0.5 * torch.randn(len(y), size, generator=draw), dim=1)
    return x, y, text


def left_out_by_definition(means, text, ridge):
    """Regress once more for each class that is left out, with the ridge and the centres of all."""
    count = len(means)
    T, U = text - text.mean(0), means - means.mean(0)
    a = ridge * np.trace(T @ T.T) / min(count - 1, text.shape[1])
    found = []
    for c in range(count):
        others = [i for i in range(count) if i != c]
        # Ridge regression with a free intercept, on rows that keep the centring of all.
        X = np.hstack([T[others], np.ones((len(others), 1))])
        penalty = np.diag([a] * T.shape[1] + [0])
        weights = np.linalg.solve(X.T @ X + penalty, X.T @ U[others])
        found.append(means.mean(0) + np.hstack([T[c], 1]) @ weights)
    return np.array(found)


@pytest.mark.parametrize(("count", "width"), [(5, 8), (12, 4), (30, 30)])
def test_left_out_predictions_are_those_of_a_fit_without_the_class(count, width):
    draw = np.random.default_rng(0)
    text, means = draw.normal(size=(count, width)), draw.normal(size=(count, 3))
    made = predicted_means(torch.from_numpy(means), torch.from_numpy(text))
    by_ridge = {ridge: left_out_by_definition(means, text, ridge) for ridge in TEXT_RIDGES}
    best = min(by_ridge, key=lambda ridge: ((means - by_ridge[ridge]) ** 2).sum())
    np.testing.assert_allclose(made.left_out.numpy(), by_ridge[best], rtol=0, atol=1e-9)


def test_means_of_classes_without_data_follow_from_their_text():
    x, y, text = data(40, classes=30, size=6)
    means = torch.stack([x[y == c].mean(0) for c in range(30)]).double()
    made = predicted_means(means, text[:30].double())
    T, U = (each - each.mean(0) for each in (text[:30].double(), means))
    errors = {
        ridge: (
            (means.numpy() - left_out_by_definition(means.numpy(), text[:30].double().numpy(), ridge)) ** 2
        ).sum()
        for ridge in TEXT_RIDGES
    }
    a = min(errors, key=errors.get) * float(torch.trace(T @ T.T)) / min(29, 6)
    weights = torch.linalg.solve(T.T @ T + a * torch.eye(6), T.T @ U)
    expected = means.mean(0) + (text[30].double() - text[:30].double().mean(0)) @ weights
    torch.testing.assert_close(made.of(text[30:].double(), 1)[0], expected, rtol=0, atol=1e-9)


def test_without_text_the_other_classes_predict():
    means = torch.randn(4, 3, dtype=torch.float64)
    for text in (None, torch.ones(4, 5, dtype=torch.float64)):
        made = predicted_means(means, text)
        for c in range(4):
            others = [i for i in range(4) if i != c]
            torch.testing.assert_close(made.left_out[c], means[others].mean(0))
        assert torch.equal(made.of(None, 2), means.mean(0).expand(2, 3))


def shrunk_loop(B, n):
    size = len(B)
    t, s = np.trace(B), np.trace(B @ B)
    below = (n + 1 - 2 / size) * (s - t * t / size)
    gamma = 1.0 if below <= 0 else min(1.0, ((1 - 2 / size) * s + t * t) / below)
    return (1 - gamma) * B + gamma * t / size * np.eye(size)


def scores_by_definition(x, y, text, probe, ridge=1.0):
    """Return g, from the equations, class by class and coordinate by coordinate."""
    x, text = x.double().numpy(), text.double().numpy()
    classes = sorted(set(y.tolist()))
    n = np.array([int((y == c).sum()) for c in classes])
    size, K, N = x.shape[1], len(classes), len(x)
    mu = np.array([x[(y == c).numpy()].mean(0) for c in classes])
    errors = {r: left_out_by_definition(mu, text[classes], r) for r in TEXT_RIDGES}
    prior = errors[min(errors, key=lambda r: ((mu - errors[r]) ** 2).sum())]
    if K == N:
        R = (mu - prior).T @ (mu - prior) / K
        S, lam, U = 0.5 * shrunk_loop(R, K), np.ones(size), np.eye(size)
        L = np.linalg.cholesky(S)
    else:
        W = sum(
            np.outer(r - mu[classes.index(c)], r - mu[classes.index(c)])
            for r, c in zip(x, y.tolist(), strict=True)
        )
        W = W / (N - K)
        rho = ridge * size / (N - K)
        S = (1 - rho / (1 + rho)) * W + rho / (1 + rho) * np.trace(W) / size * np.eye(size)
        L = np.linalg.cholesky(S)
        r = np.linalg.solve(L, (mu - prior).T).T
        w = n / (n + 1)
        B = sum(w[i] * np.outer(r[i], r[i]) for i in range(K)) / w.sum()
        b, U = np.linalg.eigh(shrunk_loop(B, w.sum() ** 2 / (w * w).sum()))
        lam = np.maximum(b - (w / n).sum() / w.sum(), 1e-6)
    to = lambda v: U.T @ np.linalg.solve(L, v)  # noqa: E731
    g = np.zeros((len(probe), K))
    for row, each in enumerate(probe.double().numpy()):
        z = to(each)
        for i in range(K):
            zbar, p = to(mu[i]), to(prior[i])
            for k in range(size):
                share = n[i] * lam[k] / (1 + n[i] * lam[k])
                mean, v = share * zbar[k] + (1 - share) * p[k], 1 + lam[k] / (1 + n[i] * lam[k])
                g[row, i] -= 0.5 * ((z[k] - mean) ** 2 / v + math.log(v))
    return g


@pytest.mark.parametrize("per_class", [1, 2, 8, [1, 40, 3, 7, 2], [30, 30, 30, 30, 1]])
@pytest.mark.parametrize("ridge", [0.3, 1.0])
def test_scores_equal_the_loop(per_class, ridge):
    x, y, text = data(per_class)
    probe = data(3, seed=1)[0]
    fit = fit_predictive_discriminant(feature_sums(x, y, C + 1), text, ridge=ridge)
    assert fit.classes.tolist() == list(range(C))
    ours = fit.scores(probe.double())
    expected = scores_by_definition(x, y, text, probe, ridge)
    # Equal up to what all classes of a row share.
    difference = ours.numpy() - expected
    np.testing.assert_allclose(difference - difference[:, :1], 0, atol=1e-7)


def test_a_class_without_rows_is_scored_by_its_prior():
    x, y, text = data(8)
    of = feature_sums(x, y, C + 1)
    fit = fit_predictive_discriminant(of, text, classes=torch.tensor([5, 0]))
    known = fit_predictive_discriminant(of, text)
    torch.testing.assert_close(fit.means[1], known.means[0])
    assert (1 / fit.precisions[0] > 1 / fit.precisions[1]).all()  # less is known
    predicted = predicted_means(
        torch.stack([x[y == c].double().mean(0) for c in range(C)]), F.normalize(text.double(), dim=1)[:C]
    )
    mean = (predicted.of(F.normalize(text.double(), dim=1)[5:], 1)[0] - fit.centre) @ fit.projection
    torch.testing.assert_close(fit.means[0], mean, atol=1e-6, rtol=1e-6)


def test_with_many_rows_it_is_linear_discriminant_analysis():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y, text = data(4000)
    fit = fit_predictive_discriminant(feature_sums(x, y, C + 1), text)
    theirs = LinearDiscriminantAnalysis(priors=[1 / C] * C).fit(x.double().numpy(), y.numpy())
    probe = data(50, seed=2)[0].double()
    ours = fit.scores(probe).softmax(dim=1).numpy()
    assert np.abs(ours - theirs.predict_proba(probe.numpy())).max() < 0.02


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.eye(6)[:1], torch.tensor([2])),  # one row in all
        (torch.eye(6)[:3], torch.tensor([2, 2, 2])),  # one class
        (torch.eye(6)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])),  # no spread inside classes
        (torch.ones(4, 6) / 6**0.5, torch.tensor([0, 0, 1, 2])),  # no spread at all
        (F.normalize(torch.cat([torch.rand(20, 5), torch.zeros(20, 1)], dim=1)), torch.arange(20) % 3),
    ],
)
def test_edges_are_defined(x, y):
    text = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    for known in (text, None):
        fit = fit_predictive_discriminant(feature_sums(x, y, 4), known, classes=torch.arange(4))
        scores = fit.scores(x.double())
        assert scores.isfinite().all()
        if len(y.unique()) == len(y) > 1 or torch.equal(x, torch.eye(6)[[0, 0, 1, 1]]):
            assert torch.equal(scores[:, y.unique()].argmax(dim=1), y.unique(return_inverse=True)[1])


def test_shrinking():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(7, 5))
    B = x.T @ x / 7
    np.testing.assert_allclose(
        shrunk_second_moment(torch.from_numpy(B), 7).numpy(), shrunk_loop(B, 7), atol=1e-12
    )
    identity = torch.eye(4, dtype=torch.float64)
    assert torch.equal(shrunk_second_moment(3 * identity, 9), 3 * identity)


def test_wrong_arguments_are_named():
    x, y, _ = data(2)
    of = feature_sums(x, y, C)
    with pytest.raises(ValueError, match="`ridge` must be"):
        fit_predictive_discriminant(of, ridge=0)
    with pytest.raises(ValueError, match="`of` must be sums over at least one feature"):
        fit_predictive_discriminant(FeatureSums(of.counts * 0, of.sums * 0, of.second_moment * 0))


def test_sketches_add_the_spread_of_each_class():
    """Against the covariance written out: (1 - η) diag(v) + η BᵀB / (h (n - 1)), in the projected space."""
    x, y, text = data([1, 40, 30, 7, 2])
    unit = rounded_unit_rows(x)
    kept = sketches(unit, y, C + 1, size=3)
    of, share = exact_sums(unit, y, C + 1).total(), 0.3
    plain = fit_predictive_discriminant(of, text)
    fit = plain.with_spreads(of, kept, share)
    z = plain.projected(data(3, seed=1)[0]).numpy()
    expected = np.zeros((len(z), C))
    for c in range(C):
        own = unit[y == c].numpy()
        v = np.diag(1 / plain.precisions[c].numpy())
        signs = 1 - 2 * ((row_hashes(unit[y == c])[:, None] >> torch.arange(12, 15)) & 1).numpy()
        B = (
            sum(np.outer(s, u - own.mean(0)) for s, u in zip(signs, own, strict=True))
            @ plain.projection.numpy()
        )
        covariance = v if len(own) == 1 else (1 - share) * v + share * B.T @ B / (3 * (len(own) - 1))
        away = z - plain.means[c].numpy()
        expected[:, c] = -0.5 * (away * np.linalg.solve(covariance, away.T).T).sum(1)
        expected[:, c] -= 0.5 * np.linalg.slogdet(covariance)[1]
    difference = fit.scores(data(3, seed=1)[0]).numpy() - expected
    np.testing.assert_allclose(difference - difference[:, :1], 0, atol=1e-8)


def test_a_sketch_is_the_second_moment_in_the_mean_over_signs():
    x, y, _ = data(400, size=4)
    unit = rounded_unit_rows(x)
    kept = sketches(unit, y, C, size=16)
    for c in range(C):
        own = unit[y == c]
        centred = kept.rows[c] - kept.signs[c][:, None] * own.mean(0)
        estimate = centred.T @ centred / 16 / (len(own) - 1)
        assert (estimate - own.T.cov()).norm() < 1.2 * own.T.cov().norm()
    parts = [sketches(unit[part], y[part], C, size=16) for part in torch.arange(len(y)).chunk(7)]
    assert torch.equal(sum(part.rows for part in parts), kept.rows)
    assert torch.equal(sum(part.signs for part in parts), kept.signs)
