"""Names for a benchmark that was made by other means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from typing import Any, TypeVar

from avalanche.benchmarks import CLScenario, CLStream, EagerCLStream, SequenceCLStream
from avalanche.benchmarks.scenarios.deprecated.dataset_scenario import DatasetScenario, StreamDef
from avalanche.benchmarks.scenarios.deprecated.lazy_dataset_sequence import LazyDatasetSequence
from avalanche.benchmarks.scenarios.generic_scenario import ExperienceAttribute, make_stream
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_vlm._checks import wrong_type, wrong_value
from avalanche_vlm._host import generated_on_demand
from avalanche_vlm.benchmarks.class_names import name_dataset
from avalanche_vlm.text import ClassNames

AnyBenchmark = TypeVar("AnyBenchmark", bound="CLScenario[Any]")


def with_class_names(benchmark: AnyBenchmark, names: Iterable[str]) -> AnyBenchmark:
    """Return a copy of ``benchmark`` that knows its class names; see `class_names`.

    The copy is of the same class, has the same streams and shares the data; ``benchmark`` itself is
    left as it is. Names that it had before are replaced. Streams that are generated on demand stay
    so, and their labels are checked when they are generated.

    Args:
        benchmark: any benchmark of the host with labelled data: ``nc_benchmark``, the classic
            benchmarks, ``benchmark_from_datasets``, ``class_incremental_benchmark``, ...
        names: one name for each id from 0 to the largest label. Beware that ``nc_benchmark`` with
            ``class_ids_from_zero_from_first_exp=True`` has given the classes new ids: name them in
            the new order (``benchmark.classes_order_original_ids``).

    Raises:
        TypeError: ``benchmark`` is no benchmark.
        ValueError: there are fewer or more names than class ids.

    >>> import torch
    >>> from avalanche.benchmarks import nc_benchmark
    >>> from torch.utils.data import TensorDataset
    >>> from avalanche_vlm.benchmarks import class_names
    >>> data = TensorDataset(torch.eye(2), torch.tensor([0, 1]))
    >>> plain = nc_benchmark(data, data, n_experiences=2, task_labels=False, shuffle=False)
    >>> class_names(with_class_names(plain, ["cat", "dog"])).names
    ('cat', 'dog')
    """
    if not isinstance(benchmark, CLScenario):
        raise wrong_type("benchmark", "an Avalanche benchmark", benchmark)
    names = names if isinstance(names, ClassNames) else ClassNames(names)
    _check_name_count(benchmark, names)
    named = copy(benchmark)
    if isinstance(named, DatasetScenario):
        # Streams of this kind make their experiences from the benchmark's definitions.
        named.stream_definitions = {
            name: _named_definition(definition, names)
            for name, definition in named.stream_definitions.items()
        }
        streams = [named.stream_factory(name, named) for name in named.stream_definitions]
        for name, definition in named.stream_definitions.items():
            setattr(named, f"original_{name}_dataset", definition.origin_dataset)
    else:
        streams = [_named_stream(stream, names) for stream in benchmark.streams.values()]
    named._streams = {stream.name: stream for stream in streams}  # pyright: ignore[reportPrivateUsage]
    for stream in streams:
        setattr(named, f"{stream.name}_stream", stream)
    return named


def _check_name_count(benchmark: CLScenario[Any], names: ClassNames) -> None:
    labels: set[int] = set()
    for stream in benchmark.streams.values():
        if not isinstance(stream, SequenceCLStream) or _is_lazy(stream):
            continue
        for experience in stream:
            targets = getattr(getattr(experience, "dataset", None), "targets", None)
            if targets is None:
                raise wrong_value(
                    "benchmark",
                    "a benchmark with labelled data",
                    f"an experience of the stream {stream.name!r} whose data have no `targets`",
                )
            labels.update(map(int, targets.uniques))
    if labels and len(names) != max(labels) + 1:
        raise wrong_value(
            "names",
            f"{max(labels) + 1} names, one for each class id from 0 to the largest label {max(labels)}",
            f"{len(names)} names",
            "Name every class once, in the order of the class ids.",
        )


def _is_lazy(stream: CLStream[Any]) -> bool:
    return generated_on_demand(getattr(stream, "benchmark", None), stream.name)


def _named_definition(definition: StreamDef[Any], names: ClassNames) -> StreamDef[Any]:
    sequence = LazyDatasetSequence(_named_datasets(definition.exps_data, names), len(definition.exps_data))
    if not definition.is_lazy:
        sequence.load_all_experiences()
    origin = definition.origin_dataset
    if isinstance(origin, AvalancheDataset) and hasattr(origin, "targets"):
        origin = name_dataset(origin, names)
    return StreamDef(sequence, definition.exps_task_labels, origin, definition.is_lazy)


def _named_datasets(datasets: Iterable[Any], names: ClassNames) -> Iterator[Any]:
    for dataset in datasets:
        yield name_dataset(dataset, names)


def _named_stream(stream: CLStream[Any], names: ClassNames) -> CLStream[Any]:
    experiences = (_named_experience(experience, names) for experience in stream)
    if isinstance(stream, SequenceCLStream):
        return EagerCLStream(stream.name, list(experiences))
    return make_stream(stream.name, experiences)


def _named_experience(experience: Any, names: ClassNames) -> Any:
    named = copy(experience)
    for key, value in vars(experience).items():
        # The host's masked attributes are boxes that a shallow copy shares and a stream writes to.
        if isinstance(value, ExperienceAttribute):
            vars(named)[key] = copy(value)
    vars(named)["_dataset"] = name_dataset(experience.dataset, names)
    return named
