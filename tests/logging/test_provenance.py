"""What is noted of a run."""

import hashlib
import importlib.metadata
import json
import platform

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.training import LwF, Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from torch import nn
from torch.optim import SGD, AdamW

from avalanche_vlm.logging import (
    ResultsLogger,
    provenance,
    read_results,
    read_runs,
    result_rows,
    write_results,
    write_run,
)
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier


@pytest.fixture(scope="module")
def benchmark():
    return tiny_benchmark()


def make(*, kind=Naive, model=None, plugins=(), evaluator=None, rate=0.1, **arguments):
    model = tiny_classifier(trainable="image") if model is None else model
    optimizer = SGD([{"params": model.parameters(), "lr": rate, "weight_decay": 0.5}])
    return kind(model=model, optimizer=optimizer, plugins=[*plugins], evaluator=evaluator, **arguments)


def test_facts_are_those_of_the_run(benchmark):
    evaluator = EvaluationPlugin(*continual_metrics(spaces=("seen", "all")))
    plugins = [
        EWCPlugin(ewc_lambda=2.5),
        ReplayPlugin(mem_size=12, storage_policy=ClassBalancedBuffer(max_size=12)),
    ]
    strategy = make(
        plugins=plugins,
        evaluator=evaluator,
        criterion=LabelSpaceCrossEntropy("seen"),
        train_epochs=3,
        train_mb_size=7,
    )
    facts = provenance(
        strategy,
        stream=benchmark.train_stream,
        method="both",
        benchmark="tiny",
        seed=4,
        settings={"preset": ["a", 1]},
    )
    assert facts == json.loads(json.dumps(facts, allow_nan=False))
    assert facts["method"] == "both"
    assert facts["seed"] == 4
    assert facts["settings"] == {"preset": ["a", 1]}
    assert facts["device"] == "cpu"
    assert facts["spaces"] == ["seen", "all"]
    assert facts["benchmark"] == {
        "name": "tiny",
        "kind": type(benchmark).__name__,
        "experiences": 3,
        "classes": [sorted(benchmark.classes_in_experience["train"][i]) for i in range(3)],
    }
    names = hashlib.sha256(json.dumps(list(TINY_CLASSES)).encode()).hexdigest()
    assert facts["class_names"] == {"count": 6, "sha256": names}
    assert facts["model"] == json.loads(json.dumps(strategy.model.describe()))
    told = facts["strategy"]
    assert (told["kind"], told["train_epochs"], told["train_mb_size"]) == ("Naive", 3, 7)
    (group,) = told["optimizer"]["groups"]
    assert (told["optimizer"]["kind"], group["lr"], group["weight_decay"]) == ("SGD", 0.1, 0.5)
    assert told["criterion"]["kind"] == "LabelSpaceCrossEntropy"
    assert told["criterion"]["space"] == "seen"
    ewc, replay = told["plugins"][:2]
    assert (ewc["kind"], ewc["ewc_lambda"], ewc["mode"]) == ("EWCPlugin", 2.5, "separate")
    assert (replay["kind"], replay["storage_policy"]["kind"]) == ("ReplayPlugin", "ClassBalancedBuffer")
    assert replay["storage_policy"]["max_size"] == 12
    versions = facts["versions"]
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == importlib.metadata.version("torch")
    packages = {"avalanche-vlm", "avalanche-lib", "torch", "torchvision", "open_clip_torch", "peft", "numpy"}
    assert set(versions) == packages | {"python"}
    assert all(versions.values())


def test_parts_of_parts_are_told():
    facts = provenance(make(kind=LwF, alpha=3.0, temperature=2.0, criterion=nn.CrossEntropyLoss()))
    assert facts["strategy"]["plugins"][0]["lwf"]["alpha"] == 3.0


def test_a_stock_model_and_odd_streams(benchmark):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    facts = provenance(make(model=model))
    assert facts["model"] == {"kind": "Sequential", "parameters": 193 * 6}
    assert facts["class_names"] is None
    assert facts["benchmark"] == {"name": ""}
    online = split_online_stream(benchmark.train_stream, experience_size=4, access_task_boundaries=True)
    whole = provenance(make(), stream=benchmark.test_stream)["benchmark"]
    assert whole["classes"] == [sorted(classes) for classes in benchmark.classes_in_experience["train"]]
    # A piece leads to the experience that it was cut from; a generated stream alone to nothing.
    assert provenance(make(), stream=next(iter(online)).logging())["benchmark"] == whole
    assert provenance(make(), stream=online)["benchmark"]["classes"] is None


def test_the_same_run_has_the_same_id_and_is_noted_once(tmp_path, benchmark):
    path = tmp_path / "results.csv"
    for _ in range(2):
        logger = ResultsLogger(path, seed=0, settings={"preset": "setting-a"})
        strategy = make(evaluator=EvaluationPlugin(*continual_metrics(), loggers=[logger]))
        strategy.train(benchmark.train_stream[0])
        strategy.eval(benchmark.test_stream)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.csv", "results.runs.jsonl"]
    assert len((tmp_path / "results.runs.jsonl").read_text().splitlines()) == 1
    ((run, facts),) = read_runs(path).items()
    assert {row.run for row in read_results(path)} == {run}
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    assert run == hashlib.sha256(canonical.encode()).hexdigest()[:12]
    assert facts["method"] == "Naive"
    assert facts["settings"] == {"preset": "setting-a"}
    # The model is described as it was before training.
    assert (
        facts["model"]["backbone"]["fingerprint"] == tiny_classifier().describe()["backbone"]["fingerprint"]
    )
    assert facts["model"]["backbone"]["fingerprint"] != strategy.model.describe()["backbone"]["fingerprint"]


def test_whether_a_run_begins_with_an_evaluation_does_not_matter(tmp_path, benchmark):
    runs = set()
    for number, stream in enumerate((benchmark.test_stream, benchmark.train_stream[:1])):
        logger = ResultsLogger(tmp_path / f"{number}.csv")
        strategy = make(evaluator=EvaluationPlugin(*continual_metrics(), loggers=[logger]))
        (strategy.train if number else strategy.eval)(stream)
        runs |= set(read_runs(tmp_path / f"{number}.csv"))
    assert len(runs) == 1


def test_anything_else_is_another_run(tmp_path):
    path = tmp_path / "results.csv"
    stock = nn.Linear(2, 2)
    variants = [
        provenance(make(model=stock)),
        provenance(make(model=stock), seed=1),
        provenance(make(model=stock), method="other"),
        provenance(make(model=stock), benchmark="other"),
        provenance(make(model=stock), settings={"a": 1}),
        provenance(make(model=stock, rate=0.2)),
        provenance(make(model=stock, train_epochs=2)),
        provenance(make(model=stock, plugins=[EWCPlugin(1.0)])),
        provenance(make(model=stock, plugins=[EWCPlugin(2.0)])),
        provenance(Naive(model=stock, optimizer=AdamW(stock.parameters()), evaluator=None)),
    ]
    ids = [write_run(path, facts) for facts in variants]
    assert len(set(ids)) == len(variants)
    assert list(read_runs(path)) == ids
    assert [write_run(path, facts) for facts in variants] == ids
    assert list(read_runs(path).values()) == variants


def test_the_functional_way_carries_the_run(tmp_path, benchmark):
    path = tmp_path / "results.csv"
    metrics = continual_metrics(spaces=("all",))
    strategy = make(evaluator=EvaluationPlugin(*metrics))
    run = write_run(path, provenance(strategy, stream=benchmark.train_stream, method="m", seed=0))
    strategy.eval(benchmark.test_stream)
    write_results(path, result_rows(metrics, method="m", seed=0, run=run))
    assert {row.run for row in read_results(path)} == {run}
    assert read_runs(path)[run]["seed"] == 0


def test_a_torn_line_is_ignored_and_cut_off(tmp_path):
    path = tmp_path / "results.csv"
    assert read_runs(path) == {}
    first, second = write_run(path, {"a": "naïve \u2028 line"}), write_run(path, {"a": 2})
    runs = tmp_path / "results.runs.jsonl"
    runs.write_bytes(runs.read_bytes()[:-3])
    assert read_runs(path) == {first: {"a": "naïve \u2028 line"}}
    assert write_run(path, {"a": 2}) == second
    assert read_runs(path) == {first: {"a": "naïve \u2028 line"}, second: {"a": 2}}


def test_infinite_settings_of_parts_fit_into_json():
    facts = provenance(make(plugins=[EWCPlugin(ewc_lambda=float("inf"))]))
    assert facts["strategy"]["plugins"][0]["ewc_lambda"] == "Infinity"


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`method` must be a name"):
        provenance(make(), method="")
    with pytest.raises(TypeError, match=r"`settings\['a'\]`"):
        provenance(make(), settings={"a": torch.zeros(1)})
