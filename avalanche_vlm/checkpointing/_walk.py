"""The walk over a strategy: its plugins, its attributes, its optimizer, and the transforms of its data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avalanche_vlm._host import trained_experiences
from avalanche_vlm.checkpointing._allowed import class_name
from avalanche_vlm.checkpointing._built import Built
from avalanche_vlm.checkpointing._content import state_key
from avalanche_vlm.checkpointing._data import BenchmarkData
from avalanche_vlm.checkpointing._encode import Encoder
from avalanche_vlm.checkpointing._fingerprints import Fingerprints
from avalanche_vlm.checkpointing._graph import ATOMS, MODEL, is_fixed
from avalanche_vlm.checkpointing._model import (
    BuiltModel,
    built_model,
    model_parameters,
    trained_model,
)
from avalanche_vlm.checkpointing._module_attributes import plain_attributes
from avalanche_vlm.checkpointing._settings import settings_of


class CheckpointingPlugin(SupervisedPlugin[Any]):
    """What marks the plugins that write checkpoints: they are no part of the state."""

    nbytes = 0

    def describe(self) -> dict[str, Any]:
        """Return no settings: how a run is saved changes nothing in it."""
        return {}


@dataclass(frozen=True)
class BuiltStrategy:
    """What a strategy was like before it trained.

    Attributes:
        objects: what constructors had made.
        model: what its model was like.
        settings: public numbers and texts, by path.
        kinds: the classes of the strategy and its parts.
        groups: names of the parameters of each group of the optimizer.
    """

    objects: Built
    model: BuiltModel
    settings: dict[str, dict[str, Any]]
    kinds: dict[str, Any]
    groups: list[list[str | None]]


@dataclass
class Run:
    """What is remembered from one checkpoint of a run to the next."""

    data: BenchmarkData = field(default_factory=BenchmarkData)
    built: BuiltStrategy | None = None
    fingerprints: Fingerprints = field(default_factory=Fingerprints)
    # From the system, so that no generator of the run is touched.
    id: str = field(default_factory=lambda: os.urandom(8).hex())
    # How many there were before training and after each experience.
    evaluations: list[int] = field(default_factory=lambda: [0])


def parts(strategy: Any) -> list[Any]:
    """Return the plugins that a state is made of."""
    return [plugin for plugin in strategy.plugins if not isinstance(plugin, CheckpointingPlugin)]


def built_strategy(strategy: Any, data: BenchmarkData, fingerprints: Fingerprints) -> BuiltStrategy:
    """Return what a strategy is like that has not trained.

    Raises:
        CannotBeSaved: it holds something that has no place in a checkpoint.
    """
    return _strategy(strategy, data, built_model(strategy.model, fingerprints))


def new_run(strategy: Any, data: BenchmarkData) -> Run:
    """Return what there is to remember of a run that begins, or is to be resumed."""
    run = Run(data=data)
    run.built = built_strategy(strategy, data, run.fingerprints)
    return run


def note_data(strategy: Any, run: Run) -> None:
    """Name the data that a strategy trains on, if there was no benchmark to name it.

    Raises:
        CannotBeSaved: it is a piece of an online stream that no other process can cut again.
    """
    before = len(run.data.transforms)
    for experience in trained_experiences(strategy):
        run.data.add(experience)
    if run.built is not None and len(run.data.transforms) > before:
        encoder = encoder_of(strategy, run.data, None)
        _walk_transforms(encoder, run.data)
        run.built.objects.add(encoder.objects, encoder.placed)


def _walk_attributes(encoder: Encoder, model: nn.Module) -> None:
    """Walk over what the parts of a model hold beside tensors and parts, which the run may change."""
    for name, module in model.named_modules():
        for own, value in plain_attributes(module).items():
            if type(value) in ATOMS or is_fixed(module, own):
                continue
            with encoder.attempt():  # refused if it changes
                encoder.encode(value, (*MODEL, *([(name,)] if name else []), own))


def _walk_transforms(encoder: Encoder, data: BenchmarkData) -> None:
    for name, transform in data.transforms.items():
        with encoder.attempt():  # refused if its state changes
            encoder.encode_data(transform, ("transforms", (name,)))


def trained_strategy(strategy: Any, data: BenchmarkData) -> BuiltStrategy:
    """Return what is certain of how a strategy was built that has trained already."""
    found = _strategy(strategy, data, trained_model(strategy.model))
    return BuiltStrategy(found.objects.reached_by_attributes(), found.model, {}, found.kinds, found.groups)


def _strategy(strategy: Any, data: BenchmarkData, model: BuiltModel) -> BuiltStrategy:
    encoder = encoder_of(strategy, data, None)
    encode_roots(strategy, encoder)
    settings = settings_of(strategy, {p: v for p, v in encoder.objects.items() if p not in encoder.stateful})
    _walk_attributes(encoder, strategy.model)
    _walk_transforms(encoder, data)
    objects = Built(encoder.objects, encoder.placed, encoder.stateful)
    return BuiltStrategy(objects, model, settings, kinds_of(strategy), group_names(strategy))


def encoder_of(strategy: Any, data: BenchmarkData, built: BuiltStrategy | None) -> Encoder:
    """Return an encoder that knows the names of what the user builds again."""
    names: dict[int, tuple[Any, ...]] = {id(strategy): ("strategy",)}
    model: nn.Module = strategy.model
    aliases: dict[Any, str] = {}
    for name, module in model.named_modules():
        names[id(module)] = ("module", name)
    for name, parameter in model_parameters(model).items():
        names[id(parameter)] = ("parameter", name)
        if parameter.numel():
            aliases[memory(parameter)] = name
    for name, buffer in model.named_buffers():
        names[id(buffer)] = ("buffer", name)

    def name_of(value: Any) -> tuple[Any, ...] | None:
        found = names.get(id(value)) or data.name(value)
        if found is None and isinstance(value, Tensor):
            alias = aliases.get(memory(value))
            found = None if alias is None else ("alias", alias)
        return None if found is None else ("reference", *found)

    return Encoder(
        name_of,
        model,
        None if built is None else built.objects,
        {} if built is None else built.model.attributes,
        data.place,
    )


def encode_roots(strategy: Any, encoder: Encoder) -> dict[str, Any]:
    """Encode what a state begins with."""
    plugins = [encoder.encode(plugin, ("plugins", (i,))) for i, plugin in enumerate(parts(strategy))]
    own = encoder.attributes(strategy, ("strategy",))
    optimizer = encoder.encode(strategy.optimizer, ("strategy", "optimizer"))
    return {"plugins": plugins, "strategy": own, "optimizer": optimizer}


def encode_transforms(data: BenchmarkData, encoder: Encoder) -> list[tuple[Any, Any]]:
    """Encode the transforms whose state has changed since they were met: a counter, a generator."""
    changed = {name: t for name, t in data.transforms.items() if state_key(t) != data.transform_states[name]}
    return [(name, encoder.encode_data(t, ("transforms", (name,)))) for name, t in changed.items()]


def kinds_of(strategy: Any) -> dict[str, Any]:
    """Return the classes of a strategy and its parts."""
    evaluator = getattr(strategy, "evaluator", None)
    return {
        "strategy": class_name(type(strategy)),
        "optimizer": class_name(type(strategy.optimizer)),
        "plugins": [class_name(type(plugin)) for plugin in parts(strategy)],
        "metrics": [class_name(type(metric)) for metric in getattr(evaluator, "metrics", ())],
        "loggers": [class_name(type(logger)) for logger in getattr(evaluator, "loggers", ())],
    }


def group_names(strategy: Any) -> list[list[str | None]]:
    """Return the names of the parameters that the optimizer holds, by group; None for strangers."""
    names = {id(parameter): name for name, parameter in model_parameters(strategy.model).items()}
    groups: Sequence[Any] = strategy.optimizer.param_groups
    return [[names.get(id(parameter)) for parameter in group["params"]] for group in groups]


def memory(tensor: Tensor) -> Any:
    """Return what two tensors have in common that are views of the same numbers, in the same order."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.numel() == 0:
        return None
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
