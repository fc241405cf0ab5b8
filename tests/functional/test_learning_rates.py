import math
import pickle

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from avalanche_vlm.functional import WarmupCosine


@pytest.mark.parametrize(("warmup", "total"), [(100, 1000), (3, 7), (0, 5), (1, 2)])
def test_each_iteration_has_the_factor_of_the_equation(warmup, total):
    factor, expected = WarmupCosine(warmup, total), []
    for iteration in range(total):
        if iteration < warmup:
            expected.append((iteration + 1) / warmup)
        else:
            expected.append(math.cos(math.pi / 2 * (iteration - warmup) / (total - warmup)) ** 2)
    assert [factor(iteration) for iteration in range(total)] == pytest.approx(expected, abs=1e-12)
    assert max(expected) == factor(warmup) == 1
    assert [factor(total + iteration) for iteration in range(total)] == [factor(i) for i in range(total)]


def test_it_falls_to_almost_nothing():
    assert 0 < WarmupCosine(100, 1000)(999) < 1e-5


def test_a_schedule_of_torch_keeps_it_in_its_state():
    def schedule(factor):
        return LambdaLR(SGD([torch.zeros(1, requires_grad=True)], lr=2.0), factor)

    assert pickle.loads(pickle.dumps(WarmupCosine(2, 9))) == WarmupCosine(2, 9)
    saved, loaded = schedule(WarmupCosine(2, 9)), schedule(WarmupCosine(1, 3))
    loaded.load_state_dict(saved.state_dict())
    assert loaded.lr_lambdas == [WarmupCosine(2, 9)]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"warmup": -1, "total": 5}, ValueError, "`warmup`"),
        ({"warmup": 1.5, "total": 5}, TypeError, "`warmup`"),
        ({"warmup": 0, "total": 0}, ValueError, "`total`"),
        ({"warmup": 5, "total": 5}, ValueError, "`total` must be more than the 5 iterations of warm-up"),
    ],
)
def test_mistakes_are_named(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        WarmupCosine(**arguments)
