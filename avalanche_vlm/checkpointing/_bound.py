"""What acts or names a place: functions, classes, objects to call, paths.

No file says where these go.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.benchmarks.utils.transform_groups import TransformGroups, identity

from avalanche_vlm.checkpointing._allowed import allowed_class, class_name, factories, known_functions
from avalanche_vlm.checkpointing._built import Built
from avalanche_vlm.checkpointing._graph import Path

DATA = (AvalancheDataset, FlatData, DataAttribute)


class Bounds:
    """Decides whether a value that acts may stand at a place, when it is saved and when it is read.

    It may if it is one of an explicit list of functions and classes, if constructors had put the same
    there, or, in a data set, if it is a part of the benchmark's data.

    Args:
        built: what constructors made; None while that is being found out.
    """

    def __init__(self, built: Built | None) -> None:
        self._built = built
        self._data = 0

    @contextmanager
    def inside(self, owner: Any) -> Generator[None]:
        """Take note of whose attributes come next."""
        is_data = isinstance(owner, (*DATA, TransformGroups))
        self._data += is_data
        try:
            yield
        finally:
            self._data -= is_data

    def allow(self, value: Any, path: Path, name: Any) -> bool:
        """Return whether a value may stand at a place.

        Args:
            value: the value.
            path: the place.
            name: what the value is called that the user builds again (data, parts of the model), or None.
        """
        if self._built is None or is_listed(value):
            return True
        if self._data and name is not None and tuple(name[:2]) == ("reference", "data"):
            return True
        return self._built.is_at(path, value)


def is_listed(value: Any) -> bool:
    """Return whether a value is one of the functions and classes that may stand anywhere."""
    if isinstance(value, partial):
        # Of the host's groups of transforms; what it gives is looked at by itself.
        return value.func is identity and len(value.args) == 1 and not value.keywords
    if any(value is known for known in (*known_functions().values(), *factories().values())):
        return True
    return not isinstance(value, type) and allowed_class(class_name(type(value))) is type(value)
