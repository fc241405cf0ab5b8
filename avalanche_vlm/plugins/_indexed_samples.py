"""The samples of a data set of the host as rows of the tensors that they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence, DataAttribute
from avalanche.benchmarks.utils.classification_dataset import lookup
from avalanche.benchmarks.utils.data import (
    _FlatDataWithTransform,  # pyright: ignore[reportPrivateUsage]
)
from avalanche.benchmarks.utils.transforms import MultiParamCompose, TupleTransform
from torch import Tensor
from torch.utils.data import ConcatDataset, TensorDataset, default_collate

from avalanche_vlm._host import Indices, data_below

Transforms = list[Callable[[Any], Any]]

# Data sets that return ``x[i], targets[i]`` and nothing else. What another class returns only its
# code knows. By name, because plugins stand below benchmarks.
_ROWS_AND_TARGETS = {
    ("avalanche_vlm.benchmarks.labelled_tensors", "LabelledTensors"),
    ("avalanche_vlm._host", "EmbeddingSamples"),
}


class NotIndexable(Exception):
    """The data set is not of the kind whose batches can be indexed."""


class IndexedSamples:
    """Samples (x, y, ...) by their place: rows of tensors for x, the other parts in one tensor each.

    Args:
        inputs: tensors (M, ...) that hold x, of one type and one shape of a row.
        which: int64 (N,), the tensor of each sample.
        rows: int64 (N,), the row of each sample.
        columns: y and what else follows x, (N, ...) each.
        first_of_each_part: one sample of each part that the data set was put together from.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        which: Tensor,
        rows: Tensor,
        columns: Sequence[Tensor],
        first_of_each_part: Sequence[int],
    ) -> None:
        self._inputs = list(inputs)
        self._which = which
        self._rows = rows
        self._columns = list(columns)
        self.first_of_each_part = list(first_of_each_part)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Sequence[int]) -> list[Tensor]:
        """Return x (B, ...), y (B,) and the other parts of some samples."""
        index = torch.tensor(indices)
        # `index_select` is several times as fast as `x[index]`.
        columns = (column.index_select(0, index.to(column.device)) for column in self._columns)
        return [self._batch_of_inputs(index), *columns]

    def _batch_of_inputs(self, index: Tensor) -> Tensor:
        rows, first = self._rows.index_select(0, index), self._inputs[0]
        if len(self._inputs) == 1:
            return first.index_select(0, rows.to(first.device))
        which = self._which[index]
        x = first.new_empty((len(index), *first.shape[1:]))
        for number in which.unique().tolist():
            here = which == number
            x[here] = self._inputs[number][rows[here]]
        return x


class _Part(NamedTuple):
    """Samples of one leaf (the data set at the bottom) that go through the same transforms."""

    leaf: Any
    rows: Indices
    positions: Indices
    label_transforms: Transforms


def indexed_samples(dataset: Any) -> IndexedSamples:
    """Return the samples of a data set of the host or of torch as rows of tensors.

    Raises:
        NotIndexable: some of them are not rows of tensors.
    """
    tops: list[Any] = list(dataset.datasets) if type(dataset) is ConcatDataset else [dataset]
    parts: list[_Part] = []
    attributes: list[list[Tensor]] = []
    start = 0
    for top in tops:
        every = np.arange(len(top), dtype=np.int64)
        node = top
        attributes.append([])
        if isinstance(top, AvalancheDataset):
            _require(type(top).__getitem__ is AvalancheDataset.__getitem__)
            node: Any = top._flat_data  # pyright: ignore[reportPrivateUsage]
            own = top._data_attributes.values()  # pyright: ignore[reportPrivateUsage]
            attributes[-1] = [_attribute(each) for each in own if each.use_in_getitem]
        parts += _parts(node, every, start + every, None, [])
        start += len(top)
    _require(len(parts) > 0 and len({len(each) for each in attributes}) == 1)
    columns = [torch.cat(values) for values in zip(*attributes, strict=True)]
    return _gather(parts, start, columns)


def _require(condition: bool) -> None:
    if not condition:
        raise NotIndexable


def _gather(parts: Sequence[_Part], count: int, columns: Sequence[Tensor]) -> IndexedSamples:
    inputs: dict[int, Tensor] = {}
    which, rows = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    labels: Tensor | None = None
    for part in parts:
        x = _inputs(part.leaf)
        first = next(iter(inputs.values()), x)
        _require((x.shape[1:], x.dtype, x.device) == (first.shape[1:], first.dtype, first.device))
        inputs.setdefault(id(x), x)
        positions, part_rows = torch.from_numpy(part.positions), torch.from_numpy(part.rows)
        which[positions] = list(inputs).index(id(x))
        rows[positions] = part_rows
        own = _labels(part, part_rows)
        labels = own.new_zeros((count, *own.shape[1:])) if labels is None else labels
        _require((own.shape[1:], own.dtype, own.device) == (labels.shape[1:], labels.dtype, labels.device))
        labels[positions] = own
    assert labels is not None
    firsts = [int(part.positions[0]) for part in parts]
    return IndexedSamples(list(inputs.values()), which, rows, [labels, *columns], firsts)


def _inputs(leaf: Any) -> Tensor:
    """Return x of a data set that is made of tensors, and of nothing that could change them."""
    _require(not hasattr(leaf, "ffcv_info"))
    if type(leaf) is TensorDataset:
        _require(len(leaf.tensors) == 2)
        x = leaf.tensors[0]
    else:
        _require((type(leaf).__module__, type(leaf).__qualname__) in _ROWS_AND_TARGETS)
        x = leaf.x
    _require(isinstance(x, Tensor) and len(x) == len(leaf))
    _require(x.layout is torch.strided and not x.requires_grad)
    return x


def _labels_below(leaf: Any, rows: Tensor) -> Tensor:
    """Return the labels (K, ...) that some samples of a data set come with."""
    if type(leaf) is TensorDataset:
        return leaf.tensors[1][rows]
    labels = leaf.y[rows]
    # Both are public, and a user may have changed one.
    _require(list(map(leaf.targets.__getitem__, rows.tolist())) == labels.tolist())
    return labels


def _labels(part: _Part, rows: Tensor) -> Tensor:
    """Return what the transforms of y make of the labels (K, ...), each applied once a value."""
    labels = _labels_below(part.leaf, rows)
    if not part.label_transforms:
        return labels
    _require(labels.ndim == 1 and not labels.is_floating_point())
    uniques, inverse = labels.unique(return_inverse=True)
    examples = torch.empty_like(uniques, dtype=torch.int64)
    examples[inverse] = rows
    mapped: list[Any] = []
    for row in examples.tolist():
        label = part.leaf[row][1]
        for transform in part.label_transforms:
            label = transform(label)
        mapped.append(label)
    values = default_collate(mapped)
    _require(isinstance(values, Tensor))
    return values[inverse]


def _parts(
    node: Any, rows: Indices, positions: Indices, group: str | None, above: Transforms
) -> Iterator[_Part]:
    """Yield the parts that some rows of a node of the tree of data sets come from.

    ``group`` is the transform group that the host hands down, or None where each node has its own.
    """
    if len(rows) == 0:
        return
    if type(node) is _FlatDataWithTransform:
        groups = node._transform_groups  # pyright: ignore[reportPrivateUsage]
        group = group or groups.current_group
        above = [*_label_transforms(node, group), *above]
    else:
        group = None
    below = data_below(node, rows)
    if below is None:
        yield _Part(node, rows, positions, above)
        return
    for child, child_rows, places in below:
        yield from _parts(child, child_rows, positions[places], group, above)


def _label_transforms(node: Any, group: str) -> Transforms:
    """Return the transforms of y at a node, in their order; any other is not for us."""
    pair = node._frozen_transform_groups, node._transform_groups
    return [each for groups in pair for each in _of_label(groups[group])]


def _of_label(transform: Any) -> Transforms:
    if transform is None:
        return []
    if type(transform) is MultiParamCompose:
        return [each for inner in transform.transforms for each in _of_label(inner)]
    _require(type(transform) is TupleTransform)
    by_part: list[Any] = list(transform.transforms)
    _require(all(each is None for number, each in enumerate(by_part) if number != 1))
    transforms = [each for each in by_part if each is not None]
    _require(all(_is_table(each) for each in transforms))
    return transforms


def _is_table(transform: Any) -> bool:
    """Return whether a transform of y is one of the host's class mappings: a label has one image."""
    if type(transform) is not partial or transform.func is not lookup or transform.keywords:
        return False
    return len(transform.args) == 1 and type(transform.args[0]) in (list, tuple, dict, np.ndarray)


def _attribute(attribute: DataAttribute[Any]) -> Tensor:
    """Return the values (N,) of an attribute of whole numbers, such as task labels."""
    count = len(attribute)
    values = np.zeros(count, dtype=np.int64)
    every = np.arange(count, dtype=np.int64)
    _fill(attribute.data, every, values, every)
    return torch.from_numpy(values)


def _fill(node: Any, rows: Indices, values: Indices, positions: Indices) -> None:
    if isinstance(node, ConstantSequence):
        constant: Any = node[0]
        _require(type(constant) is int)
        values[positions] = constant
        return
    below = data_below(node, rows)
    if below is None:
        _require(isinstance(node, (list, tuple)))
        found = np.asarray(node)
        _require(found.ndim == 1 and found.dtype.kind == "i")
        values[positions] = found[rows]
        return
    for child, child_rows, places in below:
        _fill(child, child_rows, values, positions[places])
