"""The logger of results, under strategies and metrics of the host and of this package."""

import math

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from avalanche.evaluation.metrics import (
    StreamConfusionMatrix,
    WeightCheckpoint,
    accuracy_metrics,
    class_accuracy_metrics,
    forgetting_metrics,
    loss_metrics,
)
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import SGD

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.functional import LABEL_SPACES
from avalanche_vlm.logging import (
    CLASS_INCREMENTAL_COLUMNS,
    ResultsLogger,
    TableColumn,
    plot_accuracy_over_experiences,
    read_results,
    read_runs,
    result_matrix,
    result_rows,
    results_table,
)
from avalanche_vlm.logging.metric_name import metric_name_parts
from avalanche_vlm.logging.results import as_rows
from avalanche_vlm.metrics import ClassAccuracyMetric, MemoryMetric, continual_metrics
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

COLUMNS = (
    *CLASS_INCREMENTAL_COLUMNS,
    TableColumn("Zero-shot", "zero_shot_accuracy", "all"),
    TableColumn("Pooled", "pooled_last_accuracy", "all"),
)


@pytest.fixture(scope="module")
def benchmark():
    return tiny_benchmark()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.csv"


def make(logger, metrics, *, kind=Naive, model=None, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny_classifier(trainable="image") if model is None else model
        return kind(
            model=model,
            optimizer=SGD(model.parameters(), lr=0.2),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=4,
            eval_mb_size=8,
            evaluator=EvaluationPlugin(*metrics, loggers=[logger]),
            **arguments,
        )


def cells(table):
    return {str(heading.header): [str(cell) for cell in heading.cells] for heading in table.columns}


def same_matrices(path, metrics):
    """The file says what the metrics say, bit by bit."""
    for metric in metrics:
        rows = [row for row in read_results(path) if row.space == metric.space]
        torch.testing.assert_close(result_matrix(rows), metric.matrix(), rtol=0, atol=0, equal_nan=True)


def same_at_the_end(path, metrics, **arguments):
    """So does the table of the file of a whole run."""
    same_matrices(path, metrics)
    expected = result_rows(metrics, method="m", **arguments)
    assert cells(results_table(path, columns=COLUMNS)) == cells(results_table(expected, columns=COLUMNS))


def summaries(rows):
    last = {}
    for row in rows:
        if row.space and row.metric != "accuracy":
            last[row.space, row.metric] = row.value
    return {key: value for key, value in last.items() if not math.isnan(value)}


def test_a_run_is_in_the_file_as_in_its_metrics(path, benchmark):
    metrics = continual_metrics(spaces=LABEL_SPACES)
    strategy = make(ResultsLogger(path, method="m", seed=3), metrics)
    strategy.eval(benchmark.test_stream)
    same_matrices(path, metrics)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        same_matrices(path, metrics)
        results_table(path)  # at any time
        plot_accuracy_over_experiences(path)
    same_at_the_end(path, metrics, seed=3)
    assert summaries(read_results(path)) == summaries(result_rows(metrics, method="m"))
    assert {row.run for row in read_results(path)} == set(read_runs(path))
    assert {(row.method, row.seed, row.stream) for row in read_results(path)} == {("m", 3, "test")}
    # Each evaluation appends its own row of the matrix, and no other.
    entries = [row for row in read_results(path) if row.metric == "accuracy" and row.space == "all"]
    assert [(r.after_experience, r.experience) for r in entries] == [
        (t, j) for t in range(4) for j in range(3)
    ]
    assert [row.step for row in entries[::3]] == [0, 2, 4, 6]


@pytest.mark.parametrize("zero_shot_first", [True, False])
def test_joint_training_fills_the_last_row(path, benchmark, zero_shot_first):
    metrics = continual_metrics(spaces=("seen", "all"))
    strategy = make(ResultsLogger(path, method="m"), metrics, kind=JointTraining)
    if zero_shot_first:
        strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    assert metrics[1].matrix()[3].isfinite().all()
    same_at_the_end(path, metrics)


def test_periodic_evaluation_leaves_the_matrix_alone(path, benchmark):
    metrics = continual_metrics(spaces=("seen", "all"))
    others = [
        *accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        *loss_metrics(epoch=True),
    ]
    logger = ResultsLogger(path, method="m")
    strategy = make(logger, [*metrics, *others], train_epochs=3, eval_every=1)
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        strategy.eval(benchmark.test_stream)
    same_at_the_end(path, metrics)
    rows = read_results(path)
    # No two numbers have one key: what the host collected is all there, at its place and iteration.
    kept = as_rows(rows)
    for name, (steps, values) in strategy.evaluator.get_all_metrics().items():
        if (
            name.startswith(("Accuracy_", "Last", "Average", "Forgetting"))
            or "_all" in name
            or "_seen" in name
        ):
            continue
        parts = metric_name_parts(name)
        metric, *place = parts.values()
        own = [
            (row.step, row.value)
            for row in kept
            if row.metric in (metric, f"{metric}/in_training")
            and [row.stream, row.experience] == place
            and not row.space
        ]
        expected = list(dict.fromkeys(zip(steps, map(float, values), strict=True)))
        assert sorted(set(own)) == sorted(expected), name
    minibatches = [row for row in kept if row.metric == "Top1_Acc_MB"]
    assert len(minibatches) == strategy.clock.train_iterations == 18
    assert {row.stream for row in minibatches} == {"train"}
    # Before each epoch's end, and after the training, there are numbers of the same stream.
    periodic = [row for row in kept if row.metric == "Accuracy_all/in_training" and not row.experience]
    assert len({row.step for row in periodic}) > 3
    assert not any(row.space for row in periodic)


def test_evaluations_in_training_replace_none_outside(path, benchmark):
    metrics = [*continual_metrics(spaces=("all",)), *accuracy_metrics(epoch=True, stream=True)]
    strategy = make(ResultsLogger(path), metrics, eval_every=1)
    stream = benchmark.test_stream
    expected, epochs = {}, set()
    name = "Top1_Acc_Stream/eval_phase/test_stream/Task000"
    for number, experience in enumerate(benchmark.train_stream, start=1):
        # Also before the first epoch, at the very iteration of the evaluation before.
        strategy.train(experience, eval_streams=[[stream[0]]])
        expected[number] = strategy.eval(stream)[name]
        epochs.add(strategy.clock.train_iterations)
    rows = as_rows(path)
    real = [row for row in rows if row.metric == "Top1_Acc_Stream"]
    assert {row.after_experience: row.value for row in real} == expected
    assert len(real) == 3
    inside = [row for row in rows if row.metric == "Top1_Acc_Stream/in_training"]
    assert {row.step for row in inside} == {0, *epochs}
    assert {row.value for row in inside} != set(expected.values())
    # What training itself logs is no evaluation, in training or not.
    assert len([row for row in rows if row.metric == "Top1_Acc_Epoch"]) == 3
    same_matrices(path, metrics[:1])


def test_every_number_of_the_host_is_kept_and_nothing_else(path, benchmark):
    metrics = [
        *accuracy_metrics(
            epoch=True, epoch_running=True, experience=True, stream=True, trained_experience=True
        ),
        *loss_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        *class_accuracy_metrics(experience=True, stream=True),
        *forgetting_metrics(experience=True, stream=True),
        StreamConfusionMatrix(save_image=False),
        WeightCheckpoint(),
    ]
    strategy = make(ResultsLogger(path), metrics, model=nn.Sequential(nn.Flatten(), nn.Linear(192, 6)))
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        strategy.eval(benchmark.train_stream)
    rows = as_rows(path)
    assert {row.method for row in rows} == {"Naive"}
    told = {
        name: (steps, values)
        for name, (steps, values) in strategy.evaluator.get_all_metrics().items()
        if not name.startswith(("Confusion", "WeightCheckpoint"))
    }
    count = sum(len(dict.fromkeys(steps)) for steps, _ in told.values())
    assert len(rows) == count
    by_place = {(row.metric, row.stream, row.experience, row.step): row.value for row in rows}
    for name, (steps, values) in told.items():
        for step, value in zip(steps, values, strict=True):
            place = (*metric_name_parts(name).values(), step)
            assert by_place[place] == pytest.approx(float(value), nan_ok=True)
    exps = [row for row in rows if row.metric == "Top1_Acc_Exp" and row.stream == "test"]
    assert [(row.after_experience, row.experience) for row in exps] == [
        (t, j) for t in (1, 2, 3) for j in range(3)
    ]
    assert {row.metric for row in rows if row.stream == "train" and "eval" in row.metric} >= {
        "Top1_Acc_Exp/eval_phase",
        "Loss_Stream/eval_phase",
    }
    epochs = [row for row in rows if row.metric == "Loss_Epoch"]
    assert [row.after_experience for row in epochs] == [0, 1, 2]


def test_names_are_taken_apart_without_loss():
    expected = {
        "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp003": ("Top1_Acc_Exp", "test", 3),
        "Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp003": ("Top1_Acc_Exp/Task001", "test", 3),
        "Loss_MB/train_phase/train_stream/Task000": ("Loss_MB", "train", None),
        "Loss_MB/train_phase/train_online_stream/Task002": ("Loss_MB/Task002", "train_online", None),
        "Loss_Exp/eval_phase/train_stream/Exp1000": ("Loss_Exp/eval_phase", "train", 1000),
        "StreamForgetting/eval_phase/my_valid_stream": ("StreamForgetting", "my_valid", None),
        "Top1_ClassAcc_Exp/eval_phase/test_stream/Task000/Exp000/4": ("Top1_ClassAcc_Exp/4", "test", 0),
        "mine": ("mine", "test", None),
        "mine/a/b": ("mine/a/b", "test", None),
        "mine/train_phase": ("mine/train_phase", "train", None),
    }
    expected["mine/train_phase"] = ("mine", "train", None)
    for name, parts in expected.items():
        assert tuple(metric_name_parts(name).values()) == parts


class Odd(PluginMetric):
    """Logs what it is told to at the end of an evaluation."""

    def __init__(self, *values):
        self.values = values

    def result(self):
        return None

    def reset(self):
        pass

    def after_eval(self, strategy):
        return [MetricValue(self, name, value, x) for name, value, x in self.values]


def test_odd_values(path, benchmark):
    odd = Odd(
        ("tensor", torch.tensor([0.5]), 7),
        ("alternatives", AlternativeValues("text", 0.25), 7),
        ("whole", 3, 7),
        ("twice", 1.0, 7),
        ("twice", 2.0, 7),
        ("dictionary", {"a": 1.0, "b": torch.tensor(2.0), "c": "text"}, 7),
        ("place/eval_phase/test_stream", 1.0, 7),
        ("place/eval_phase/test_stream/Task000", 2.0, 7),
        ("no position", 1.0, None),
        ("not a number", math.nan, 7),
        ("text", "text", 7),
        ("tensor of two", torch.zeros(2), 7),
        ("nothing", None, 7),
        ("accuracy", 0.0, 7),
    )
    strategy = make(ResultsLogger(path, method="m"), [odd, *continual_metrics(spaces=("all",))])
    strategy.eval(benchmark.test_stream)
    found = {row.metric: row for row in as_rows(path) if not row.space}
    assert {name: row.value for name, row in found.items() if name != "not a number"} == {
        "tensor": 0.5,
        "alternatives": 0.25,
        "whole": 3.0,
        "twice": 1.0,
        "twice#2": 2.0,
        "dictionary/a": 1.0,
        "dictionary/b": 2.0,
        "place": 1.0,
        "place/eval_phase/test_stream/Task000": 2.0,
        "no position": 1.0,
        "accuracy": 0.0,
    }
    assert math.isnan(found["not a number"].value)
    assert found["no position"].step is None
    assert found["whole"].step == 7
    assert result_matrix(path).shape == (4, 3)


def test_online_pieces_and_another_order_give_the_metrics_matrix(path, benchmark):
    metrics = continual_metrics(spaces=("seen", "all"))
    strategy = make(ResultsLogger(path, method="m"), metrics)
    strategy.eval(benchmark.test_stream)
    for number in (2, 0):
        pieces = split_online_stream(
            benchmark.train_stream[number : number + 1], experience_size=4, access_task_boundaries=True
        )
        for piece in pieces:
            strategy.train(piece, eval_streams=[])
            same_matrices(path, metrics)
            strategy.eval(benchmark.test_stream[: number + 1])
            same_matrices(path, metrics)
    # A further piece makes its row out of date, also where no evaluation follows.
    strategy.train(
        next(iter(split_online_stream(benchmark.train_stream[:1], experience_size=4))), eval_streams=[]
    )
    same_matrices(path, metrics)
    assert metrics[1].matrix()[2].isnan().all()


def test_two_streams_are_told_apart(path, benchmark):
    metrics = continual_metrics(spaces=("all",))
    strategy = make(ResultsLogger(path, method="m"), metrics)
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.train_stream)
    strategy.eval(benchmark.test_stream[:2])
    for stream in ("train", "test"):
        expected = metrics[0].matrix(stream)
        torch.testing.assert_close(
            result_matrix(path, stream=stream), expected, rtol=0, atol=0, equal_nan=True
        )
    assert not torch.equal(metrics[0].matrix("train")[1], metrics[0].matrix("test")[1])


def test_a_resumed_run_goes_on_under_its_id(path, benchmark):
    def start():
        metrics = [*continual_metrics(spaces=("all",)), ClassAccuracyMetric("all")]
        logger = ResultsLogger(path, method="m", seed=0)
        return logger, metrics, make(logger, metrics)

    first, metrics, strategy = start()
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    second, resumed_metrics, resumed = start()
    second.load_state_dict(first.state_dict())
    for metric, earlier in zip(resumed_metrics, metrics, strict=True):
        metric.load_state_dict(earlier.state_dict())
    resumed.model.load_state_dict(strategy.model.state_dict())
    resumed.train(benchmark.train_stream[1])
    resumed.eval(benchmark.test_stream)
    assert len(read_runs(path)) == 1
    assert second.run == first.run
    same_matrices(path, resumed_metrics[:1])
    classes = [row for row in as_rows(path) if row.class_name]
    assert {row.after_experience for row in classes} == {1, 2}


class Killed(BaseException):
    pass


class Killer(SupervisedPlugin):
    """Ends a run as a signal does: nothing that comes after it is called."""

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_iterations == 3:
            raise Killed


def test_a_run_that_dies_has_left_its_evaluations(path, benchmark):
    metrics = [*continual_metrics(spaces=("all",)), *loss_metrics(minibatch=True)]
    strategy = make(ResultsLogger(path), metrics, plugins=[Killer()])
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    before = path.read_bytes()
    with pytest.raises(Killed):
        strategy.train(benchmark.train_stream[1])
    assert path.read_bytes() == before
    assert result_matrix(path)[1].isfinite().all()
    assert result_matrix(path)[2].isnan().all()
    assert [row.step for row in read_results(path) if row.metric == "Loss_MB"] == [0, 1]


def test_an_existing_file_is_appended_to_or_refused(path, benchmark):
    for seed in (0, 1):
        strategy = make(ResultsLogger(path, method="m", seed=seed), continual_metrics())
        strategy.eval(benchmark.test_stream)
    assert {row.seed for row in read_results(path)} == {0, 1}
    assert len(read_runs(path)) == 2
    path.write_text("other,header\n")
    strategy = make(ResultsLogger(path), continual_metrics())
    with pytest.raises(ValueError, match="`path` must be a file with the header"):
        strategy.train(benchmark.train_stream[0])
    assert strategy.clock.train_iterations == 0


@pytest.mark.parametrize("first", ["train", "eval"])
def test_a_file_that_cannot_be_is_refused_before_anything(tmp_path, benchmark, first):
    class Untouched(SupervisedPlugin):
        def before_train_dataset_adaptation(self, strategy, **kwargs):
            raise AssertionError

        before_eval_dataset_adaptation = before_train_dataset_adaptation

    old = tmp_path / "old.csv"
    old.write_text("method,benchmark,seed,space,metric,after_experience,experience,value\n")
    for file, sentence in (
        (tmp_path / "nowhere" / "x.csv", "`path` must be a file in a folder that exists; .*Make the folder"),
        (old, "`path` must be a file with the header .*begin a new file"),
    ):
        strategy = make(ResultsLogger(file), continual_metrics(), plugins=[Untouched()])
        with pytest.raises(ValueError, match=sentence):
            getattr(strategy, first)(
                getattr(benchmark, "train_stream" if first == "train" else "test_stream")
            )
    assert [file.name for file in tmp_path.iterdir()] == ["old.csv"]


@pytest.mark.parametrize("length", [0, 7])
def test_a_torn_header_is_no_other_header(path, benchmark, length):
    path.write_bytes(b"run,method,benchmark"[:length])
    strategy = make(ResultsLogger(path), continual_metrics())
    strategy.eval(benchmark.test_stream)
    assert read_results(path)


def test_many_numbers_are_written_on_the_way(path, benchmark, monkeypatch):
    monkeypatch.setattr("avalanche_vlm.logging.results_logger._MOST_ROWS_KEPT", 3)
    strategy = make(ResultsLogger(path), [*loss_metrics(minibatch=True), MemoryMetric()], train_epochs=4)
    strategy.train(benchmark.train_stream[0])
    rows = read_results(path)
    assert [row.step for row in rows if row.metric == "Loss_MB"] == list(range(8))
    # Measured at the end of the experience, after it.
    assert [row.after_experience for row in rows if row.metric == "stored_bytes"] == [1]
    assert [row.after_experience for row in rows if row.metric == "Loss_MB"] == [0] * 8


def test_works_with_features_and_a_stock_model(path):
    x, y = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6).repeat(4)
    benchmark = tensor_benchmark((x, y), (x, y), class_names=list("abcdef"), n_experiences=3)
    metrics = [*continual_metrics(spaces=("all", "experience")), ClassAccuracyMetric("all")]
    strategy = make(ResultsLogger(path, method="m"), metrics, model=nn.Linear(5, 6))
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    same_matrices(path, metrics[:2])


def test_arguments_are_checked(path):
    for wrong, error, sentence in (
        ({"path": 3}, TypeError, "`path` must be str or PathLike"),
        ({"method": " "}, ValueError, "`method` must be a name"),
        ({"method": 3}, TypeError, "`method` must be str"),
        ({"benchmark": None}, TypeError, "`benchmark` must be str"),
        ({"seed": -1}, ValueError, "`seed` must be a whole number"),
        ({"settings": [1]}, TypeError, "`settings` must be Mapping"),
        ({"settings": {1: 2}}, TypeError, "`settings` must be a mapping whose keys are text"),
        ({"settings": {"a": {1, 2}}}, TypeError, r"`settings\['a'\]` must be a value that fits into JSON"),
        ({"settings": {"a": math.inf}}, TypeError, r"`settings\['a'\]` must be a value that fits into JSON"),
    ):
        with pytest.raises(error, match=sentence):
            ResultsLogger(**{"path": path, **wrong})
    assert not path.exists()
