"""What objects are set to, told by their attributes."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from inspect import isroutine
from io import IOBase
from types import ModuleType
from typing import Any

import torch
from avalanche.benchmarks import CLExperience, CLScenario, CLStream
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

_SCALARS = (bool, int, float, str, type(None))
_COLLECTIONS = (Mapping, list, tuple, set, frozenset, deque)
# Data, models, files and what else has an account of its own; never settings.
_NO_SETTINGS = (
    *(Tensor, AvalancheDataset, Dataset, DataLoader, CLExperience, CLStream, CLScenario),
    *(BaseTemplate, EvaluationPlugin, BaseLogger, Optimizer, ModuleType, IOBase, os.PathLike),
)
_MOST_ITEMS = 16
_LEVELS = 6
_UNTOLD = object()


def settings_of(
    thing: Any, *, without: frozenset[str] = frozenset(), private_parts: bool = False
) -> dict[str, Any]:
    """Return the class of an object and its attributes that are settings, as plain values.

    Settings are numbers, text, and collections of them: a collection of more than 16 is told by its
    length and a hash. Of parts that it holds under public names, the same is told; of functions and
    classes the name; of a random generator its seed. Private attributes count if they are numbers,
    text or collections of these, for many a plugin keeps a strength there; but not if they are
    truth values, nothing or zero, which is what flags and counters are before a run. Data, tensors
    and modules with parameters are no settings. A part with a method ``describe()`` says itself.

    Args:
        thing: any object.
        without: names of attributes to leave out.
        private_parts: also tell of the parts that it holds under private names.
    """
    return _Teller(private_parts).describe(thing, _LEVELS, without)


def plain_item(item: tuple[str, Any]) -> tuple[str, Any]:
    """Return an entry of an optimizer's group, whose numbers may be tensors, as plain values."""
    name, value = item
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    told = _Teller(False).tell(value, _LEVELS)
    return name, None if told is _UNTOLD else told


class _Teller:
    """Goes through an object and its parts, and into none of them twice on one way."""

    def __init__(self, private_parts: bool) -> None:
        self._top_private_parts = private_parts
        self._way: list[int] = []

    def describe(self, thing: Any, levels: int, without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the class of an object, and what it is set to."""
        facts: dict[str, Any] = {"kind": getattr(thing, "__name__", type(thing).__name__)}
        if isinstance(thing, type) or isroutine(thing):
            return facts
        if callable(getattr(thing, "describe", None)):
            return {**facts, **thing.describe()}
        private_parts = self._top_private_parts and not self._way
        self._way.append(id(thing))
        for name, value in _attributes(thing):
            if name in without:
                continue
            if not name.startswith("_"):
                told = self.tell(value, levels - 1)
            elif isinstance(value, bool) or (isinstance(value, _SCALARS) and not value):
                continue
            else:
                told = self.tell(value, levels - 1, parts=private_parts)
            if told is not _UNTOLD:
                facts[name] = told
        self._way.pop()
        return facts

    def tell(self, value: Any, levels: int, *, parts: bool = True) -> Any:
        """Return a value as a setting, or `_UNTOLD` if it is none."""
        if isinstance(value, Enum):
            return value.name
        if isinstance(value, _SCALARS):
            return value
        if levels < 1 or id(value) in self._way or isinstance(value, _NO_SETTINGS):
            return _UNTOLD
        if isinstance(value, _COLLECTIONS):
            self._way.append(id(value))
            told = self._tell_collection(value, levels, parts)
            self._way.pop()
            return told
        if not parts:
            return _UNTOLD
        if isinstance(value, torch.Generator):
            return {"kind": "Generator", "seed": value.initial_seed()}
        is_model = isinstance(value, nn.Module) and any(True for _ in nn.Module.named_parameters(value))
        if is_model or not (hasattr(value, "__dict__") or is_dataclass(value) or isroutine(value)):
            return _UNTOLD
        return self.describe(value, levels)

    def _tell_collection(self, values: Any, levels: int, parts: bool) -> Any:
        """Return a dictionary or a list, short or as a hash; `_UNTOLD` if nothing in it is a setting."""
        told: Any
        if isinstance(values, Mapping):
            named = [(key, value) for key, value in values.items() if isinstance(key, _SCALARS)]
            items = [(str(key), self.tell(value, levels - 1, parts=parts)) for key, value in named]
            told = {key: value for key, value in items if value is not _UNTOLD}
        else:
            several = [self.tell(value, levels - 1, parts=parts) for value in values]
            if all(item is _UNTOLD for item in several):
                return _UNTOLD
            told = [None if item is _UNTOLD else item for item in several]
            if isinstance(values, (set, frozenset)):
                told.sort(key=json.dumps)  # a set of text has another order in each process
        if not told:
            return _UNTOLD
        if len(told) > _MOST_ITEMS:
            text = json.dumps(told, sort_keys=True)
            return {"count": len(told), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        return told


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object, but for those that every module has."""
    if isinstance(thing, partial):
        yield from (("func", thing.func), ("args", thing.args), ("keywords", thing.keywords))
    own: dict[str, Any] = dict(getattr(thing, "__dict__", {}))
    if is_dataclass(thing):
        own = {entry.name: getattr(thing, entry.name, None) for entry in fields(thing)} | own
    common = vars(nn.Module()) if isinstance(thing, nn.Module) else {}
    yield from ((name, value) for name, value in own.items() if name not in common)
