"""What constructors made, before anything was trained: the objects of a strategy by name."""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.logging import BaseLogger

from avalanche_vlm.checkpointing._allowed import allowed_class, class_name
from avalanche_vlm.checkpointing._graph import ATOMS, Path, anchor, function_key

# A value that acts or names a place, and where constructors put it.
Placed = tuple[Path, Any]


class Built:
    """Names for the objects that constructors made, by which another process finds its own.

    The name of an object is the path at which it was first met on a walk that takes the same way in
    every process. The run that writes and the one that resumes each walk over the strategy that
    they have built.

    Args:
        objects: what the walk has met, by path; it is kept alive, so that an id names it.
        placed: functions, classes, paths and the like at all places where it has met them.
        stateful: where the objects are whose state is that of their ``state_dict``.
    """

    def __init__(
        self, objects: Mapping[Path, Any], placed: Iterable[Placed] = (), stateful: Collection[Path] = ()
    ) -> None:
        self.objects: dict[Path, Any] = {}
        self.stateful = set(stateful)
        self._placed: dict[Path, list[Placed]] = {}
        self._paths: dict[int, Path] = {}
        self._functions: dict[Any, Path] = {}
        self._values: dict[str, type] = {}
        self.add(objects, placed)

    def add(self, objects: Mapping[Path, Any], placed: Iterable[Placed] = ()) -> None:
        """Take in objects that were met later, before they were used."""
        for path, value in objects.items():
            self.objects.setdefault(path, value)
            self._paths.setdefault(id(value), path)
            if callable(value):
                self._functions.setdefault(function_key(value), path)
            if isinstance(value, (enum.Enum, tuple)):
                self._values.setdefault(class_name(type(value)), type(value))
        for path, value in placed:
            self._placed.setdefault(anchor(path), []).append((path, value))

    def path(self, value: Any) -> Path | None:
        """Return the name of an object; None if the run made it."""
        return self._paths.get(id(value))

    def function(self, value: Any) -> Path | None:
        """Return the name of a function that does the same; None if constructors brought none."""
        return self._functions.get(function_key(value))

    def is_at(self, path: Path, value: Any) -> bool:
        """Return whether constructors put such a value there: in this attribute, or a container of it.

        A function that is moved is called with what was meant for another, a path is written to by
        somebody else. So a checkpoint does not move what acts, whoever wrote it.
        """
        placed = self._placed.get(anchor(path), ()) if path else ()
        key = function_key(value)
        return any(
            known is value or function_key(known) == key or _is_same_place(known, value)
            for _, known in placed
        )

    def kind(self, name: str) -> type | None:
        """Return the class of a full name, if the run may make instances of it.

        That constructors have used a class is not enough, or a file could make a writer of files of it.
        """
        return allowed_class(name)

    def value_kind(self, name: str) -> type | None:
        """Return the class of an enumeration or named tuple, of which a value runs no code."""
        return self.kind(name) or self._values.get(name)

    def reached_by_attributes(self) -> Built:
        """Return the names that are certain also of a strategy that has trained already.

        What is in a list or dictionary by then may have come there since.
        """
        placed = [pair for pairs in self._placed.values() for pair in pairs if self._is_certain(pair[0])]
        objects = {path: value for path, value in self.objects.items() if self._is_certain(path)}
        return Built(objects, placed, self.stateful)

    def _is_certain(self, path: Path) -> bool:
        entries = [index for index, step in enumerate(path) if not isinstance(step, str)]
        if path[0] == "plugins":
            entries = entries[1:]
        parts = (self.objects.get(path[: index + 1]) for index in entries)
        return all(isinstance(part, (PluginMetric, BaseLogger)) for part in parts)


def _is_same_place(first: Any, second: Any) -> bool:
    """Return whether two values are equal paths or patterns, which are other objects in each process."""
    return isinstance(first, (PurePath, re.Pattern)) and type(first) is type(second) and first == second


def entry(key: Any, index: int) -> tuple[Any]:
    """Return the step of a path to an entry of a dictionary."""
    plain = type(key) in ATOMS or (type(key) is tuple and all(type(part) in ATOMS for part in key))
    return (key,) if plain else (f"#{index}",)
