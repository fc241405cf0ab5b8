"""Metrics and loggers get from our template what they get from the host's."""

import pytest
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import BaseLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch.optim import SGD

from avalanche_vlm.metrics import AccuracyMatrixMetric
from avalanche_vlm.models import CosineHead, ZeroShotHead
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from avalanche_vlm.testing.running import run


@pytest.fixture(scope="module")
def embedded():
    return tiny_benchmark(embedded=tiny_classifier())


def strategy(kind, *metrics, loggers=None, **arguments):
    model = tiny_classifier(CosineHead(ZeroShotHead()))
    evaluator = EvaluationPlugin(*metrics, loggers=loggers)
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        criterion=LabelSpaceCrossEntropy("seen"),
        train_mb_size=3,
        eval_mb_size=3,
        evaluator=evaluator,
        **arguments,
    )


def test_metrics_are_those_of_the_hosts_template(embedded):
    everything = {"minibatch": True, "epoch": True, "epoch_running": True, "experience": True, "stream": True}
    results = []
    for kind in (Naive, FineTune):
        metrics = accuracy_metrics(**everything), loss_metrics(**everything), AccuracyMatrixMetric("seen")
        chosen = strategy(kind, *metrics)
        run(chosen, embedded)
        results.append(chosen.evaluator.get_all_metrics())
    assert repr(results[0]) == repr(results[1])  # the loss of what has not been seen is NaN
    assert len(results[0]) > 10


class Counting(PluginMetric):
    """Listens to one callback of the host, without the name of any of our classes."""

    def __init__(self):
        self.calls = 0

    def before_forward(self, strategy):
        self.calls += 1

    def result(self):
        return self.calls

    def reset(self):
        self.calls = 0


class Log(BaseLogger):
    """Writes down which callbacks it is told of."""

    def __init__(self):
        super().__init__()
        self.events = []

    def log_single_metric(self, name, value, x_plot): ...

    def __getattribute__(self, name):
        if name.startswith(("before_", "after_")):
            super().__getattribute__("events").append(name)
        return super().__getattribute__(name)


def test_a_metric_that_listens_to_one_callback_and_a_logger_miss_nothing(embedded):
    seen = []
    for kind in (Naive, FineTune):
        counting, log = Counting(), Log()
        run(strategy(kind, counting), embedded)
        run(strategy(kind, loggers=[log]), embedded)
        seen.append((counting.calls, log.events))
    assert seen[0] == seen[1]
    assert seen[0][0] == 9  # three experiences of eight samples
    assert {"after_update", "before_eval_forward"} <= set(seen[0][1])
