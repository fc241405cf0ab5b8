"""The data of a benchmark, which a checkpoint names and does not copy."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData, LazyIndices, LazyRange
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import generated_on_demand
from avalanche_vlm.checkpointing._content import content_key, state_key
from avalanche_vlm.checkpointing._graph import CannotBeSaved

# (stream, position of the experience, number of the object in it).
DataName = tuple[str, int, int]
_ROWS = 16
_MOST_SAMPLES = 1 << 28


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
        self.transforms: dict[DataName, Any] = {}
        self.transform_states: dict[DataName, Any] = {}
        self._facts: dict[str, dict[int, tuple[int, str]]] = {}
        self._settings: dict[str, set[Any]] = {}
        self._keys: dict[int, Any] = {}
        self._names: dict[int, DataName] = {}
        self._objects: dict[DataName, Any] = {}
        self._contents: dict[int, bytes] = {}
        self._ends: dict[int, int] = {}
        for stream in _streams(benchmark):
            for experience in stream:
                self._add(experience)

    def add(self, experience: Any) -> None:
        """Name what an experience holds, if there was no benchmark to name it.

        Of the pieces of an online stream, that from which they were cut is named.

        Raises:
            CannotBeSaved: it is a piece that no other process can cut again.
        """
        if self.place(experience) is None and not self._can_be_cut_again(experience):
            raise CannotBeSaved(
                f"The experiences of {experience.origin_stream.name!r} are cut at random while the run goes "
                "on, and would be others when it is resumed. Cut them beforehand, as in "
                "EagerCLStream(name, list(split_online_stream(...)), benchmark), or with shuffle=False."
            )
        if self.benchmark is None:
            self._add(_origin(experience))

    def _can_be_cut_again(self, experience: Any) -> bool:
        """Return whether a piece of an online stream follows from the experience that it was cut from."""
        origin = getattr(experience, "origin_experience", None)
        stream, position = experience.origin_stream, experience.current_experience
        if origin is None or (hasattr(stream, "__len__") and stream[position] is experience):
            return True
        own, whole = _indices(experience.dataset), _indices(origin.dataset)
        start = whole.index(own[0]) if own and own[0] in whole else 0
        # The first piece that is seen of a resumed run may lie anywhere.
        expected = self._ends.get(id(origin), start if position else 0)
        self._ends[id(origin)] = start + len(own)
        return start == expected and own == whole[start : start + len(own)]

    def _add(self, experience: Any) -> None:
        stream, position = str(experience.origin_stream.name), int(experience.current_experience)
        facts = self._facts.setdefault(stream, {})
        if position in facts:
            return
        dataset = experience.dataset
        digest = hashlib.sha256()
        for number, part in enumerate(_walk(dataset)):
            name = (stream, position, number)
            self._objects[name] = part
            if id(part) not in self._names:
                self._names[id(part)] = name
                self._contents[id(part)] = content_of(part)
                if _is_transform(part):
                    self.transforms[name], self.transform_states[name] = part, state_key(part)
                    self._keys[id(part)] = content_key(part)
            if id(part) in self._keys:
                self._settings.setdefault(stream, set()).add(self._keys[id(part)])
            digest.update(self._contents[id(part)])
        digest.update(np.asarray([int(label) for label in getattr(dataset, "targets", ())]).tobytes())
        facts[position] = (len(dataset), digest.hexdigest()[:16])

    def name(self, thing: Any) -> tuple[Any, ...] | None:
        """Return the name of an object, None if it is not part of the data."""
        found = self._names.get(id(thing))
        return None if found is None else ("data", *found)

    def find(self, name: Any) -> Any:
        """Return the object of a name.

        Raises:
            ValueError: there is none.
        """
        if name not in self._objects:
            raise wrong_value("benchmark", "the benchmark of the run", f"one without {name}")
        return self._objects[name]

    def place(self, experience: Any) -> tuple[str, int] | None:
        """Return the stream and position of an experience, None if `resume` would not find it."""
        stream, position = str(experience.origin_stream.name), int(experience.current_experience)
        return (stream, position) if position in self._facts.get(stream, {}) else None

    def experience(self, stream: str, position: int) -> Any:
        """Return an experience of the benchmark.

        Raises:
            ValueError: there is no such one that exists already.
        """
        if position not in self._facts.get(stream, {}):
            expected = f"one with experience {position!r:.20} in the stream {stream!r:.40}"
            raise wrong_value("benchmark", expected, "one without", _ADVICE)
        return self.benchmark.streams[stream][position]

    def described(self) -> dict[str, Any]:
        """Return what tells this data from other data."""
        settings = {stream: sorted(keys) for stream, keys in self._settings.items()}
        return {"facts": self._facts, "whole": self.benchmark is not None, "transforms": settings}

    def check(self, saved: Mapping[str, Any], *, tell: bool) -> None:
        """Raise unless the experiences are those that were described; warn of other transforms.

        Args:
            saved: what `described` returned.
            tell: whether to warn.

        Raises:
            ValueError: says which experience is another.
        """
        for stream, experiences in saved["facts"].items():
            present = self._facts.get(stream)
            if present is None:
                expected = f"one with the stream {stream!r}"
                raise wrong_value("benchmark", expected, sorted(self._facts), _ADVICE)
            for position, (count, digest) in experiences.items():
                if position not in present:
                    expected = f"one with experience {position} in the stream {stream!r}"
                    raise wrong_value("benchmark", expected, f"{len(present)} experiences", _ADVICE)
                now, digest_now = present[position]
                if now != count:
                    expected = f"one with {count} samples in experience {position} of the stream {stream!r}"
                    raise wrong_value("benchmark", expected, now, _ADVICE)
                if digest_now != digest:
                    expected = f"the one of the run: experience {position} of the stream {stream!r}"
                    raise wrong_value("benchmark", expected, "other labels or samples there", _ADVICE)
            if saved["whole"] and len(present) != len(experiences):
                expected = f"one with {len(experiences)} experiences in the stream {stream!r}"
                raise wrong_value("benchmark", expected, len(present), _ADVICE)
        for stream, settings in saved["transforms"].items():
            if tell and not self._settings.get(stream, set()).issuperset(settings):
                warnings.warn(
                    f"The transforms of the stream {stream!r} have other settings than in the run that is "
                    "resumed: it goes on with those of now.",
                    stacklevel=5,
                )


def check_made(made: Any) -> None:
    """Raise unless a part of a data set that was read has the samples that it says.

    Otherwise a few bytes could ask for memory without end, or for samples that are not there.

    Raises:
        ValueError: it has not; others than parts of data sets pass.
    """
    state: Any = made
    if isinstance(made, LazyRange):
        _check_sizes(made, state._start, state._end, state._offset)
        if not 0 <= state._start <= state._end:
            raise _odd_data(made)
    elif isinstance(made, LazyIndices):
        _check_sizes(made, state._known_length, state._offset)
        lists = [state._eager_list] if state._eager_list is not None else state._lists
        if state._known_length != sum(len(part) for part in lists):
            raise _odd_data(made)
    elif isinstance(made, ConstantSequence):
        _check_sizes(made, state._size)
    elif isinstance(made, FlatData):
        if any(isinstance(part, range) for part in state._datasets):
            raise _odd_data(made)
        sizes = [len(part) for part in state._datasets]
        if list(state._cumulative_sizes) != list(np.cumsum(sizes)):
            raise _odd_data(made)
        _check_indices(made, state._indices, sum(sizes))
        if hasattr(made, "_transform_groups") and any(map(_has_text, state._datasets)):
            raise _odd_data(made)  # a transform that reads files would read what the checkpoint names


def _check_sizes(made: Any, *sizes: Any) -> None:
    if any(type(size) is not int or not 0 <= size < _MOST_SAMPLES for size in sizes):
        raise _odd_data(made)


def _check_indices(made: Any, indices: Any, count: int) -> None:
    if indices is None:
        return
    if isinstance(indices, LazyRange):
        last: Any = indices
        inside = len(indices) == 0 or last._end + last._offset <= count
    elif len(indices) > _MOST_SAMPLES or isinstance(indices, range):
        inside = False
    else:
        own = np.asarray([int(index) for index in indices], dtype=np.int64)
        inside = own.size == 0 or (own.min() >= 0 and own.max() < count)
    if not inside:
        raise _odd_data(made)


def _has_text(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and any(isinstance(item, (str, bytes)) for item in part)


def _odd_data(made: Any) -> ValueError:
    expected = "a checkpoint whose data have the samples that they say"
    return wrong_value("path", expected, f"one with another {type(made).__name__}")


_ADVICE = "Build the benchmark as for the run: the same data, class order, seed and transforms."


def _is_transform(part: Any) -> bool:
    return callable(part) and hasattr(part, "__dict__") and not hasattr(part, "__getitem__")


def _indices(dataset: Any) -> list[int]:
    return [int(index) for index in dataset._flat_data._get_lazy_indices() or range(len(dataset))]


def _origin(experience: Any) -> Any:
    while getattr(experience, "origin_experience", None) is not None:
        experience = experience.origin_experience
    return experience


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
                waiting += _transforms(groups)


def _transforms(groups: Any) -> list[Any]:
    found: Any = getattr(groups, "transform_groups", {})
    if isinstance(found, defaultdict) and found.default_factory is not None:
        return [found.default_factory()]  # one for all, whichever of them have been asked for
    return [transform for _, transform in sorted(found.items())]


def content_of(part: Any) -> bytes:
    """Return what tells a part of a data set from another: indices, or class, length and some samples."""
    if isinstance(part, FlatData):
        indices: Any = part._indices  # pyright: ignore[reportPrivateUsage]
        return (
            b""
            if indices is None
            else np.asarray([int(index) for index in indices], dtype=np.int64).tobytes()
        )
    if isinstance(part, (AvalancheDataset, DataAttribute, list)) or not hasattr(part, "__len__"):
        return b""
    facts: list[Any] = [type(part).__name__, len(part)]
    tensor = next(
        (t for t in (getattr(part, name, None) for name in ("x", "data")) if _is_rows(t, part)), None
    )
    if tensor is None:
        return json.dumps([*facts, *_files(part)]).encode()
    rows = tensor[_some(len(tensor))]
    plain = rows.detach().cpu().contiguous() if isinstance(rows, Tensor) else torch.from_numpy(rows.copy())
    return (
        json.dumps([*facts, str(tensor.dtype)]).encode()
        + plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    )


def _some(count: int) -> Any:
    return np.linspace(0, count - 1, min(count, _ROWS)).astype(int)


def _files(part: Any) -> list[str]:
    """Return of a data set of files what is in some of them."""
    entries: Any = next((e for e in (getattr(part, n, None) for n in ("samples", "imgs", "paths")) if e), ())
    if not isinstance(entries, (list, tuple)):
        return []
    found: list[str] = []
    for index in _some(len(entries)) if entries else ():
        entry: Any = entries[index]
        path = entry[0] if isinstance(entry, tuple) and entry else entry
        if isinstance(path, (str, os.PathLike)) and os.path.isfile(path):
            with open(path, "rb") as file:
                found.append(hashlib.sha256(file.read()).hexdigest())
    return found


def _is_rows(value: Any, part: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0 and len(value) == len(part) > 0
