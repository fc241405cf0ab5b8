"""The learning rate of each iteration, in whole experiences and in pieces of them."""

import pytest
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.core import SupervisedPlugin
from torch.optim import SGD

from avalanche_vlm.functional import WarmupCosine
from avalanche_vlm.plugins import LearningRatesPlugin
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import check_callbacks, check_repeatable, tiny_benchmark, tiny_classifier

BENCHMARK = tiny_benchmark()  # three experiences of eight samples
RATES = (0.1, 0.0, 0.3)
SCHEDULE = WarmupCosine(warmup=1, total=4)


class Rates(SupervisedPlugin):
    """The learning rate of each step, by experience or piece."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_training_exp(self, strategy, *args, **kwargs):
        self.seen.append([])

    def before_update(self, strategy, *args, **kwargs):
        (rate,) = {group["lr"] for group in strategy.optimizer.param_groups}
        self.seen[-1].append(rate)


def strategy(*plugins):
    model = tiny_classifier(trainable="image")
    weights = [*model.parameters()]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 7.0}]
    return FineTune(
        model=model, optimizer=SGD(groups, lr=0.05), plugins=[*plugins], train_mb_size=2, evaluator=None
    )


def test_each_experience_has_its_own_rate_in_any_order():
    trained = strategy(LearningRatesPlugin(RATES, SCHEDULE), rates := Rates())
    for place in (2, 0, 1, 2):
        trained.train(BENCHMARK.train_stream[place])
    factors = [1.0, 1.0, 0.75, 0.25]  # half a cosine over three iterations
    expected = [[RATES[place] * factor for factor in factors] for place in (2, 0, 1, 2)]
    assert rates.seen == [pytest.approx(own) for own in expected]


@pytest.mark.parametrize("boundaries", [True, False])
def test_pieces_of_an_online_stream_have_the_rate_of_their_experience(boundaries):
    trained = strategy(LearningRatesPlugin(RATES, SCHEDULE), rates := Rates())
    # Four samples a piece: six pieces, where there are three rates.
    for piece in split_online_stream(
        BENCHMARK.train_stream, experience_size=4, access_task_boundaries=boundaries
    ):
        trained.train(piece)
    assert rates.seen == [[RATES[place]] * 2 for place in (0, 0, 1, 1, 2, 2)]


def test_it_keeps_the_laws():
    check_callbacks(LearningRatesPlugin(RATES, SCHEDULE))
    check_repeatable(lambda: strategy(LearningRatesPlugin(RATES, SCHEDULE)), BENCHMARK)


def test_mistakes_are_named():
    for rates, error in (([], ValueError), ([-0.1], ValueError), (["a"], TypeError), ("abc", TypeError)):
        with pytest.raises(error, match="`learning_rates`"):
            LearningRatesPlugin(rates, SCHEDULE)
    with pytest.raises(TypeError, match="`schedule` must be a function of the iteration"):
        LearningRatesPlugin(RATES, 0.5)
    trained = strategy(LearningRatesPlugin(RATES[:2], SCHEDULE))
    with pytest.raises(ValueError, match="`learning_rates`.*number 2 of the stream.*2 of them"):
        trained.train(BENCHMARK.train_stream[2])
