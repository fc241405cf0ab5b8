"""Where the samples of a host data set come from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from avalanche.benchmarks.utils.data import (
    _FlatDataWithTransform,  # pyright: ignore[reportPrivateUsage]
)
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_vlm._checks import wrong_type
from avalanche_vlm._host import DataBelow, Indices, data_below
from avalanche_vlm.benchmarks.multi_dataset_benchmark import OffsetLabels
from avalanche_vlm.embedding.data_fingerprint import leaf_transforms
from avalanche_vlm.embedding.seeding import seeded, view_seed
from avalanche_vlm.embedding.transform_description import describe_transform


@dataclass(frozen=True)
class Origin:
    """Samples of one data set at the bottom that go through the same transforms.

    Attributes:
        leaf: the data set at the bottom.
        rows: which of its samples (K,).
        positions: where they stand (K,) in the data set that was asked about.
        transforms: description of the transforms of each group, from the bottom up, as JSON.
    """

    leaf: Any
    rows: Indices
    positions: Indices
    transforms: Mapping[str, str]


def origins(dataset: Any, groups: Sequence[str]) -> list[Origin]:
    """Return where the samples of a host data set come from, every sample in exactly one of them.

    Args:
        dataset: a data set of the host.
        groups: the transform groups to tell about.

    Raises:
        TypeError: a transform that cannot be told (see `describe_transform`).
    """
    flat = dataset._flat_data
    every = np.arange(len(dataset), dtype=np.int64)
    return list(_origins(flat, every, every, {group: [] for group in groups}))


def _origins(
    node: Any, rows: Indices, positions: Indices, above: Mapping[str, list[Any]]
) -> Iterator[Origin]:
    """Yield the origins of some rows of a node of the host's tree of data sets."""
    if len(rows) == 0:
        return
    if type(node) is _FlatDataWithTransform:
        above = {group: [*_group_transforms(node, group), *rest] for group, rest in above.items()}
    below = data_below(node, rows)
    if isinstance(node, OffsetLabels):
        below = [DataBelow(node.dataset, rows, np.arange(len(rows)))]
    if below is None:
        own = leaf_transforms(node)
        told = {group: json.dumps([own, *rest]) for group, rest in above.items()}
        yield Origin(node, rows, positions, told)
        return
    for child, child_rows, places in below:
        yield from _origins(child, child_rows, positions[places], above)


def _group_transforms(node: Any, group: str) -> list[Any]:
    pair = (node._frozen_transform_groups, node._transform_groups)
    described = [describe_transform(groups[group]) for groups in pair]
    return [each for each in described if each is not None]


@final
@dataclass
class Source:
    """All samples of a benchmark that end in the same files of embeddings.

    Attributes:
        leaf: the data set at the bottom.
        transforms: as in `Origin`.
        places: for each row, a data set of the host that has it, and where.
    """

    leaf: Any
    transforms: Mapping[str, str]
    places: dict[int, tuple[Any, int]] = field(default_factory=dict[int, tuple[Any, int]])

    def add(self, dataset: Any, origin: Origin) -> None:
        """Count the samples of a data set in."""
        for row, position in zip(origin.rows.tolist(), origin.positions.tolist(), strict=True):
            self.places.setdefault(row, (dataset, position))

    @property
    def rows(self) -> list[int]:
        """The rows of the leaf, sorted: sample i of a file is row ``rows[i]``."""
        return sorted(self.places)


@final
class ViewSamples(Dataset[Any]):
    """One view of the samples of a source: x as the host's data sets make it, in the order of the file.

    Args:
        source: the samples.
        digests: what each of them is, in the order of the file.
        group: the transform group.
        view: 0 for the only view of the eval transform, from 1 for those of the train transform.
    """

    def __init__(self, source: Source, digests: Sequence[bytes], *, group: str, view: int) -> None:
        of_group: dict[int, Any] = {}
        self.places: list[tuple[Any, int]] = []
        for row in source.rows:
            dataset, position = source.places[row]
            if id(dataset) not in of_group:
                of_group[id(dataset)] = dataset.with_transforms(group)
            self.places.append((of_group[id(dataset)], position))
        self.digests = digests
        self.view = view

    def __getitem__(self, index: int) -> Tensor:
        dataset, position = self.places[index]
        with seeded(view_seed(self.digests[index], self.view)):
            x = dataset[position][0]
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 3:
            raise wrong_type(
                "benchmark",
                "a benchmark of images, whose transforms return float tensors (3, H, W)",
                x,
                "Build it with eval_transform=backbone.eval_transform (and train_transform).",
            )
        return x

    def __len__(self) -> int:
        return len(self.places)
