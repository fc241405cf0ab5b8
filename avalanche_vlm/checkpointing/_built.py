"""What constructors made, before anything was trained: the objects of a strategy by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.logging import BaseLogger

from avalanche_vlm.checkpointing._allowed import allowed_class, class_name
from avalanche_vlm.checkpointing._graph import ATOMS, Path, function_key


class Built:
    """Names for the objects that constructors made, by which another process finds its own.

    The name of an object is the path at which it was first met on a walk that takes the same way in
    every process. The run that writes and the one that resumes each walk over the strategy that
    they have built.

    Args:
        objects: what the walk has met, by path; it is kept alive, so that an id names it.
        attributes: what the parts of the model hold, of whose classes the run may make more.
    """

    def __init__(self, objects: Mapping[Path, Any], *, attributes: Iterable[Any] = ()) -> None:
        self.objects: dict[Path, Any] = {}
        self._paths: dict[int, Path] = {}
        self._functions: dict[Any, Path] = {}
        self._classes: dict[str, type] = {}
        self.add(objects)
        for value in attributes:
            self._classes.setdefault(class_name(type(value)), type(value))

    def add(self, objects: Mapping[Path, Any]) -> None:
        """Take in objects that were met later, before they were used."""
        for path, value in objects.items():
            self.objects.setdefault(path, value)
            self._paths.setdefault(id(value), path)
            if callable(value):
                self._functions.setdefault(function_key(value), path)
            if not isinstance(value, BaseLogger):
                self._classes.setdefault(class_name(type(value)), type(value))

    def path(self, value: Any) -> Path | None:
        """Return the name of an object; None if the run made it."""
        return self._paths.get(id(value))

    def function(self, value: Any) -> Path | None:
        """Return the name of a function that does the same; None if constructors brought none."""
        return self._functions.get(function_key(value))

    def kind(self, name: str) -> type | None:
        """Return the class of a full name, if the run may make instances of it."""
        return allowed_class(name) or self._classes.get(name)

    def reached_by_attributes(self) -> Built:
        """Return the names that are certain also of a strategy that has trained already.

        What is in a list or dictionary by then may have come there since.
        """
        return Built({path: value for path, value in self.objects.items() if self._is_certain(path)})

    def _is_certain(self, path: Path) -> bool:
        entries = [index for index, step in enumerate(path) if not isinstance(step, str)]
        if path[0] == "plugins":
            entries = entries[1:]
        parts = (self.objects.get(path[: index + 1]) for index in entries)
        return all(isinstance(part, (PluginMetric, BaseLogger)) for part in parts)


def entry(key: Any, index: int) -> tuple[Any]:
    """Return the step of a path to an entry of a dictionary."""
    plain = type(key) in ATOMS or (type(key) is tuple and all(type(part) in ATOMS for part in key))
    return (key,) if plain else (f"#{index}",)
