"""The accuracy matrix of runs of the host's strategies, against evaluations made by hand."""

import copy
import io
import math
import pickle

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger, TensorboardLogger, TextLogger
from avalanche.models import DynamicModule
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_vlm.functional import LABEL_SPACES, accuracy_matrix_summary
from avalanche_vlm.metrics import AccuracyMatrixMetric, continual_metrics
from avalanche_vlm.text import ClassNames

CLASSES, EXPERIENCES = 6, 3
# Data sets that cut across the experiences {0, 1}, {2, 3}, {4, 5}.
DATASETS = ("animals", "animals", "animals", "tools", "tools", "tools")


class TinyModel(DynamicModule):
    """A linear classifier that records the classes it was trained on, as CLIPClassifier does."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.linear = nn.Linear(4, CLASSES)
            nn.init.normal_(self.linear.weight)
        self.register_buffer("classes_seen", torch.zeros(CLASSES, dtype=torch.bool))
        self.class_names = ClassNames([f"class {c}" for c in range(CLASSES)], DATASETS)

    def adaptation(self, experience):
        if self.training:
            self.classes_seen[torch.tensor(sorted(experience.dataset.targets.uniques))] = True

    def forward(self, x):
        return self.linear(x)


class SilentLogger(BaseLogger):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.values = []

    def log_single_metric(self, name, value, x_plot):
        self.values.append((name, value, x_plot))


def dataset(count, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(centres[targets] + 0.7 * torch.randn(count, 4, generator=generator), targets)
    data.targets = targets.tolist()
    return data


@pytest.fixture
def benchmark():
    # Unequal experiences in the test stream, so that pooling differs from averaging.
    test = dataset(75, seed=2)
    return nc_benchmark(
        dataset(60, seed=1),
        test,
        EXPERIENCES,
        task_labels=False,
        shuffle=False,
        class_ids_from_zero_in_each_exp=False,
    )


def make(metrics, *, strategy=Naive, model=None, loggers=None, plugins=(), **arguments):
    model = TinyModel() if model is None else model
    return strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.2),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        eval_mb_size=7,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(metrics, loggers=[SilentLogger()] if loggers is None else loggers),
        **arguments,
    )


@torch.no_grad()
def evaluate_by_hand(model, stream):
    """Accuracy of every experience in every label space, by loop over samples."""
    model.eval()
    seen = set(model.classes_seen.nonzero().flatten().tolist())
    table = {space: [] for space in LABEL_SPACES}
    for experience in stream:
        samples = [(x, int(y)) for x, y, *_ in experience.dataset]
        current = {y for _, y in samples}
        names = {DATASETS[c] for c in current}
        spaces = {
            "seen": seen,
            "all": set(range(CLASSES)),
            "experience": current,
            "dataset": {c for c in range(CLASSES) if DATASETS[c] in names},
        }
        for space, columns in spaces.items():
            right = 0
            for x, y in samples:
                logits = model(x[None])[0].tolist()
                right += bool(columns) and max(columns, key=lambda c: logits[c]) == y
            undefined = space == "seen" and not columns & current
            table[space].append(float("nan") if undefined else right / len(samples))
    return table


def run_by_hand(strategy, benchmark):
    tables = [evaluate_by_hand(strategy.model, benchmark.test_stream)]
    strategy.eval(benchmark.test_stream)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        tables.append(evaluate_by_hand(strategy.model, benchmark.test_stream))
    return {space: torch.tensor([t[space] for t in tables], dtype=torch.float64) for space in LABEL_SPACES}


def same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


class CountForwards(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.samples = 0

    def after_eval_forward(self, strategy, **kwargs):
        self.samples += len(strategy.mb_output)


def test_every_space_from_one_forward_pass(benchmark):
    metrics, counter = continual_metrics(spaces=LABEL_SPACES), CountForwards()
    strategy = make(metrics, plugins=[counter])
    expected = run_by_hand(strategy, benchmark)
    for metric in metrics:
        assert metric.matrix().shape == (EXPERIENCES + 1, EXPERIENCES)
        same(metric.matrix(), expected[metric.space])
        assert metric.counts().tolist() == [len(e.dataset) for e in benchmark.test_stream]
    assert counter.samples == (EXPERIENCES + 1) * 75
    matrices = {metric.space: metric.matrix() for metric in metrics}
    assert len({tuple(matrix.flatten().tolist()) for matrix in matrices.values()}) == len(LABEL_SPACES)
    # Row 0 is measured before training, when no class has been seen.
    assert matrices["seen"][0].isnan().all()
    assert matrices["all"][0].isfinite().all()
    assert torch.equal(matrices["seen"].isnan(), torch.ones(4, 3, dtype=torch.bool).triu())


def test_result_and_values_are_those_of_the_matrix(benchmark):
    metric = AccuracyMatrixMetric("all")
    logger = SilentLogger()
    strategy = make([metric], loggers=[logger])
    run_by_hand(strategy, benchmark)
    assert list(metric.result()) == ["test"]
    same(metric.result()["test"], metric.matrix())
    last = strategy.evaluator.get_last_metrics()
    summary = accuracy_matrix_summary(metric.matrix(), space="all", counts=metric.counts())
    names = {
        "AverageAccuracy": "average_accuracy",
        "AverageIncrementalAccuracy": "average_incremental_accuracy",
        "LastAccuracy": "last_accuracy",
        "Forgetting": "forgetting",
        "BackwardTransfer": "backward_transfer",
        "ForwardTransfer": "forward_transfer",
        "Transfer": "transfer",
        "CITransfer": "ci_transfer",
        "ZeroShotAccuracy": "zero_shot_accuracy",
        "PooledLastAccuracy": "pooled_last_accuracy",
        "PooledAverageIncrementalAccuracy": "pooled_average_incremental_accuracy",
    }
    assert set(names.values()) == set(summary)
    for name, key in names.items():
        assert last[f"{name}_all/eval_phase/test_stream"] == pytest.approx(summary[key], abs=1e-12)
    for j in range(EXPERIENCES):
        assert last[f"Accuracy_all/eval_phase/test_stream/Task000/Exp{j:03}"] == metric.matrix()[-1, j]
    assert all(type(value) is float and value == value for _, value, _ in logger.values)
    # Positions: the iterations trained, so that row 0 stands at 0.
    steps = [x for name, _, x in logger.values if name == "ZeroShotAccuracy_all/eval_phase/test_stream"]
    assert steps == [0, 2, 4, 6]


def test_summaries_so_far(benchmark):
    metric = AccuracyMatrixMetric("seen")
    strategy = make([metric])
    assert strategy.eval(benchmark.test_stream) == {}
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[1])
    last = strategy.eval(benchmark.test_stream)
    a = metric.matrix()
    assert last["LastAccuracy_seen/eval_phase/test_stream"] == pytest.approx(float(a[2, :2].mean()))
    assert last["Forgetting_seen/eval_phase/test_stream"] == pytest.approx(float(a[1, 0] - a[2, 0]))
    # After one experience the matrix so far would have these; the label space never does.
    assert not [
        name for name in last if name.startswith(("AverageAccuracy", "Transfer", "ForwardTransfer", "Zero"))
    ]


def test_evaluating_again_overwrites_the_row(benchmark):
    metric = AccuracyMatrixMetric("all")
    strategy = make([metric])
    strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    with torch.no_grad():
        strategy.model.linear.weight.neg_()
    strategy.eval(benchmark.test_stream)
    again = evaluate_by_hand(strategy.model, benchmark.test_stream)["all"]
    assert metric.matrix()[1].tolist() == again
    assert metric.matrix()[2:].isnan().all()


def test_experiences_evaluated_one_at_a_time_fill_one_row(benchmark):
    metric = AccuracyMatrixMetric("all")
    strategy = make([metric])
    strategy.train(benchmark.train_stream[0])
    for experience in reversed(list(benchmark.test_stream)):
        strategy.eval(experience)
    assert metric.matrix()[1].tolist() == evaluate_by_hand(strategy.model, benchmark.test_stream)["all"]


def test_a_part_of_the_stream_leaves_the_rest_unmeasured(benchmark):
    metric = AccuracyMatrixMetric("all")
    strategy = make([metric])
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        last = strategy.eval(benchmark.test_stream[: t + 1])
    assert torch.equal(metric.matrix().isnan(), torch.ones(4, 3, dtype=torch.bool).triu())
    assert "AverageIncrementalAccuracy_all/eval_phase/test_stream" in last
    # Of one experience there was one, at first; the host would hand out that value for ever.
    assert math.isnan(last["AverageAccuracy_all/eval_phase/test_stream"])
    values = strategy.evaluator.loggers[0].values
    logged = [value for name, value, _ in values if name.startswith("AverageAccuracy")]
    assert [math.isnan(value) for value in logged] == [False, True, True]


@pytest.mark.parametrize("strategy", [Naive, JointTraining])
def test_periodic_evaluations_do_not_change_rows(benchmark, strategy):
    metric, plain = AccuracyMatrixMetric("seen"), AccuracyMatrixMetric("seen")
    logger = SilentLogger()
    for which, arguments in ((metric, {"eval_every": 1, "train_epochs": 2}), (plain, {"train_epochs": 2})):
        run = make([which], strategy=strategy, loggers=[logger], **arguments)
        torch.manual_seed(0)
        for experience in [benchmark.train_stream] if strategy is JointTraining else benchmark.train_stream:
            logger.values.clear()
            run.train(experience, eval_streams=[benchmark.test_stream])
            if which is metric:
                assert which._streams == {} or which.matrix()[-1].isnan().all()
                during = [name for name, *_ in logger.values]
                assert any(name.startswith("Accuracy_seen/") for name in during)
                assert not any(name.startswith("LastAccuracy") for name in during)
            run.eval(benchmark.test_stream)
    assert torch.equal(metric.matrix().isnan(), plain.matrix().isnan())
    assert metric.matrix()[-1].isfinite().all()


def test_evaluations_after_an_interrupted_training_do_not_count(benchmark):
    class Interrupt(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            raise KeyboardInterrupt

    metric, interrupt = AccuracyMatrixMetric("all"), Interrupt()
    strategy = make(metric, plugins=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    with pytest.raises(ValueError, match="after an interrupted one, do not count until a training has ended"):
        metric.matrix()
    strategy.plugins.remove(interrupt)
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(ValueError, match="Call `strategy.eval` first"):
        metric.matrix()
    strategy.eval(benchmark.test_stream)
    assert metric.matrix()[1].isfinite().all()


def test_joint_training_fills_the_last_row(benchmark):
    metrics = continual_metrics(spaces=("seen", "all"))
    strategy = make(metrics, strategy=JointTraining)
    strategy.eval(benchmark.test_stream)
    zero_shot = evaluate_by_hand(strategy.model, benchmark.test_stream)
    strategy.train(benchmark.train_stream)
    last = strategy.eval(benchmark.test_stream)
    expected = evaluate_by_hand(strategy.model, benchmark.test_stream)
    for metric in metrics:
        matrix = metric.matrix()
        same(matrix[0], torch.tensor(zero_shot[metric.space], dtype=torch.float64))
        same(matrix[3], torch.tensor(expected[metric.space], dtype=torch.float64))
        assert matrix[1:3].isnan().all()
    stream = {name for name in last if "/Exp" not in name}
    assert stream == {
        "LastAccuracy_seen/eval_phase/test_stream",
        "PooledLastAccuracy_seen/eval_phase/test_stream",
        "LastAccuracy_all/eval_phase/test_stream",
        "PooledLastAccuracy_all/eval_phase/test_stream",
        "ZeroShotAccuracy_all/eval_phase/test_stream",
    }


@pytest.mark.parametrize("access_task_boundaries", [False, True])
def test_pieces_of_an_online_stream_count_as_their_experience(benchmark, access_task_boundaries):
    metric = AccuracyMatrixMetric("all")
    strategy = make([metric])
    stream = split_online_stream(
        benchmark.train_stream, experience_size=8, access_task_boundaries=access_task_boundaries, seed=0
    )
    expected = [[float("nan")] * EXPERIENCES for _ in range(EXPERIENCES + 1)]
    for piece in stream:
        strategy.train(piece)
        origin = piece.logging().origin_experience.current_experience
        # The first piece of each experience is not evaluated whole: the row must not keep it.
        strategy.eval(benchmark.test_stream[:1] if piece.is_first_subexp else benchmark.test_stream)
        expected[origin + 1] = evaluate_by_hand(strategy.model, benchmark.test_stream)["all"]
    same(metric.matrix(), torch.tensor(expected, dtype=torch.float64))


def test_further_training_makes_the_row_out_of_date(benchmark):
    metric = AccuracyMatrixMetric("all")
    strategy = make([metric])
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[0])
    assert metric.matrix()[1].isnan().all()


def test_columns_follow_the_order_of_training(benchmark):
    metric = AccuracyMatrixMetric("all")
    strategy = make([metric])
    order = [2, 0, 1]
    for position in order:
        strategy.train(benchmark.train_stream[position])
        strategy.eval(benchmark.test_stream)
    by_hand = torch.tensor(
        evaluate_by_hand(strategy.model, benchmark.test_stream)["all"], dtype=torch.float64
    )
    same(metric.matrix()[-1], by_hand[order])
    assert metric.counts().tolist() == [len(benchmark.test_stream[position].dataset) for position in order]


def test_streams_have_a_matrix_each(benchmark):
    metric = AccuracyMatrixMetric("all")
    strategy = make([metric])
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.train_stream)
    last = strategy.eval(benchmark.test_stream)
    assert set(metric.result()) == {"train", "test"}
    assert (
        metric.matrix("train")[1].tolist() == evaluate_by_hand(strategy.model, benchmark.train_stream)["all"]
    )
    assert metric.counts("train").tolist() == [20, 20, 20]
    assert {"LastAccuracy_all/eval_phase/train_stream", "LastAccuracy_all/eval_phase/test_stream"} <= set(
        last
    )
    with pytest.raises(ValueError, match="`stream` must be the name of an evaluated stream; got 'tset'"):
        metric.matrix("tset")


def test_text_logger_prints_and_tensorboard_gets_the_tags(benchmark, tmp_path):
    file = io.StringIO()
    tensorboard = TensorboardLogger(tmp_path)
    strategy = make(continual_metrics(), loggers=[TextLogger(file), tensorboard])
    run_by_hand(strategy, benchmark)
    text = file.getvalue()
    assert "\tAccuracy_seen/eval_phase/test_stream/Task000/Exp002 = " in text
    assert "\tCITransfer_all/eval_phase/test_stream = " in text
    assert "nan" not in text
    tensorboard.writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert {
        "LastAccuracy_seen/eval_phase/test_stream",
        "Accuracy_all/eval_phase/test_stream/Task000/Exp000",
        "CITransfer_all/eval_phase/test_stream",
    } <= set(tags["scalars"])
    assert tags["histograms"] == []
    assert [event.step for event in events.Scalars("ZeroShotAccuracy_all/eval_phase/test_stream")] == [
        0,
        2,
        4,
        6,
    ]


def test_state_goes_on_in_another_metric(benchmark):
    def go_on(strategy, start):
        for t in range(start, EXPERIENCES):
            torch.manual_seed(t)
            strategy.train(benchmark.train_stream[t])
            strategy.eval(benchmark.test_stream)

    whole, first, second = (AccuracyMatrixMetric("all") for _ in range(3))
    strategy = make([whole, first])
    strategy.eval(benchmark.test_stream)
    torch.manual_seed(0)
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    resumed = make([second], model=copy.deepcopy(strategy.model))
    go_on(strategy, 1)
    go_on(resumed, 1)
    assert whole.matrix().isfinite().all()
    same(second.matrix(), whole.matrix())
    assert torch.equal(second.counts(), whole.counts())
    with pytest.raises(ValueError, match="`state` must be of the label space 'seen'; got 'all'"):
        AccuracyMatrixMetric("seen").load_state_dict(first.state_dict())


def test_the_summary_so_far_is_that_of_a_shorter_stream(benchmark):
    metric = AccuracyMatrixMetric("all")
    strategy = make([metric])
    strategy.eval(benchmark.test_stream)
    assert metric.experiences_trained == 0
    assert metric.summary() == {"zero_shot_accuracy": float(metric.matrix()[0].mean())}
    for number, experience in enumerate(benchmark.train_stream[:2], start=1):
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        assert metric.experiences_trained == number
        part, counts = metric.matrix()[: number + 1, :number], metric.counts()[:number]
        expected = accuracy_matrix_summary(part, space="all", counts=counts)
        expected["zero_shot_accuracy"] = float(metric.matrix()[0].mean())
        assert metric.summary() == pytest.approx(expected, nan_ok=True)


def test_copies_and_pickles_are_independent(benchmark):
    metric = AccuracyMatrixMetric("dataset")
    strategy = make([metric])
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    before = metric.matrix()
    copies = [copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))]
    metric.reset()
    assert metric.result() == {}
    for other in copies:
        same(other.matrix(), before)


def test_any_model_has_the_spaces_all_and_experience(benchmark):
    metrics = continual_metrics(spaces=("all", "experience"))
    strategy = make(metrics, model=nn.Linear(4, CLASSES))
    strategy.eval(benchmark.test_stream)
    assert all(metric.matrix()[0].isfinite().all() for metric in metrics)


def test_a_head_without_columns_for_later_classes_is_wrong_about_them(benchmark):
    metrics = continual_metrics(spaces=("all", "experience"))
    strategy = make(metrics, model=nn.Linear(4, 2))
    strategy._criterion = lambda output, targets: output.sum()
    strategy.eval(benchmark.test_stream)
    assert all(metric.matrix()[0, 1:].tolist() == [0.0, 0.0] for metric in metrics)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [("seen", "`classes_seen`.*Use CLIPClassifier"), ("dataset", "class_names.datasets.*set_classes")],
)
def test_a_model_that_lacks_something_is_told_what(benchmark, space, sentence):
    strategy = make([AccuracyMatrixMetric(space)], model=nn.Linear(4, CLASSES))
    with pytest.raises(TypeError, match=sentence):
        strategy.eval(benchmark.test_stream)


def test_classes_of_one_data_set_are_all_classes(benchmark):
    metrics = continual_metrics(spaces=("dataset", "all"))
    model = TinyModel()
    model.class_names = ClassNames(model.class_names.names)
    make(metrics, model=model).eval(benchmark.test_stream)
    same(metrics[0].matrix(), metrics[1].matrix())


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`space` must be one of"):
        AccuracyMatrixMetric("task")
    with pytest.raises(ValueError, match="`spaces` must be one of"):
        continual_metrics(spaces=("datasets",))
    with pytest.raises(ValueError, match="`spaces` must be label spaces without duplicates"):
        continual_metrics(spaces=("all", "all"))
    with pytest.raises(TypeError, match="`spaces` must be a sequence"):
        continual_metrics(spaces="all")
    with pytest.raises(ValueError, match=r"strategy\.eval"):
        AccuracyMatrixMetric("all").matrix()
