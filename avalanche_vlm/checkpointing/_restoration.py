"""A state that was read, and the way back into a strategy that was built again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
from avalanche.training.plugins import AGEMPlugin
from torch import nn
from torch.optim import Optimizer

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._bytes import from_bytes
from avalanche_vlm.checkpointing._decode import Decoder
from avalanche_vlm.checkpointing._file import DamagedCheckpoint
from avalanche_vlm.checkpointing._graph import MODEL
from avalanche_vlm.checkpointing._logs import check_log_positions, set_log_positions
from avalanche_vlm.checkpointing._model import check_model, grown_parameters, load_model, model_parameters
from avalanche_vlm.checkpointing._module_attributes import read_changes, set_changes
from avalanche_vlm.checkpointing._random import check_random_state, set_random_state
from avalanche_vlm.checkpointing._settings import check_model_settings, warn_of_settings
from avalanche_vlm.checkpointing._walk import Run, parts

_SENTENCE = re.compile(r"`[^`]+` must be .*; got ", re.DOTALL)


class Restoration:
    """A state that was read and checked against a strategy, and can be put into it.

    Args:
        strategy: a strategy that was built as the saved one was.
        content: what `capture` returned.
        run: what constructors made in this process, and the data of the benchmark.
        tell: whether to warn of settings that are others.

    Raises:
        ValueError: the strategy, its model or the benchmark differ from what was saved, or the
            content is not what `capture` writes. Nothing of the strategy was changed.
    """

    def __init__(self, strategy: Any, content: bytes, run: Run, *, tell: bool = True) -> None:
        if run.built is None:
            raise RuntimeError("a restoration needs to know what constructors made")
        self.built = run.built
        self._strategy, self._run, self._applied = strategy, run, False
        try:
            self._state: dict[str, Any] = from_bytes(content)
            self._check(tell=tell)
            # Where training would put it anyway: a teacher, made as a copy, is to lie there too.
            strategy.model.to(strategy.device)
            self._plan()
        except Exception as error:
            if isinstance(error, DamagedCheckpoint) or _is_sentence(error):
                raise
            reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
            raise DamagedCheckpoint(
                f"the content of the checkpoint is not what was written: {reason}"
            ) from error

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings with which the run was begun."""
        return self._state["settings"]

    @property
    def position(self) -> tuple[int, int]:
        """How many experiences, and epochs of the next one, were done."""
        return self._state["experiences"], self._state["epochs"]

    def set_logs(self, benchmark: Any) -> None:
        """Take out of the logs what was written later."""
        set_log_positions(self._strategy, self._logs, benchmark)

    def apply(self) -> None:
        """Put the state into the strategy. May be called again, to go back to it."""
        strategy, state = self._strategy, self._state
        if self._applied:
            self._plan()  # what was handed out the first time has been trained on since
        self._applied = True
        self._decoder.load_states()  # what may be refused comes first
        load_model(strategy.model, state["model"], self._grown)
        set_changes(self._changes)
        strategy.optimizer = self._optimizer
        self._decoder.apply()
        for plugin in parts(strategy):
            _rebuild(plugin)
        set_random_state(state["random"])

    def _check(self, *, tell: bool) -> None:
        strategy, state, built = self._strategy, self._state, self.built
        _check_kinds(built.kinds, state["kinds"])
        self._run.data.check(state["data"], tell=tell)
        check_model(strategy.model, state["model"], self._run.fingerprints)
        check_model_settings(built.model.settings, state["model settings"])
        _check_groups(built.groups, state["groups"])
        check_random_state(state["random"])
        if any(type(count) is not int for count in self.position):
            raise wrong_value("path", "a checkpoint with whole numbers of experiences", str(self.position))
        self._logs = check_log_positions(strategy, state["logs"], self._run.data.benchmark)
        if tell:
            warn_of_settings(built.settings, state["settings"])

    def _plan(self) -> None:
        strategy, state = self._strategy, self._state
        model: nn.Module = strategy.model
        self._grown = grown_parameters(model, state["model"])
        decoder = self._decoder = Decoder(
            state["nodes"],
            built=self.built.objects,
            reference=self._find,
            model=model,
            tensors={**state["model"]["parameters"], **state["model"]["buffers"]},
            experience=self._run.data.experience,
            device=strategy.device,
        )
        plugins = parts(strategy)
        for index, (plugin, encoded) in enumerate(zip(plugins, state["roots"]["plugins"], strict=True)):
            if decoder.decode(encoded, ("plugins", (index,))) is not plugin:
                raise wrong_value("path", "a checkpoint with the plugins of the run", "one with others")
        pairs, left = state["roots"]["strategy"]
        evaluator = dict(pairs).get("evaluator")
        if decoder.decode(evaluator, ("strategy", "evaluator")) is not getattr(strategy, "evaluator", None):
            raise wrong_value("path", "a checkpoint with the evaluator of the run", "one with another")
        decoder.change(strategy, pairs, left, ("strategy",))
        self._optimizer = decoder.decode(state["roots"]["optimizer"], ("strategy", "optimizer"))
        if not isinstance(self._optimizer, Optimizer):
            raise wrong_value("path", "a checkpoint with the state of an optimizer", "one without")
        names = {
            id(parameter): name for name, parameter in {**model_parameters(model), **self._grown}.items()
        }
        found = [[names.get(id(p)) for p in group["params"]] for group in decoder.groups[id(self._optimizer)]]
        if found != [list(group) for group in state["optimized"]]:
            raise wrong_value("path", "a checkpoint whose optimizer has the parameters of its run", "another")
        self._changes = read_changes(decoder, model, MODEL, state["attributes"])
        for name, transform in state["transforms"]:
            decoder.decode(transform, ("transforms", (name,)))
        decoder.check()

    def _find(self, name: Sequence[Any]) -> Any:
        """Return what the user has built again, by its name."""
        kind, *rest = name
        model: nn.Module = self._strategy.model
        if kind == "strategy":
            return self._strategy
        if kind == "data":
            return self._run.data.find(tuple(rest))
        parameters = {**model_parameters(model), **self._grown}
        found: Mapping[str, Any] = {
            "module": dict(model.named_modules()),
            "parameter": parameters,
            "alias": {own: parameter.detach() for own, parameter in parameters.items()},
            "buffer": dict(model.named_buffers()),
        }.get(kind, {})
        if not rest or rest[0] not in found:
            raise wrong_value(
                "strategy.model", f"one with the {kind} {rest[:1]}, as in the run", "one without"
            )
        return found[rest[0]]


def _is_sentence(error: Exception) -> bool:
    """Return whether an error about an argument is one of ours."""
    return isinstance(error, (TypeError, ValueError)) and bool(_SENTENCE.match(str(error)))


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


def _check_groups(present: Sequence[Sequence[str | None]], saved: Sequence[Sequence[str | None]]) -> None:
    if len(present) > len(saved):
        raise wrong_value("strategy.optimizer", f"one with {len(saved)} parameter groups", len(present))
    # Parameters and groups may have come later; those that are there must be where they were.
    for index, (group, expected) in enumerate(zip(present, saved, strict=False)):
        for name in group:
            if name not in expected:
                raise wrong_value(
                    "strategy.optimizer",
                    f"one whose group {index} holds what it held in the run",
                    f"one that has {name or 'a tensor of no parameter'!r} there",
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
