"""Drift as a metric of the host, against logits captured by hand before and after each experience."""

import io
import sys
from pathlib import Path

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.core import SupervisedPlugin
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

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpointing"))
from test_runs_of_users import check, with_evaluator

PARTS = ("everywhere", "boundary", "core")
BENCHMARK = tiny_benchmark(per_class=6)
STREAMS = {"train": BENCHMARK.train_stream, "test": BENCHMARK.test_stream}
CLASSES = [sorted(each.classes_in_this_experience) for each in BENCHMARK.train_stream]


def make(metric, *, kind=Naive, loggers=(), model=None, plugins=(), **arguments):
    model = tiny_classifier(trainable="both") if model is None else model
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        criterion=LabelSpaceCrossEntropy("seen") if hasattr(model, "classes_seen") else nn.CrossEntropyLoss(),
        train_mb_size=4,
        eval_mb_size=5,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(metric, loggers=list(loggers)),
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
    known = torch.tensor([int(y) in old for y in labels])
    return semantic_drift(
        before[known], after[known], torch.tensor(old), torch.tensor(new), fraction=fraction
    )


def test_drift_is_that_of_logits_before_and_after_an_experience():
    metric = SemanticDriftMetric(fraction=0.4)
    strategy = make(metric)
    last = {}
    for number, experience in enumerate(BENCHMARK.train_stream):
        before, _ = said(strategy.model, BENCHMARK.test_stream)
        strategy.train(experience)
        after, labels = said(strategy.model, BENCHMARK.test_stream)
        last = strategy.eval(BENCHMARK.test_stream)
        old, new = sum(CLASSES[:number], []), CLASSES[number]
        if number == 0:
            assert metric.result() == {}
            assert not any("SemanticDrift" in name for name in last)
            continue
        expected = by_hand(before, after, labels, old, new, fraction=0.4)
        assert metric.result()["test"] == pytest.approx(expected, abs=1e-5)
        assert min(expected) > 1e-3
        assert len(set(expected)) == 3
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
    assert metric.result()["test"] == pytest.approx(expected, abs=1e-5)


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
        assert found[name] == pytest.approx(expected, abs=1e-5)
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
    strategy.eval(BENCHMARK.test_stream[:2])
    strategy.train(BENCHMARK.train_stream[1])
    strategy.eval(BENCHMARK.test_stream)
    assert metric.result() == {}
    strategy.train(BENCHMARK.train_stream[2])
    strategy.eval(BENCHMARK.test_stream)
    assert list(metric.result()) == ["test"]


def ends(metric, loggers=(), **arguments):
    strategy = make(metric, loggers=loggers, train_epochs=2, **arguments)
    periodic = [BENCHMARK.test_stream] if arguments else []
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for experience in BENCHMARK.train_stream:
            state = torch.get_rng_state()
            strategy.train(experience, eval_streams=periodic)
            torch.set_rng_state(state + 0)  # an evaluation draws a seed for its loader
            strategy.eval(BENCHMARK.test_stream)
            found.append(metric.result())
    return found


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
    assert metric.result()["test"] == pytest.approx(expected, abs=1e-5)
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
    assert metric.result()["test"] == pytest.approx(expected, abs=1e-5)


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


def test_a_run_that_is_stopped_and_resumed_measures_the_same(tmp_path):
    metrics = []

    def evaluator():
        metrics.append(SemanticDriftMetric())
        return EvaluationPlugin(metrics[-1], loggers=[])

    def facts(strategy):
        return strategy.evaluator.metrics[0].result()

    check(tmp_path, kind=with_evaluator(evaluator), facts=facts)
    assert metrics[-1].result() != {}


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
