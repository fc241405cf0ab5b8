"""A validation stream, cut from the train stream class by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from typing import Any, TypeVar

from avalanche.benchmarks import CLScenario, CLStream, EagerCLStream, SequenceCLStream
from avalanche.benchmarks.scenarios import OnlineCLExperience
from avalanche.benchmarks.scenarios.deprecated.dataset_scenario import DatasetScenario, StreamDef
from avalanche.benchmarks.scenarios.deprecated.lazy_dataset_sequence import LazyDatasetSequence
from avalanche.benchmarks.scenarios.generic_scenario import ExperienceAttribute

from avalanche_vlm._checks import check_count, check_number, check_type, wrong_type, wrong_value
from avalanche_vlm._host import generated_on_demand
from avalanche_vlm.benchmarks.stratified_split import stratified_split

_FIRST = "Cut the validation stream first, and make the stream online or lazy afterwards."

AnyBenchmark = TypeVar("AnyBenchmark", bound="CLScenario[Any]")


def with_validation_stream(
    benchmark: AnyBenchmark, *, fraction: float = 0.1, seed: int = 0, name: str = "valid"
) -> AnyBenchmark:
    """Return a copy of ``benchmark`` with a validation stream, taken out of its train stream.

    Of a class with n samples in a train experience, the validation experience of the same index
    gets round(fraction · n) at random, and each of the two at least one. A class with a single
    sample there stays in train. Validation samples come with the eval transform. Class names, task
    labels and class lists are kept; the other streams are the very objects of ``benchmark``, which
    is itself left as it is.

    Each experience is split with the same seed: domains that hold the same pictures in the same
    order lend the same pictures, so that none is validated on that was trained on in another domain.

    Args:
        benchmark: a benchmark with labelled data: of this package, ``nc_benchmark``,
            ``class_incremental_benchmark``, ``benchmark_from_datasets``, ...
        fraction: share of each class that is taken, between 0 and 1, both excluded.
        seed: seed of the draw; the global random state is left alone.
        name: name of the new stream; ``"valid"`` becomes ``benchmark.valid_stream``.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range, the benchmark has a stream of this name or no
            train stream, an experience has no class with two samples, or the train stream is an
            online one or generated on demand.

    >>> import torch
    >>> from avalanche_vlm.benchmarks import tensor_benchmark
    >>> pair = (torch.eye(8), [0, 0, 0, 0, 1, 1, 1, 1])
    >>> benchmark = tensor_benchmark(pair, pair, class_names=["cat", "dog"], n_experiences=2)
    >>> split = with_validation_stream(benchmark, fraction=0.25)
    >>> [(len(experience.dataset), len(valid.dataset)) for experience, valid in
    ...  zip(split.train_stream, split.valid_stream)]
    [(3, 1), (3, 1)]
    """
    _check_arguments(benchmark, fraction, seed, name)
    indices = [
        _split_indices(experience, index, float(fraction), int(seed))
        for index, experience in enumerate(benchmark.streams["train"])
    ]
    split = copy(benchmark)
    if isinstance(split, DatasetScenario):
        _replace_definitions(split, indices, name)
        streams = [split.stream_factory(title, split) for title in ("train", name)]
    else:
        train = benchmark.streams["train"]
        streams = [
            EagerCLStream(title, [_part(e, i[k], title) for e, i in zip(train, indices, strict=True)], split)
            for k, title in enumerate(("train", name))
        ]
    split._streams = benchmark.streams | {  # pyright: ignore[reportPrivateUsage]
        stream.name: stream for stream in streams
    }
    for stream in streams:
        setattr(split, f"{stream.name}_stream", stream)
    return split


def _check_arguments(benchmark: Any, fraction: Any, seed: Any, name: Any) -> None:
    if not isinstance(benchmark, CLScenario):
        raise wrong_type("benchmark", "an Avalanche benchmark", benchmark)
    check_number("fraction", fraction, above=0)
    if fraction >= 1:
        raise wrong_value("fraction", "a number below 1", fraction)
    check_count("seed", seed, at_least=0)
    check_type("name", name, str)
    streams = benchmark.streams
    if not name.isidentifier() or name in streams:
        advice = "Take another name, or the stream that is there already." if name in streams else ""
        raise wrong_value("name", "a new name that Python can take for an attribute", repr(name), advice)
    if "train" not in streams:
        got = f"the streams {sorted(streams)}"
        raise wrong_value("benchmark", "a benchmark with a train stream", got, _FIRST)
    _check_splittable(benchmark, streams["train"])


def _check_splittable(benchmark: Any, train: CLStream[Any]) -> None:
    """Refuse what could be split only by looking at data that have not arrived yet."""
    if not isinstance(train, SequenceCLStream) or generated_on_demand(benchmark, "train"):
        raise wrong_value(
            "benchmark",
            "a benchmark whose train experiences are all there",
            "a train stream that is generated on demand",
            _FIRST,
        )
    for experience in train:
        if isinstance(experience, OnlineCLExperience):
            got = "an online stream, whose experiences are too small to take a share of each class"
            raise wrong_value("benchmark", "a benchmark of whole experiences", got, _FIRST)
        if getattr(getattr(experience, "dataset", None), "targets", None) is None:
            raise wrong_value(
                "benchmark", "a benchmark with labelled data", "an experience without `targets`"
            )


def _split_indices(experience: Any, index: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of what stays in train and of what is taken, both sorted."""
    targets = [int(label) for label in experience.dataset.targets]
    count = Counter(targets)
    shared = [position for position, label in enumerate(targets) if count[label] > 1]
    if not shared:
        raise wrong_value(
            "benchmark",
            "a benchmark with at least two samples of some class in each train experience",
            f"experience {index} with {len(targets)} samples of {len(count)} classes",
        )
    _, taken = stratified_split(
        [targets[position] for position in shared],
        test_fraction=fraction,
        split_seed=seed,
        class_labels=(),  # needed for a class with a single sample only
    )
    held_out = {shared[position] for position in taken}
    return [position for position in range(len(targets)) if position not in held_out], sorted(held_out)


def _replace_definitions(split: Any, indices: Sequence[tuple[list[int], list[int]]], name: str) -> None:
    """Give a benchmark that makes its streams from definitions those of the two parts."""
    train: StreamDef[Any] = split.stream_definitions["train"]
    split.stream_definitions = dict(split.stream_definitions)
    for position, title in enumerate(("train", name)):
        parts = [
            _dataset_part(dataset, pair[position], title)
            for dataset, pair in zip(train.exps_data, indices, strict=True)
        ]
        sequence = LazyDatasetSequence(parts, len(parts))
        sequence.load_all_experiences()
        split.stream_definitions[title] = StreamDef(
            sequence, train.exps_task_labels, train.origin_dataset, train.is_lazy
        )
        setattr(split, f"original_{title}_dataset", train.origin_dataset)
    # What `nc_benchmark` says about the rows of the original train set would no longer be true.
    rows = getattr(split, "train_exps_patterns_assignment", None)
    if rows is not None:
        kept = [[own[i] for i in pair[0]] for own, pair in zip(rows, indices, strict=True)]
        split.train_exps_patterns_assignment = kept


def _part(experience: Any, indices: list[int], stream: str) -> Any:
    part = copy(experience)
    for key, value in vars(experience).items():
        # The host's masked attributes are boxes that a shallow copy shares and a stream writes to.
        if isinstance(value, ExperienceAttribute):
            vars(part)[key] = copy(value)
    vars(part)["_dataset"] = _dataset_part(experience.dataset, indices, stream)
    return part


def _dataset_part(dataset: Any, indices: list[int], stream: str) -> Any:
    part = dataset.subset(indices)
    return part if stream == "train" else part.eval()
