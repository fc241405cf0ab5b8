"""Gaussians against loops in float64, and what they draw against what they keep."""

import math

import pytest
import torch

from avalanche_vlm.sources import (
    ClassMean,
    DiagonalGaussian,
    FullGaussian,
    LowRankGaussian,
    SharedCovarianceGaussian,
    _moments,
)

KINDS = [ClassMean, DiagonalGaussian, FullGaussian, LowRankGaussian, SharedCovarianceGaussian]
WIDTH = 6
DRAWS = 40_000


def data(sizes, width=WIDTH, seed=0, scale=1.0):
    """Return shuffled features of correlated classes, one for each entry of label -> size."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = [], []
    for label, size in sizes.items():
        mixing = torch.randn(width, width, generator=generator)
        noise = torch.randn(size, width, generator=generator)
        features.append(scale * (torch.randn(width, generator=generator) + noise @ mixing))
        labels += [label] * size
    order = torch.randperm(len(labels), generator=generator)
    return torch.cat(features)[order], torch.tensor(labels)[order]


def mean_and_scatter(rows):
    """Return the mean and the sum of products of deviations, by loops over Python's floats."""
    count, width = len(rows), len(rows[0])
    mean = [math.fsum(row[d] for row in rows) / count for d in range(width)]
    scatter = [
        [math.fsum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) for j in range(width)]
        for i in range(width)
    ]
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(scatter, dtype=torch.float64)


def reference(features, labels):
    """Return mean, unbiased covariance and count of each class, labels ascending."""
    result = []
    for label in sorted(set(labels.tolist())):
        rows = features[labels == label].double().tolist()
        mean, scatter = mean_and_scatter(rows)
        result.append((mean, scatter / max(len(rows) - 1, 1), len(rows)))
    return result


def with_ridge(covariance, ridge):
    return covariance + ridge * covariance.diagonal().mean() * torch.eye(len(covariance))


def unpacked(triangle, width=WIDTH):
    """Return the lower triangular matrix of its numbers, read row by row."""
    numbers = iter(triangle.tolist())
    rows = [[next(numbers) if column <= row else 0.0 for column in range(width)] for row in range(width)]
    return torch.tensor(rows, dtype=torch.float64)


SIZES = {4: 30, 1: 3, 9: 1, 2: 12}


@pytest.mark.parametrize("kind", KINDS)
def test_means(kind):
    features, labels = data(SIZES)
    generator = kind()
    generator.fit(features, labels)
    for mean, (expected, _, _) in zip(generator.means, reference(features, labels), strict=True):
        torch.testing.assert_close(mean.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("most", [_moments._MOST_NUMBERS, 1, 200])  # several groups of classes
def test_covariances(monkeypatch, most):
    monkeypatch.setattr(_moments, "_MOST_NUMBERS", most)
    features, labels = data(SIZES)
    diagonal, full, low = DiagonalGaussian(), FullGaussian(ridge=1e-3), LowRankGaussian(rank=2, residual=0.5)
    for generator in (diagonal, full, low):
        generator.fit(features, labels)
    for index, (_, covariance, count) in enumerate(reference(features, labels)):
        assert diagonal.deviations[index].tolist() == pytest.approx(covariance.diagonal().sqrt().tolist())
        factor = unpacked(full.factors[index])
        torch.testing.assert_close(factor @ factor.T, with_ridge(covariance, 1e-3), rtol=1e-5, atol=1e-5)
        values, vectors = torch.linalg.eigh(covariance)
        kept = (vectors[:, -2:] * values[-2:]) @ vectors[:, -2:].T
        directions = low.directions[index].double()
        torch.testing.assert_close(directions.T @ directions, kept, rtol=1e-5, atol=1e-5)
        # The largest comes first, and there are no more than samples less one.
        lengths = directions.square().sum(dim=1).tolist()
        assert lengths == pytest.approx(values.flip(0)[:2].tolist(), rel=1e-5, abs=1e-5)
        assert int((directions != 0).any(dim=1).sum()) == min(2, count - 1)
        rest = 0.5 * float(values[:-2].clamp(min=0).sum()) / WIDTH
        assert float(low.spreads[index]) ** 2 == pytest.approx(rest, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("width", [5, 40])  # fewer and more dimensions than samples
def test_all_directions_are_the_whole_covariance(width):
    features, labels = data({0: 20}, width=width)
    generator = LowRankGaussian(rank=width + 3)
    generator.fit(features, labels)
    directions = generator.directions[0].double()
    covariance = reference(features, labels)[0][1]
    torch.testing.assert_close(directions.T @ directions, covariance, rtol=1e-4, atol=1e-4)
    assert int((directions != 0).any(dim=1).sum()) == min(width, 19)


@pytest.mark.parametrize("order", [[[4, 1], [9], [2]], [[2], [9, 1, 4]], [[1], [2], [4], [9]]])
@pytest.mark.parametrize("merged", [False, True])
def test_shared_covariance_does_not_depend_on_the_split(order, merged):
    features, labels = data(SIZES)
    generator = SharedCovarianceGaussian()
    for classes in order:
        here = torch.isin(labels, torch.tensor(classes))
        part = SharedCovarianceGaussian() if merged else generator
        part.fit(features[here], labels[here])
        if merged:
            generator.merge(part)
    classes = reference(features, labels)
    freedom = sum(count - 1 for *_, count in classes)
    pooled = sum(covariance * (count - 1) for _, covariance, count in classes) / freedom
    assert int(generator.degrees_of_freedom) == freedom
    torch.testing.assert_close(generator.covariance.double(), pooled, rtol=1e-5, atol=1e-6)
    at_once = SharedCovarianceGaussian()
    at_once.fit(features, labels)
    torch.testing.assert_close(generator.covariance, at_once.covariance, rtol=1e-6, atol=1e-6)


def test_the_shared_covariance_drawn_follows_what_is_fitted_and_loaded():
    generator = SharedCovarianceGaussian(ridge=0)
    generator.fit(*data({0: 30}, scale=0.01))
    small = generator.sample([0], 200)[0].std()
    state = generator.state_dict()
    generator.fit(*data({1: 30}, seed=1))
    assert generator.sample([0], 200)[0].std() > 10 * small
    generator.load_state_dict(state)
    assert generator.sample([0], 200)[0].std() < 2 * small


def expected_covariance(generator, covariances, counts, index):
    """Return the covariance that a generator means to draw with, from the reference."""
    covariance = covariances[index]
    if isinstance(generator, ClassMean):
        return torch.zeros_like(covariance)
    if isinstance(generator, DiagonalGaussian):
        return covariance.diagonal().diag()
    if isinstance(generator, FullGaussian):
        return with_ridge(covariance, generator.ridge)
    if isinstance(generator, SharedCovarianceGaussian):
        pooled = sum(c * (n - 1) for c, n in zip(covariances, counts, strict=True)) / (
            sum(counts) - len(counts)
        )
        return with_ridge(pooled, generator.ridge)
    values, vectors = torch.linalg.eigh(covariance)
    k = generator.rank
    kept = (vectors[:, -k:] * values[-k:]) @ vectors[:, -k:].T
    return kept + generator.residual * values[:-k].sum() / WIDTH * torch.eye(WIDTH)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "make",
    [
        ClassMean,
        DiagonalGaussian,
        lambda **a: FullGaussian(ridge=0.05, **a),
        lambda **a: LowRankGaussian(rank=2, **a),
        lambda **a: LowRankGaussian(rank=3, residual=1.0, **a),
        lambda **a: SharedCovarianceGaussian(ridge=0.05, **a),
    ],
)
def test_draws_have_the_moments(make, dtype):
    # Deviations of about 0.03, as of features of unit norm: their squares are 1e-3, and more in products.
    features, labels = data({3: 40, 8: 25}, scale=0.01)
    generator = make(dtype=dtype, seed=5)
    generator.fit(features, labels)
    classes = reference(features, labels)
    covariances, counts = [c for _, c, _ in classes], [n for *_, n in classes]
    drawn, drawn_labels = generator.sample([8, 3], DRAWS)
    for index, label in enumerate([3, 8]):
        rows = drawn[drawn_labels == label].double()
        expected = expected_covariance(generator, covariances, counts, index)
        deviations = expected.diagonal().sqrt()
        # Five standard errors of a mean, and the rounding of half precision.
        mean_error = (rows.mean(dim=0) - classes[index][0]).abs()
        assert (mean_error <= 5 * deviations / math.sqrt(DRAWS) + 1e-3 * classes[index][0].abs() + 1e-7).all()
        # The standard error of a covariance is sqrt((c_ij² + c_ii c_jj) / n).
        spread = torch.outer(deviations, deviations)
        error = (torch.cov(rows.T) - expected).abs()
        assert (error <= (5 * math.sqrt(2 / DRAWS) + 2e-3) * spread + 1e-12).all()


@pytest.mark.parametrize("make", [*KINDS, lambda **a: LowRankGaussian(residual=1.0, **a)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_degenerate_classes(make, dtype):
    features, labels = data({0: 1, 1: 2, 2: 5}, width=32)
    features[labels == 2] = torch.linspace(-3, 3, 32)  # five times the same
    features[:, 0] = 0.1  # constant everywhere
    generator = make(dtype=dtype)
    generator.fit(features, labels)
    drawn, drawn_labels = generator.sample([0, 1, 2], 50)
    assert drawn.isfinite().all()
    if make is not SharedCovarianceGaussian:
        for label in (0, 2):
            mean = features[labels == label][0]
            torch.testing.assert_close(
                drawn[drawn_labels == label], mean.expand(50, -1), rtol=1e-3, atol=1e-6
            )
    if make in (ClassMean, DiagonalGaussian, LowRankGaussian):
        torch.testing.assert_close(drawn[:, 0], torch.full((150,), 0.1), rtol=1e-3, atol=0)
    alone = make(dtype=dtype)
    alone.fit(features[labels == 0], labels[labels == 0])
    assert torch.equal(alone.sample([0], 2)[0], alone.means[[0, 0]].float())


def test_bytes_of_a_class():
    features, labels = data({0: 4, 1: 4}, width=512)
    expected = {
        ClassMean: 2048,
        DiagonalGaussian: 2 * 2048,
        FullGaussian: 2048 + 4 * 512 * 513 // 2,
        LowRankGaussian: 9 * 2048 + 4,
    }
    for kind, size in expected.items():
        generator = kind()
        generator.fit(features, labels)
        assert generator.nbytes == 2 * (size + 16)  # a label and a count
        half = kind(dtype="float16")
        half.fit(features, labels)
        assert half.nbytes == 2 * (size // 2 + 16)
    shared = SharedCovarianceGaussian(dtype="float16")
    shared.fit(features, labels)
    assert shared.nbytes == 2 * (1024 + 16) + 512 * 512 * 4 + 8


def test_half_precision_keeps_small_deviations():
    features, labels = data({0: 50}, width=16, scale=1e-5)  # variances of 1e-9 are 0 in half precision
    for kind in (DiagonalGaussian, FullGaussian, LowRankGaussian):
        generator = kind(dtype="float16")
        generator.fit(1 + features.double(), labels)
        deviations = generator.sample([0], 5000)[0].std(dim=0) / features.std(dim=0)
        assert (deviations > 0.8 if kind is not LowRankGaussian else deviations > 0.3).all()
        assert (deviations < 1.2).all()


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [
        (FullGaussian, "ridge", 0),
        (FullGaussian, "ridge", "much"),
        (LowRankGaussian, "rank", 0),
        (LowRankGaussian, "residual", 1.5),
        (SharedCovarianceGaussian, "ridge", -1),
        *[(kind, "dtype", "float8") for kind in KINDS],
        *[(kind, "seed", 0.5) for kind in KINDS],
    ],
)
def test_wrong_arguments_are_named(kind, argument, value):
    with pytest.raises((TypeError, ValueError), match=f"^`{argument}`"):
        kind(**{argument: value})


def test_no_covariance_before_fit():
    with pytest.raises(ValueError, match="`covariance`"):
        _ = SharedCovarianceGaussian().covariance
