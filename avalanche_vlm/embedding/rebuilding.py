"""The same benchmark over other data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from avalanche.benchmarks import CLScenario, EagerCLStream, SequenceCLStream
from avalanche.benchmarks.scenarios import OnlineCLExperience
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_vlm._checks import wrong_type, wrong_value
from avalanche_vlm._host_benchmarks import AnyBenchmark, definition_over, experience_over, with_streams


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
    return with_streams(
        benchmark,
        definitions=lambda known: {
            name: definition_over(definition, data[name].datasets, data[name].whole)
            for name, definition in known.items()
        },
        streams=lambda other: [
            EagerCLStream(name, list(map(experience_over, stream, data[name].datasets)), other)
            for name, stream in benchmark.streams.items()
        ],
    )
