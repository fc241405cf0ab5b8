"""What tells the data of a run from other data."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from avalanche_vlm._host import experience_classes, generated_on_demand


def benchmark_facts(stream: Any) -> dict[str, Any]:
    """Return the kind of a benchmark, its experiences and their classes, and what its data are.

    Args:
        stream: a stream or an experience of the benchmark, whose training and test streams are
            described if they are known; None gives no facts. Experiences that are made on demand are
            not made for this.
    """
    if stream is None:
        return {}
    # From an experience, or the piece of one in an online stream, to the stream.
    stream = getattr(getattr(stream, "origin_experience", None) or stream, "origin_stream", stream)
    whole = getattr(stream, "benchmark", None)
    train, test = (getattr(whole, name, None) for name in ("train_stream", "test_stream"))
    train = stream if train is None else train
    return {
        "kind": None if whole is None else type(whole).__name__,
        "experiences": _length(train),
        "classes": [_classes(experience) for experience in train] if _is_made(whole, train) else None,
        "train": _data_facts(train) if _is_made(whole, train) else None,
        "test": _data_facts(test) if _is_made(whole, test) else None,
    }


def _length(stream: Any) -> int | None:
    return len(stream) if hasattr(stream, "__len__") else None


def _is_made(benchmark: Any, stream: Any) -> bool:
    """Return whether all experiences of a stream exist already."""
    return _length(stream) is not None and not generated_on_demand(benchmark, getattr(stream, "name", ""))


def _classes(experience: Any) -> list[int]:
    return [] if len(experience.dataset) == 0 else experience_classes(experience).tolist()


def _data_facts(stream: Any) -> dict[str, Any]:
    """Return the number of samples of each experience, and a hash of all targets in their order.

    A hash of the inputs would decode every image.
    """
    samples: list[int] = []
    digest = hashlib.sha256()
    for experience in stream:
        targets = np.fromiter(map(int, experience.dataset.targets), dtype="<i8")
        samples.append(len(targets))
        digest.update(targets.tobytes())
    return {"samples": samples, "targets_sha256": digest.hexdigest()}
