"""The state of a strategy as bytes, and back into a strategy that was built again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.training.plugins import AGEMPlugin
from torch import nn

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._allowed import class_name
from avalanche_vlm.checkpointing._bytes import from_bytes, to_bytes
from avalanche_vlm.checkpointing._data import BenchmarkData
from avalanche_vlm.checkpointing._decode import Decoder
from avalanche_vlm.checkpointing._encode import (
    STRATEGY_TRANSIENTS,
    CannotBeSaved,
    Encoder,
    Path,
    memory,
    shown_path,
)
from avalanche_vlm.checkpointing._logs import log_positions
from avalanche_vlm.checkpointing._model import (
    FrozenFingerprints,
    check_model,
    lasting_buffers,
    load_model,
    model_parameters,
    model_state,
)
from avalanche_vlm.checkpointing._random import random_state, set_random_state
from avalanche_vlm.models.fingerprint import fingerprint

_SETTINGS = (bool, int, float, str)


class CheckpointingPlugin(SupervisedPlugin[Any]):
    """What marks the plugins that write checkpoints: they are no part of the state."""

    nbytes = 0

    def describe(self) -> dict[str, Any]:
        """Return no settings: how a run is saved changes nothing in it."""
        return {}


@dataclass
class Built:
    """What a strategy was like before it trained."""

    paths: frozenset[Path]
    settings: dict[str, dict[str, Any]]
    buffers: dict[str, str]


@dataclass
class Run:
    """What is remembered from one checkpoint of a run to the next."""

    data: BenchmarkData = field(default_factory=BenchmarkData)
    built: Built | None = None
    frozen: FrozenFingerprints = field(default_factory=FrozenFingerprints)


def parts(strategy: Any) -> list[Any]:
    """Return the plugins that a state is made of."""
    return [plugin for plugin in strategy.plugins if not isinstance(plugin, CheckpointingPlugin)]


def built(strategy: Any, data: BenchmarkData) -> Built:
    """Return what a strategy is like that has not trained."""
    encoder = _encoder(strategy, data, None)
    roots = _encode_roots(strategy, encoder)
    settings: dict[str, dict[str, Any]] = {"strategy": _settings(roots["strategy"])}
    for node in encoder.nodes:
        if node[0] == "object" and not isinstance(encoder.objects.get(node[1]), BaseLogger):
            settings[shown_path(node[1])] = _settings(node[3])
    buffers = {name: fingerprint({name: buffer}) for name, buffer in lasting_buffers(strategy.model).items()}
    return Built(frozenset(encoder.objects), {path: s for path, s in settings.items() if s}, buffers)


def capture(strategy: Any, run: Run) -> bytes:
    """Return the state of a strategy between two experiences or two epochs.

    Raises:
        CannotBeSaved: a plugin holds something that has no place in a checkpoint.
    """
    encoder = _encoder(strategy, run.data, None if run.built is None else run.built.paths)
    groups = strategy.optimizer.param_groups
    names = {id(parameter): name for name, parameter in model_parameters(strategy.model).items()}
    roots = _encode_roots(strategy, encoder)
    optimizer = encoder.encode(strategy.optimizer.state_dict(), ("strategy", "optimizer"))
    state = {
        "kinds": _kinds(strategy),
        "settings": {} if run.built is None else run.built.settings,
        "model": model_state(
            strategy.model,
            [parameter for group in groups for parameter in group["params"]],
            {} if run.built is None else run.built.buffers,
            run.frozen,
        ),
        "groups": [[names.get(id(parameter)) for parameter in group["params"]] for group in groups],
        "optimizer": optimizer,
        "roots": roots,
        "nodes": encoder.nodes,
        "data": {"facts": run.data.facts, "whole": run.data.benchmark is not None},
        "logs": log_positions(strategy),
        "random": random_state(),
    }
    return to_bytes(state)


class Restoration:
    """A state that was read and checked against a strategy, and can be put into it.

    Args:
        strategy: a strategy that was built as the saved one was.
        content: what `capture` returned.
        data: the data of the benchmark.

    Raises:
        ValueError: the strategy, its model or the benchmark differ from what was saved, or the
            content is not what `capture` writes. Nothing of the strategy was changed.
    """

    def __init__(
        self, strategy: Any, content: bytes, data: BenchmarkData, *, compare: Built | None = None
    ) -> None:
        state = from_bytes(content)
        self._strategy, self._state, self._data, self._applied = strategy, state, data, False
        _check_kinds(_kinds(strategy), state["kinds"])
        data.check(state["data"]["facts"], whole=state["data"]["whole"])
        check_model(strategy.model, state["model"])
        self._check_groups()
        if compare is not None:
            _warn_of_settings(compare.settings, state["settings"])
        # Where training would put it anyway: a teacher, made as a copy, is to lie there too.
        strategy.model.to(strategy.device)
        self._plan()

    @property
    def logs(self) -> list[Any]:
        """The positions of the loggers."""
        return self._state["logs"]

    def apply(self) -> None:
        """Put the state into the strategy. May be called again, to go back to it."""
        strategy, state = self._strategy, self._state
        if self._applied:
            self._plan()  # what was handed out the first time has been trained on since
        self._applied = True
        self._decoder.load_states()  # what may be refused comes first
        load_model(strategy.model, state["model"])
        self._decoder.apply()
        parameters = model_parameters(strategy.model)
        optimizer = strategy.optimizer
        for group, names in zip(optimizer.param_groups, state["groups"], strict=True):
            strangers = [p for p in group["params"] if not any(p is own for own in parameters.values())]
            group["params"] = [strangers.pop(0) if name is None else parameters[name] for name in names]
        optimizer.load_state_dict(self._optimizer)
        for plugin in parts(strategy):
            _rebuild(plugin)
        set_random_state(state["random"])

    def _plan(self) -> None:
        strategy, state = self._strategy, self._state
        model = strategy.model
        self._decoder = Decoder(
            state["nodes"],
            roots={"strategy": _Namespace(vars(strategy)), "plugins": parts(strategy)},
            reference=lambda name: _resolve(strategy, name),
            model=model,
            parameters={**state["model"]["parameters"], **state["model"]["buffers"]},
            data=self._data,
            device=strategy.device,
        )
        for plugin in state["roots"]["plugins"]:
            self._decoder.decode(plugin)
        self._decoder.change(strategy, state["roots"]["strategy"])
        self._optimizer = self._decoder.decode(state["optimizer"])

    def _check_groups(self) -> None:
        parameters = model_parameters(self._strategy.model)
        names = {id(parameter): name for name, parameter in parameters.items()}
        groups, saved = self._strategy.optimizer.param_groups, self._state["groups"]
        if len(groups) != len(saved):
            raise wrong_value("strategy.optimizer", f"one with {len(saved)} parameter groups", len(groups))
        # The host adds parameters at the first training; those that are there must be where they were.
        for index, (group, expected) in enumerate(zip(groups, saved, strict=True)):
            for parameter in group["params"]:
                name = names.get(id(parameter))
                if name not in expected:
                    raise wrong_value(
                        "strategy.optimizer",
                        f"one whose group {index} holds what it held in the run",
                        f"one that has {name or 'a tensor of no parameter'!r} there",
                    )


class _Namespace:
    """Stands for the live strategy at the root of paths: its attributes, which `vars` finds."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.__dict__ = attributes


def _encoder(strategy: Any, data: BenchmarkData, built_paths: frozenset[Path] | None) -> Encoder:
    references: dict[int, tuple[Any, ...]] = {
        id(strategy): ("strategy",),
        id(strategy.optimizer): ("optimizer",),
    }
    model: nn.Module = strategy.model
    aliases: dict[Any, str] = {}
    for name, module in model.named_modules():
        references[id(module)] = ("module", name)
    for name, parameter in model_parameters(model).items():
        references[id(parameter)] = ("parameter", name)
        if parameter.numel():
            aliases[memory(parameter)] = name
    for name, buffer in model.named_buffers():
        references[id(buffer)] = ("buffer", name)
    return Encoder(references, aliases, data.name, model, built_paths)


def _encode_roots(strategy: Any, encoder: Encoder) -> dict[str, Any]:
    plugins = [encoder.encode(plugin, ("plugins", (i,))) for i, plugin in enumerate(parts(strategy))]
    own = encoder.attributes(strategy, ("strategy",), {*STRATEGY_TRANSIENTS, "model", "optimizer"})
    return {"plugins": plugins, "strategy": own}


def _resolve(strategy: Any, name: Sequence[Any]) -> Any:
    kind, *rest = name
    model: nn.Module = strategy.model
    if kind == "strategy":
        return strategy
    if kind == "optimizer":
        return strategy.optimizer
    found: Mapping[str, Any] = {
        "module": dict(model.named_modules()),
        "parameter": model_parameters(model),
        "buffer": dict(model.named_buffers()),
    }.get(kind, {})
    if not rest or rest[0] not in found:
        raise wrong_value("strategy.model", f"one with the {kind} {rest[:1]}, as in the run", "one without")
    return found[rest[0]]


def _kinds(strategy: Any) -> dict[str, Any]:
    evaluator = getattr(strategy, "evaluator", None)
    return {
        "strategy": class_name(type(strategy)),
        "optimizer": class_name(type(strategy.optimizer)),
        "plugins": [class_name(type(plugin)) for plugin in parts(strategy)],
        "metrics": [class_name(type(metric)) for metric in getattr(evaluator, "metrics", ())],
        "loggers": [class_name(type(logger)) for logger in getattr(evaluator, "loggers", ())],
    }


def _check_kinds(present: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    for what, expected in saved.items():
        if present[what] == expected:
            continue
        argument = "strategy" if what == "strategy" else f"strategy.{what}"
        short, got = _short(expected), _short(present[what])
        raise wrong_value(argument, f"{short}, as in the run", got, "Build the strategy as for the run.")


def _short(names: str | Sequence[str]) -> str:
    if isinstance(names, str):
        return names.rsplit(".", 1)[-1]
    return "[" + ", ".join(map(_short, names)) + "]"


def _settings(pairs: Sequence[Any]) -> dict[str, Any]:
    return {name: value for name, value in pairs if type(value) in _SETTINGS and not name.startswith("_")}


def _warn_of_settings(
    present: Mapping[str, Mapping[str, Any]], saved: Mapping[str, Mapping[str, Any]]
) -> None:
    for path in sorted(saved.keys() & present.keys()):
        for name, value in saved[path].items():
            if name in present[path] and present[path][name] != value:
                warnings.warn(
                    f"{path}.{name} was {value!r} in the run that is resumed and is {present[path][name]!r} "
                    "now: the run goes on as it was begun.",
                    stacklevel=4,
                )


def _rebuild(plugin: Any) -> None:
    """Make again what cannot be stored: the endless loader of the host's AGEM."""
    if isinstance(plugin, AGEMPlugin) and plugin.buffers:
        # Its iterator has drawn nothing yet when an experience begins, so a new one is the same.
        plugin.buffer_dataloader = GroupBalancedInfiniteDataLoader(
            plugin.buffers,
            batch_size=plugin.sample_size // len(plugin.buffers),
            num_workers=0,
            pin_memory=False,
            persistent_workers=False,
        )
        plugin.buffer_dliter = iter(plugin.buffer_dataloader)


def check_middle(strategy: Any) -> None:
    """Raise if a plugin draws from something that cannot be stored in the middle of an experience."""
    for plugin in parts(strategy):
        if isinstance(plugin, AGEMPlugin):
            raise CannotBeSaved(
                "AGEMPlugin draws from an endless loader, whose place cannot be stored between two epochs. "
                "Leave every_n_epochs out."
            )
