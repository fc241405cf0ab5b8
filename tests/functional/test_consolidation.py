"""Importances and the distance of weights, against loops in float64."""

import pytest
import torch

from avalanche_vlm.functional import normalised_importance, weighted_distance


def numbers(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e8])
def test_importances_are_shares_of_the_mean_in_each_tensor(scale):
    gradients = [scale * numbers(3, 4), scale * 100 * numbers(5, seed=1), numbers()]
    found = normalised_importance([gradient.square() for gradient in gradients])
    for gradient, importance in zip(gradients, found, strict=True):
        squares = [value * value for value in gradient.flatten().tolist()]
        expected = [square / (sum(squares) / len(squares)) for square in squares]
        assert importance.flatten().tolist() == pytest.approx(expected, rel=1e-12)
        assert float(importance.mean()) == pytest.approx(1, rel=1e-12)


def test_no_gradient_and_a_gradient_of_zero_have_no_importance():
    found = normalised_importance([None, torch.zeros(3), torch.ones(2)])
    assert found[0] is None
    assert found[1].tolist() == [0, 0, 0]
    assert found[2].tolist() == [1, 1]


def test_the_distance_is_that_of_the_equation():
    weights = [numbers(2, 3).requires_grad_(), numbers(4, seed=1).requires_grad_(), numbers(2, seed=2)]
    origins = [numbers(2, 3, seed=3), numbers(4, seed=4), numbers(2, seed=5)]
    importances = [numbers(2, 3, seed=6).square(), numbers(4, seed=7).square(), None]
    found = weighted_distance(weights, origins, importances)
    expected = 0.0
    for weight, origin, importance in zip(weights[:2], origins, importances, strict=False):
        rows = zip(weight.flatten().tolist(), origin.flatten().tolist(), importance.flatten().tolist())  # noqa: B905
        expected += sum(f * (a - b) ** 2 for a, b, f in rows)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert float(weighted_distance(origins, origins, importances)) == 0
    assert float(weighted_distance([], [], [])) == 0
