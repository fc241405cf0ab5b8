"""From the streams of images to those of embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from avalanche_vlm.embedding.embedded_dataset import EmbeddedSource, embedded_dataset
from avalanche_vlm.embedding.rebuilding import StreamData
from avalanche_vlm.embedding.samples import Origin, Source, origins

Located = list[tuple[Source, Origin]]


def stream_groups(stream: str, n_views: int) -> tuple[str, ...]:
    """Return the transform groups that a stream's samples are encoded under."""
    return ("eval", "train") if stream == "train" and n_views > 1 else ("eval",)


def _source_key(origin: Origin) -> str:
    return json.dumps([id(origin.leaf), dict(origin.transforms)])


def locate(dataset: Any, groups: Sequence[str], sources: dict[str, Source]) -> Located:
    """Return where the samples of a data set come from, and count them in.

    Args:
        dataset: a data set of the host.
        groups: the transform groups that are wanted.
        sources: all sources so far, to which new ones are added.
    """
    located: Located = []
    for origin in origins(dataset, groups):
        source = sources.setdefault(_source_key(origin), Source(origin.leaf, origin.transforms))
        source.add(dataset, origin)
        located.append((source, origin))
    return located


def _locate_known(dataset: Any, groups: Sequence[str], sources: dict[str, Source]) -> Located | None:
    """Return the same, or None if some samples are in no stream and so are not embedded."""
    located: Located = []
    for origin in origins(dataset, groups):
        source = sources.get(_source_key(origin))
        if source is None or not set(origin.rows.tolist()) <= source.places.keys():
            return None
        located.append((source, origin))
    return located


def embedded_streams(
    streams: dict[str, StreamData],
    located: dict[str, list[Located]],
    sources: dict[str, Source],
    embedded: dict[int, EmbeddedSource],
    n_views: int,
) -> dict[str, StreamData]:
    """Return the data of each stream over embeddings.

    Args:
        streams: the data of each stream over images.
        located: where the samples of each experience come from.
        sources: all sources.
        embedded: the embeddings of each source, by its identity.
        n_views: as in `embed`.
    """

    def labelled(dataset: Any, found: Located) -> list[tuple[EmbeddedSource, int, Origin]]:
        labels = np.fromiter((int(label) for label in dataset.targets), dtype=np.int64, count=len(dataset))
        return [
            (embedded[id(source)], embedded[id(source)].label(origin.rows, labels[origin.positions]), origin)
            for source, origin in found
        ]

    # All labels are noted before the first data set is made, so that experiences can share one.
    parts = {
        name: [labelled(*pair) for pair in zip(data.datasets, located[name], strict=True)]
        for name, data in streams.items()
    }
    wholes: dict[str, Any] = {}
    for name, data in streams.items():
        found = (
            None if data.whole is None else _locate_known(data.whole, stream_groups(name, n_views), sources)
        )
        wholes[name] = None if found is None else labelled(data.whole, found)
    result: dict[str, StreamData] = {}
    for name, data in streams.items():
        group = "train" if name == "train" else "eval"
        datasets = [
            embedded_dataset(dataset, part, group)
            for dataset, part in zip(data.datasets, parts[name], strict=True)
        ]
        whole = None if wholes[name] is None else embedded_dataset(data.whole, wholes[name], group)
        result[name] = StreamData(datasets, whole)
    return result
