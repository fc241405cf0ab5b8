"""What a reader needs to repeat a run, one JSON line a run beside the file of results."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.clock import Clock
from torch import nn

from avalanche_vlm._checks import check_type, wrong_type, wrong_value
from avalanche_vlm._files import append_lines
from avalanche_vlm.logging._benchmark_facts import benchmark_facts
from avalanche_vlm.logging._settings_of import plain_item, settings_of
from avalanche_vlm.logging.result_row import check_names

PACKAGES = (
    "avalanche-vlm",
    "avalanche-lib",
    "torch",
    "torchvision",
    "open_clip_torch",
    "peft",
    "numpy",
)
# What a strategy of the host is told of elsewhere, and what its loops keep there while they run.
_NO_SETTINGS = frozenset(
    (
        *("model", "optimizer", "_criterion", "plugins", "evaluator", "clock", "device"),
        *("experience", "is_training", "current_eval_stream", "_eval_streams", "adapted_dataset"),
        *("dataloader", "mbatch", "mb_output", "loss", "optimized_param_id", "_resume_point"),
    )
)


def provenance(
    strategy: Any,
    *,
    stream: Any = None,
    method: str | None = None,
    benchmark: str = "",
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a reader needs to repeat a run, as plain values that fit into JSON.

    Versions of the packages; the settings of the strategy, its criterion and its plugins, and of the
    parts that they hold, as far as they are numbers, text or collections of these (long ones as a
    hash); the optimizer's groups; ``model.describe()`` where the model has it, such as
    `CLIPClassifier`; the classes of each training experience, the number of samples of each
    experience in training and test, and a hash of their targets; number and hash of the class names;
    label spaces measured; seed, method and device. No time and no path, so that the same run has the
    same facts everywhere. To be called before training: everything is told as it is now, and a
    counter that has counted would pass for a setting.

    Settings under private names count too, unless they are truth values, which look like a flag of
    the run. Not told are tensors and data that a part holds. A plugin or part that would tell too
    much or too little has a method ``describe()`` that returns its settings, fit for JSON.

    Args:
        strategy: any strategy of the host.
        stream: a stream or an experience of the benchmark, whose training stream is described; None
            leaves the data out. So do streams without a length and those whose experiences are made
            on demand.
        method: name of the method; None takes that of the strategy's class.
        benchmark: name of the benchmark.
        seed: seed of the run.
        settings: further facts, anything that fits into JSON.

    Raises:
        TypeError: ``settings`` does not fit into JSON, or an argument has another type.
        ValueError: ``method`` is empty.
    """
    check_names(method=method, benchmark=benchmark, seed=seed)
    model = strategy.model
    facts = {
        "method": type(strategy).__name__ if method is None else method,
        "benchmark": {"name": benchmark, **benchmark_facts(stream)},
        "seed": seed,
        "settings": check_settings(settings),
        "strategy": _strategy_facts(strategy),
        "model": model.describe() if hasattr(model, "describe") else _model_facts(model),
        "class_names": _names_facts(model),
        "spaces": _spaces(strategy),
        "device": str(strategy.device),
        "versions": {
            **{name: package_version(name) for name in PACKAGES},
            "python": platform.python_version(),
        },
    }
    return json.loads(_json(facts), parse_constant=str)  # an infinite number is no JSON


def check_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy of the settings; raise `TypeError` unless they fit into JSON."""
    check_type("settings", settings, (Mapping, type(None)))
    facts = dict(settings or {})
    for name, value in facts.items():
        if not isinstance(name, str):
            raise wrong_type("settings", "a mapping whose keys are text", name)
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            advice = "Numbers (finite), text, lists and dictionaries fit into JSON."
            raise wrong_type(f"settings[{name!r}]", "a value that fits into JSON", value, advice) from error
    return facts


def run_id(facts: Mapping[str, Any]) -> str:
    """Return the id of a run: the first 12 hex digits of the SHA-256 of its facts as JSON.

    >>> run_id({"method": "naive", "seed": 0}) == run_id({"seed": 0, "method": "naive"})
    True
    """
    return hashlib.sha256(_json(facts).encode()).hexdigest()[:12]


def write_run(path: str | os.PathLike[str], facts: Mapping[str, Any]) -> str:
    """Note a run beside a file of results, unless it is there, and return its id.

    Args:
        path: the file of results, ``results.csv``; the facts go to ``results.runs.jsonl``.
        facts: what `provenance` returned.

    Returns:
        What `result_rows` takes as ``run``.
    """
    run, file = run_id(facts), runs_path(path)
    line = json.dumps({"run": run, **facts}, ensure_ascii=False) + "\n"

    def addition(whole: bytes) -> bytes:
        return b"" if run in _runs(file, whole) else line.encode()

    append_lines(file, _whole_lines, addition)
    return run


def read_runs(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return the facts of all runs that were noted beside a file of results, by id.

    Args:
        path: the file of results, not that of the runs. If there are results and no runs, none were
            noted.

    Raises:
        FileNotFoundError: there is neither a file of results nor one of runs.
        ValueError: a line of the file of runs is damaged.
    """
    file = runs_path(path)
    if not file.exists():
        Path(path).stat()  # raises if there is no file either
        return {}
    data = file.read_bytes()
    return _runs(file, data[: _whole_lines(data)])


def runs_path(path: str | os.PathLike[str]) -> Path:
    """Return where the runs of a file of results are noted."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".csv") + ".runs.jsonl")


def _runs(file: Path, data: bytes) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            facts = json.loads(line.decode())
            found[facts.pop("run")] = facts
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            shown = f"line {number} of {file}: {line[:60]!r}"
            advice = "Mend that line, or delete it."
            raise wrong_value("path", "a file with the facts of one run a line", shown, advice) from error
    return found


def _whole_lines(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _strategy_facts(strategy: Any) -> dict[str, Any]:
    optimizer = getattr(strategy, "optimizer", None)
    groups = [
        {name: value for name, value in map(plain_item, group.items()) if name != "params"}
        for group in getattr(optimizer, "param_groups", ())
    ]
    return {
        **settings_of(strategy, without=_NO_SETTINGS, private_parts=True),
        "optimizer": {"kind": type(optimizer).__name__, "groups": groups},
        "criterion": settings_of(getattr(strategy, "_criterion", None)),
        # The host adds a clock and its evaluator to every strategy.
        "plugins": [
            settings_of(plugin)
            for plugin in strategy.plugins
            if not isinstance(plugin, (Clock, EvaluationPlugin))
        ],
    }


def _model_facts(model: nn.Module) -> dict[str, Any]:
    # Not model.parameters(), which may list only what trains.
    tensors = [parameter for _, parameter in nn.Module.named_parameters(model)]
    return {"kind": type(model).__name__, "parameters": sum(tensor.numel() for tensor in tensors)}


def _names_facts(model: Any) -> dict[str, Any] | None:
    names = getattr(model, "class_names", None)
    if names is None:
        return None
    listed = [str(name) for name in names]
    return {"count": len(listed), "sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest()}


def _spaces(strategy: Any) -> list[str]:
    metrics = getattr(getattr(strategy, "evaluator", None), "metrics", ())
    found = (getattr(metric, "space", None) for metric in metrics)
    return list(dict.fromkeys(space for space in found if isinstance(space, str)))
