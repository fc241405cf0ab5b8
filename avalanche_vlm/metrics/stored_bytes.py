"""How much the plugins, the storage policies and the head of a strategy hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import isroutine
from types import ModuleType
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLExperience, CLScenario, CLStream
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.storage_policy import ExemplarsBuffer
from avalanche.training.templates.base_sgd import PeriodicEval
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

_NUMBER_BYTES = 8
_Identity = tuple[Any, ...]


def stored_bytes(strategy: Any) -> dict[str, int]:
    """Return how many bytes each plugin and storage policy of a strategy holds, its head, and the total.

    A part with an attribute ``nbytes`` (a whole number) says it itself. Of others the attributes are
    searched, through parts, lists, dictionaries and dataclasses:

    - tensors and arrays by the memory behind them, which may be more than a view of it shows, each
      only once;
    - the host's data sets, as buffers hold them, by their number of samples times the bytes of one
      sample as the data set serves it *before* transforms: pictures as height × width × channels
      bytes, tensors and arrays by their size, single numbers (labels) as 8 bytes. This is what a
      memory of these samples would cost; that they may still lie in the data set that they came
      from, or on disk, is left aside.

    Parts are the plugins, and the storage policies and data sets that the strategy itself keeps, such as
    the ``dataset`` of the host's ``Cumulative``.

    What belongs to the strategy's own model, optimizer or evaluator does not count, nor do
    its criterion, experiences, streams and benchmarks; a *copy* of the model does. One part of the model
    counts: what its head keeps of the data that it has seen, such as sums and prototypes, as the head's
    ``kept_bytes`` says. Its weights and text features do not.

    Args:
        strategy: any strategy of the host.

    Returns:
        Bytes by the class name of the plugin (or the attribute of the strategy that holds the part),
        numbered where a name occurs more than once; then, where the head keeps something, by its class
        name, and of that ``"<head>/by_class"``, what grows with the number of classes that have rows, and
        ``"<head>/shared"``, the rest; then ``"total"``. What two parts share counts for each, and once in
        the total.
    """
    own = set(_own_storages(strategy))
    # The strategy is reachable from plugins that keep it.
    skipped = {id(part) for part in (strategy, strategy.model, getattr(strategy, "optimizer", None))}
    found: dict[str, int] = {}
    everything: dict[_Identity, int] = {}
    for name, part in _parts(strategy):
        sizes = dict(_sizes(part, set(skipped)))
        sizes = {identity: size for identity, size in sizes.items() if identity not in own}
        found[_free_name(name, found)] = sum(sizes.values())
        everything |= sizes
    total = sum(everything.values())
    head = getattr(strategy.model, "head", None)
    kept = getattr(head, "kept_bytes", None)
    if kept is not None and any(kept):
        name = _free_name(type(head).__name__, found)
        found |= {name: sum(kept), f"{name}/by_class": kept.by_class, f"{name}/shared": kept.shared}
        total += sum(kept)
    return {**found, "total": total}


def _parts(strategy: Any) -> Iterator[tuple[str, Any]]:
    # A criterion that is a plugin keeps account of classes, and has no memory.
    criterion = getattr(strategy, "_criterion", None)
    for plugin in strategy.plugins:
        # The host adds these to every strategy.
        if plugin is not criterion and not isinstance(plugin, (EvaluationPlugin, PeriodicEval, Clock)):
            yield type(plugin).__name__, plugin
    for name, value in vars(strategy).items():
        # What is trained on at present is not kept.
        if isinstance(value, (ExemplarsBuffer, AvalancheDataset)) and name != "adapted_dataset":
            yield name, value


def _free_name(name: str, taken: Mapping[str, int]) -> str:
    names = (name if number == 1 else f"{name} {number}" for number in range(1, len(taken) + 2))
    return next(free for free in names if free not in taken)


def _own_storages(strategy: Any) -> Iterator[_Identity]:
    """Yield the memory of the model and the optimizer; the evaluator is no part that is searched."""
    model, optimizer = strategy.model, getattr(strategy, "optimizer", None)
    # Everything that the model holds, whatever its own parameters() lists.
    for thing in (vars(model), getattr(optimizer, "state", {}), getattr(optimizer, "param_groups", [])):
        yield from (identity for identity, _ in _sizes(thing, set()))


def _sizes(thing: Any, visited: set[int]) -> Iterator[tuple[_Identity, int]]:
    """Yield what a thing holds, as (identity, bytes); the same memory may come twice."""
    waiting = [thing]
    keep_alive: list[Any] = []  # an id names an object only as long as it lives
    while waiting:
        thing = waiting.pop()
        if thing is None or isinstance(thing, (bool, int, float, str, bytes, type, ModuleType)):
            continue
        if id(thing) in visited or isroutine(thing):
            continue
        visited.add(id(thing))
        keep_alive.append(thing)
        if isinstance(thing, Tensor):
            yield from _tensor_size(thing)
        elif isinstance(thing, np.ndarray):
            base = thing
            while isinstance(base.base, np.ndarray):
                base = base.base
            yield ("array", base.__array_interface__["data"][0]), int(base.nbytes)
        elif isinstance(thing, AvalancheDataset):
            yield ("data set", id(thing)), len(thing) * _sample_bytes(thing)
        elif isinstance(thing, Image.Image):
            yield ("picture", id(thing)), _value_bytes(thing)
        elif isinstance(thing, (CLExperience, CLStream, CLScenario, DataLoader, Optimizer, EvaluationPlugin)):
            continue
        elif (size := _own_word(thing)) is not None:
            yield ("part", id(thing)), size
        else:
            waiting.extend(_inside(thing))


def _inside(thing: Any) -> Iterable[Any]:
    if isinstance(thing, Mapping):
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, (list, tuple, set, frozenset, deque)):
        return list(thing)
    slots = [getattr(thing, entry.name, None) for entry in fields(thing)] if is_dataclass(thing) else []
    return [*getattr(thing, "__dict__", {}).values(), *slots]


def _own_word(thing: Any) -> int | None:
    size = getattr(thing, "nbytes", None)
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _tensor_size(tensor: Tensor) -> Iterator[tuple[_Identity, int]]:
    if tensor.layout != torch.strided or tensor.is_meta:
        yield ("tensor", id(tensor)), 0 if tensor.is_meta else int(tensor.values().nbytes)
        return
    storage = tensor.untyped_storage()
    yield ("memory", str(storage.device), storage.data_ptr()), storage.nbytes()


def _sample_bytes(dataset: Any) -> int:
    """Return the bytes of the first sample before transforms."""
    if len(dataset) == 0:
        return 0
    plain = dataset.remove_current_transform_group()
    return _value_bytes(plain[0])


def _value_bytes(value: Any) -> int:
    if isinstance(value, (Tensor, np.ndarray)):
        return int(value.nbytes)
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    if isinstance(value, (bytes, str)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_value_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_value_bytes, value))
    return _NUMBER_BYTES
