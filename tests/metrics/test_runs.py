"""A metric belongs to one run, and to the streams of its benchmark; nothing of another run gets in unseen."""

import copy
import gc
import math

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, benchmark_with_validation_stream
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EvaluationPlugin
from torch.optim import SGD

from avalanche_vlm.benchmarks import tensor_benchmark, with_validation_stream
from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.logging import ResultsLogger, read_results, result_matrix
from avalanche_vlm.metrics import (
    AccuracyMatrixMetric,
    ClassAccuracyMetric,
    CostMetric,
    MemoryMetric,
    SemanticDriftMetric,
    continual_metrics,
)
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier, tiny_images

METRICS = {
    "matrix": AccuracyMatrixMetric,
    "matrix of all": lambda: AccuracyMatrixMetric("all"),
    "classes": ClassAccuracyMetric,
    "cost": CostMetric,
    "memory": MemoryMetric,
    "drift": SemanticDriftMetric,
    "continual": lambda: continual_metrics()[1],
}
A = tiny_benchmark(per_class=2)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make(*metrics, evaluator=None, loggers=(), kind=FineTune, **arguments):
    model = tiny_classifier(trainable="both")
    if kind is not FineTune:
        arguments["criterion"] = LabelSpaceCrossEntropy("seen")
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.05),
        train_mb_size=4,
        eval_mb_size=5,
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers)) if evaluator is None else evaluator,
        **arguments,
    )


def run(strategy, benchmark=A):
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    return strategy


def same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def other_benchmark(*, seed=7, n_experiences=3, **arguments):
    pairs = [tiny_images(per_class=2, seed=seed + part) for part in (0, 1)]
    return tensor_benchmark(*pairs, class_names=TINY_CLASSES, n_experiences=n_experiences, **arguments)


# One metric, two runs.


@pytest.mark.parametrize(
    ("make_metric", "kind"),
    [
        *((each, FineTune) for each in METRICS.values()),
        *((METRICS["matrix"], k) for k in (Naive, JointTraining)),
    ],
)
def test_a_metric_refuses_a_second_strategy(make_metric, kind):
    metric = make_metric()
    first = make(metric, kind=kind)
    first.train(A.train_stream if kind is JointTraining else A.train_stream[0])
    first.eval(A.test_stream)
    before = copy.deepcopy(metric.result())
    second = make(metric, kind=kind)
    told = rf"`evaluator` must be .*a {type(metric).__name__} that has served another strategy.*new metrics"
    with pytest.raises(ValueError, match=told):
        second.train(A.train_stream if kind is JointTraining else A.train_stream[0])
    with pytest.raises(ValueError, match=told):
        second.eval(A.test_stream)
    assert repr(metric.result()) == repr(before)
    first.eval(A.test_stream)  # the run that it belongs to goes on
    metric.reset()
    second = make(metric, kind=kind)
    second.eval(A.test_stream)
    second.train(A.train_stream if kind is JointTraining else A.train_stream[0])
    with pytest.raises(ValueError, match=told):
        first.eval(A.test_stream)


def test_an_evaluator_that_two_strategies_share_is_refused_also_after_one_was_forgotten():
    evaluator = EvaluationPlugin(*continual_metrics(), loggers=[])
    make(evaluator=evaluator).eval(A.test_stream)
    gc.collect()
    for _ in range(3):  # whatever address a later strategy gets
        with pytest.raises(ValueError, match="another strategy"):
            make(evaluator=evaluator).train(A.train_stream[0])


def test_two_strategies_that_take_turns_are_told_apart():
    metrics = [AccuracyMatrixMetric("all"), AccuracyMatrixMetric("all")]
    alone, other = make(metrics[0]), make(metrics[1])
    for experience in A.train_stream:
        for strategy in (alone, other):
            strategy.train(experience)
            strategy.eval(A.test_stream)
    assert metrics[0].experiences_trained == metrics[1].experiences_trained == 3


def test_a_logger_refuses_a_second_strategy(tmp_path):
    logger = ResultsLogger(tmp_path / "results.csv")
    run(make(loggers=[logger]))
    before = (tmp_path / "results.csv").read_text()
    with pytest.raises(ValueError, match="ResultsLogger that has served another strategy"):
        make(loggers=[logger]).train(A.train_stream[0])
    assert (tmp_path / "results.csv").read_text() == before


def test_copies_go_with_what_they_are_copies_of():
    unused = AccuracyMatrixMetric("all")
    for metric in (copy.deepcopy(unused), copy.copy(unused)):
        run(make(metric))
    strategy = run(make(unused))
    used = copy.deepcopy(unused)
    with pytest.raises(ValueError, match="another strategy"):
        make(used).train(A.train_stream[0])
    fork = copy.deepcopy(strategy)
    fork.eval(A.test_stream)
    strategy.eval(A.test_stream)
    assert fork.evaluator.metrics[0] is not unused


def test_a_state_that_is_loaded_belongs_to_the_next_strategy():
    metrics, others = ([make_metric() for make_metric in METRICS.values()] for _ in range(2))
    make(*metrics).train(A.train_stream[0])
    for metric, other in zip(metrics, others, strict=True):
        other.load_state_dict(metric.state_dict())
        metric.load_state_dict(metric.state_dict())  # also into the one that had another run
    make(*others).eval(A.test_stream)
    make(*metrics).eval(A.test_stream)


@pytest.mark.parametrize("reuse", [False, True], ids=["new metrics", "the metrics of the stopped run"])
def test_a_resumed_run_keeps_its_metrics(tmp_path, reuse):
    def parts():
        return [AccuracyMatrixMetric("all"), ClassAccuracyMetric("all"), CostMetric(), MemoryMetric()]

    whole = parts()
    torch.manual_seed(0)
    run(make(*whole))
    stopped = parts()
    torch.manual_seed(0)
    strategy = make(*stopped, plugins=[CheckpointPlugin(tmp_path)])
    for experience in A.train_stream[:2]:
        strategy.train(experience)
        strategy.eval(A.test_stream)
    benchmark = tiny_benchmark(per_class=2)
    metrics = stopped if reuse else parts()
    resumed = make(*metrics, plugins=[CheckpointPlugin(tmp_path)])
    start = resume(resumed, tmp_path, benchmark)
    if start < 3:
        resumed.eval(benchmark.test_stream)
    for experience in benchmark.train_stream[start:]:
        resumed.train(experience)
        resumed.eval(benchmark.test_stream)
    assert list(metrics[0].result()) == ["test"]
    same(metrics[0].matrix(), whole[0].matrix())
    assert metrics[1].result() == whole[1].result()
    with pytest.raises(ValueError, match="another strategy"):
        make(metrics[0]).eval(A.test_stream)


def test_ways_of_one_run_are_one_run():
    metric = AccuracyMatrixMetric("all")
    strategy = make(metric, train_epochs=2, eval_every=1)
    strategy.eval(A.test_stream)
    strategy.train(A.train_stream[:2], eval_streams=[A.test_stream])
    strategy.eval(A.test_stream[:1])
    strategy.train(A.train_stream[2])
    strategy.eval([A.test_stream[0], A.test_stream[2]])
    assert list(metric.result()) == ["test"]
    assert metric.experiences_trained == 3


# One run, two benchmarks.


OTHERS = {
    "other samples": lambda: other_benchmark(),
    "fewer experiences": lambda: other_benchmark(n_experiences=2),
    "another order": lambda: other_benchmark(seed=0, class_order=[5, 4, 3, 2, 1, 0]),
    "the same labels and other pictures": lambda: tiny_benchmark(per_class=2, embedded=tiny_classifier()),
    "of data sets": lambda: of_datasets(other_benchmark()),
}


def of_datasets(benchmark):
    """A benchmark whose streams do not know it."""
    streams = {
        name: [as_classification_dataset(each.dataset) for each in benchmark.streams[name]]
        for name in ("train", "test")
    }
    return benchmark_from_datasets(**streams)


@pytest.mark.parametrize("own", [lambda: A, lambda: of_datasets(A)], ids=["of classes", "of data sets"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_second_benchmark_does_not_get_into_the_matrix(own, other, tmp_path):
    own, other = own(), other()
    metrics = [AccuracyMatrixMetric("all"), ClassAccuracyMetric("all"), SemanticDriftMetric()]
    host = accuracy_metrics(experience=True, stream=True)
    path = tmp_path / "results.csv"
    strategy = run(make(*metrics, host, loggers=[ResultsLogger(path)]), own)
    before = [copy.deepcopy(metric.result()) for metric in metrics]
    expected = strategy.eval(own.test_stream)
    strategy.evaluator.reset_last_metrics()
    found = strategy.eval(other.test_stream)
    same(metrics[0].matrix(), before[0]["test"])
    assert metrics[1].result()["test"] == before[1]["test"]
    assert metrics[2].result()["test"] == before[2]["test"]
    # What was measured is there, under a name of its own.
    assert metrics[0].counts("test#2").sum() == sum(len(each.dataset) for each in other.test_stream)
    last = metrics[0].matrix("test#2")[3, : len(other.test_stream)]
    assert not last.isnan().any()
    assert [
        name
        for name in found
        if name.startswith("Accuracy_all/eval_phase/test#2_stream") and "Exp000" in name
    ]
    assert not any(
        "/test_stream" in name for name in found if name.startswith(("Accuracy_", "Class", "Last"))
    )
    top1 = next(value for name, value in found.items() if name.startswith("Top1_Acc_Stream"))
    rows = read_results(path)
    stream_rows = [row for row in rows if row.metric == "Top1_Acc_Stream"]
    assert [row.stream for row in stream_rows] == ["test"] * 4 + ["test#2"]
    assert stream_rows[-1].value == pytest.approx(top1)
    same(result_matrix(rows, stream="test"), before[0]["test"])
    # And the run goes on where it was.
    assert strategy.eval(own.test_stream)["LastAccuracy_all/eval_phase/test_stream"] == pytest.approx(
        expected["LastAccuracy_all/eval_phase/test_stream"]
    )
    strategy.eval(other.test_stream)
    assert list(metrics[0].result()) == ["test", "test#2"]


def test_a_benchmark_that_is_evaluated_first_is_not_the_run_s(tmp_path):
    other = other_benchmark()
    metric, classes = AccuracyMatrixMetric("all"), ClassAccuracyMetric("all")
    path = tmp_path / "results.csv"
    strategy = make(metric, classes, loggers=[ResultsLogger(path)])
    strategy.eval(other.test_stream)
    zero_shot = metric.matrix()
    run(strategy)
    strategy.eval(other.test_stream)
    alone = AccuracyMatrixMetric("all")
    torch.manual_seed(0)
    run(make(alone))
    assert metric.matrix()[0].isnan().all()
    assert not metric.matrix()[1:].isnan().any()
    same(metric.matrix("test#2")[0], zero_shot[0])
    assert not metric.matrix("test#2")[3].isnan().any()
    assert sorted(classes.result()) == sorted(metric.result()) == ["test", "test#2"]
    rows = read_results(path)
    for stream in ("test", "test#2"):
        same(result_matrix(rows, stream=stream), metric.matrix(stream))


def test_another_benchmark_may_come_before_the_run_s_own_evaluation():
    metric = AccuracyMatrixMetric("all")
    strategy = make(metric)
    strategy.train(A.train_stream[0])
    strategy.eval(other_benchmark().test_stream)
    assert list(metric.result()) == ["test#2"]
    with pytest.raises(ValueError, match="`stream` must be the name of an evaluated stream"):
        metric.matrix()
    strategy.eval(A.test_stream)
    assert not metric.matrix()[1].isnan().any()


def host_validation(benchmark):
    with pytest.warns(UserWarning, match="generator will be converted"):
        return benchmark_with_validation_stream(benchmark, validation_size=0.25)


@pytest.mark.parametrize("wrap", [with_validation_stream, host_validation, copy.copy])
def test_copies_of_the_benchmark_are_the_run_s(wrap):
    wrapped = wrap(A)
    metric = AccuracyMatrixMetric("all")
    strategy = make(metric)
    strategy.eval(A.test_stream)
    run(strategy, wrapped)
    strategy.eval(A.test_stream)
    strategy.train(wrapped.train_stream[0])
    strategy.eval(A.test_stream[1:])
    assert list(metric.result()) == ["test"]
    assert not metric.matrix()[0].isnan().any()


@pytest.mark.parametrize("access_task_boundaries", [True, False])
def test_pieces_of_the_benchmark_are_the_run_s(access_task_boundaries):
    metric = AccuracyMatrixMetric("all")
    strategy = make(metric)
    strategy.eval(A.test_stream)
    pieces = split_online_stream(
        A.train_stream, experience_size=5, access_task_boundaries=access_task_boundaries
    )
    for piece in pieces:
        strategy.train(piece, eval_streams=[])
        strategy.eval(A.test_stream)
    assert list(metric.result()) == ["test"]
    assert not metric.matrix()[0].isnan().any()


def test_a_benchmark_that_is_built_again_for_each_evaluation_is_the_run_s():
    metric = AccuracyMatrixMetric("all")
    strategy = make(metric)
    for number in range(2):
        strategy.train(tiny_benchmark(per_class=2).train_stream[number])
        gc.collect()
        strategy.eval(tiny_benchmark(per_class=2).test_stream)
        gc.collect()
    assert list(metric.result()) == ["test"]
    assert not metric.matrix()[1:3].isnan().any()


def test_a_stream_that_grows_is_the_run_s():
    pairs = [tiny_images(per_class=2, seed=seed) for seed in (0, 1)]

    def months(count):
        parts = [(x[: 4 * count], y[: 4 * count]) for x, y in pairs]
        return tensor_benchmark(*parts, class_names=TINY_CLASSES[: 2 * count], n_experiences=count)

    metric, benchmarks = AccuracyMatrixMetric("all"), [months(1), months(2), months(3)]
    strategy = make(metric)
    for number, benchmark in enumerate(benchmarks):
        strategy.train(benchmark.train_stream[number])
        strategy.eval(benchmark.test_stream)
    assert list(metric.result()) == ["test"]
    assert not metric.matrix()[3].isnan().any()


def test_training_on_a_second_benchmark_is_refused():
    for metric in (AccuracyMatrixMetric("all"), ClassAccuracyMetric("all"), SemanticDriftMetric()):
        strategy = make(metric)
        strategy.train(A.train_stream[0])
        before = copy.deepcopy(strategy.model.state_dict())
        with pytest.raises(ValueError, match="experience 0 of another one.*new strategy"):
            strategy.train(other_benchmark().train_stream[0])
        for name, value in strategy.model.state_dict().items():
            assert torch.equal(value, before[name])


# NaN.


class Broken(torch.nn.Module):
    """Makes the logits of some classes NaN for the images that it is told."""

    def __init__(self, model, rows, columns):
        super().__init__()
        self.model, self.rows, self.columns = model, rows, columns
        self.classes_seen, self.class_names = model.classes_seen, model.class_names

    def forward(self, x):
        logits = self.model(x).clone()
        for row in range(len(x)):
            if self.rows(x[row]):
                logits[row, self.columns] = float("nan")
        return logits


def test_nan_is_no_prediction_and_no_accuracy():
    metrics = [AccuracyMatrixMetric("all"), AccuracyMatrixMetric("experience"), ClassAccuracyMetric("all")]
    strategy = make(*metrics, kind=Naive)
    strategy.eval(A.test_stream)
    whole = strategy.model
    bad = A.test_stream[0].dataset[1][0]
    strategy.model = Broken(whole, lambda x: torch.equal(x, bad), [5])
    found = strategy.eval(A.test_stream)
    label = int(A.test_stream[0].dataset[1][1])
    assert metrics[0].matrix()[0].isnan().tolist() == [True, False, False]
    assert not metrics[1].matrix()[0].isnan().any()  # class 5 does not count there
    assert [c for c, value in metrics[2].result()["test"].items() if math.isnan(value)] == [label]
    assert math.isnan(found["Accuracy_all/eval_phase/test_stream/Task000/Exp000"])
    assert math.isnan(found["ZeroShotAccuracy_all/eval_phase/test_stream"])
    strategy.model = Broken(whole, lambda x: True, slice(None))
    strategy.eval(A.test_stream)
    assert metrics[0].matrix()[0].isnan().all()
    assert all(math.isnan(value) for value in metrics[2].result()["test"].values())
