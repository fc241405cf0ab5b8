"""The data of a benchmark, which a checkpoint names and does not copy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import generated_on_demand

# (stream, position of the experience, number of the object in it).
DataName = tuple[str, int, int]
_ROWS = 16


class BenchmarkData:
    """Names for every data set, label list and transform that the experiences of a benchmark hold.

    A name is where an object was first met on a walk that takes the same way in every process:
    stream, experience, number. Objects that several experiences share have several names, and any
    of them finds it.

    Args:
        benchmark: the benchmark, whose experiences are named; None to name those that are given to `add`.
    """

    def __init__(self, benchmark: Any = None) -> None:
        self.benchmark = benchmark
        self.facts: dict[str, dict[int, tuple[int, str]]] = {}
        self._names: dict[int, DataName] = {}
        self._objects: dict[DataName, Any] = {}
        for stream in _streams(benchmark):
            for experience in stream:
                self.add(experience)

    def add(self, experience: Any) -> None:
        """Name what an experience holds."""
        stream, position = str(experience.origin_stream.name), int(experience.current_experience)
        facts = self.facts.setdefault(stream, {})
        if position in facts:
            return
        dataset = experience.dataset
        digest = hashlib.sha256()
        for number, part in enumerate(_walk(dataset)):
            self._objects[stream, position, number] = part
            self._names.setdefault(id(part), (stream, position, number))
            if not isinstance(part, (AvalancheDataset, FlatData, DataAttribute)):
                digest.update(_content(part))
        digest.update(np.asarray([int(label) for label in getattr(dataset, "targets", ())]).tobytes())
        facts[position] = (len(dataset), digest.hexdigest()[:16])

    def name(self, thing: Any) -> DataName | None:
        """Return the name of an object, None if it is not part of the data."""
        return self._names.get(id(thing))

    def find(self, name: DataName) -> Any:
        """Return the object of a name.

        Raises:
            ValueError: there is none.
        """
        if name not in self._objects:
            raise wrong_value("benchmark", "the benchmark of the run", f"one without {name}")
        return self._objects[name]

    def experience(self, stream: str, position: int) -> Any:
        """Return an experience of the benchmark."""
        return self.benchmark.streams[stream][position]

    def check(self, saved: Mapping[str, Mapping[int, Iterable[Any]]], *, whole: bool) -> None:
        """Raise unless the experiences are those whose facts were saved.

        Args:
            saved: facts by stream and position.
            whole: whether these are all experiences of the benchmark.

        Raises:
            ValueError: says which experience is another.
        """
        advice = "Build the benchmark as for the run: the same data, class order, seed and transforms."
        for stream, experiences in saved.items():
            present = self.facts.get(stream)
            if present is None:
                raise wrong_value("benchmark", f"one with the stream {stream!r}", sorted(self.facts), advice)
            for position, facts in experiences.items():
                count, digest = facts
                if position not in present:
                    expected = f"one with experience {position} in the stream {stream!r}"
                    raise wrong_value("benchmark", expected, f"{len(present)} experiences", advice)
                now, digest_now = present[position]
                if now != count:
                    expected = f"one with {count} samples in experience {position} of the stream {stream!r}"
                    raise wrong_value("benchmark", expected, now, advice)
                if digest_now != digest:
                    expected = f"the one of the run: experience {position} of the stream {stream!r}"
                    raise wrong_value("benchmark", expected, "other labels or samples there", advice)
            if whole and len(present) != len(experiences):
                expected = f"one with {len(experiences)} experiences in the stream {stream!r}"
                raise wrong_value("benchmark", expected, len(present), advice)


def _streams(benchmark: Any) -> list[Any]:
    """Return the streams whose experiences exist before they are asked for."""
    found: list[Any] = []
    for name, stream in getattr(benchmark, "streams", {}).items():
        if hasattr(stream, "__len__") and not generated_on_demand(benchmark, name):
            found.append(stream)
    return found


def _walk(dataset: Any) -> Iterable[Any]:
    """Yield a data set and all that it is made of, in an order that only its structure decides."""
    waiting, seen = [dataset], set[int]()
    while waiting:
        part = waiting.pop(0)
        if part is None or isinstance(part, (bool, int, float, str, bytes, tuple)) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        state: Any = part
        if isinstance(part, AvalancheDataset):
            waiting += [state._flat_data, state.collate_fn, *state._data_attributes.values()]
        elif isinstance(part, DataAttribute):
            waiting.append(state._data)
        elif isinstance(part, ConstantSequence):
            waiting.append(state._constant_value)
        elif isinstance(part, FlatData):
            waiting += [*state._datasets, state._indices]
            for groups in (
                getattr(state, "_transform_groups", None),
                getattr(state, "_frozen_transform_groups", None),
            ):
                waiting += (
                    [] if groups is None else [group for _, group in sorted(groups.transform_groups.items())]
                )


def _content(part: Any) -> bytes:
    """Return what tells a raw data set from another: its class, length and some of its samples."""
    if isinstance(part, list) or not hasattr(part, "__len__"):
        return b""
    facts: list[Any] = [type(part).__name__, len(part)]
    tensor = next(
        (t for t in (getattr(part, name, None) for name in ("x", "data")) if _is_rows(t, part)), None
    )
    if tensor is None:
        return json.dumps(facts).encode()
    rows = tensor[np.linspace(0, len(tensor) - 1, min(len(tensor), _ROWS)).astype(int)]
    plain = rows.detach().cpu().contiguous() if isinstance(rows, Tensor) else torch.from_numpy(rows.copy())
    return (
        json.dumps([*facts, str(tensor.dtype)]).encode()
        + plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    )


def _is_rows(value: Any, part: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0 and len(value) == len(part) > 0
