"""The host's MAS, and what it makes of a loss of exactly zero."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import MASPlugin as HostMASPlugin
from torch import nn
from torch.optim import SGD

from avalanche_vlm.plugins import LabelSpaceCrossEntropy, MASPlugin
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from avalanche_vlm.testing.running import differing, run


class Zero(nn.Module):
    """A criterion that finds nothing to learn, as where all logits are far apart."""

    def forward(self, logits, _):
        return (logits * 0).sum()


def strategy(plugin, criterion=None):
    model = tiny_classifier(trainable="image")
    return Naive(
        model=model,
        optimizer=SGD(nn.Module.parameters(model), lr=0.01, momentum=0.9),
        criterion=criterion or LabelSpaceCrossEntropy("seen"),
        plugins=[plugin],
        train_mb_size=4,
        evaluator=None,
    )


def test_it_is_the_hosts_where_the_loss_is_not_zero():
    benchmark = tiny_benchmark()
    ends = [run(strategy(kind(lambda_reg=50.0)), benchmark) for kind in (HostMASPlugin, MASPlugin)]
    assert not differing(*ends)
    assert differing(ends[0], run(strategy(MASPlugin(lambda_reg=0.0)), benchmark))


def test_the_host_stops_at_a_loss_of_zero():
    """The day that this fails, the host is mended, and `MASPlugin` of this package can go."""
    stopped = strategy(HostMASPlugin(), Zero())
    first, second, _ = tiny_benchmark().train_stream
    stopped.train(first)
    with pytest.raises(ValueError, match="Loss is not available"):
        stopped.train(second)


def test_at_a_loss_of_zero_the_penalty_alone_is_left():
    plugin = MASPlugin(lambda_reg=3.0, alpha=0.25)
    going = strategy(plugin, Zero())
    first, second, _ = tiny_benchmark().train_stream
    going.train(first)
    before = {name: value.detach().clone() for name, value in going.model.named_parameters()}
    with torch.no_grad():
        for weight in going.model.parameters():
            weight += 0.01
    losses, gradients = [], []

    class Looks(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            losses.append(float(strategy.loss.detach()))
            (gradient,) = torch.autograd.grad(
                strategy.loss, [next(strategy.model.parameters())], retain_graph=True
            )
            gradients.append(gradient)

    name, weight = next(going.model.named_parameters())
    importance = {key: value.data.double().clone() for key, value in plugin.importance.items()}
    moved = {key: value.detach().double() for key, value in going.model.named_parameters()}
    going.plugins.insert(going.plugins.index(plugin) + 1, Looks())
    going.train(second)
    expected = 3 * sum(
        float((importance[key] * (moved[key] - before[key].double()) ** 2).sum()) for key in moved
    )
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert losses[0] > 0
    slope = 6 * importance[name] * (moved[name] - before[name].double())
    torch.testing.assert_close(gradients[0].double(), slope, rtol=1e-3, atol=1e-9)
