"""What a reader needs to repeat a run, one JSON line a run beside the file of results."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.clock import Clock
from torch import nn

from avalanche_vlm._checks import check_type, wrong_type, wrong_value
from avalanche_vlm._files import append_lines, parsed_json
from avalanche_vlm.logging._benchmark_facts import benchmark_facts
from avalanche_vlm.logging._settings_of import plain_item, settings_of
from avalanche_vlm.logging.result_row import check_names
from avalanche_vlm.logging.results_file import results_files

PACKAGES = (
    "avalanche-vlm",
    "avalanche-lib",
    "torch",
    "torchvision",
    "open_clip_torch",
    "peft",
    "numpy",
)
_RUN_BEGINS = b'{"run": "'
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
        except (TypeError, ValueError, RecursionError) as error:
            advice = "Numbers (finite), text, lists and dictionaries fit into JSON."
            raise wrong_type(f"settings[{name!r}]", "a value that fits into JSON", value, advice) from error
    return facts


def run_id(facts: Mapping[str, Any]) -> str:
    """Return the id of a run: the first 12 hex digits of the SHA-256 of its facts as JSON.

    >>> run_id({"method": "naive", "seed": 0}) == run_id({"seed": 0, "method": "naive"})
    True
    """
    plain = json.loads(json.dumps(facts))  # so that it is the same before and after a file
    return hashlib.sha256(_json(plain).encode()).hexdigest()[:12]


def write_run(path: str | os.PathLike[str], facts: Mapping[str, Any]) -> str:
    """Note a run beside a file of results, unless it is there, and return its id.

    Args:
        path: the file of results, ``results.csv``; the facts go to ``results.runs.jsonl``.
        facts: what `provenance` returned.

    Returns:
        What `result_rows` takes as ``run``.

    Raises:
        TypeError: ``facts`` do not fit into JSON.
        ValueError: a fact is called ``run``, or a line of the file of runs is damaged; it is left alone.
        OSError: the file could not be written.
    """
    facts = _plain_facts(facts)
    run, file = run_id(facts), runs_path(path)

    def addition(whole: bytes) -> bytes:
        if run in _runs(file, whole):
            return b""
        # The last line may have been written without its end.
        return (b"\n" if whole and not whole.endswith(b"\n") else b"") + _run_line(run, facts)

    append_lines(file, partial(_whole_lines, file), addition)
    return run


def read_runs(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return the facts of all runs that were noted beside a file of results, by id.

    Args:
        path: the file of results, not that of the runs; or a folder of results, as for `read_results`. If
            there are results and no runs, none were noted.

    Raises:
        FileNotFoundError: there is neither a file of results nor one of runs.
        ValueError: a line of the file of runs is damaged: it is named.
    """
    check_type("path", path, (str, os.PathLike))
    found: dict[str, dict[str, Any]] = {}
    for results in results_files(path):
        file = runs_path(results)
        if not file.exists():
            results.stat()  # raises if there is no file either
            continue
        data = file.read_bytes()
        found |= _runs(file, data[: _whole_lines(file, data)])
    return found


def runs_path(path: str | os.PathLike[str]) -> Path:
    """Return where the runs of a file of results are noted."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".csv") + ".runs.jsonl")


def replace_run(path: Path, run: str, facts: Mapping[str, Any]) -> str:
    """Note a run beside a file of results in the place of one that has turned out to be another.

    Args:
        path: the file of results.
        run: the id that was noted, whose line goes if it is the last.
        facts: of the run as it is.

    Returns:
        The id of the run as it is.
    """
    file, plain = runs_path(path), _plain_facts(facts)

    def whole(data: bytes) -> int:
        end = _whole_lines(file, data)
        known = _runs(file, data[:end])
        start = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
        is_last = bool(known) and list(_runs(file, data[start:end])) == [run]
        return start if is_last else end

    def addition(kept: bytes) -> bytes:
        new = run_id(plain)
        return b"" if new in _runs(file, kept) else _run_line(new, plain)

    append_lines(file, whole, addition)
    return run_id(plain)


def _plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts as they come back from a file."""
    check_type("facts", facts, Mapping)
    if "run" in facts:
        raise wrong_value("facts", "facts of which none is called 'run', the id of them all", "one that is")
    try:
        return parsed_json(json.dumps(dict(facts), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        advice = "Numbers (finite), text, lists and dictionaries fit into JSON."
        raise wrong_type("facts", f"facts that fit into JSON ({error})", facts, advice) from error


def _run_line(run: str, facts: Mapping[str, Any]) -> bytes:
    noted = {"run": run, **facts}
    try:
        return (json.dumps(noted, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # halves of surrogate pairs
        return (json.dumps(noted) + "\n").encode()


def _runs(file: Path, data: bytes) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    lines = data.removeprefix(codecs.BOM_UTF8).removesuffix(b"\n").split(b"\n") if data else []
    for number, line in enumerate(lines, start=1):
        try:
            facts = parsed_json(line.decode())
            run = facts.pop("run")
            if run != run_id(facts):
                raise ValueError("its facts are not those that its id was made of")
            found[run] = facts
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            shown = f"line {number} of {file}: {line[:60]!r} ({error})"
            advice = "The file is left as it is: mend that line, or delete it."
            raise wrong_value("path", "a file with the facts of one run a line", shown, advice) from error
    return found


def _whole_lines(file: Path, data: bytes) -> int:
    """Return how many bytes of a file are whole lines; only the last may be what a crash leaves of one."""
    end = data.rfind(b"\n") + 1
    last = data[end:].removeprefix(codecs.BOM_UTF8 if end == 0 else b"")
    if not last:
        return len(data)
    try:
        parsed_json(last.decode(errors="replace"))
    except ValueError:
        begins = last.startswith(_RUN_BEGINS) or _RUN_BEGINS.startswith(last)
        if not begins or b"\0" in last or _has_more(last):
            number = data.count(b"\n") + 1
            shown = f"line {number} of {file}: {last[:60]!r}"
            raise wrong_value("path", "a file with the facts of one run a line", shown) from None
        return end
    return len(data)  # only its line end is missing


def _has_more(line: bytes) -> bool:
    """Return whether something follows on the facts of a run in a line."""
    try:
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return True


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
        # The host adds a clock and its evaluator to every strategy. How a run is saved changes nothing in it.
        "plugins": [
            settings_of(plugin)
            for plugin in strategy.plugins
            if not isinstance(plugin, (Clock, EvaluationPlugin)) and not _only_saves(plugin)
        ],
    }


def _only_saves(plugin: Any) -> bool:
    return type(plugin).__module__.startswith("avalanche_vlm.checkpointing.")


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
