"""From plain values and tensors back to a strategy's attributes; the opposite of `_encode`.

Nothing of the live objects is changed while decoding: what is to change is collected, and done by
`Decoder.apply` when all of it has been read.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._allowed import class_name, factories, known_functions
from avalanche_vlm.checkpointing._bound import Bounds
from avalanche_vlm.checkpointing._built import Built, entry
from avalanche_vlm.checkpointing._bytes import check_keys
from avalanche_vlm.checkpointing._data import check_made
from avalanche_vlm.checkpointing._graph import (
    Encoded,
    Path,
    is_bound,
    is_fixed,
    is_place,
    is_state,
    shown_path,
)
from avalanche_vlm.checkpointing._kinds import KINDS
from avalanche_vlm.checkpointing._memory import Memories
from avalanche_vlm.checkpointing._plain_states import check_state_dict
from avalanche_vlm.checkpointing._torch_kinds import TORCH_KINDS

_KINDS = {kind.name: kind for kind in (*KINDS, *TORCH_KINDS)}


_MARKS = "_avalanche_vlm_"  # of runs: random bytes
# What has a kind of its own, or stays as it is: no file sets its attributes.
_NO_OBJECTS = (
    *(each for kind in _KINDS.values() for each in kind.types),
    *(io.IOBase, type, ModuleType, FunctionType, MethodType),
)


class Decoder:
    """Decodes the nodes of one state.

    Args:
        nodes: what `Encoder` collected.
        built: what constructors made in this process.
        reference: name -> what the user has built again: ``(kind, ...)`` of the model or the data.
        model: the live model.
        tensors: parameters and buffers of the saved model, by name.
        experience: finds an experience of the benchmark.
        device: where tensors go that did not lie in the memory of the CPU.
    """

    def __init__(
        self,
        nodes: Sequence[Any],
        *,
        built: Built,
        reference: Callable[[Sequence[Any]], Any],
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        experience: Callable[[str, int], Any],
        device: torch.device,
    ) -> None:
        self.model = model
        self.tensors = tensors
        self.device = device
        self.experience = experience
        self.memories = Memories(nodes)
        self.copied = 0  # bytes of copies of the model
        self.groups: dict[int, list[Any]] = {}  # of optimizers, by their id
        self._nodes = nodes
        self._built = built
        self._bounds = Bounds(built)
        self._reference = reference
        self._made: dict[int, Any] = {}
        self._number = -1
        self._steps: list[Callable[[], Any]] = []
        self._states: list[tuple[Any, Any, str]] = []
        self._objects: list[Any] = []

    def decode(self, encoded: Encoded, path: Path = ()) -> Any:
        """Return the value that was encoded.

        Args:
            encoded: the encoded value.
            path: where it is put: the attribute of the object that constructors made, or what is below it.

        Raises:
            ValueError: it is none that a checkpoint holds, or none that may be put there.
        """
        if isinstance(encoded, tuple):
            return tuple(self.decode(item, (*path, (index,))) for index, item in enumerate(encoded))
        if not isinstance(encoded, list):
            return encoded
        (number,) = encoded
        if number not in self._made:
            outer, self._number = self._number, number
            made = self._make(path, *self._nodes[number])
            self._number = outer
            self._made[number] = made
        found = self._made[number]
        if is_bound(found):
            kind, _, *content = self._nodes[number]
            if not self._bounds.allow(found, path, (kind, *content[:1])):
                raise self._moved(path, found)
        return found

    def put(self, made: Any) -> None:
        """Take note of an object before its content is read, which may name it."""
        self._made[self._number] = made

    def check_attributes(self, owner: Any, names: Iterable[str]) -> None:
        """Raise `ValueError` unless attributes of an object are such as the encoder writes, each once."""
        met: set[str] = set()
        for name in names:
            is_twice = name in met
            if is_twice or not isinstance(name, str) or is_fixed(owner, name) or not is_state(owner, name):
                raise wrong_value(
                    "path",
                    "a checkpoint as CheckpointPlugin writes it",
                    f"one that sets {name} of a {type(owner).__name__}" + " twice" * is_twice,
                )
            met.add(name)

    def pairs(self, owner: Any, pairs: Sequence[Any], path: Path) -> dict[str, Any]:
        """Return attributes of an object, if these are such as the encoder writes.

        Args:
            owner: the object.
            pairs: its attributes, encoded.
            path: where it is.

        Raises:
            ValueError: they are not.
        """
        self.check_attributes(owner, [name for name, _ in pairs])
        with self._bounds.inside(owner):
            found = {name: self.decode(value, (*path, name)) for name, value in pairs}
        own: dict[str, Any] = vars(owner)
        for name, value in found.items():
            now = own.get(name)
            if is_bound(now) and value is not None and not is_bound(value):
                raise self._moved((*path, name), value)
            if own and not name.startswith(_MARKS) and _names_another_place(now, value):
                warnings.warn(
                    f"{shown_path((*path, name))} was {value!r} in the run that is resumed and is {now!r} "
                    "now, which stays: a checkpoint does not say where files are.",
                    stacklevel=2,
                )
                found[name] = now
            lists = isinstance(owner, EvaluationPlugin) and name in ("loggers", "metrics")
            if lists and list(now or ()) != value:
                raise self._moved((*path, name), value)
        return found

    def change(self, owner: Any, pairs: Sequence[Any], left: Sequence[str], path: Path) -> None:
        """Plan to set the attributes of a live object, and to delete those that the run had deleted.

        Args:
            owner: the object.
            pairs: its attributes, encoded.
            left: names of those that stay as they are.
            path: where it is.
        """
        values = self.pairs(owner, pairs, path)
        own: dict[str, Any] = vars(owner)
        stays = {*values, *left}
        gone = [n for n in own if n not in stays and is_state(owner, n) and not is_fixed(owner, n)]
        for name in gone:
            if is_bound(own[name]):
                raise self._moved((*path, name), None)

        def apply() -> None:
            for name in gone:
                own.pop(name, None)
            own.update(values)

        self._steps.append(apply)

    def fill(self, target: Tensor, source: Tensor, requires_grad: bool) -> None:
        """Plan to copy a tensor into a live one."""

        def apply() -> None:
            target.detach().copy_(source)
            if target.is_leaf and target.requires_grad != requires_grad:
                target.requires_grad_(requires_grad)

        self._steps.append(apply)

    def later(self, step: Callable[[], Any]) -> None:
        """Plan any other change of a live object."""
        self._steps.append(step)

    def check(self) -> None:
        """Raise `ValueError` unless what was made fits together, now that all of it is there."""
        for made in self._objects:
            check_made(made)
            if isinstance(made, LRScheduler):
                inner: Any = getattr(made, "_schedulers", ())
                of_torch = all(isinstance(each, LRScheduler) for each in inner)
                if not of_torch or not isinstance(getattr(made, "optimizer", None), Optimizer):
                    raise self._moved(("schedule",), made)

    def load_states(self) -> None:
        """Let objects take their states that do it by ``load_state_dict``; to be called before `apply`.

        Raises:
            ValueError: a ``load_state_dict`` refuses its state; what was loaded before is put back.
        """
        done: list[tuple[Any, Any]] = []
        for owner, state, path in self._states:
            done.append((owner, copy.deepcopy(owner.state_dict())))
            try:
                owner.load_state_dict(state)
            except Exception as error:
                for earlier, before in reversed(done):
                    with contextlib.suppress(Exception):  # the one that refuses may refuse that too
                        earlier.load_state_dict(before)
                raise wrong_value(
                    f"strategy: {path}", "one that takes the saved state", f"{type(owner).__name__}: {error}"
                ) from error

    def apply(self) -> None:
        """Do what was planned."""
        with torch.no_grad():
            for step in self._steps:
                step()

    def kind(self, name: str) -> type:
        """Return the class of a full name, of which instances are made.

        Raises:
            ValueError: they may not.
        """
        return self._known(name, self._built.kind(name))

    def value_kind(self, name: str) -> type:
        """Return the class of a full name, an enumeration or a named tuple.

        Raises:
            ValueError: no value of it may be named.
        """
        return self._known(name, self._built.value_kind(name))

    def empty(self, kind: type) -> Any:
        """Return an instance without attributes; nothing of its class is called.

        Raises:
            ValueError: it is a kind of which Python makes no empty instance.
        """
        try:
            return object.__new__(kind)
        except TypeError as error:
            raise wrong_value(
                "path", "a checkpoint with plain objects", f"one with a {class_name(kind)}"
            ) from error

    def _known(self, name: str, found: type | None) -> type:
        if found is None:
            raise wrong_value(
                "path",
                "a checkpoint with objects of known classes",
                f"one with a {name}",
                "If that class is yours, call allow_in_checkpoints with it before resuming.",
            )
        return found

    def _make(self, path: Path, kind: str, home: Path | None, *content: Any) -> Any:
        # What a first callback had made before the run was known counts as built; it is made anew.
        live = None if home is None else self._built.objects.get(home)
        known = _KINDS.get(kind)
        if known is not None:
            if live is not None and not isinstance(live, known.types):
                raise self._other(home, f"a {kind}", live)
            return known.decode(self, live, path, *content)
        make = getattr(self, f"_make_{kind.replace(' ', '_')}", None)
        if make is None:
            raise wrong_value("path", "a checkpoint of this version", f"one with a {kind!r}")
        return make(live, home, path, *content)

    def _moved(self, path: Path, value: Any) -> ValueError:
        shown = getattr(value, "__qualname__", None) or type(value).__name__
        return wrong_value(
            "path",
            "a checkpoint in which functions, classes and paths are where constructors put them",
            f"one with {shown!r:.60} at {shown_path(path)}",
            "Build the strategy and its plugins as for the run; do not resume a file that you do not trust.",
        )

    def _other(self, home: Path | None, expected: str, live: Any) -> ValueError:
        return wrong_value(
            "strategy",
            f"one with {expected} at {shown_path(home or ())}, as in the run",
            "nothing there" if live is None else f"a {class_name(type(live))}",
            "Build the strategy and its plugins as for the run.",
        )

    def _make_reference(self, live: Any, home: Any, path: Path, *name: Any) -> Any:
        return self._reference(name)

    def _make_kept(self, live: Any, home: Any, path: Path) -> Any:
        if home is None or live is None:
            raise self._other(home, "a function or path", live)
        if not is_bound(live):
            raise wrong_value("path", "a checkpoint as CheckpointPlugin writes it", f"one that keeps {home}")
        return live

    def _make_function(self, live: Any, home: Any, path: Path, name: str) -> Any:
        if name not in known_functions():
            raise wrong_value("path", "a checkpoint with known functions", name)
        return known_functions()[name]

    def _make_class(self, live: Any, home: Any, path: Path, name: str) -> Any:
        if name not in factories():
            raise wrong_value("path", "a checkpoint with known classes", f"one with a {name}")
        return factories()[name]

    # Containers are made empty first: what is in them may name them.

    def _items(self, items: Any, path: Path) -> list[Any]:
        return [self.decode(item, (*path, (index,))) for index, item in enumerate(items)]

    def _make_list(self, live: Any, home: Any, path: Path, items: Any) -> Any:
        made: list[Any] = []
        self.put(made)
        made.extend(self._items(items, path))
        return made

    def _make_set(self, live: Any, home: Any, path: Path, items: Any) -> Any:
        return set(check_keys(self._items(items, path)))

    def _make_frozenset(self, live: Any, home: Any, path: Path, items: Any) -> Any:
        return frozenset(check_keys(self._items(items, path)))

    def _make_deque(self, live: Any, home: Any, path: Path, items: Any, longest: int | None) -> Any:
        made: deque[Any] = deque(maxlen=longest)
        self.put(made)
        made.extend(self._items(items, path))
        return made

    def _make_named_tuple(self, live: Any, home: Any, path: Path, name: str, items: Any) -> Any:
        kind: Any = self.value_kind(name)
        found = self.decode(items, path)
        if not issubclass(kind, tuple) or len(found) != len(getattr(kind, "_fields", ())):
            raise wrong_value("path", "a checkpoint with a named tuple there", f"one with a {name}")
        return tuple.__new__(kind, found)

    def _fill(self, made: Any, pairs: Sequence[Any], path: Path) -> Any:
        self.put(made)
        keys = check_keys([self.decode(key, (*path, "key")) for key, _ in pairs])
        for index, (read, (_, value)) in enumerate(zip(keys, pairs, strict=True)):
            made[read] = self.decode(value, (*path, entry(read, index)))
        return made

    def _make_dict(self, live: Any, home: Any, path: Path, pairs: Any) -> Any:
        return self._fill({}, pairs, path)

    def _make_OrderedDict(self, live: Any, home: Any, path: Path, pairs: Any) -> Any:
        return self._fill(OrderedDict[Any, Any](), pairs, path)

    def _make_Counter(self, live: Any, home: Any, path: Path, pairs: Any) -> Any:
        return self._fill(Counter[Any](), pairs, path)

    def _make_defaultdict(self, live: Any, home: Any, path: Path, factory: Any, pairs: Any) -> Any:
        made: Any = self.decode(factory, (*path, "default_factory"))
        if isinstance(made, nn.Module):
            raise self._moved(path, made)
        return self._fill(defaultdict(made), pairs, path)

    # Objects: no constructor is called.

    def _make_object(self, live: Any, home: Any, path: Path, name: str, pairs: Any, left: Any) -> Any:
        if live is not None:
            if (
                class_name(type(live)) != name
                or isinstance(live, _NO_OBJECTS)
                or home in self._built.stateful
            ):
                raise self._other(home, f"a {name}", live)
            self.put(live)
            self.change(live, pairs, left, home)
            return live
        if home is not None and self._built.kind(name) is None:
            raise self._other(home, f"a {name}", live)
        made = self.empty(self.kind(name))
        self.put(made)
        vars(made).update(self.pairs(made, pairs, path))
        self._objects.append(made)
        return made

    def _make_stateful(self, live: Any, home: Any, path: Path, name: str, state: Any) -> Any:
        if live is None or class_name(type(live)) != name:
            raise self._other(home, f"a {name}", live)
        of_torch = type(live).__module__.startswith("torch.") and not isinstance(live, (nn.Module, Optimizer))
        if not of_torch and home not in self._built.stateful:
            raise wrong_value(
                "path", "a checkpoint as CheckpointPlugin writes it", f"one that loads a {name}"
            )
        self.put(live)
        found = self.decode(state, (*path, "state_dict()"))
        check_state_dict(live, found)
        self._states.append((live, found, shown_path(home)))
        return live


def _names_another_place(own: Any, value: Any) -> bool:
    """Return whether a text says where something is, or would take the place of one that does."""
    if not isinstance(value, (str, bytes)):
        return False
    same = type(own) is type(value) and own == value
    return not same and is_place(own, value)
