"""Copies of the host's benchmarks with other data or other streams."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any, TypeVar

from avalanche.benchmarks import CLScenario, CLStream
from avalanche.benchmarks.scenarios.deprecated.dataset_scenario import DatasetScenario, StreamDef
from avalanche.benchmarks.scenarios.deprecated.lazy_dataset_sequence import LazyDatasetSequence
from avalanche.benchmarks.scenarios.generic_scenario import ExperienceAttribute

AnyBenchmark = TypeVar("AnyBenchmark", bound="CLScenario[Any]")
Definitions = Mapping[str, StreamDef[Any]]
# A stream that a copy shares knows the benchmark that it was made for, and no copy of that.
_copies: weakref.WeakKeyDictionary[Any, list[weakref.ref[Any]]] = weakref.WeakKeyDictionary()


def with_streams(
    benchmark: AnyBenchmark,
    *,
    definitions: Callable[[Definitions], Definitions],
    streams: Callable[[AnyBenchmark], Iterable[CLStream[Any]]],
) -> AnyBenchmark:
    """Return a copy of a benchmark with other streams; the benchmark itself is left as it is.

    Args:
        benchmark: what to copy.
        definitions: those of the benchmark -> those of its new streams, by name; for benchmarks that make
            their experiences from definitions.
        streams: the copy -> its new streams; for all other benchmarks.

    Returns:
        A benchmark of the same class; streams that are not replaced are the very objects of ``benchmark``.
    """
    other = copy(benchmark)
    made: list[CLStream[Any]]
    if isinstance(other, DatasetScenario):
        new = definitions(other.stream_definitions)
        other.stream_definitions = {**other.stream_definitions, **new}
        made = [other.stream_factory(name, other) for name in new]
        for name, definition in new.items():
            setattr(other, f"original_{name}_dataset", definition.origin_dataset)
    else:
        made = list(streams(other))
    other._streams = benchmark.streams | {  # pyright: ignore[reportPrivateUsage]
        stream.name: stream for stream in made
    }
    for stream in made:
        setattr(other, f"{stream.name}_stream", stream)
    _copies.setdefault(benchmark, []).append(weakref.ref(other))
    return other


def newest_copy(benchmark: Any, stream: Any) -> Any:
    """Return the newest benchmark with a stream that copies of a benchmark share; it may be the benchmark."""
    name = getattr(stream, "name", "")
    while benchmark is not None:
        shared = getattr(benchmark, "streams", {}).get(name)
        found = [copied() for copied in _copies.get(benchmark, ())]
        found = [each for each in found if each is not None and each.streams.get(name) is shared]
        if shared is None or not found:
            break
        benchmark = found[-1]
    return benchmark


def definition_over(
    definition: StreamDef[Any], datasets: Iterable[Any], whole: Any, *, on_demand: bool = False
) -> StreamDef[Any]:
    """Return the definition of a stream over other data sets.

    Args:
        definition: of the stream as it is.
        datasets: one for each of its experiences.
        whole: the data set that they were cut from, or None.
        on_demand: whether each is taken from ``datasets`` only when it is asked for.
    """
    sequence = LazyDatasetSequence(datasets, len(definition.exps_data))
    if not on_demand:
        sequence.load_all_experiences()
    return StreamDef(sequence, definition.exps_task_labels, whole, on_demand)


def experience_over(experience: Any, dataset: Any) -> Any:
    """Return a copy of an experience over another data set."""
    other = copy(experience)
    for key, value in vars(experience).items():
        # The host's masked attributes are boxes that a shallow copy shares and a stream writes to.
        if isinstance(value, ExperienceAttribute):
            vars(other)[key] = copy(value)
    vars(other)["_dataset"] = dataset
    return other
