"""What a run costs."""

import math
import time

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EvaluationPlugin
from torch.optim import SGD

from avalanche_vlm.logging import ResultsLogger, read_results
from avalanche_vlm.metrics import CostMetric
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

PAUSE = 0.05


class Pauses(SupervisedPlugin):
    """Takes time in training or in evaluation."""

    def __init__(self, training=0.0, evaluation=0.0):
        super().__init__()
        self.training, self.evaluation = training, evaluation

    def after_training_exp(self, strategy, **kwargs):
        time.sleep(self.training)

    def before_eval_exp(self, strategy, **kwargs):
        time.sleep(self.evaluation)


@pytest.fixture(scope="module")
def benchmark():
    return tiny_benchmark()


def make(metric, *plugins, loggers=(), kind=Naive, **arguments):
    model = tiny_classifier(trainable="image")
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        criterion=LabelSpaceCrossEntropy("seen"),
        train_mb_size=8,
        eval_mb_size=24,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(metric, loggers=list(loggers)),
        **arguments,
    )


def test_nothing_has_cost_nothing():
    found = CostMetric().result()
    assert (found["training_seconds"], found["evaluation_seconds"]) == (0.0, 0.0)
    assert math.isnan(found["peak_memory"])


def test_seconds_are_of_training_or_of_evaluation(benchmark):
    metric = CostMetric()
    strategy = make(metric, Pauses(training=PAUSE))
    strategy.eval(benchmark.test_stream[:1])
    first = metric.result()
    assert first["training_seconds"] == 0.0
    assert first["evaluation_seconds"] > 0
    strategy.train(benchmark.train_stream[0])
    second = metric.result()
    assert second["training_seconds"] >= PAUSE
    assert second["evaluation_seconds"] == first["evaluation_seconds"]
    started = time.perf_counter()
    strategy.train(benchmark.train_stream[1])
    passed = time.perf_counter() - started
    third = metric.result()
    assert PAUSE <= third["training_seconds"] - second["training_seconds"] <= passed
    strategy.eval(benchmark.test_stream[:1])
    assert metric.result()["evaluation_seconds"] > first["evaluation_seconds"]
    assert metric.result()["training_seconds"] == third["training_seconds"]


def test_time_between_does_not_count(benchmark):
    metric = CostMetric()
    strategy = make(metric)
    strategy.train(benchmark.train_stream[0])
    before = metric.result()
    time.sleep(3 * PAUSE)
    started = time.perf_counter()
    strategy.eval(benchmark.test_stream[:1])
    assert metric.result()["evaluation_seconds"] <= time.perf_counter() - started
    assert metric.result()["training_seconds"] == before["training_seconds"]


def test_periodic_evaluation_is_part_of_training(benchmark):
    metric = CostMetric()
    strategy = make(metric, Pauses(evaluation=PAUSE), eval_every=1, train_epochs=2)
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream[:1]])
    found = metric.result()
    assert found["evaluation_seconds"] == 0.0
    assert found["training_seconds"] >= 2 * PAUSE
    strategy.eval(benchmark.test_stream[:1])
    assert metric.result()["evaluation_seconds"] >= PAUSE
    assert metric.result()["training_seconds"] == found["training_seconds"]


def test_the_peak_never_falls(benchmark):
    metric = CostMetric()
    strategy = make(metric)
    strategy.eval(benchmark.test_stream[:1])
    first = metric.result()["peak_memory"]
    held = torch.zeros(1)
    if math.isfinite(first):
        assert first >= 0
        held = torch.ones(int(first) // 4 + 50_000_000)  # 200 MB more than ever before
    strategy.train(benchmark.train_stream[0])
    second = metric.result()["peak_memory"]
    del held
    strategy.eval(benchmark.test_stream[:1])
    assert metric.result()["peak_memory"] >= second >= first


def test_a_state_is_gone_on_from(benchmark):
    metric, other = CostMetric(), CostMetric()
    strategy = make(metric)
    strategy.train(benchmark.train_stream[0])
    state = metric.state_dict()
    other.load_state_dict(state)
    assert other.result() == metric.result() == state
    strategy.train(benchmark.train_stream[1])
    assert other.result() == state
    assert metric.result() != state
    strategy = make(other)
    strategy.train(benchmark.train_stream[0])
    assert other.result()["training_seconds"] > state["training_seconds"]
    assert other.result()["peak_memory"] >= state["peak_memory"]
    other.reset()
    assert other.result()["training_seconds"] == 0.0
    assert repr(other) == "CostMetric()"


def test_numbers_reach_the_file_of_results(benchmark, tmp_path):
    path, metric = tmp_path / "results.csv", CostMetric()
    strategy = make(metric, loggers=[ResultsLogger(path)])
    expected = []
    strategy.eval(benchmark.test_stream)
    expected.append(("evaluation_seconds", "test", 0, metric.result()["evaluation_seconds"]))
    for after, experience in enumerate(benchmark.train_stream, start=1):
        logged = strategy.train(experience)
        assert logged["TrainingSeconds"] == metric.result()["training_seconds"]
        expected.append(("training_seconds", "train", after, metric.result()["training_seconds"]))
        assert (
            strategy.eval(benchmark.test_stream)["EvaluationSeconds"] == metric.result()["evaluation_seconds"]
        )
        expected.append(("evaluation_seconds", "test", after, metric.result()["evaluation_seconds"]))
    rows = read_results(path)
    found = [
        (row.metric, row.stream, row.after_experience, row.value) for row in rows if "seconds" in row.metric
    ]
    assert found == expected
    peaks = [row for row in rows if row.metric == "peak_memory"]
    assert [(row.stream, row.after_experience) for row in peaks] == [
        (stream, after) for _, stream, after, _ in expected
    ]
    assert all(row.experience is None and not row.space for row in rows)


def test_joint_training_has_costs(benchmark):
    metric = CostMetric()
    make(metric, kind=JointTraining).train(benchmark.train_stream)
    assert metric.result()["training_seconds"] > 0


def test_the_clock_of_another_process_is_not_carried_over():
    """What checkpoints find in a metric are its attributes: a time of `perf_counter` is none of them."""
    assert "_start" not in vars(CostMetric())
