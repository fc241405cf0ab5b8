"""From the attributes of a strategy and its plugins to plain values and tensors; see `_graph`."""

from __future__ import annotations

import io
import random
import re
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from itertools import chain, permutations
from pathlib import PurePath
from types import ModuleType
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn

from avalanche_vlm.checkpointing._allowed import class_name, factories, known_functions
from avalanche_vlm.checkpointing._bound import DATA, Bounds
from avalanche_vlm.checkpointing._built import Built, Placed, entry
from avalanche_vlm.checkpointing._graph import (
    ATOMS,
    CACHES,
    CannotBeSaved,
    Encoded,
    Path,
    is_bound,
    is_fixed,
    is_state,
    shown_path,
)
from avalanche_vlm.checkpointing._kinds import KINDS
from avalanche_vlm.checkpointing._memory import Views
from avalanche_vlm.checkpointing._torch_kinds import TORCH_KINDS

_CONTAINERS = (list, deque, dict, set, frozenset, tuple)
# An open file is found again where constructors had opened it.
_WITHOUT_STATE = (PurePath, re.Pattern, ModuleType, type, io.IOBase)


class Encoder:
    """Encodes values, each object once.

    Args:
        name: object -> the name of what the user builds again (parts of the model, data), or None.
        model: the live model.
        built: what constructors made; None while that is being found out, when nothing is refused
            for its class.
        attributes: keys of the attributes of the model's parts, as they were built.
        experience: an experience -> its stream and position, or None if the benchmark has it not.
    """

    def __init__(
        self,
        name: Callable[[Any], tuple[Any, ...] | None],
        model: nn.Module,
        built: Built | None,
        attributes: Mapping[str, Mapping[str, Any]],
        experience: Callable[[Any], tuple[Any, ...] | None],
    ) -> None:
        self.nodes: list[Any] = []
        self.objects: dict[Path, Any] = {}
        self.placed: list[Placed] = []
        self.stateful: set[Path] = set()
        self.views = Views()
        self.copied = 0  # bytes of copies of the model
        self.model = model
        self.built = built
        self.attributes_of_model = attributes
        self._bounds = Bounds(built)
        self._name = name
        self._experience = experience
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # an id names an object only as long as it lives

    def encode(self, value: Any, path: Path) -> Encoded:
        """Return the encoded value.

        Raises:
            CannotBeSaved: the value, or something in it, has no place in a checkpoint.
        """
        kind = type(value)
        if kind in ATOMS:
            return value
        if kind is tuple:
            return tuple(self.encode(item, (*path, (index,))) for index, item in enumerate(value))
        if is_bound(value):
            if self.built is None:
                self.placed.append((path, value))
            elif not self._bounds.allow(value, path, self._name(value)):
                raise self.refusal(value, path)
        number = self._numbers.get(id(value))
        if number is None:
            number = self._add(value)
            name = self._name(value)
            self.nodes[number] = self._node(value, path) if name is None else (name[0], None, *name[1:])
        return [number]

    def encode_data(self, value: Any, path: Path) -> Encoded:
        """Return an encoded object although the benchmark has a name for it: its own state is wanted."""
        number = self._add(value)
        self.nodes[number] = self._node(value, path)
        return [number]

    @contextmanager
    def attempt(self) -> Generator[None]:
        """Go back to what there was, and go on, if something in the block cannot be saved."""
        mark = len(self.nodes), len(self.objects), len(self.placed)
        try:
            yield
        except CannotBeSaved:
            self._forget(*mark)

    def attributes(self, owner: Any, path: Path) -> tuple[list[Any], list[str]]:
        """Return the attributes of an object, encoded, as pairs, and the names of those left out."""
        is_logger = isinstance(owner, BaseLogger)
        pairs: list[Any] = []
        left: list[str] = []
        for name, value in vars(owner).items():
            mark = len(self.nodes), len(self.objects), len(self.placed)
            fixed = is_fixed(owner, name) or (is_logger and isinstance(value, PurePath))
            if fixed or not is_state(owner, name):
                self._check_method(owner, name, value, path)
                left += [name] if is_state(owner, name) else []
                continue
            try:
                pairs.append((name, self.encode(value, (*path, name))))
            except CannotBeSaved as error:
                # Files and screens of a logger belong to the process. Metrics may measure by handles on
                # the process, and publish pictures, which nobody needs to go on.
                if not is_logger and not isinstance(owner, (PluginMetric, EvaluationPlugin)):
                    raise
                self._forget(*mark)
                left.append(name)
                if not is_logger and self.built is not None:
                    warnings.warn(f"Left out of the checkpoint: {error}", stacklevel=2)
        return pairs, left

    def kind(self, name: str) -> type | None:
        """Return the class of a full name, if the run may make instances of it."""
        return object if self.built is None else self.built.kind(name)

    def value_kind(self, name: str) -> type | None:
        """Return the class of an enumeration or named tuple, if a checkpoint may name it."""
        return object if self.built is None else self.built.value_kind(name)

    def experience(self, value: Any, path: Path) -> tuple[Any, ...]:
        """Return the place of an experience in the benchmark."""
        place = self._experience(value)
        if place is None:
            raise self.refusal(value, path)
        return place

    def note_view(self, tensor: Tensor, path: Path) -> None:
        """Take note of where a tensor lies in memory."""
        self.views.add(tensor, self._numbers[id(tensor)], path)

    def refusal(self, value: Any, path: Path) -> CannotBeSaved:
        """Return the error for a value that has no place in a checkpoint."""
        advice = "If it is a class of yours, allow it with allow_in_checkpoints(...)."
        if _is_function(value) or (callable(value) and not hasattr(value, "__dict__")):
            advice = (
                "Functions are found again where constructors had put them: give it to one, or use a method."
            )
        elif hasattr(value, "__getitem__") and hasattr(value, "__len__"):
            advice += (
                " If it is data of the benchmark, name the benchmark: resume(strategy, path, benchmark) "
                "before training, or save(strategy, path, benchmark)."
            )
        elif self.built is not None:
            advice += " If a constructor made it, call `resume` before training, so that this is known."
        shown = getattr(value, "__qualname__", "") if _is_function(value) else class_name(type(value))
        return CannotBeSaved(f"{shown_path(path)} holds a {shown}, which a checkpoint cannot hold. {advice}")

    def _add(self, value: Any) -> int:
        number = self._numbers[id(value)] = len(self.nodes)
        self._alive.append(value)
        self.nodes.append(None)
        return number

    def _check_method(self, owner: Any, name: str, value: Any, path: Path) -> None:
        """Raise if the run has put something in the place of a method, which comes from the constructor."""
        if self.built is None or not callable(getattr(type(owner), name, None)):
            self.objects.setdefault((*path, name), value)
        elif self.built.path(value) is None and self.built.function(value) is None:
            raise self.refusal(value, (*path, name))

    def _forget(self, nodes: int, objects: int, placed: int) -> None:
        del self.nodes[nodes:], self._alive[nodes:], self.placed[placed:]
        self._numbers = {key: number for key, number in self._numbers.items() if number < nodes}
        self.views.forget(nodes)
        while len(self.objects) > objects:
            self.objects.popitem()

    def _node(self, value: Any, path: Path) -> tuple[Any, ...]:
        if isinstance(value, _CONTAINERS) and not isinstance(value, (*DATA, torch.Size)):
            return self._container(value, path)
        self.objects.setdefault(path, value)
        # Data are always made anew: what is there may be in use elsewhere.
        home = None if self.built is None or isinstance(value, DATA) else self.built.path(value)
        for kind in (*KINDS, *TORCH_KINDS):
            if isinstance(value, kind.types):
                return (kind.name, home, *kind.encode(self, value, path))
        if _is_function(value) or isinstance(value, _WITHOUT_STATE) or not hasattr(value, "__dict__"):
            return self._kept(value, path, home)
        return self._object(value, path, home)

    def _container(self, value: Any, path: Path) -> tuple[Any, ...]:
        kind = type(value)
        if kind in (set, frozenset):
            items = in_order_of_insertion(value) if kind is set else list(value)
            return (kind.__name__, None, [self.encode(item, (*path, (i,))) for i, item in enumerate(items)])
        if kind is list or kind is deque:
            items = [self.encode(item, (*path, (i,))) for i, item in enumerate(value)]
            return ("list", None, items) if kind is list else ("deque", None, items, value.maxlen)
        if issubclass(kind, tuple) and hasattr(value, "_fields"):
            self.objects.setdefault(path, value)
            if self.value_kind(class_name(kind)) is None:
                raise self.refusal(value, path)
            return ("named tuple", None, class_name(kind), self.encode(tuple(value), path))
        if kind not in (dict, OrderedDict, Counter, defaultdict):
            raise self.refusal(value, path)
        pairs = [
            (self.encode(key, (*path, "key")), self.encode(item, (*path, entry(key, index))))
            for index, (key, item) in enumerate(value.items())
        ]
        if kind is defaultdict:
            factory = self.encode(value.default_factory, (*path, "default_factory"))
            return ("defaultdict", None, factory, pairs)
        return (kind.__name__, None, pairs)

    def _kept(self, value: Any, path: Path, home: Path | None) -> tuple[Any, ...]:
        """Name what has no state; what is not known stays what it is at its place of the new objects."""
        if isinstance(value, type) and factories().get(class_name(value)) is value:
            return ("class", None, class_name(value))
        for name, function in known_functions().items():
            if function is value:
                return ("function", None, name)
        is_known_kind = callable(value) or isinstance(value, _WITHOUT_STATE)
        if self.built is None and is_known_kind:
            return ("kept", None)
        if self.built is None or not is_known_kind:
            raise self.refusal(value, path)
        if home is None and callable(value):
            home = self.built.function(value)
        if home is None and isinstance(value, (PurePath, re.Pattern)):
            same = (p for p, v in self.built.objects.items() if type(v) is type(value) and v == value)
            home = next(same, None)
        if home is None:
            raise self.refusal(value, path)
        return ("kept", home)

    def _object(self, value: Any, path: Path, home: Path | None) -> tuple[Any, ...]:
        name = class_name(type(value))
        is_new = self.built is not None and home is None
        if is_new and (self.built is None or self.built.kind(name) is None):
            raise self.refusal(value, path)
        has_state_dict = hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
        if has_state_dict and type(value).__module__.startswith("torch.") and not is_new:
            return self._stateful(value, path, home)
        mark = len(self.nodes), len(self.objects), len(self.placed)
        try:
            with self._bounds.inside(value):
                pairs, left = self.attributes(value, path)
        except CannotBeSaved:
            was_so = self.built is None or path in self.built.stateful
            if not has_state_dict or is_new or not was_so:
                raise
            self._forget(*mark)
            return self._stateful(value, path, home)
        caches = next((names for kind, names in CACHES.items() if isinstance(value, kind)), ())
        pairs = [pair for pair in pairs if pair[0] not in caches] + [(cache, None) for cache in caches]
        return ("object", home, name, pairs, left)

    def _stateful(self, value: Any, path: Path, home: Path | None) -> tuple[Any, ...]:
        state: Any = value.state_dict()
        self.stateful.add(path)
        return ("stateful", home, class_name(type(value)), self.encode(state, (*path, "state_dict()")))


def _is_function(value: Any) -> bool:
    return type(value).__name__ in ("function", "method", "builtin_function_or_method", "method-wrapper")


def in_order_of_insertion(values: set[Any]) -> list[Any]:
    """Return the elements so that a set made of this list is, most often, iterated in the same order.

    The order of a set depends on the order in which colliding elements came; plans that go through
    the classes of a buffer depend on it.
    """
    order = list(values)
    # A larger table than that of a new set may have an order that no insertion leads to.
    shuffler = random.Random(0)
    shuffled = (shuffler.sample(order, len(order)) for _ in range(2000))
    candidates = permutations(order) if len(order) <= 6 else chain([order], shuffled)
    return next((list(each) for each in candidates if list(set(each)) == order), order)
