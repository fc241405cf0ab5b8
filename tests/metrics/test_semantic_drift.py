"""Drift as a metric of the host, against logits captured by hand before and after each experience."""

import io

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import SGD

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.functional import semantic_drift
from avalanche_vlm.functional.semantic_drift import SemanticDrift
from avalanche_vlm.logging import ResultsLogger, plot_semantic_drift, read_results
from avalanche_vlm.metrics import ClassAccuracyMetric, SemanticDriftMetric
from avalanche_vlm.models import DualPathHead
from avalanche_vlm.plugins import LabelSpaceCrossEntropy, PrototypePlugin
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier, tiny_images

PARTS = ("everywhere", "boundary", "core")
BENCHMARK = tiny_benchmark(per_class=6)
STREAMS = {"train": BENCHMARK.train_stream, "test": BENCHMARK.test_stream}
CLASSES = [sorted(each.classes_in_this_experience) for each in BENCHMARK.train_stream]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make(metric, *, kind=Naive, loggers=(), model=None, plugins=(), metrics=(), **arguments):
    model = tiny_classifier(trainable="both") if model is None else model
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        criterion=LabelSpaceCrossEntropy("seen") if hasattr(model, "classes_seen") else nn.CrossEntropyLoss(),
        train_mb_size=4,
        eval_mb_size=5,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(metric, *metrics, loggers=list(loggers)),
        **arguments,
    )


@torch.no_grad()
def said(model, stream):
    """Similarities (N, C) of the images of a stream with the names, one image at a time, and labels (N,)."""
    model.eval()
    names = model.head.text_part(model.backbone)
    samples = [(x, int(y)) for experience in stream for x, y, *_ in experience.dataset]
    logits = []
    for x, _ in samples:
        image = model.encode(x[None])[0]
        cosines = [float(image @ name / image.norm() / name.norm()) for name in names]
        logits.append(float(model.backbone.logit_scale) * torch.tensor(cosines))
    return torch.stack(logits), torch.tensor([y for _, y in samples])


def by_hand(before, after, labels, old, new, fraction=0.25):
    """The drift as the function has it, to the digits that float32 logits leave."""
    known = torch.tensor([int(y) in old for y in labels])
    old, new = torch.tensor(old), torch.tensor(new)
    drift = semantic_drift(before[known], after[known], old, new, fraction=fraction)
    assert drift.everywhere > 1e-5
    return pytest.approx(drift, rel=1e-2, abs=1e-6)


def test_drift_is_that_of_logits_before_and_after_an_experience():
    metric = SemanticDriftMetric(fraction=0.4)
    strategy = make(metric)
    last = {}
    for number, experience in enumerate(BENCHMARK.train_stream):
        before, _ = said(strategy.model, BENCHMARK.test_stream)
        strategy.train(experience)
        after, labels = said(strategy.model, BENCHMARK.test_stream)
        last = strategy.eval(BENCHMARK.test_stream)
        old, new = [label for classes in CLASSES[:number] for label in classes], CLASSES[number]
        if number == 0:
            assert metric.result() == {}
            assert not any("SemanticDrift" in name for name in last)
            continue
        expected = by_hand(before, after, labels, old, new, fraction=0.4)
        assert metric.result()["test"] == expected
        assert len(set(metric.result()["test"])) == 3
        for part in PARTS:
            name = f"SemanticDrift_{part}/eval_phase/test_stream"
            assert last[name] == getattr(metric.result()["test"], part)


def test_nothing_before_there_are_old_and_new_classes():
    metric = SemanticDriftMetric()
    strategy = make(metric)
    found = []
    for step in ("eval", 0, "eval", "eval", 0, "eval", 1, "eval", "eval"):
        if step == "eval":
            strategy.eval(BENCHMARK.test_stream)
            found.append(metric.result().get("test"))
        else:
            strategy.train(BENCHMARK.train_stream[step])
    # Before training, after the first experience, after that again: no class was old while others were new.
    assert found[:4] == [None] * 4
    # What was measured stays until the next experience has passed.
    assert found[4] is not None
    assert found[5] == found[4]


def test_evaluations_may_skip_an_experience():
    metric = SemanticDriftMetric()
    strategy = make(metric)
    strategy.train(BENCHMARK.train_stream[0])
    strategy.eval(BENCHMARK.test_stream)
    before, labels = said(strategy.model, BENCHMARK.test_stream)
    strategy.train(BENCHMARK.train_stream[1:])
    strategy.eval(BENCHMARK.test_stream)
    after, _ = said(strategy.model, BENCHMARK.test_stream)
    expected = by_hand(before, after, labels, CLASSES[0], CLASSES[1] + CLASSES[2])
    assert metric.result()["test"] == expected


def test_each_stream_has_its_own_drift():
    metric = SemanticDriftMetric()
    strategy = make(metric)
    said_before = {}
    for number in (0, 1):
        said_before = {name: said(strategy.model, stream) for name, stream in STREAMS.items()}
        strategy.train(BENCHMARK.train_stream[number])
        for stream in STREAMS.values():
            strategy.eval(stream)
    found = metric.result()
    assert list(found) == ["train", "test"]
    assert found["train"] != found["test"]
    for name, stream in STREAMS.items():
        after, labels = said(strategy.model, stream)
        expected = by_hand(said_before[name][0], after, labels, CLASSES[0], CLASSES[1])
        assert found[name] == expected
    # In one evaluation, too.
    strategy.eval([*BENCHMARK.train_stream, *BENCHMARK.test_stream])
    strategy.train(BENCHMARK.train_stream[2])
    logged = strategy.eval([*BENCHMARK.train_stream, *BENCHMARK.test_stream])
    assert {name.split("/")[2] for name in logged if name.startswith("SemanticDrift_core")} == {
        "train_stream",
        "test_stream",
    }


def test_another_set_of_samples_is_not_compared():
    metric = SemanticDriftMetric()
    strategy = make(metric)
    strategy.train(BENCHMARK.train_stream[0])
    strategy.eval([BENCHMARK.test_stream[1], BENCHMARK.test_stream[0]])
    strategy.train(BENCHMARK.train_stream[1])
    strategy.eval(BENCHMARK.test_stream)
    assert metric.result() == {}
    strategy.train(BENCHMARK.train_stream[2])
    strategy.eval(BENCHMARK.test_stream)
    assert list(metric.result()) == ["test"]


def test_a_stream_that_has_grown_is_compared_as_far_as_it_went():
    found = []
    for later in (BENCHMARK.test_stream[:1], BENCHMARK.test_stream):
        metric = SemanticDriftMetric()
        strategy = make(metric)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            strategy.train(BENCHMARK.train_stream[0])
            strategy.eval(BENCHMARK.test_stream[:1])
            strategy.train(BENCHMARK.train_stream[1])
        strategy.eval(later)
        found.append(metric.result()["test"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_periodic_evaluations_do_not_count(tmp_path):
    path = tmp_path / "results.csv"
    metric = SemanticDriftMetric()
    strategy = make(metric, loggers=[ResultsLogger(path)], train_epochs=3, eval_every=1)
    strategy.eval(BENCHMARK.test_stream)
    for number in (0, 1):
        before, labels = said(strategy.model, BENCHMARK.test_stream)
        strategy.train(BENCHMARK.train_stream[number], eval_streams=[BENCHMARK.test_stream])
        assert metric.result() == {}
        strategy.eval(BENCHMARK.test_stream)
    after, _ = said(strategy.model, BENCHMARK.test_stream)
    expected = by_hand(before, after, labels, CLASSES[0], CLASSES[1])
    assert metric.result()["test"] == expected
    assert len(read_results(path)) == 3


def test_similarities_are_measured_and_not_fused_logits():
    metric = SemanticDriftMetric()
    head = DualPathHead(fusion_weight=5.0)
    model = tiny_classifier(head, trainable="both")
    strategy = make(metric, model=model, plugins=[PrototypePlugin()])
    for number in (0, 1):
        before, labels = said(model, BENCHMARK.test_stream)
        strategy.train(BENCHMARK.train_stream[number])
        strategy.eval(BENCHMARK.test_stream)
    after, _ = said(model, BENCHMARK.test_stream)
    assert len(head.classes_with_prototype) == 4
    x, _ = tiny_images()
    assert not torch.allclose(model(x), model.similarities(x), atol=0.1)
    expected = by_hand(before, after, labels, CLASSES[0], CLASSES[1])
    assert metric.result()["test"] == expected


def test_a_state_that_is_carried_over_changes_nothing():
    whole, metric = SemanticDriftMetric(), SemanticDriftMetric()
    strategies = [make(whole), make(metric)]
    for number, experience in enumerate(BENCHMARK.train_stream):
        for strategy in strategies:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                strategy.train(experience)
        if number:
            other = SemanticDriftMetric()
            file = io.BytesIO()
            torch.save(metric.state_dict(), file)
            file.seek(0)
            other.load_state_dict(torch.load(file, weights_only=True))
            assert other.result() == metric.result()
            strategies[1].evaluator.metrics[0] = metric = other
        first, second = (strategy.eval(BENCHMARK.test_stream) for strategy in strategies)
        assert first == second
    assert isinstance(metric.result()["test"], SemanticDrift)
    assert metric.result() == whole.result() != {}
    whole.reset()
    assert whole.result() == {}
    strategies[0].eval(BENCHMARK.test_stream)
    assert whole.result() == {}


def test_rows_are_written_and_drawn(tmp_path):
    path = tmp_path / "results.csv"
    metric = SemanticDriftMetric()
    strategy = make(metric, loggers=[ResultsLogger(path, method="naive", seed=0)])
    expected = {}
    for number, experience in enumerate(BENCHMARK.train_stream, start=1):
        strategy.train(experience)
        for name, stream in STREAMS.items():
            strategy.eval(stream)
            drift = metric.result().get(name)
            expected |= {} if drift is None else {(name, number, p): getattr(drift, p) for p in PARTS}
    rows = read_results(path)
    found = {(r.stream, r.after_experience, r.metric.removeprefix("drift_")): r.value for r in rows}
    assert found == expected
    assert len(rows) == len(expected) == 2 * 2 * 3
    assert {(row.method, row.seed, row.space, row.experience) for row in rows} == {("naive", 0, "", None)}
    line = plot_semantic_drift(path, stream="train").axes[0].lines[0]
    assert list(line.get_ydata()) == [expected["train", number, "boundary"] for number in (2, 3)]


@pytest.mark.parametrize("how", ["twice", "in pieces"])
def test_experiences_are_counted_as_other_metrics_count_them(tmp_path, how):
    path = tmp_path / "results.csv"
    logger = ResultsLogger(path)
    strategy = make(SemanticDriftMetric(), loggers=[logger], metrics=[ClassAccuracyMetric("all")])
    if how == "twice":
        parts = [BENCHMARK.train_stream[number] for number in (0, 0, 1)]
    else:
        stream = BENCHMARK.train_stream[:2]
        parts = split_online_stream(stream, experience_size=6, access_task_boundaries=True)
    for part in parts:
        strategy.train(part, eval_streams=[])
        strategy.eval(BENCHMARK.test_stream)
    after = {row.metric: row.after_experience for row in read_results(path)}
    assert after["drift_boundary"] == after["class_accuracy"] == 2


def test_names_that_are_added_do_not_stop_a_run():
    metric = SemanticDriftMetric()
    strategy = make(metric)
    strategy.train(BENCHMARK.train_stream[0])
    strategy.eval(BENCHMARK.test_stream)
    strategy.model.set_classes([*TINY_CLASSES, "bee"])
    for number in (1, 2):
        before, labels = said(strategy.model, BENCHMARK.test_stream)
        strategy.train(BENCHMARK.train_stream[number])
        strategy.eval(BENCHMARK.test_stream)
    after, _ = said(strategy.model, BENCHMARK.test_stream)
    expected = by_hand(before, after, labels, CLASSES[0] + CLASSES[1], CLASSES[2])
    assert metric.result()["test"] == expected


def test_all_at_once_there_is_no_drift():
    metric = SemanticDriftMetric()
    strategy = make(metric, kind=JointTraining)
    strategy.eval(BENCHMARK.test_stream)
    strategy.train(BENCHMARK.train_stream)
    strategy.eval(BENCHMARK.test_stream)
    assert metric.result() == {}


def test_what_does_not_compare_images_with_text_is_refused():
    x, y = torch.eye(3), torch.arange(3)
    benchmark = tensor_benchmark((x, y), (x, y), class_names=list("abc"), n_experiences=3)
    strategy = make(SemanticDriftMetric(), model=nn.Linear(3, 3))
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    with pytest.raises(TypeError, match=r"`strategy\.model` must be a CLIPClassifier.*got Linear"):
        strategy.eval(benchmark.test_stream)


def test_arguments_are_checked():
    assert repr(SemanticDriftMetric(fraction=0.1)) == "SemanticDriftMetric(fraction=0.1)"
    for fraction in (0, 0.6, -1, float("nan")):
        with pytest.raises(ValueError, match="`fraction`"):
            SemanticDriftMetric(fraction=fraction)
    with pytest.raises(TypeError, match="`fraction`"):
        SemanticDriftMetric(fraction="some")
