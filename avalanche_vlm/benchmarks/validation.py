"""A validation stream, cut from the train stream class by class."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
from avalanche.benchmarks import CLScenario, CLStream, EagerCLStream, SequenceCLStream
from avalanche.benchmarks.scenarios import OnlineCLExperience

from avalanche_vlm._checks import check_count, check_number, check_type, wrong_type, wrong_value
from avalanche_vlm._host import generated_on_demand
from avalanche_vlm._host_benchmarks import (
    AnyBenchmark,
    Definitions,
    definition_over,
    experience_over,
    with_streams,
)
from avalanche_vlm.benchmarks.stratified_split import held_out_split

_FIRST = "Cut the validation stream first, and make the stream online or lazy afterwards."


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
    parts = {"train": [kept for kept, _ in indices], name: [taken for _, taken in indices]}

    def definitions(known: Definitions) -> Definitions:
        train = known["train"]
        return {
            title: definition_over(
                train, map(_dataset_part, train.exps_data, own, repeat(title)), train.origin_dataset
            )
            for title, own in parts.items()
        }

    def streams(split: AnyBenchmark) -> list[CLStream[Any]]:
        train = benchmark.streams["train"]
        return [
            EagerCLStream(
                title,
                [
                    experience_over(experience, _dataset_part(experience.dataset, rows, title))
                    for experience, rows in zip(train, own, strict=True)
                ],
                split,
            )
            for title, own in parts.items()
        ]

    split = with_streams(benchmark, definitions=definitions, streams=streams)
    # What `nc_benchmark` says about the rows of the original train set would no longer be true.
    rows: Any = getattr(split, "train_exps_patterns_assignment", None)
    if rows is not None:
        kept = [[own[i] for i in left] for own, left in zip(rows, parts["train"], strict=True)]
        vars(split)["train_exps_patterns_assignment"] = kept
    return split


def _check_arguments(benchmark: Any, fraction: Any, seed: Any, name: Any) -> None:
    if not isinstance(benchmark, CLScenario):
        raise wrong_type("benchmark", "an Avalanche benchmark", benchmark)
    check_number("fraction", fraction, above=0, below=1)
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
    targets = torch.tensor([int(label) for label in experience.dataset.targets], dtype=torch.int64)
    kept, taken = held_out_split(targets, fraction, seed)
    if not taken:
        raise wrong_value(
            "benchmark",
            "a benchmark with at least two samples of some class in each train experience",
            f"experience {index} with {len(targets)} samples of {len(targets.unique())} classes",
        )
    return kept, taken


def _dataset_part(dataset: Any, indices: list[int], stream: str) -> Any:
    part = dataset.subset(indices)
    return part if stream == "train" else part.eval()
