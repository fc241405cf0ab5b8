"""Benchmarks without the streams that numbers are reported on."""

from __future__ import annotations

from copy import copy
from typing import Any

from avalanche.benchmarks.scenarios.deprecated.dataset_scenario import DatasetScenario

from avalanche_vlm.benchmarks import with_validation_stream


class HiddenStreamError(RuntimeError, AttributeError):
    """A run that chooses hyper-parameters has asked for data that numbers are reported on.

    It is an `AttributeError` too, so that ``hasattr(benchmark, "test_stream")`` is False, as for a
    benchmark that has no such stream.
    """


class _Streams(dict[str, Any]):
    """The streams of a benchmark for selection."""

    def __missing__(self, name: str) -> Any:
        _refuse(name)

    def get(self, name: str, default: Any = None, /) -> Any:
        """Return a stream, and refuse another instead of passing it over with ``default``."""
        return self[name]


def _refuse(asked: Any) -> Any:
    raise HiddenStreamError(
        "This stream is not available while hyper-parameters are chosen, so that nothing that is reported "
        "can be chosen on. Score on benchmark.valid_stream."
    )


# Where the host's benchmarks keep a stream, its data, and which rows of them it takes.
_OF_A_STREAM = ("{}_stream", "original_{}_dataset", "{}_exps_patterns_assignment")


def hide_reported_streams(benchmark: Any, fraction: float, seed: int) -> Any:
    """Return a benchmark of the same kind with a train and a validation stream, and no other.

    Its class is made here, so that neither it nor its experiences can be pickled; their data sets can.
    """
    others = [name for name in benchmark.streams if name != "train"]
    attributes = [form.format(name) for form in _OF_A_STREAM for name in others]
    kept: Any = copy(benchmark)
    kept._streams = {"train": benchmark.streams["train"]}
    if isinstance(benchmark, DatasetScenario):
        kept.stream_definitions = {"train": benchmark.stream_definitions["train"]}
    for attribute in attributes:
        vars(kept).pop(attribute, None)
    # Attributes of an instance cannot refuse to be read; those of its class can.
    own = ("valid_stream", "original_valid_dataset")  # made below, in the place of one that is there
    refusing = {name: property(_refuse) for name in attributes if name not in own}
    kept.__class__ = type(type(benchmark).__name__, (type(benchmark),), refusing)
    split: Any = with_validation_stream(kept, fraction=fraction, seed=seed)
    split._streams = _Streams(split._streams)
    return split
