"""A class-incremental benchmark from images or embeddings in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from typing_extensions import Unpack

from avalanche_vlm._checks import wrong_type
from avalanche_vlm.benchmarks.class_incremental import (
    ClassIncrementalArguments,
    StreamArguments,
    class_incremental,
)
from avalanche_vlm.benchmarks.labelled_tensors import LabelledTensors, check_one_shape


def tensor_benchmark(
    train: Any,
    test: Any,
    *,
    class_names: Iterable[str],
    **stream: Unpack[ClassIncrementalArguments],
) -> NCScenario:
    """Return a class-incremental benchmark from images or embeddings in memory.

    Args:
        train: a pair (x, y), both arrays or tensors: x images (N, 3, H, W) or (N, H, W, 3), uint8
            or floats, or embeddings (N, D), floats; y class ids (N,). See `LabelledTensors`.
        test: the same, with samples of every class.
        class_names: one name per class id.
        **stream: how the classes are dealt out: see `ClassIncrementalArguments`.

    Returns:
        The host's ``nc_benchmark`` over these samples: minibatches are x, y and task label, and y is
        the class id as given.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: wrong shapes, shapes that differ between train and test, a label without a name,
            a class without samples, or classes that cannot be dealt out as asked.

    >>> import torch
    >>> x, y = torch.eye(6), torch.arange(6)
    >>> names = ["cat", "dog", "cow", "fox", "hen", "owl"]
    >>> order = [5, 0, 1, 4, 2, 3]
    >>> benchmark = tensor_benchmark((x, y), (x, y), class_names=names, n_experiences=3, class_order=order)
    >>> [sorted(experience.classes_in_this_experience) for experience in benchmark.train_stream]
    [[0, 5], [1, 4], [2, 3]]
    """
    datasets = {"train": as_dataset(train, "train"), "test": as_dataset(test, "test")}
    check_one_shape(datasets, transformed=has_transform(stream))
    return class_incremental(datasets["train"], datasets["test"], class_names, **stream)


def as_dataset(value: Any, argument: str) -> Any:
    """Return a pair (x, y) as `LabelledTensors`, and a data set with ``targets`` as it is."""
    if is_sequence_of(value, 2):
        return LabelledTensors(value[0], value[1], argument=argument)
    targets = getattr(value, "targets", None)
    if targets is not None and hasattr(value, "__getitem__") and len(value) == len(targets):
        return value
    raise wrong_type(
        argument, "a pair (x, y) of arrays or tensors, or a data set of (x, y) with `targets`", value
    )


def has_transform(stream: StreamArguments) -> bool:
    """Return whether the arguments of a builder hold a transform."""
    return stream.get("train_transform") is not None or stream.get("eval_transform") is not None


def is_sequence_of(value: Any, length: int) -> bool:
    """Return whether ``value`` is a tuple or list of this length."""
    return isinstance(value, (tuple, list)) and len(value) == length
