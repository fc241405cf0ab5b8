"""The one place that asks the host's objects what they do not answer themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.classification_dataset import (
    ClassificationDataset,
    TaskAwareSupervisedClassificationDataset,
)
from avalanche.benchmarks.utils.data import (
    _FlatDataWithTransform,  # pyright: ignore[reportPrivateUsage]
)
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.training.supervised import JointTraining
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate

from avalanche_vlm._checks import wrong_type, wrong_value
from avalanche_vlm.functional.label_space import LabelSpace, label_space_columns

Indices = NDArray[np.int64]


class DataBelow(NamedTuple):
    """Some samples of a data set that another is made of.

    Attributes:
        dataset: the data set.
        rows: which of its samples (K,).
        places: where they stand (K,) among the samples that were asked about.
    """

    dataset: Any
    rows: Indices
    places: Indices


def data_below(node: Any, rows: Indices) -> list[DataBelow] | None:
    """Return the data sets that some samples of a node of a tree of data sets come from.

    Args:
        node: a node of the host's tree, or torch's ``Subset`` or ``ConcatDataset``.
        rows: the samples (K,) that are asked about.

    Returns:
        None at the bottom of the tree, which is anything else: subclasses, which may do more than
        hand samples on, and torch's two over a data set of the host, which adds to its samples.

    Raises:
        IndexError: an index beyond the data.
    """
    below: list[Any]
    if type(node) in (FlatData, _FlatDataWithTransform):
        rows, below = _at(node._indices, rows), node._datasets
    elif type(node) is Subset and not isinstance(node.dataset, (AvalancheDataset, FlatData)):
        rows, below = _at(node.indices, rows), [node.dataset]
    elif type(node) is ConcatDataset and not any(
        isinstance(each, (AvalancheDataset, FlatData)) for each in node.datasets
    ):
        below = list(node.datasets)
    else:
        return None
    sizes: list[int] = [len(each) for each in below]
    ends = np.cumsum(sizes)
    owners = np.searchsorted(ends, rows, side="right")
    found: list[DataBelow] = []
    for number in np.flatnonzero(np.bincount(owners)).tolist():
        places = np.flatnonzero(owners == number)
        if number == len(sizes):
            raise IndexError(f"there is no sample {int(rows[places[0]])} in data of {sum(sizes)}")
        own = rows[places] - (ends[number] - sizes[number])
        own[own < 0] += sizes[number]  # counted from the end
        if (own < 0).any():
            raise IndexError(f"there is no sample {int(rows.min())} in data of {sizes[number]}")
        found.append(DataBelow(below[number], own, places))
    return found


def _at(indices: Any, rows: Indices) -> Indices:
    if indices is None:
        return rows
    if isinstance(indices, (list, np.ndarray)):
        return np.asarray(indices, dtype=np.int64)[rows]
    return np.fromiter((indices[row] for row in rows.tolist()), dtype=np.int64, count=len(rows))


def experience_classes(experience: Any) -> Tensor:
    """Return the sorted class ids (K,) of an experience, read from its targets.

    Online experiences and domain-incremental ones carry no class list, so the targets decide.

    Raises:
        ValueError: the experience has no samples.
    """
    dataset = experience.dataset
    if len(dataset) == 0:
        raise wrong_value(
            "experience",
            "an experience with at least one sample",
            f"experience {getattr(experience, 'current_experience', '?')} with none",
            "Leave it out of the stream, or look at how the benchmark was split.",
        )
    return torch.tensor(sorted(int(label) for label in dataset.targets.uniques))


def attribute_at_ends(dataset: Any, name: str) -> tuple[Any, ...]:
    """Return what the first and the last sample of a data set carry as an attribute, if they carry it.

    Joining keeps the order of the parts, so the two ends differ where two joined parts do.
    """
    attribute = getattr(dataset, name, None)
    if not isinstance(attribute, DataAttribute) or len(attribute) == 0:
        return ()
    return attribute[0], attribute[len(attribute) - 1]


def eval_loader(dataset: Any, batch_size: int) -> DataLoader[Any]:
    """Return a loader of a data set of the host: each sample once, in order, without a random draw."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=getattr(dataset, "collate_fn", default_collate),
        generator=torch.Generator(),  # from which the loader draws a seed for its workers
    )


class EmbeddingSamples(Dataset[tuple[Tensor, int]]):
    """Embeddings ``x`` (N, D) with labels that are plain numbers, as the host's own data sets give them."""

    def __init__(self, x: Tensor, y: Tensor, targets: list[int]) -> None:
        self.x, self.y, self.targets = x, y, targets

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


class DatasetForm(NamedTuple):
    """What samples of a data set of the host look like, for another to be mixed with them.

    Attributes:
        has_tensor_labels: whether y is a tensor, and not a plain number.
        has_task_labels: whether a task label follows y.
    """

    has_tensor_labels: bool
    has_task_labels: bool

    @classmethod
    def of(cls, dataset: Any) -> DatasetForm:
        """Return the form of a data set."""
        return cls(isinstance(dataset[0][1], Tensor), hasattr(dataset, "targets_task_labels"))


def dataset_of_embeddings(
    x: Tensor, y: Tensor, form: DatasetForm, task_labels: Mapping[int, int]
) -> AvalancheDataset[Any]:
    """Return a data set of the host.

    Args:
        x: embeddings (N, D), which are not copied.
        y: int64 (N,).
        form: of its samples.
        task_labels: the task label of each class; 0 for others.
    """
    labels: Any = y.tolist()
    leaf: Any = TensorDataset(x, y) if form.has_tensor_labels else EmbeddingSamples(x, y, labels)
    attributes = [DataAttribute(labels, "targets")]
    if not form.has_task_labels:
        return ClassificationDataset([leaf], data_attributes=attributes)
    tasks: Any = [task_labels.get(label, 0) for label in labels]
    attributes.append(DataAttribute(tasks, "targets_task_labels", use_in_getitem=True))
    return TaskAwareSupervisedClassificationDataset([leaf], data_attributes=attributes)


def trained_experiences(strategy: Any) -> list[Any]:
    """Return what a strategy trains on at present: the whole stream for the host's JointTraining."""
    if isinstance(strategy, JointTraining):
        return list(strategy._experiences)  # pyright: ignore[reportPrivateUsage]
    return [strategy.experience]


def generated_on_demand(benchmark: Any, stream_name: str) -> bool:
    """Return whether a benchmark makes the experiences of a stream only when they are asked for."""
    definition = getattr(benchmark, "stream_definitions", {}).get(stream_name)
    return bool(getattr(definition, "is_lazy", False))


def position_in_training(experience: Any) -> int:
    """Return the position in its stream of an experience, or of the one that it was cut from."""
    # Metrics see experiences in the host's logging mode, where the origin is always accessible. It
    # is None where an online stream mixes experiences.
    origin = getattr(experience, "origin_experience", None)
    return int((experience if origin is None else origin).current_experience)


def strategy_columns(strategy: Any, space: LabelSpace, class_count: int | None = None) -> Tensor:
    """Return the class ids (K,) of a label space for the experience that a strategy is at.

    Args:
        strategy: its ``model`` says which classes were seen and which data set each belongs to.
        space: the label space.
        class_count: number C of columns of the model's logits; None takes the model's classes.

    Raises:
        TypeError: the model does not know what the space needs.
    """
    if class_count is None:
        class_count = len(_classes_seen(strategy.model))
    experiences = trained_experiences(strategy) if strategy.is_training else [strategy.experience]
    columns = label_space_columns(
        space,
        class_count=class_count,
        seen=_classes_seen(strategy.model) if space == "seen" else None,
        current=torch.cat([experience_classes(experience) for experience in experiences]),
        dataset_of_class=_dataset_of_class(strategy.model) if space == "dataset" else None,
    )
    # The head of a growing model may not have a column yet for a class that comes later.
    return columns[columns < class_count]


def _classes_seen(model: Any) -> Tensor:
    seen = getattr(model, "classes_seen", None)
    if not isinstance(seen, Tensor):
        raise wrong_type(
            "strategy.model",
            "a model with a bool tensor `classes_seen` (C,), for the label space 'seen'",
            model,
            "Use CLIPClassifier, or the label space 'all' or 'experience'.",
        )
    return seen


def _dataset_of_class(model: Any) -> Tensor | None:
    """Return an id of the data set of each class (C,), or None if all belong to one."""
    datasets = getattr(getattr(model, "class_names", None), "datasets", None)
    if datasets is None:
        raise wrong_type(
            "strategy.model",
            "a model with named classes (`class_names.datasets`), for the label space 'dataset'",
            model,
            "Use CLIPClassifier and call set_classes, or the label space 'experience'.",
        )
    ids = {name: index for index, name in enumerate(dict.fromkeys(datasets))}
    return torch.tensor([ids[name] for name in datasets]) if datasets else None
