"""Mixtures: they find what is there, keep the moments of a class, and no sample of it."""

import math

import numpy as np
import pytest
import torch

from avalanche_vlm.sources import GaussianMixture
from avalanche_vlm.sources.gaussian_mixture import _without_single


def three_heaps(scale=1.0):
    """Return samples of two classes, the first of three heaps with 10, 20 and 30 samples."""
    noise = torch.randn(80, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centres = torch.tensor([[0.0] * 4, [20.0, 0, 0, 0], [0, 20.0, 0, 0]]).repeat_interleave(
        torch.tensor([10, 20, 30]), dim=0
    )
    features = noise * torch.tensor([1.0, 2.0, 0.5, 0.1])
    features[:60] += centres
    return features * scale, torch.tensor([1] * 60 + [0] * 20)


def moments(generator, index):
    """Return the mean and the variances of a class's mixture, by loops."""
    width = generator.means.shape[2]
    means, variances = [], []
    for d in range(width):
        parts = [
            (float(w), float(m[d]), float(s[d if len(s) > 1 else 0]))
            for w, m, s in zip(
                generator.weights[index], generator.means[index], generator.deviations[index], strict=True
            )
        ]
        mean = math.fsum(w * m for w, m, _ in parts)
        means.append(mean)
        variances.append(math.fsum(w * (s * s + (m - mean) ** 2) for w, m, s in parts))
    return means, variances


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])  # the floor of variances must not depend on it
def test_heaps_are_found(scale):
    features, labels = three_heaps(scale)
    generator = GaussianMixture(n_components=3)
    generator.fit(features, labels)
    order = generator.weights[1].argsort()
    assert generator.weights[1][order].tolist() == pytest.approx([10 / 60, 20 / 60, 30 / 60], rel=1e-4)
    for part, begin, end in zip(order.tolist(), [0, 10, 30], [10, 30, 60], strict=True):
        heap = features[begin:end]
        torch.testing.assert_close(
            generator.means[1, part].double(), heap.mean(0), rtol=1e-3, atol=1e-3 * scale
        )
        expected = heap.std(0, correction=0)
        torch.testing.assert_close(
            generator.deviations[1, part].double(), expected, rtol=1e-2, atol=1e-3 * scale
        )


@pytest.mark.parametrize("covariance", ["diag", "spherical"])
def test_the_moments_of_a_class_are_kept_also_where_components_were_joined(covariance):
    # Eleven points far from each other: five components cannot but hold single ones.
    features = 10 * torch.eye(11, 12) + torch.arange(11)[:, None] ** 2
    generator = GaussianMixture(covariance=covariance)
    generator.fit(features, torch.zeros(11, dtype=torch.int64))
    assert int((generator.weights > 0).sum()) < 5
    assert (generator.weights[generator.weights > 0] * 11 >= 1.5).all()
    means, variances = moments(generator, 0)
    assert means == pytest.approx(features.double().mean(0).tolist(), rel=1e-5)
    expected = features.double().var(0, correction=0)
    if covariance == "diag":
        assert variances == pytest.approx(expected.tolist(), rel=1e-4)
    else:
        assert math.fsum(variances) == pytest.approx(float(expected.sum()), rel=1e-4)
    nearest = torch.cdist(generator.means[0][generator.weights[0] > 0], features).min()
    assert nearest > torch.pdist(features).min() / 4


def test_joining_goes_to_the_nearest():
    means = np.array([[0.0], [1.0], [10.0]])
    joined = _without_single(np.array([0.5, 0.1, 0.4]), means, np.ones((3, 1)), 10)
    assert joined[0].tolist() == pytest.approx([0.4, 0.6])
    assert joined[1][:, 0].tolist() == pytest.approx([10, 1 / 6])
    # 1 inside, and (5 · (1/6)² + 1 · (5/6)²) / 6 between.
    assert joined[2][:, 0].tolist() == pytest.approx([1, 1 + 5 / 36])


def test_draws_have_the_moments():
    features, labels = three_heaps()
    generator = GaussianMixture(n_components=4, seed=2, dtype="float16")
    generator.fit(features, labels)
    draws = 40_000
    drawn = generator.sample([1], draws)[0].double()
    means, variances = moments(generator, 1)
    # Five standard errors of a mean; and of a share, which is that of the heap of 10 in 60.
    for error, variance in zip((drawn.mean(0) - torch.tensor(means)).abs().tolist(), variances, strict=True):
        assert error < 5 * math.sqrt(variance / draws) + 1e-3 * math.sqrt(variance)
    first = ((drawn[:, 0] < 10) & (drawn[:, 1] < 10)).double().mean()
    assert float(first) == pytest.approx(1 / 6, abs=5 * math.sqrt(1 / 6 * 5 / 6 / draws) + 1e-3)


def test_degenerate_classes():
    # One sample; two; three equal ones; a constant dimension.
    features = torch.tensor([[1.0, 2.0], [0.0, 0.0], [2.0, 4.0], *[[5.0, 5.0]] * 3, [1.0, 3.0], [2.0, 3.0]])
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3])
    generator = GaussianMixture()
    generator.fit(features, labels)
    assert generator.weights.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]] * 4
    assert generator.means[:, 0].tolist() == [[1.0, 2.0], [1.0, 2.0], [5.0, 5.0], [1.5, 3.0]]
    assert generator.deviations[:, 0].tolist() == [[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [0.5, 0.0]]
    assert generator.sample([0, 1, 2, 3], 20)[0].isfinite().all()


def test_too_few_iterations_are_no_warning_and_seeds_count():
    features, labels = data = three_heaps()
    generator = GaussianMixture(max_iterations=1)
    generator.fit(*data)
    assert generator.sample([0, 1], 5)[0].isfinite().all()
    first, second, other = GaussianMixture(seed=1), GaussianMixture(seed=1), GaussianMixture(seed=2)
    for each in (first, second, other):
        each.fit(features, labels)
    assert torch.equal(first.means, second.means)
    assert not torch.equal(first.means, other.means)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("n_components", 0), ("covariance", "full"), ("max_iterations", 2.5), ("dtype", "double"), ("seed", -1)],
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises((TypeError, ValueError), match=f"^`{argument}`"):
        GaussianMixture(**{argument: value})
