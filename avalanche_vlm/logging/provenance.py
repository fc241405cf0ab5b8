"""What a reader needs to repeat a run, one JSON line a run beside the file of results."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from inspect import isroutine
from pathlib import Path
from typing import Any

from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor, nn

from avalanche_vlm._checks import check_type, wrong_type
from avalanche_vlm._host import experience_classes
from avalanche_vlm.logging._append import append_lines
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
_SCALARS = (bool, int, float, str, type(None))


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

    Versions of the packages; the strategy with its epochs, batch size, optimizer, criterion and
    plugins (of each the public settings that are numbers or text, and those of the parts that it
    holds); ``model.describe()`` where the model has it, such as `CLIPClassifier`; the classes of
    each training experience; number and hash of the class names; label spaces measured; seed,
    method and device. No time and no path, so that the same run has the same facts everywhere. To
    be called before training: the model is described as it is now.

    Args:
        strategy: any strategy of the host.
        stream: a stream or an experience of the benchmark, whose training stream is described; None
            leaves the classes out. So do streams without a length and those whose experiences are
            made on demand.
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
        "benchmark": {"name": benchmark, **_stream_facts(stream)},
        "seed": seed,
        "settings": check_settings(settings),
        "strategy": _strategy_facts(strategy),
        "model": model.describe() if hasattr(model, "describe") else _model_facts(model),
        "class_names": _names_facts(model),
        "spaces": _spaces(strategy),
        "device": str(strategy.device),
        "versions": {**{name: _version(name) for name in PACKAGES}, "python": platform.python_version()},
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
    run = run_id(facts)
    line = json.dumps({"run": run, **facts}, ensure_ascii=False) + "\n"

    def addition(whole: bytes) -> bytes:
        return b"" if run in _runs(whole) else line.encode()

    append_lines(runs_path(path), _whole_lines, addition)
    return run


def read_runs(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return the facts of all runs that were noted beside a file of results, by id.

    Args:
        path: the file of results, not that of the runs.
    """
    file = runs_path(path)
    data = file.read_bytes() if file.exists() else b""
    return _runs(data[: _whole_lines(data)])


def runs_path(path: str | os.PathLike[str]) -> Path:
    """Return where the runs of a file of results are noted."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".csv") + ".runs.jsonl")


def _runs(data: bytes) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in data.decode().split("\n") if line.strip()]
    return {facts.pop("run"): facts for facts in found}


def _whole_lines(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _strategy_facts(strategy: Any) -> dict[str, Any]:
    optimizer = getattr(strategy, "optimizer", None)
    groups = [
        {name: value for name, value in map(_plain_item, group.items()) if name != "params"}
        for group in getattr(optimizer, "param_groups", ())
    ]
    return {
        "kind": type(strategy).__name__,
        "train_epochs": getattr(strategy, "train_epochs", None),
        "train_mb_size": getattr(strategy, "train_mb_size", None),
        "optimizer": {"kind": type(optimizer).__name__, "groups": groups},
        "criterion": _settings_of(getattr(strategy, "_criterion", None)),
        # The host adds a clock and its evaluator to every strategy.
        "plugins": [
            _settings_of(plugin)
            for plugin in strategy.plugins
            if not isinstance(plugin, (Clock, EvaluationPlugin))
        ],
    }


def _settings_of(thing: Any, *, depth: int = 2) -> Any:
    """Return the class of an object and its public attributes that are numbers or text.

    Of the parts that it holds the same is told, down to ``depth`` levels.
    """
    if isinstance(thing, type) or not hasattr(thing, "__dict__"):
        return {"kind": getattr(thing, "__name__", type(thing).__name__)}
    facts: dict[str, Any] = {"kind": getattr(thing, "__name__", type(thing).__name__)}
    for name, value in vars(thing).items():
        if name.startswith("_") or name == "training":
            continue
        if _is_plain(value):
            facts[name] = value
        elif depth > 1 and hasattr(value, "__dict__") and not _is_large(value):
            facts[name] = _settings_of(value, depth=depth - 1)
    return facts


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 16 and all(_is_plain(item) for item in value)
    return isinstance(value, _SCALARS)


def _is_large(value: Any) -> bool:
    """Return whether an attribute is data or a model, and no part with settings of its own."""
    return isinstance(value, (Tensor, nn.Module, AvalancheDataset, BaseTemplate, type)) or isroutine(value)


def _plain_item(item: tuple[str, Any]) -> tuple[str, Any]:
    name, value = item
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()  # a learning rate may be a tensor
    return name, value if _is_plain(value) else None


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


def _stream_facts(stream: Any) -> dict[str, Any]:
    """Return the number of experiences and their classes, of the training stream if it is known."""
    if stream is None:
        return {}
    # From an experience, or the piece of one in an online stream, to the stream.
    stream = getattr(getattr(stream, "origin_experience", None) or stream, "origin_stream", stream)
    whole = getattr(stream, "benchmark", None)
    stream = getattr(whole, "train_stream", stream)
    definition = getattr(whole, "stream_definitions", {}).get(getattr(stream, "name", ""))
    length = len(stream) if hasattr(stream, "__len__") else None
    eager = length is not None and not getattr(definition, "is_lazy", False)
    return {
        "kind": None if whole is None else type(whole).__name__,
        "experiences": length,
        "classes": [_classes(experience) for experience in stream] if eager else None,
    }


def _classes(experience: Any) -> list[int]:
    return [] if len(experience.dataset) == 0 else experience_classes(experience).tolist()
