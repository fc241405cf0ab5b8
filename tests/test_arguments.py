"""Every public constructor and function names an argument of a wrong type, and takes none in silence.

The wrong values follow from the annotations: whatever an annotation excludes is tried. Ranges are tried in
`test_contracts.py`, one wrong value for each argument.
"""

import importlib
import inspect
import re
import types
import typing
from collections.abc import Mapping, MutableMapping
from typing import Any

import pytest
import torch
from avalanche.training.plugins import LwFPlugin
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table
from torch import nn
from torch.optim import SGD

from avalanche_vlm import comparison, models, strategies
from avalanche_vlm.logging import ResultRow, TableColumn
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_benchmark, tiny_classifier
from tests.test_contracts import COMPONENTS

NAMES = list(TINY_CLASSES)


def pair():
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6).repeat(2)


def rows():
    return [
        ResultRow(method="m", metric="accuracy", value=0.5, after_experience=0, experience=0, space="seen")
    ]


def run_function(setup, evaluator):
    """Stand for a user's function that builds a strategy."""


def score(benchmark, *, seed, a):
    """Stand for a user's function that trains and scores a candidate."""
    return 0.5


def prepared(seed):
    """Stand for a user's function that prepares data."""


def functions():
    """Return right arguments of functions and plain classes, by name of their package and their own."""
    model, benchmark = tiny_classifier(), tiny_benchmark()
    transforms = {"train_transform": model.eval_transform, "eval_transform": model.eval_transform}
    few = {"train_per_class": 1, "test_per_class": 1}
    run = comparison.Run(method="m", stream="s", seed=0, build=run_function, prepare=prepared)
    return {
        "benchmarks.tensor_benchmark": {
            "train": pair(),
            "test": pair(),
            "class_names": NAMES,
            "n_experiences": 2,
        },
        "benchmarks.small_world_benchmark": {**few, "n_experiences": 2},
        "benchmarks.small_world_domains_benchmark": few,
        "benchmarks.small_world_sequence_benchmark": few,
        "benchmarks.small_world_and_digits_benchmark": few,
        "benchmarks.digits_benchmark": {"n_experiences": 2},
        "benchmarks.with_class_names": {"benchmark": benchmark, "names": NAMES},
        "benchmarks.with_validation_stream": {"benchmark": benchmark},
        "benchmarks.class_names": {"source": benchmark},
        "benchmarks.folder_benchmark": {
            **{"train": "train", "test": "test", "n_experiences": 1},
            **transforms,
        },
        "benchmarks.domain_folder_benchmark": {
            **{"root": "domains", "test_fraction": 0.5},
            **transforms,
        },
        "benchmarks.known_benchmark": {"name": "cifar100", "root": "nowhere"},
        "benchmarks.known_sequence_benchmark": {"names": ["cifar100"], "root": "nowhere"},
        "benchmarks.LabelledTensors": {"x": pair()[0], "y": pair()[1]},
        "text.ClassNames": {"names": NAMES},
        "text.PromptTemplate": {"text": "a photo of a {}."},
        "text.dataset_text": {"name": "cifar100"},
        "embedding.embed": {"benchmark": benchmark, "backbone": model.backbone, "cache_dir": "cache"},
        "strategies.host_baselines": {"memory_size": 3, "n_experiences": 2},
        "metrics.continual_metrics": {},
        "logging.ResultsLogger": {"path": "results.csv"},
        "logging.ResultRow": {"method": "m", "metric": "Top1", "value": 0.5},
        "logging.TableColumn": {"heading": "Last", "metric": "Top1", "space": "seen"},
        "logging.read_results": {"path": "nowhere"},
        "logging.read_runs": {"path": "nowhere"},
        "logging.save_figure": {"figure": Figure(), "path": "figure.png"},
        "logging.table_text": {"table": Table()},
        "logging.mean_text": {"values": {0: 0.5, 1: 0.6}},
        "checkpointing.CheckpointPlugin": {"folder": "checkpoints"},
        "comparison.Run": {
            "method": "m",
            "stream": "s",
            "seed": 0,
            "build": run_function,
            "prepare": prepared,
        },
        "comparison.Setup": {"benchmark": benchmark, "backbone": TinyBackbone()},
        "comparison.compare": {"runs": [run], "folder": "out"},
        "comparison.grid": {"methods": {"m": run_function}, "streams": {"s": prepared}, "seeds": [0]},
        "presets.cgil_setting": {"dataset": "cifar100"},
        "presets.segp_cl_setting": {"dataset": "cifar100"},
        "presets.setting_a": {"dataset": "cifar100"},
        "presets.setting_b": {"dataset": "aircraft"},
        "benchmarks.domain_benchmark": {"domains": {"a": (pair(), pair())}, "class_names": NAMES},
        "benchmarks.multi_dataset_benchmark": {"datasets": {"a": (pair(), pair(), NAMES)}},
        "logging.final_values": {"results": rows(), "metric": "accuracy"},
        "logging.results_table": {"results": rows()},
        "logging.plot_accuracy_over_experiences": {"results": rows()},
        "logging.plot_accuracy_matrices": {"results": rows()},
        "logging.plot_accuracy_matrix": {"results": rows(), "method": "m"},
        "logging.result_matrix": {"results": rows()},
        "logging.write_results": {"path": "results.csv", "rows": rows()},
        "presets.gift_setting": {},
        "presets.zscl_setting": {},
        "presets.mtil": {},
        "comparison.write_comparison": {"runs": [run], "folder": "out"},
        "comparison.paired_difference": {"first": {0: 0.5, 1: 0.6}, "second": {0: 0.5, 1: 0.7}},
        "comparison.plot_overview": {"rows": rows(), "column": TableColumn("Last", "accuracy", "seen")},
        "checkpointing.save": {"strategy": strategies.ZeroShot(model=model), "path": "run.ckpt"},
        "checkpointing.resume": {
            "strategy": strategies.ZeroShot(model=model),
            "path": "nowhere",
            "benchmark": benchmark,
        },
        "selection.choose_hyperparameters": {
            "candidates": [{"a": 1}, {"a": 2}],
            "make_benchmark": prepared,
            "train_and_score": score,
            "selection_seeds": [0],
            "reported_seeds": [1],
        },
    }


def public(name):
    package, own = name.split(".")
    return getattr(importlib.import_module(f"avalanche_vlm.{package}"), own)


def hints(called):
    """Return the annotations of all arguments, those of ``**arguments: Unpack[...]`` among them."""
    is_plain = inspect.isclass(called) and not hasattr(called, "__dataclass_fields__")
    found = typing.get_type_hints(called.__init__ if is_plain else called)
    found.pop("return", None)
    for parameter in inspect.signature(called).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            given = typing.get_args(found.pop(parameter.name, None))
            for each in given:
                found |= typing.get_type_hints(each) if typing.is_typeddict(each) else {}
    return found


def kinds(annotation):
    """Return the types that an annotation allows, those in unions one by one; ``"literal"`` for words."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(kinds, typing.get_args(annotation)))
    return {"literal"} if origin is typing.Literal else {origin or annotation}


class Stranger:
    """An object of a class that no argument is annotated with."""

    def __repr__(self):
        return "a stranger"


def wrong_values(annotation):
    """Return values that an annotation excludes."""
    allowed = kinds(annotation)
    optional = allowed | {type(None)}
    values = [Stranger(), Stranger]
    if optional == {int, type(None)}:
        values += ["3", 1.5, True, [3], float("nan")]
    if float in allowed and optional <= {float, int, type(None)}:
        values += ["0.5", True, [0.5], float("nan"), float("inf"), 1j]
    if optional == {bool, type(None)}:
        values += ["yes", 1, 0.0, []]
    if optional <= {str, "literal", type(None)}:
        values += [3, b"x", ["a"]]
    if not allowed & {str, "literal"}:
        values.append("abc")
    if not allowed & {dict, Mapping, MutableMapping}:
        values.append({"a": 1})
    if type(None) not in allowed:
        values.append(None)
    return values


def check(called, valid):
    found = []
    for name, annotation in hints(called).items():
        if annotation is Any or (called.__name__, name) in ANYTHING:
            continue
        for value in wrong_values(annotation):
            try:
                called(**{**valid, name: value})
            except (TypeError, ValueError) as error:
                if not re.search(rf"\b{re.escape(name)}\b", str(error)):
                    found.append(f"{name}={value!r}: {error}")
            except Exception as error:
                found.append(f"{name}={value!r}: {type(error).__name__}: {error}")
            else:
                found.append(f"{name}={value!r} is accepted")
    assert not found, "\n".join(found)


# Where the annotation does not say it all.
ANYTHING = {
    ("LabelledTensors", "argument"),  # for the words of errors
    ("ResultRow", "value"),  # NaN and infinity are values
    *(("Run", name) for name in ("build", "prepare")),  # a class is called as a function is
    ("Setup", "head"),
    # Read in the data set that is not there.
    *(
        (f"known_{what}benchmark", name)
        for what in ("", "sequence_")
        for name in (
            *("task_labels", "train_transform", "eval_transform", "n_experiences", "classes_per_experience"),
            *("class_order", "seed", "n_experiences_per_dataset", "allow_shared_names"),
        )
    ),
}
FUNCTIONS = functions()


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.kind.__name__)
def test_components(component, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = inspect.signature(component.kind).parameters
    check(component.kind, {k: v for k, v in component.valid.items() if v is not None and k in names})


def draw(folder):
    """Write two classes of two pictures each."""
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name / f"{number}.png")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "folder_benchmark" in name:
        for folder in ("train", "test", "domains/photo", "domains/sketch"):
            draw(tmp_path / folder)
    check(public(name), FUNCTIONS[name])


def fine_tune(**arguments):
    model = tiny_classifier(trainable="image")
    return strategies.FineTune(model=model, optimizer=SGD(model.parameters(), lr=0.1), **arguments)


TWICE = LwFPlugin()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fine_tune(plugins=[3]), "`plugins` must be a list of plugins.*got int"),
        (lambda: fine_tune(plugins=[LwFPlugin]), r"`plugins`.*Build it: LwFPlugin\(\.\.\.\)"),
        (lambda: fine_tune(plugins=[TWICE, TWICE]), "each plugin stands once.*the same LwFPlugin twice"),
        (lambda: fine_tune(criterion="ce"), "`criterion` must be a loss of logits and labels.*got str"),
        (
            lambda: fine_tune(criterion=nn.CrossEntropyLoss),
            r"Build one: criterion=CrossEntropyLoss\(\.\.\.\)",
        ),
        (
            lambda: fine_tune(peval_mode="epok"),
            "`peval_mode` must be one of 'epoch', 'iteration'.*mean 'epoch'",
        ),
        (lambda: fine_tune(device="cudda"), "`device` must be a device of torch"),
        (lambda: fine_tune(eval_every=-2), "`eval_every` must be a whole number of at least -1"),
        (lambda: models.LoRA(dropout=1.0), "`dropout` must be .*below 1"),
        (
            lambda: models.OpenCLIPBackbone("small-clip", preprocess={"std": (0, 0, 0)}),
            r"`preprocess.std\[0\]` must be a number above 0",
        ),
        (
            lambda: models.OpenCLIPBackbone("small-clip", preprocess={"mean": 0.5}),
            "`preprocess.mean` must be a list of 3 entries",
        ),
        (
            lambda: models.OpenCLIPBackbone("small-clip", preprocess={"sdt": (1, 1, 1)}),
            "`preprocess` must be one of .*mean 'std'",
        ),
    ],
)
def test_what_users_get_wrong(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
