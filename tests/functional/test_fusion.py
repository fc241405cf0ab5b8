"""The rules of fusion against loops in float64, and what they all leave alone."""

import math

import pytest
import torch

from avalanche_vlm.functional.discriminant import fused_logits, mixed_logits, rescored_logits

CLASSES = torch.tensor([4, 0, 3, 6])
OUTSIDE = torch.tensor([1, 2, 5])
RULES = {
    "log-linear": lambda *a, weight=0.7: fused_logits(*a, fusion_weight=weight),
    "log-linear, temperature": lambda *a, weight=0.7: fused_logits(*a, fusion_weight=weight, temperature=0.4),
    "log-linear, second alone": lambda *a, weight=0.7: fused_logits(*a, fusion_weight=weight, temperature=0),
    "mixture": lambda *a, weight=0.7: mixed_logits(*a, weight=weight),
    "mixture, second alone": lambda *a: mixed_logits(*a, weight=1),
    "best 2": lambda *a, weight=0.7: rescored_logits(*a, k=2, weight=weight),
    "best of all": lambda *a, weight=0.7: rescored_logits(*a, k=99, weight=weight),
}
EVERY = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def logits(scale=5.0, dtype=torch.float64, seed=0, rows=20):
    draw = torch.Generator().manual_seed(seed)
    first, second = (scale * torch.randn(rows, n, generator=draw, dtype=torch.float64) for n in (7, 4))
    return first.to(dtype), second.to(dtype)


def softmax(numbers):
    most = max(numbers)
    every = [math.exp(number - most) for number in numbers]
    return [each / sum(every) for each in every]


def expected(first, second, within):
    """Return probabilities: within(p0 of F as a list of logits, second) -> shares of F."""
    every = []
    for row, scores in zip(first.tolist(), second.tolist(), strict=True):
        p0 = softmax(row)
        mass = sum(p0[c] for c in CLASSES.tolist())
        shares = within([row[c] for c in CLASSES.tolist()], scores)
        for c, share in zip(CLASSES.tolist(), shares, strict=True):
            p0[c] = mass * share
        every.append(p0)
    return torch.tensor(every, dtype=torch.float64)


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 1.0), (1.0, 0.0), (2.0, 0.5), (0.0, 3.0)])
def test_log_linear_fusion_equals_the_loop(weight, temperature):
    first, second = logits()

    def within(z, scores):
        q = softmax(scores)
        return softmax([temperature * each + weight * math.log(p) for each, p in zip(z, q, strict=True)])

    found = fused_logits(first, second, CLASSES, fusion_weight=weight, temperature=temperature)
    torch.testing.assert_close(found.softmax(dim=1), expected(first, second, within), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0])
def test_a_mixture_equals_the_loop(weight):
    first, second = logits()

    def within(z, scores):
        return [(1 - weight) * p + weight * q for p, q in zip(softmax(z), softmax(scores), strict=True)]

    found = mixed_logits(first, second, CLASSES, weight=weight)
    torch.testing.assert_close(found.softmax(dim=1), expected(first, second, within), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_rescoring_equals_the_loop(k, weight):
    first, second = logits()
    found = rescored_logits(first, second, CLASSES, k=k, weight=weight)
    for row in range(len(first)):
        z = [float(first[row, c]) for c in CLASSES.tolist()]
        best = sorted(range(4), key=lambda i: -z[i])[:k]
        q = dict(zip(best, softmax([float(second[row, i]) for i in best]), strict=True))
        order = sorted(best, key=lambda i: -(z[i] + weight * math.log(q[i])))
        result = first[row].clone()
        for place, i in zip(best, order, strict=True):
            result[CLASSES[i]] = z[place]
        assert torch.equal(found[row], result)


def test_rescoring_keeps_the_set_of_the_best():
    first, second = logits(rows=200)
    for k in (1, 2, 3):
        found = rescored_logits(first, 10 * second, CLASSES, k=k, weight=5.0)
        before, after = (each[:, CLASSES].topk(k).indices.sort().values for each in (first, found))
        assert torch.equal(before, after)
        assert torch.equal(found.sort().values, first.sort().values)
    assert not torch.equal(found, first)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_classes_outside_keep_their_logits_and_the_rest_its_mass(rule, dtype):
    first, second = logits(dtype=dtype)
    found = rule(first, second, CLASSES)
    assert found.dtype == dtype
    assert torch.equal(found[:, OUTSIDE], first[:, OUTSIDE])
    mass, before = (each[:, CLASSES].logsumexp(dim=1) for each in (found, first))
    torch.testing.assert_close(mass, before)
    assert not torch.equal(found, first)


@EVERY
@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_extreme_logits_stay_finite(rule, scale):
    first, second = logits(dtype=torch.float32)
    for large in ((scale * first, second), (first, scale * second), (scale * first, scale * second)):
        assert rule(*large, CLASSES).isfinite().all()
    same = torch.zeros(2, 7), torch.zeros(2, 4)
    torch.testing.assert_close(rule(*same, CLASSES), torch.zeros(2, 7), atol=1e-6, rtol=0)


@EVERY
def test_scores_that_all_shift_are_the_same(rule):
    first, second = logits()
    torch.testing.assert_close(rule(first, second + 3, CLASSES), rule(first, second, CLASSES))
    torch.testing.assert_close(rule(first + 3, second, CLASSES), rule(first, second, CLASSES) + 3)


@EVERY
def test_no_classes_leave_all_as_it_is(rule):
    first, _ = logits()
    assert torch.equal(rule(first, torch.zeros(20, 0), torch.zeros(0, dtype=torch.int64)), first)


@pytest.mark.parametrize("name", ["log-linear", "mixture", "best 2", "best of all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weight_zero_is_the_first_bit_for_bit(name, dtype):
    for scale in (1e-3, 5.0, 1e4):
        first, second = logits(scale, dtype)
        assert torch.equal(RULES[name](first, second, CLASSES, weight=0), first)


@EVERY
def test_the_order_of_the_classes_does_not_matter(rule):
    first, second = logits()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        rule(first, second[:, order], CLASSES[order]), rule(first, second, CLASSES), atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda *a: fused_logits(*a, fusion_weight=math.nan), "fusion_weight"),
        (lambda *a: fused_logits(*a, fusion_weight=1, temperature=math.inf), "temperature"),
        (lambda *a: mixed_logits(*a, weight=1.1), "weight"),
        (lambda *a: mixed_logits(*a, weight=-0.1), "weight"),
        (lambda *a: rescored_logits(*a, k=0, weight=1), "k"),
        (lambda *a: rescored_logits(*a, k=1.5, weight=1), "k"),
        (lambda *a: rescored_logits(*a, k=1, weight=-1), "weight"),
    ],
)
def test_each_wrong_argument_is_named(call, name):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        call(*logits(), CLASSES)
