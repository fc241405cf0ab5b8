"""The same benchmark over other data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, TypeVar

from avalanche.benchmarks import CLScenario, EagerCLStream, SequenceCLStream
from avalanche.benchmarks.scenarios import OnlineCLExperience
from avalanche.benchmarks.scenarios.deprecated.dataset_scenario import DatasetScenario, StreamDef
from avalanche.benchmarks.scenarios.deprecated.lazy_dataset_sequence import LazyDatasetSequence
from avalanche.benchmarks.scenarios.generic_scenario import ExperienceAttribute
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_vlm._checks import wrong_type, wrong_value

AnyBenchmark = TypeVar("AnyBenchmark", bound="CLScenario[Any]")


class StreamData(NamedTuple):
    """The data of a stream.

    Attributes:
        datasets: one of the host's for each experience.
        whole: the data set that the host says they were cut from, or None.
    """

    datasets: Sequence[Any]
    whole: Any


def stream_data(benchmark: CLScenario[Any]) -> dict[str, StreamData]:
    """Return the data of each stream of a benchmark; what is generated on demand is generated.

    Raises:
        TypeError: no benchmark, or experiences without a data set.
        ValueError: an online stream, or a stream that cannot be read twice.
    """
    if not isinstance(benchmark, CLScenario):
        raise wrong_type("benchmark", "an Avalanche benchmark", benchmark)
    found: dict[str, StreamData] = {}
    definitions = getattr(benchmark, "stream_definitions", {})
    for name, stream in benchmark.streams.items():
        if not isinstance(stream, SequenceCLStream):
            got = f"the stream {name!r}, which is generated on demand"
            advice = "Embed the benchmark first, and make the stream online or lazy afterwards."
            raise wrong_value("benchmark", "a benchmark whose streams are all there", got, advice)
        experiences = list(stream)
        if any(isinstance(experience, OnlineCLExperience) for experience in experiences):
            got, advice = f"the online stream {name!r}", "Embed the benchmark first, and split it afterwards."
            raise wrong_value("benchmark", "a benchmark of whole experiences", got, advice)
        datasets = [experience.dataset for experience in experiences]
        for dataset in datasets:
            if not isinstance(dataset, AvalancheDataset) or not hasattr(dataset, "targets"):
                raise wrong_type("benchmark", "a benchmark with labelled data sets of the host", dataset)
        whole = definitions[name].origin_dataset if name in definitions else None
        known = isinstance(whole, AvalancheDataset) and hasattr(whole, "targets")
        found[name] = StreamData(datasets, whole if known else None)
    return found


def with_data(benchmark: AnyBenchmark, data: Mapping[str, StreamData]) -> AnyBenchmark:
    """Return a copy of a benchmark over other data sets; the benchmark itself is left as it is.

    Args:
        benchmark: what to copy.
        data: the data of every stream, as from `stream_data`.
    """
    other = copy(benchmark)
    if isinstance(other, DatasetScenario):
        # Streams of this kind make their experiences from the benchmark's definitions.
        other.stream_definitions = {
            name: _definition(definition, data[name]) for name, definition in other.stream_definitions.items()
        }
        streams = [other.stream_factory(name, other) for name in other.stream_definitions]
        for name, definition in other.stream_definitions.items():
            setattr(other, f"original_{name}_dataset", definition.origin_dataset)
    else:
        streams = [
            EagerCLStream(
                name,
                [_experience(e, dataset) for e, dataset in zip(stream, data[name].datasets, strict=True)],
                other,
            )
            for name, stream in benchmark.streams.items()
        ]
    other._streams = {stream.name: stream for stream in streams}  # pyright: ignore[reportPrivateUsage]
    for stream in streams:
        setattr(other, f"{stream.name}_stream", stream)
    return other


def _definition(definition: StreamDef[Any], data: StreamData) -> StreamDef[Any]:
    sequence = LazyDatasetSequence(data.datasets, len(data.datasets))
    sequence.load_all_experiences()
    return StreamDef(sequence, definition.exps_task_labels, data.whole, is_lazy=False)


def _experience(experience: Any, dataset: Any) -> Any:
    other = copy(experience)
    for key, value in vars(experience).items():
        # The host's masked attributes are boxes that a shallow copy shares and a stream writes to.
        if isinstance(value, ExperienceAttribute):
            vars(other)[key] = copy(value)
    vars(other)["_dataset"] = dataset
    return other
