"""A stream over several data sets with different classes, in one label space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from avalanche.benchmarks.utils import concat_datasets
from torch.utils.data import Dataset
from typing_extensions import Unpack

from avalanche_vlm._checks import check_count, check_type, wrong_type, wrong_value
from avalanche_vlm.benchmarks.class_incremental import (
    StreamArguments,
    check_every_class_present,
    class_incremental,
    host_dataset,
)
from avalanche_vlm.benchmarks.labelled_tensors import LabelledTensors, check_one_shape
from avalanche_vlm.benchmarks.tensor_benchmark import as_dataset, has_transform, is_sequence_of
from avalanche_vlm.text import ClassNames, normalize_text


def multi_dataset_benchmark(
    datasets: Mapping[str, tuple[Any, Any, Iterable[str]]],
    *,
    n_experiences_per_dataset: int = 1,
    seed: int | None = None,
    allow_shared_names: bool = False,
    **stream: Unpack[StreamArguments],
) -> NCScenario:
    """Return a benchmark that goes through several data sets with different classes, as MTIL does.

    All classes share one label space: label i of the second data set is class id C₁ + i, where C₁
    is the number of classes of the first, and so on. The class names say which data set each
    class belongs to (``class_names(benchmark).datasets``), which the label space ``"dataset"`` uses.

    Args:
        datasets: from the name of each data set to (train, test, class names), in the order in which
            they arrive. A part is a pair (x, y) of arrays or tensors as for `tensor_benchmark`, or a
            data set of (x, y) with ``targets``; labels count from 0 in each.
        n_experiences_per_dataset: number of experiences that each data set is cut into, with
            equally many classes each.
        seed: a random order of the classes within each data set; by id without it.
        allow_shared_names: whether two data sets may have a class of the same name. A model that
            reads names gives both the same logit, so that in the label space ``"all"`` they tie and
            the first wins: this is meant for the label space ``"dataset"``.
        **stream: see `StreamArguments`. With ``task_labels=True`` the task label is the index of
            the experience.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: no data set, wrong or different shapes, a label without a name, a class without
            samples, classes that cannot be divided, or a class name that two data sets share
            without ``allow_shared_names``.

    >>> import torch
    >>> from avalanche_vlm.benchmarks import class_names
    >>> pair = (torch.eye(2), [0, 1])
    >>> parts = {"pets": (pair, pair, ["cat", "dog"]), "food": (pair, pair, ["pie", "soup"])}
    >>> benchmark = multi_dataset_benchmark(parts)
    >>> [sorted(experience.classes_in_this_experience) for experience in benchmark.train_stream]
    [[0, 1], [2, 3]]
    >>> class_names(benchmark).datasets
    ('pets', 'pets', 'food', 'food')
    """
    check_type("datasets", datasets, Mapping)
    check_count("n_experiences_per_dataset", n_experiences_per_dataset)
    check_type("allow_shared_names", allow_shared_names, bool)
    if seed is not None:
        check_count("seed", seed, at_least=0)
    if not datasets:
        raise wrong_value("datasets", "at least one data set", "an empty mapping")
    generator = torch.Generator().manual_seed(seed or 0)
    inputs: dict[str, Any] = {}
    train_parts: list[Any] = []
    test_parts: list[Any] = []
    names: list[str] = []
    origin: list[str] = []
    order: list[int] = []
    counts: list[int] = []
    for title, parts in datasets.items():
        if not is_sequence_of(parts, 3):
            raise wrong_type(f"datasets[{title!r}]", "a triple (train, test, class names)", parts)
        part_names = ClassNames(parts[2])
        train = inputs[f"datasets[{title!r}] train"] = as_dataset(parts[0], f"datasets[{title!r}] train")
        test = inputs[f"datasets[{title!r}] test"] = as_dataset(parts[1], f"datasets[{title!r}] test")
        size, offset = len(part_names), len(names)
        check_every_class_present(train, test, range(size), part_names, where=f" of data set {title!r}")
        if size % n_experiences_per_dataset:
            raise wrong_value(
                "n_experiences_per_dataset",
                f"a number that divides the {size} classes of {title!r} without remainder",
                n_experiences_per_dataset,
            )
        train_parts.append(_with_offset(train, offset))
        test_parts.append(_with_offset(test, offset))
        names += part_names
        origin += [title] * size
        ids = range(size) if seed is None else torch.randperm(size, generator=generator).tolist()
        order += [offset + index for index in ids]
        counts += [size // n_experiences_per_dataset] * n_experiences_per_dataset
    check_one_shape(inputs, transformed=has_transform(stream))
    if not allow_shared_names:
        _check_no_shared_name(names, origin)
    all_names = ClassNames(names, origin)
    return class_incremental(
        concat_datasets([host_dataset(part, all_names) for part in train_parts]),
        concat_datasets([host_dataset(part, all_names) for part in test_parts]),
        all_names,
        class_order=order,
        classes_per_experience=counts,
        **stream,
    )


@final
class OffsetLabels(Dataset[tuple[Any, int]]):
    """A data set whose labels start at ``offset`` instead of 0.

    Args:
        dataset: a data set of (x, y) with ``targets``.
        offset: added to each label.
    """

    def __init__(self, dataset: Any, offset: int) -> None:
        self.dataset = dataset
        self.offset = offset
        self.targets = [int(label) + offset for label in dataset.targets]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[index][0], self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


def _with_offset(dataset: Any, offset: int) -> Any:
    if isinstance(dataset, LabelledTensors):
        return LabelledTensors(dataset.x, dataset.y + offset)
    return OffsetLabels(dataset, offset)


def _check_no_shared_name(names: Sequence[str], origin: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        other = first.setdefault(normalize_text(name), index)
        if other != index:
            raise wrong_value(
                "datasets",
                "data sets without a class name in common, because they share one label space",
                f"{name!r} in {origin[other]!r} and in {origin[index]!r}",
                f"Rename one of them, to {f'{name} ({origin[index]})'!r} for instance, or pass "
                "allow_shared_names=True to compare classes within their data sets only.",
            )
