"""Class names that travel with the data: the one question, and the attribute that answers it.

Every sample of a named data set carries the same `ClassNames` object, as a per-sample attribute of
the host that is not part of the sample. The host carries such attributes through subsets,
concatenation, validation and online splits and into replay buffers, where a plain attribute of a
benchmark, an experience or a data set is lost. One sample that survives is enough to know all names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from avalanche.benchmarks import CLScenario, CLStream
from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence, DataAttribute

from avalanche_vlm._checks import wrong_type, wrong_value
from avalanche_vlm._host import attribute_at_ends
from avalanche_vlm.text import ClassNames

ATTRIBUTE = "class_names"

AnyDataset = TypeVar("AnyDataset", bound="AvalancheDataset[Any]")


def class_names(source: Any) -> ClassNames:
    """Return the names of all classes, by class id, that ``source`` was built with.

    The answer is the whole list, whichever classes ``source`` itself holds, so that a head that is
    built from one experience, one mini-experience or one buffer fits all of them. It costs the look
    at one sample; a stream or benchmark builds its first experience for it.

    Args:
        source: a benchmark, a stream, an experience or a data set (a replay buffer's ``buffer``,
            for instance), however it was split, joined or filtered since.

    Raises:
        TypeError: ``source`` is none of these.
        ValueError: nothing in ``source`` is named, or parts with different names were joined.

    >>> import torch
    >>> from avalanche_vlm.benchmarks import tensor_benchmark
    >>> pair = (torch.eye(4), [0, 1, 2, 3])
    >>> names = ["cat", "dog", "cow", "fox"]
    >>> benchmark = tensor_benchmark(pair, pair, class_names=names, n_experiences=2)
    >>> class_names(benchmark.train_stream[1])[0]
    'cat'
    """
    for dataset in _datasets(source):
        if len(dataset) == 0:
            continue
        ends = attribute_at_ends(dataset, ATTRIBUTE)
        if ends and isinstance(ends[0], ClassNames):
            first, last = ends
            if first != last:
                raise wrong_value(
                    "source",
                    "data with one list of class names",
                    f"parts with {len(first)} and {len(last)} different names, joined",
                    "Build it by `multi_dataset_benchmark`, or name it anew by `with_class_names`.",
                )
            return first
        break
    raise wrong_value(
        "source",
        "a benchmark, stream, experience or data set that knows its class names",
        f"a {type(source).__name__} without names",
        "Name its benchmark by `with_class_names(benchmark, names)`, "
        "or pass a list of names to `model.set_classes`.",
    )


def name_dataset(dataset: AnyDataset, names: ClassNames) -> AnyDataset:
    """Return a copy of a host data set whose samples carry ``names``; the samples stay as they are.

    Args:
        dataset: a data set with N samples whose labels are ids of ``names``.
        names: the names of all classes.

    Raises:
        ValueError: a label has no name.
    """
    targets = getattr(dataset, "targets", None)
    check_labels(names, targets.uniques if isinstance(targets, DataAttribute) else ())
    attribute: DataAttribute[ClassNames] = DataAttribute(ConstantSequence(names, len(dataset)), ATTRIBUTE)
    named = dataset.update_data_attribute(ATTRIBUTE, attribute)
    # The host sets the Python attribute only if there is none, and concatenation reads that one:
    # a data set that is named anew would fall back to its old names.
    setattr(named, ATTRIBUTE, attribute)
    return named


def check_labels(names: ClassNames, labels: Iterable[int], where: str = "the data") -> None:
    """Raise `ValueError` unless every label is an id of ``names``."""
    outside = sorted({int(label) for label in labels} - set(range(len(names))))
    if outside:
        shown = ", ".join(map(str, outside[:5])) + (", ..." if len(outside) > 5 else "")
        raise wrong_value(
            "class_names",
            f"a name for every label of {where}, by class id",
            f"{len(names)} names (ids 0 to {len(names) - 1}) and the label{'s' * (len(outside) > 1)} {shown}",
            "Name every class once, in the order of the class ids; ids start at 0.",
        )


def _datasets(source: Any) -> Iterator[AvalancheDataset[Any]]:
    """Yield the data sets of ``source``, those of the train stream first, each built when asked for."""
    if isinstance(source, AvalancheDataset):
        yield source
    elif isinstance(source, CLScenario):
        streams = source.streams
        for name in sorted(streams, key=lambda name: name != "train"):
            yield from _datasets(streams[name])
    elif isinstance(source, CLStream):
        if isinstance(source.exps_iter, Iterator):
            raise wrong_value(
                "source",
                "a stream that can be read twice",
                f"the stream {source.name!r} over a one-pass iterator, which looking would consume",
                "Ask one of its experiences, or the benchmark that it was made from.",
            )
        for experience in source:
            yield from _datasets(experience)
    elif isinstance(dataset := getattr(source, "dataset", None), AvalancheDataset):
        yield dataset
    else:
        raise wrong_type("source", "an Avalanche benchmark, stream, experience or data set", source)
