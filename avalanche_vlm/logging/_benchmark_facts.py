"""What tells the data of a run from other data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from avalanche_vlm._host import experience_classes, generated_on_demand
from avalanche_vlm._host_benchmarks import newest_copy


def benchmark_facts(stream: Any, *, trained: Iterable[Any] = ()) -> dict[str, Any]:
    """Return the kind of a benchmark, its experiences and their classes, and what its data are.

    Args:
        stream: a stream or an experience of the benchmark, whose training and test streams are
            described if they are known; None gives no facts. Experiences that are made on demand are
            not made for this. A stream that several benchmarks share is taken as one of the newest of them.
        trained: experiences of ``stream`` that are being trained on: what they hold is described, also if
            their stream or benchmark says something else.
    """
    if stream is None:
        return {}
    held = {_position(each): each.dataset for each in map(_whole_experience, trained)}
    stream = _whole_experience(stream)
    stream = getattr(stream, "origin_stream", stream)
    whole = getattr(stream, "benchmark", None)
    whole = whole if held else newest_copy(whole, stream)
    train, test = (getattr(whole, name, None) for name in ("train_stream", "test_stream"))
    if train is None or (held and getattr(train, "name", None) != getattr(stream, "name", None)):
        train = stream
    known = _is_made(whole, train)
    train_facts = _data_facts(train, held) if known else None
    return {
        "kind": None if whole is None else type(whole).__name__,
        "experiences": _length(train),
        "classes": [_classes(experience) for experience in train] if known else None,
        "train": train_facts,
        "test": _data_facts(test, {}) if _is_made(whole, test) else None,
    }


def trained_facts(experiences: Iterable[Any]) -> dict[str, Any]:
    """Return what is known of the benchmark that experiences come from which are being trained on."""
    several = list(experiences)
    found = benchmark_facts(several[0], trained=several) if several else {}
    return {name: fact for name, fact in found.items() if fact is not None}


def _whole_experience(experience: Any) -> Any:
    """Return the experience that a piece of an online stream was cut from; anything else as it is."""
    while getattr(experience, "origin_experience", None) is not None:
        experience = experience.origin_experience
    return experience


def _position(experience: Any) -> int:
    return int(experience.current_experience)


def _length(stream: Any) -> int | None:
    return len(stream) if hasattr(stream, "__len__") else None


def _is_made(benchmark: Any, stream: Any) -> bool:
    """Return whether all experiences of a stream exist already."""
    return _length(stream) is not None and not generated_on_demand(benchmark, getattr(stream, "name", ""))


def _classes(experience: Any) -> list[int]:
    return [] if len(experience.dataset) == 0 else experience_classes(experience).tolist()


def _data_facts(stream: Any, held: Mapping[int, Any]) -> dict[str, Any]:
    """Return the number of samples of each experience, and a hash of all targets in their order.

    A hash of the inputs would decode every image.

    Args:
        stream: the stream.
        held: data sets that count instead of those that the stream has, by position.
    """
    samples: list[int] = []
    digest = hashlib.sha256()
    for experience in stream:
        dataset = held.get(_position(experience), experience.dataset)
        targets = np.fromiter(map(int, dataset.targets), dtype="<i8")
        samples.append(len(targets))
        digest.update(targets.tobytes())
    return {"samples": samples, "targets_sha256": digest.hexdigest()}
