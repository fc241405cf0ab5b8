"""What is noted of a run."""

import functools
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import warnings
from enum import Enum

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.training import LwF, Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from torch import nn
from torch.optim import SGD, AdamW

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.logging import (
    ResultsLogger,
    provenance,
    read_results,
    read_runs,
    result_rows,
    write_results,
    write_run,
)
from avalanche_vlm.logging.provenance import run_id
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune, host_baselines
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier


@pytest.fixture(scope="module")
def benchmark():
    return tiny_benchmark()


def make(*, kind=Naive, model=None, plugins=(), evaluator=None, rate=0.1, **arguments):
    model = tiny_classifier(trainable="image") if model is None else model
    optimizer = SGD([{"params": model.parameters(), "lr": rate, "weight_decay": 0.5}])
    return kind(model=model, optimizer=optimizer, plugins=[*plugins], evaluator=evaluator, **arguments)


def data_of(stream):
    targets = [int(y) for experience in stream for _, y, *_ in experience.dataset]
    digest = hashlib.sha256(b"".join(y.to_bytes(8, "little") for y in targets)).hexdigest()
    return {"samples": [len(experience.dataset) for experience in stream], "targets_sha256": digest}


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
        "train": data_of(benchmark.train_stream),
        "test": data_of(benchmark.test_stream),
    }
    assert facts["benchmark"]["train"]["samples"] == [8, 8, 8]
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
    alone = provenance(make(), stream=online)["benchmark"]
    assert [alone[name] for name in ("classes", "train", "test")] == [None, None, None]


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
    with pytest.raises(FileNotFoundError, match=r"results\.csv"):
        read_runs(path)
    write_results(path, [])
    assert read_runs(path) == {}
    path.unlink()  # the runs alone will do
    first, second = write_run(path, {"a": "naïve \u2028 line"}), write_run(path, {"a": 2})
    runs = tmp_path / "results.runs.jsonl"
    runs.write_bytes(runs.read_bytes()[:-3])
    assert read_runs(path) == {first: {"a": "naïve \u2028 line"}}
    assert write_run(path, {"a": 2}) == second
    assert read_runs(path) == {first: {"a": "naïve \u2028 line"}, second: {"a": 2}}


@pytest.mark.parametrize("line", ["{", "3", "{}", '{"run": []}', "\xff"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "results.csv"
    write_run(path, {"a": 1})
    runs = tmp_path / "results.runs.jsonl"
    runs.write_bytes(runs.read_bytes() + line.encode("latin-1") + b"\n")
    for action in (lambda: read_runs(path), lambda: write_run(path, {"a": 2})):
        with pytest.raises(ValueError, match=r"`path` must be .* line 2 of .*results\.runs\.jsonl"):
            action()


def test_a_byte_order_mark_is_read_past(tmp_path):
    path, runs = tmp_path / "results.csv", tmp_path / "results.runs.jsonl"
    run = write_run(path, {"a": 1})
    runs.write_bytes(b"\xef\xbb\xbf" + runs.read_bytes())
    assert read_runs(path) == {run: {"a": 1}}
    assert write_run(path, {"a": 1}) == run
    assert len(runs.read_bytes().splitlines()) == 1


def baseline(name, *, memory_size=20, **arguments):
    model = nn.Linear(4, 3)
    build = host_baselines(memory_size=memory_size, n_experiences=2)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metrics without loggers
        return run_id(provenance(build(model=model, optimizer=SGD(model.parameters(), lr=0.1), **arguments)))


STRENGTHS = {
    "EWC": ("ewc_lambda",),
    "MAS": ("lambda_reg", "alpha"),
    "SI": ("si_lambda",),
    "LwF": ("alpha", "temperature"),
    "AGEM": ("patterns_per_exp", "sample_size"),
    "DER": ("mem_size", "batch_size_mem", "alpha", "beta"),
    "ER-ACE": ("mem_size", "batch_size_mem"),
    "replay": ("mem_size",),
}
WITHOUT_MEMORY = {"naive", "EWC", "MAS", "SI", "LwF", "cumulative", "joint training"}


@pytest.mark.parametrize("name", host_baselines(memory_size=1, n_experiences=1))
def test_each_setting_of_a_baseline_changes_the_id(name):
    plain = baseline(name)
    assert baseline(name) == plain
    strengths = STRENGTHS.get(name, ())
    # A share of 3 would be refused.
    others = [baseline(name, **{key: 0.25 if (name, key) == ("MAS", "alpha") else 3}) for key in strengths]
    others += [baseline(name, train_epochs=2), baseline(name, train_mb_size=3)]
    if name not in WITHOUT_MEMORY:
        others.append(baseline(name, memory_size=40))
    else:
        assert baseline(name, memory_size=40) == plain
    assert len({plain, *others}) == 1 + len(others)


@pytest.mark.parametrize("name", host_baselines(memory_size=1, n_experiences=1))
def test_an_id_is_that_of_the_run_before_it_begins(tmp_path, name):
    data = (torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2)
    benchmark = tensor_benchmark(data, data, class_names=["a", "b"], n_experiences=2)
    build = host_baselines(memory_size=4, n_experiences=2)[name]
    ids = set()
    for first in ("train", "eval", "neither"):
        logger = ResultsLogger(tmp_path / f"{first}.csv")
        model = nn.Linear(4, 2)
        strategy = build(
            model=model,
            optimizer=SGD(model.parameters(), lr=0.1),
            criterion=nn.CrossEntropyLoss(),
            evaluator=EvaluationPlugin(loggers=[logger]),
            train_mb_size=4,
        )
        stream = benchmark.train_stream
        if first == "neither":
            ids.add(run_id(provenance(strategy, stream=stream)))
            continue
        getattr(strategy, first)(stream if first == "eval" or name == "joint training" else stream[0])
        ids.add(logger.run)
    assert len(ids) == 1


def test_how_a_step_is_made_changes_the_id(benchmark):
    variants = [{}, {"precision": "bf16"}, {"max_gradient_norm": 1.0}, {"accumulate_batches": 2}]
    ids = [run_id(provenance(make(kind=FineTune, **variant))) for variant in variants]
    assert len(set(ids)) == len(ids)
    assert run_id(provenance(make(kind=FineTune))) == ids[0]


class Colour(Enum):
    RED = 1


def function_of_ours():
    pass


class Settings(SupervisedPlugin):
    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)


class Says:
    strength = 3

    def describe(self):
        return {"strength": 3}


def told(**attributes):
    return provenance(make(model=nn.Linear(2, 2), plugins=[Settings(**attributes)]))["strategy"]["plugins"][0]


def test_which_attributes_are_settings():
    plugin = Settings(number=1)
    held = {
        "_strength": 0.5,
        "_name": "text",
        "_weights": [1, 2],
        "names": {"b", "c", "a"},
        "table": {"a": 1, "b": [2.0, None]},
        "parts": [ReplayPlugin(mem_size=3), Colour.RED],
        "function": function_of_ours,
        "bound": functools.partial(function_of_ours, 1, a=2),
        "loss": nn.CrossEntropyLoss(label_smoothing=0.1),
        "generator": torch.Generator().manual_seed(5),
        "says": Says(),
    }
    facts = told(**held, plugin=plugin)
    assert facts["kind"] == "Settings"
    assert (facts["_strength"], facts["_name"], facts["_weights"]) == (0.5, "text", [1, 2])
    assert facts["names"] == ["a", "b", "c"]
    assert facts["table"] == {"a": 1, "b": [2.0, None]}
    assert facts["parts"][0]["kind"] == "ReplayPlugin"
    assert facts["parts"][0]["storage_policy"]["max_size"] == 3
    assert facts["parts"][1] == "RED"
    assert facts["function"] == {"kind": "function_of_ours"}
    assert facts["bound"]["args"] == [1]
    assert facts["bound"]["keywords"] == {"a": 2}
    assert facts["bound"]["func"] == facts["function"]
    assert facts["loss"]["label_smoothing"] == 0.1
    assert facts["generator"] == {"kind": "Generator", "seed": 5}
    assert facts["says"] == {"kind": "Says", "strength": 3}
    assert facts["plugin"] == {"kind": "Settings", "number": 1}


def test_what_is_no_setting(benchmark):
    plugin = Settings(number=1)
    plugin.itself = plugin
    plugin.list_of_itself = [plugin]
    state = {
        "_flag": True,
        "_counter": 0,
        "_nothing": None,
        "_part": Says(),
        "empty": [],
        "tensor": torch.zeros(2),
        "tensors": {"a": torch.zeros(2)},
        "by_parameter": {nn.Parameter(torch.zeros(1)): 1},
        "model": nn.Linear(2, 2),
        "experiences": list(benchmark.train_stream),
        "path": pathlib.Path("somewhere"),
        "module": torch,
        "plugin": plugin,
    }
    assert told(**state) == {"kind": "Settings", "plugin": {"kind": "Settings", "number": 1}}


def test_long_collections_are_told_by_a_hash():
    ids = {
        run_id(told(weights=weights))
        for weights in ([1.0] * 17, [1.0] * 16 + [2.0], [1.0] * 18, {str(key): 1.0 for key in range(17)})
    }
    assert len(ids) == 4
    facts = told(weights=tuple(range(20)))["weights"]
    expected = hashlib.sha256(json.dumps(list(range(20))).encode()).hexdigest()
    assert facts == {"count": 20, "sha256": expected}


def test_other_data_are_another_run():
    def first_run(train, test):
        data = [(torch.zeros(len(y), 2), torch.tensor(y)) for y in (train, test)]
        benchmark = tensor_benchmark(*data, class_names=["a", "b"], n_experiences=1)
        return run_id(provenance(make(model=nn.Linear(2, 2)), stream=benchmark.train_stream))

    runs = [([0, 1], [0, 1]), ([0, 1, 1], [0, 1]), ([0, 0, 1], [0, 1]), ([0, 1], [0, 0, 1])]
    ids = [first_run(*run) for run in runs]
    assert len(set(ids)) == len(ids)
    assert [first_run(*run) for run in runs] == ids


def test_infinite_settings_of_parts_fit_into_json():
    facts = provenance(make(plugins=[EWCPlugin(ewc_lambda=float("inf"))]))
    assert facts["strategy"]["plugins"][0]["ewc_lambda"] == "Infinity"


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`method` must be a name"):
        provenance(make(), method="")
    with pytest.raises(TypeError, match=r"`settings\['a'\]`"):
        provenance(make(), settings={"a": torch.zeros(1)})
