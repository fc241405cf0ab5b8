"""The mean of weights along the way, against a mean of copies."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import EWCPlugin, ReplayPlugin
from torch.optim import SGD

from avalanche_vlm.models import LoRA
from avalanche_vlm.plugins import LabelSpaceCrossEntropy, RegularizerPlugin, WeightEnsemblePlugin
from avalanche_vlm.regularizers import PreviousWeightsPenalty
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import (
    check_callbacks,
    check_composes,
    check_frozen,
    check_repeatable,
    check_resumable,
    tiny_benchmark,
    tiny_classifier,
)

BENCHMARK = tiny_benchmark()


class Copies(SupervisedPlugin):
    """Copies the weights before each experience and after each step."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def copy(self, strategy, *args, **kwargs):
        self.copies[-1].append({n: p.detach().double() for n, p in strategy.model.named_parameters()})

    def before_training_exp(self, strategy, *args, **kwargs):
        self.copies.append([])
        self.copy(strategy)

    after_update = copy


def strategy(plugins=(), kind=FineTune, trainable="both", **arguments):
    model = tiny_classifier(trainable=trainable)
    arguments = {"train_mb_size": 3, "train_epochs": 3, "evaluator": None, **arguments}
    if kind is not FineTune:
        arguments |= {"criterion": LabelSpaceCrossEntropy("seen"), "eval_mb_size": 4}
    return kind(
        model=model, optimizer=SGD(model.parameters(), lr=0.05, momentum=0.9), plugins=[*plugins], **arguments
    )


@pytest.mark.parametrize(
    ("kind", "arguments"), [(FineTune, {}), (Naive, {}), (FineTune, {"accumulate_batches": 2})]
)
@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_each_experience_ends_with_the_mean(every, kind, arguments):
    copies = Copies()
    trained = strategy([copies, WeightEnsemblePlugin(every)], kind, **arguments)
    for experience in BENCHMARK.train_stream:
        trained.train(experience)
        along = copies.copies[-1]
        members = along[::every]
        steps = 6 if arguments else 9
        assert len(along) == steps + 1
        for name, parameter in trained.model.named_parameters():
            mean = sum(member[name] for member in members) / len(members)
            expected = along[-1][name] if len(members) == 1 else mean
            torch.testing.assert_close(parameter.detach().double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("every", "first", "taken"),
    [(4, 1, [0, 1, 5, 9]), (3, 2, [0, 2, 5, 8]), (2, 9, [0, 9]), (4, 4, [0, 4, 8]), (1, 10, [9])],
)
def test_the_first_member_may_be_another_step(every, first, taken):
    copies = Copies()
    trained = strategy([copies, WeightEnsemblePlugin(every, first=first)])
    trained.train(BENCHMARK.train_stream[0])
    (along,) = copies.copies
    for name, parameter in trained.model.named_parameters():
        mean = sum(along[step][name] for step in taken) / len(taken)
        torch.testing.assert_close(parameter.detach().double(), mean, atol=1e-6, rtol=1e-5)


def test_training_goes_on_with_the_live_weights():
    with_mean, without = Copies(), Copies()
    for copies, plugins in ((with_mean, [WeightEnsemblePlugin(2)]), (without, [])):
        torch.manual_seed(0)
        strategy([copies, *plugins]).train(BENCHMARK.train_stream[0])
    for one, other in zip(with_mean.copies[0], without.copies[0], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_interrupted_experience_is_begun_again():
    class Interrupting(SupervisedPlugin):
        armed = True

        def after_update(self, strategy, *args, **kwargs):
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt

    copies, plugin = Copies(), WeightEnsemblePlugin(1)
    trained = strategy([copies, plugin, Interrupting()])
    with pytest.raises(KeyboardInterrupt):
        trained.train(BENCHMARK.train_stream[0])
    trained.train(BENCHMARK.train_stream[0])
    members = copies.copies[-1]
    assert len(members) == 10
    for name, parameter in trained.model.named_parameters():
        mean = sum(member[name] for member in members) / 10
        torch.testing.assert_close(parameter.detach().double(), mean, atol=1e-6, rtol=1e-5)
    assert plugin._mean == {}


def test_laws():
    def make():
        return strategy([WeightEnsemblePlugin(2)])

    check_callbacks(WeightEnsemblePlugin())
    check_repeatable(make, BENCHMARK)
    check_resumable(make, BENCHMARK)
    check_frozen(make, BENCHMARK)
    check_frozen(lambda: strategy([WeightEnsemblePlugin(2)], trainable=LoRA(rank=2)), BENCHMARK)


def test_beside_other_plugins():
    plugins = {
        "ours": lambda: WeightEnsemblePlugin(2),
        "Replay": lambda: ReplayPlugin(mem_size=6),
        "EWC": lambda: EWCPlugin(ewc_lambda=10.0),
        "penalty": lambda: RegularizerPlugin(PreviousWeightsPenalty(), 0.5),
    }
    for other in ("Replay", "EWC", "penalty"):
        pair = {name: plugins[name] for name in ("ours", other)}
        check_composes(lambda chosen: strategy(chosen, train_epochs=1), pair, BENCHMARK)
