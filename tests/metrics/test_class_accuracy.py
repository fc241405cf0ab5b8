"""The accuracy of single classes, against counts made by hand."""

import io

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.logging import ResultsLogger, read_results
from avalanche_vlm.metrics import ClassAccuracyMetric
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier
from avalanche_vlm.text import ClassNames

SPACES = ("seen", "all", "experience")


@pytest.fixture(scope="module")
def benchmark():
    return tiny_benchmark(per_class=6)


def make(metrics, *, kind=Naive, loggers=(), model=None, **arguments):
    model = tiny_classifier(trainable="image") if model is None else model
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=4,
        eval_mb_size=5,
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers)),
        **arguments,
    )


@torch.no_grad()
def by_hand(model, stream, space):
    """Accuracy of each class by a loop over samples."""
    model.eval()
    seen = set(model.classes_seen.nonzero().flatten().tolist())
    right, count = {}, {}
    for experience in stream:
        samples = [(x, int(y)) for x, y, *_ in experience.dataset]
        columns = {"seen": seen, "all": set(range(6)), "experience": {y for _, y in samples}}[space]
        for x, y in samples:
            if space == "seen" and y not in seen:
                continue
            logits = model(x[None])[0].tolist()
            count[y] = count.get(y, 0) + 1
            right[y] = right.get(y, 0) + (max(columns, key=lambda c: logits[c]) == y)
    return {y: right[y] / count[y] for y in sorted(count)}


def test_each_class_is_counted(benchmark, tmp_path):
    path = tmp_path / "results.csv"
    metrics = [ClassAccuracyMetric(space) for space in SPACES]
    strategy = make(metrics, loggers=[ResultsLogger(path)])
    strategy.eval(benchmark.test_stream)
    assert metrics[0].result() == {}
    expected = {}
    learned = {}
    for number, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        last = strategy.eval(benchmark.test_stream)
        learned |= dict.fromkeys(experience.classes_in_this_experience, number)
        for metric in metrics:
            found = by_hand(strategy.model, benchmark.test_stream, metric.space)
            assert metric.result()["test"] == found
            for label, value in found.items():
                name = TINY_CLASSES[label]
                assert last[f"ClassAccuracy_{metric.space}/eval_phase/test_stream/{name}"] == value
                expected[metric.space, number + 1, name, learned.get(label)] = value
    rows = [row for row in read_results(path) if row.metric == "class_accuracy" and row.after_experience]
    assert {(r.space, r.after_experience, r.class_name, r.experience): r.value for r in rows} == expected
    assert len(rows) == len(expected)
    assert {row.stream for row in rows} == {"test"}
    assert 0 < sum(expected.values()) < len(expected)
    # Before training, where the space has any classes, and not learned.
    zero_shot = [row for row in read_results(path) if row.after_experience == 0]
    assert {row.space for row in zero_shot} == {"all", "experience"}
    assert {row.experience for row in zero_shot} == {None}


def test_a_class_in_several_experiences_is_counted_over_all(tmp_path):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 2
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    benchmark = nc_benchmark(data, data, 1, task_labels=False, shuffle=False)
    metric = ClassAccuracyMetric("all")
    strategy = make([metric], model=nn.Linear(3, 2))
    experience = benchmark.test_stream[0]
    strategy.eval([experience, experience])
    with torch.no_grad():
        correct = strategy.model(x).argmax(1) == y
    expected = {c: float(correct[y == c].double().mean()) for c in (0, 1)}
    assert metric.result()["test"] == pytest.approx(expected)
    # A model without names: ids.
    assert set(strategy.evaluator.get_last_metrics()) == {
        f"ClassAccuracy_all/eval_phase/test_stream/{c}" for c in (0, 1)
    }


@pytest.mark.parametrize(
    ("class_names", "shown"),
    [
        (ClassNames(["lotus", "chair", "lotus"], ["objects", "objects", "flowers"]),
         ["lotus (objects)", "chair", "lotus (flowers)"]),
        (["lotus", "chair", "lotus"], ["lotus (0)", "chair", "lotus (2)"]),
    ],
)  # fmt: skip
def test_classes_of_one_name_are_told_apart(tmp_path, class_names, shown):
    path = tmp_path / "results.csv"
    x, y = torch.eye(3), torch.arange(3)
    benchmark = tensor_benchmark((x, y), (x, y), class_names=list("abc"), n_experiences=3)
    model = nn.Linear(3, 3)
    model.class_names = class_names
    metric = ClassAccuracyMetric("all")
    strategy = make([metric], model=model, loggers=[ResultsLogger(path)])
    expected = {}
    for trained in range(2):
        if trained:
            strategy.train(benchmark.train_stream[0])
        strategy.eval(benchmark.test_stream)
        expected |= {(trained, shown[label]): value for label, value in metric.result()["test"].items()}
    rows = read_results(path)
    assert {row.metric for row in rows} == {"class_accuracy"}
    assert {(row.after_experience, row.class_name): row.value for row in rows} == expected
    assert len(rows) == len(expected) == 6


def test_periodic_evaluations_do_not_count(benchmark, tmp_path):
    path = tmp_path / "results.csv"
    metric = ClassAccuracyMetric("all")
    strategy = make([metric], loggers=[ResultsLogger(path)], train_epochs=2, eval_every=1)
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    assert metric.result() == {}
    rows = read_results(path)
    assert {(row.metric, row.space) for row in rows} == {("ClassAccuracy_all/in_training", "")}
    assert {row.class_name for row in rows} == set(TINY_CLASSES)
    keys = [(row.class_name, row.step, row.metric) for row in rows]
    assert len({row.step for row in rows}) > 1
    assert len(set(keys)) == len({(row.class_name, row.step) for row in rows})


def test_joint_and_online_training_know_what_was_learned(benchmark):
    joint = ClassAccuracyMetric("all")
    strategy = make([joint], kind=JointTraining)
    strategy.train(benchmark.train_stream)
    order = [experience.classes_in_this_experience for experience in benchmark.train_stream]
    expected = {label: number for number, classes in enumerate(order) for label in classes}
    assert joint.state_dict()["learned"] == expected
    online = ClassAccuracyMetric("all")
    strategy = make([online])
    stream = split_online_stream(benchmark.train_stream[1:], experience_size=3, access_task_boundaries=True)
    for piece in stream:
        strategy.train(piece, eval_streams=[])
    expected = {label: number for number, classes in enumerate(order[1:]) for label in classes}
    assert online.state_dict()["learned"] == expected


def test_state_is_carried_over(benchmark):
    metric, other = ClassAccuracyMetric("all"), ClassAccuracyMetric("all")
    strategy = make([metric])
    strategy.train(benchmark.train_stream[1])
    strategy.eval(benchmark.test_stream)
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.state_dict() == metric.state_dict()
    assert other.result() == metric.result() != {}
    with pytest.raises(ValueError, match="`state` must be of the label space 'seen'; got 'all'"):
        ClassAccuracyMetric("seen").load_state_dict(metric.state_dict())
    metric.reset()
    assert metric.result() == {}


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`space` must be one of"):
        ClassAccuracyMetric("classes")
    metric = ClassAccuracyMetric("all")
    with pytest.raises(TypeError, match=r"`strategy\.mb_output` must be logits"):
        metric.after_eval_iteration(type("Strategy", (), {"mb_output": 3, "mb_y": 3}))
