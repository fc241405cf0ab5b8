import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from avalanche_vlm.functional import (
    class_mean_cosines,
    class_means,
    gradient_directions,
    kept_apart,
    largest_cosines,
    multi_positive_contrast,
    nearest_cosines,
    variance_shares,
)


def unit(*shape, seed=0, dtype=torch.float64):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return F.normalize(rows, dim=-1)


@pytest.mark.parametrize("scale", [0.5, 5.0, 20.0])
def test_gradients_are_those_of_autograd(scale):
    x, w = unit(9, 6).requires_grad_(), unit(3, 6, seed=1).requires_grad_()
    classes = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    groups = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4])
    found = gradient_directions(x.detach(), w.detach(), classes, groups, scale=scale)
    for group in range(5):
        rows = (groups == group).nonzero().flatten()
        loss = F.cross_entropy(scale * x[rows] @ w.T, classes[rows])
        to_x, to_w = torch.autograd.grad(loss, [x, w])
        expected = [-to_w[classes[rows[0]]], -to_x.sum(dim=0)]
        for part, direction in zip(found[group].split(6), expected, strict=True):
            torch.testing.assert_close(part, direction / direction.norm(), rtol=1e-8, atol=1e-8)


def test_gradients_at_a_low_scale_are_means():
    x, w = unit(8, 5), unit(2, 5, seed=1)
    classes = torch.tensor([0] * 4 + [1] * 4)
    found = gradient_directions(x, w, classes, classes, scale=1e-6)[:, :5]
    expected = F.normalize(torch.stack([x[:4].sum(0), x[4:].sum(0)]), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradient_of_one_feature_is_the_feature():
    x, w = unit(2, 5, dtype=torch.float32), unit(2, 5, seed=1, dtype=torch.float32)
    found = gradient_directions(x, w, torch.tensor([0, 1]), torch.tensor([0, 1]), scale=100.0)
    torch.testing.assert_close(found[:, :5], x)


def test_contrast_is_that_of_a_loop():
    a, b = unit(5, 4), unit(6, 4, seed=1)
    ca, cb = torch.tensor([0, 0, 1, 2, 9]), torch.tensor([0, 1, 1, 2, 2, 0])  # 9 has no positive
    total, count = 0.0, 0
    for i in range(5):
        right = [j for j in range(6) if cb[j] == ca[i]]
        if not right:
            continue
        scores = [math.exp(float(a[i] @ b[j]) / 0.3) for j in range(6)]
        total -= sum(math.log(scores[j] / sum(scores)) for j in right) / len(right)
        count += 1
    assert float(multi_positive_contrast(a, b, ca, cb, temperature=0.3)) == pytest.approx(total / count)


def test_contrast_names_what_is_wrong():
    with pytest.raises(ValueError, match="temperature"):
        multi_positive_contrast(unit(2, 3), unit(2, 3), torch.arange(2), torch.arange(2), temperature=0.0)
    with pytest.raises(ValueError, match="others"):
        multi_positive_contrast(unit(2, 3), unit(2, 4), torch.arange(2), torch.arange(2))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    spread=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_seeds_are_kept_apart(sizes, seed, spread):
    labels = torch.tensor([label for label, size in enumerate(sizes) for _ in range(size)])
    centres = unit(len(sizes), 96, seed=seed)
    x = F.normalize(centres[labels] + spread * unit(len(labels), 96, seed=seed + 1), dim=1).float()
    seeds = torch.cat([x, F.normalize(torch.stack([x[labels == c].mean(0) for c in labels.unique()]), dim=1)])
    found, done = kept_apart(seeds, x, labels, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    # Beside a feature that is alone in its class a right angle may be the limit, and no direction be found.
    assert bool(done.all()) or min(sizes) == 1 or spread == 1.0
    found = found[done]
    for i in range(len(x)):
        # The nearest pair of the class of x_i, by a loop; alone with nobody, one half.
        limit = -1.0
        for k in range(len(x)):
            if labels[k] == labels[i]:
                others = [float(x[k] @ x[j]) for j in range(len(x)) if j != k]
                limit = max([limit, *others]) if others else 0.5
        assert not bool((found @ x[i] > max(limit, 0.0) + 1e-4).any())


def test_a_seed_that_is_far_enough_stays():
    x = torch.eye(64)[:2]
    seeds = torch.eye(64)[2:3]
    found, done = kept_apart(seeds, x, torch.tensor([0, 1]), torch.Generator())
    # Orthogonal features: the bound is 0, with a margin that cannot go below it.
    torch.testing.assert_close(found, seeds)
    assert bool(done.all())


def test_copies_are_no_neighbours():
    x = unit(3, 8, dtype=torch.float32)
    doubled = torch.cat([x, x])
    torch.testing.assert_close(nearest_cosines(doubled), nearest_cosines(x).repeat(2))
    assert float(nearest_cosines(x[:1])) == 0.5
    labels = torch.tensor([0, 0, 1])
    nearest = nearest_cosines(x)
    expected = torch.stack([nearest[:2].max(), nearest[:2].max(), nearest[2]])
    torch.testing.assert_close(largest_cosines(x, labels), expected)


def test_variance_is_shared_among_directions_by_a_loop():
    x, labels = unit(30, 7), torch.arange(30) % 3
    seeds, own = unit(9, 7, seed=1), torch.arange(9) % 3
    shares = variance_shares(seeds, own, x, labels)
    means = torch.stack([x[labels == c].mean(0) for c in range(3)])
    # An orthonormal base of the differences, by Gram and Schmidt.
    first = F.normalize(means[1] - means[0], dim=0)
    second = means[2] - means[0]
    second = F.normalize(second - (second @ first) * first, dim=0)
    for name, rows, classes in (("seeds", seeds, own), ("features", x, labels)):
        relevant = whole = 0.0
        for row, label in zip(rows, classes, strict=True):
            rest = row - rows[classes == label].mean(0)
            relevant += float((rest @ first) ** 2 + (rest @ second) ** 2) / len(rows)
            whole += float(rest @ rest) / len(rows)
        assert shares[f"{name}_relevant"] == pytest.approx(relevant)
        assert shares[f"{name}_irrelevant"] == pytest.approx(whole - relevant)


def test_cosines_of_class_means_take_classes_of_both():
    x, labels = unit(4, 5), torch.tensor([3, 3, 7, 8])
    seeds, own = unit(3, 5, seed=1), torch.tensor([7, 7, 1])
    expected = F.cosine_similarity(seeds[:2].mean(0), x[2], dim=0)
    torch.testing.assert_close(class_mean_cosines(seeds, own, x, labels), expected[None])


def test_without_a_common_class_there_are_no_cosines_of_means():
    x = unit(2, 5)
    assert class_mean_cosines(x, torch.tensor([0, 1]), x, torch.tensor([2, 3])).shape == (0,)
    assert class_means(x[:0], torch.tensor([], dtype=torch.int64)).shape == (0, 5)
