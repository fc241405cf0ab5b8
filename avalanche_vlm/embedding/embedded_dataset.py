"""Data sets of the host over embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from avalanche.benchmarks.utils.data import (
    _FlatDataWithTransform,  # pyright: ignore[reportPrivateUsage]
)
from torch import Tensor

from avalanche_vlm.benchmarks.labelled_tensors import LabelledTensors
from avalanche_vlm.embedding.samples import Indices, Origin, Source
from avalanche_vlm.embedding.views import EmbeddingViews, view_transforms

_UNKNOWN = -1  # the label of a sample that no experience has yet


@final
class EmbeddedSource:
    """The embeddings of a source, as data sets of the host over the memory map.

    Args:
        source: the samples.
        views: embeddings (N, D) under the eval transform, and those of each view of the train
            transform, if there are any.
    """

    def __init__(self, source: Source, views: Sequence[Tensor]) -> None:
        self.rows = np.asarray(source.rows, dtype=np.int64)
        self.views = list(views)
        self._labellings: list[Indices] = []
        self._nodes: dict[int, Any] = {}

    def file_rows(self, rows: Indices) -> Indices:
        """Return where rows of the leaf, which must be among those of the source, stand in the files."""
        return np.searchsorted(self.rows, rows)

    def label(self, rows: Indices, labels: Indices) -> int:
        """Note the labels of some rows of the leaf; return the number of the labelling that has them.

        One labelling does, unless the same sample has different labels in two experiences.
        """
        rows = self.file_rows(rows)
        for number, known in enumerate(self._labellings):
            if np.all((known[rows] == _UNKNOWN) | (known[rows] == labels)):
                known[rows] = labels
                return number
        self._labellings.append(np.full(len(self.rows), _UNKNOWN, dtype=np.int64))
        self._labellings[-1][rows] = labels
        return len(self._labellings) - 1

    def node(self, labelling: int) -> Any:
        """Return the data set of all rows, the same object for every experience."""
        if labelling not in self._nodes:
            labels = self._labellings[labelling]
            if len(self.views) > 1:
                leaf = EmbeddingViews(self.views, labels)
                self._nodes[labelling] = _FlatDataWithTransform([leaf], transform_groups=view_transforms())
            else:
                self._nodes[labelling] = _labelled(self.views[0], labels)
        return self._nodes[labelling]


def _labelled(embeddings: Tensor, labels: Indices) -> LabelledTensors:
    """Return `LabelledTensors` without the checks of its constructor.

    They would read the whole file for what the encoder never lets into it: NaN and infinity.
    """
    data = LabelledTensors.__new__(LabelledTensors)
    data.x = embeddings
    data.y = torch.tensor(labels)
    data.targets = labels.tolist()
    return data


def embedded_dataset(dataset: Any, parts: Sequence[tuple[EmbeddedSource, int, Origin]], group: str) -> Any:
    """Return a host data set with the samples' labels, tasks and names, and embeddings for x.

    Args:
        dataset: the data set of images.
        parts: where its samples come from: the embedded source, the labelling and the origin.
        group: the transform group that is to be active.
    """
    nodes: list[Any] = []
    offsets: dict[int, int] = {}
    indices = np.empty(len(dataset), dtype=np.int64)
    size = 0
    for source, labelling, origin in parts:
        node = source.node(labelling)
        if id(node) not in offsets:
            offsets[id(node)] = size
            size += len(node)
            nodes.append(node)
        indices[origin.positions] = offsets[id(node)] + source.file_rows(origin.rows)
    embedded = dataset._shallow_clone_dataset()
    embedded._flat_data = _FlatDataWithTransform(nodes, indices=indices.tolist())
    return embedded.with_transforms(group)
