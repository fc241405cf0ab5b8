"""Importances, against loops in float64."""

import pytest
import torch

from avalanche_vlm.functional import normalised_importance


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
