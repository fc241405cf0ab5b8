"""Names for a benchmark that was made by other means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from avalanche.benchmarks import CLScenario, CLStream, EagerCLStream, SequenceCLStream
from avalanche.benchmarks.scenarios.deprecated.dataset_scenario import StreamDef
from avalanche.benchmarks.scenarios.generic_scenario import make_stream
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_vlm._checks import check_choice, wrong_type, wrong_value
from avalanche_vlm._host import generated_on_demand
from avalanche_vlm._host_benchmarks import AnyBenchmark, definition_over, experience_over, with_streams
from avalanche_vlm.benchmarks.class_names import name_dataset
from avalanche_vlm.text import ClassNames


def with_class_names(
    benchmark: AnyBenchmark, names: Iterable[str], *, ids: Literal["original", "new"] | None = None
) -> AnyBenchmark:
    """Return a copy of ``benchmark`` that knows its class names; see `class_names`.

    The copy is of the same class, has the same streams and shares the data; ``benchmark`` itself is
    left as it is. Names that it had before are replaced. Streams that are generated on demand stay
    so, and their labels are checked when they are generated.

    Args:
        benchmark: any benchmark of the host with labelled data: ``nc_benchmark``, the classic
            benchmarks, ``benchmark_from_datasets``, ``class_incremental_benchmark``, ...
        names: one name for each id from 0 to the largest label.
        ids: of a benchmark whose ids are not those of its data set, which ones the names go by.
            ``nc_benchmark`` with ``class_ids_from_zero_from_first_exp=True`` numbers the classes anew, in
            the order in which they come. ``"original"``: name i is that of label i of the data set
            (``dataset.classes``, for instance), and is given to the id that the benchmark has for it.
            ``"new"``: name i is that of id i of the benchmark. None for all other benchmarks.

    Raises:
        TypeError: ``benchmark`` is not a benchmark.
        ValueError: there are fewer or more names than class ids; ``ids`` is missing where it makes a
            difference; or an id means another class in each experience
            (``class_ids_from_zero_in_each_exp=True``).

    >>> import torch
    >>> from avalanche.benchmarks import nc_benchmark
    >>> from torch.utils.data import TensorDataset
    >>> from avalanche_vlm.benchmarks import class_names
    >>> data = TensorDataset(torch.eye(2), torch.tensor([0, 1]))
    >>> plain = nc_benchmark(data, data, n_experiences=2, task_labels=False, shuffle=False)
    >>> class_names(with_class_names(plain, ["cat", "dog"])).names
    ('cat', 'dog')
    """
    if not isinstance(benchmark, CLScenario):
        raise wrong_type("benchmark", "an Avalanche benchmark", benchmark)
    names = names if isinstance(names, ClassNames) else ClassNames(names)
    if ids is not None:
        check_choice("ids", ids, ("original", "new"))
    names = _by_new_id(benchmark, names, ids)
    _check_name_count(benchmark, names)
    return with_streams(
        benchmark,
        definitions=lambda known: {name: _named_definition(each, names) for name, each in known.items()},
        streams=lambda _: [_named_stream(stream, names) for stream in benchmark.streams.values()],
    )


def _by_new_id(benchmark: CLScenario[Any], names: ClassNames, ids: str | None) -> ClassNames:
    """Return names by the ids that a benchmark has, whichever ids they were given by."""
    if getattr(benchmark, "class_ids_from_zero_in_each_exp", False):
        raise wrong_value(
            "benchmark",
            "one in which an id means the same class in every experience",
            "one with class_ids_from_zero_in_each_exp=True",
            "Make it without that argument: CLIP compares an image with all names.",
        )
    # Original id -> id of the benchmark, -1 for classes that it has not.
    mapping: Sequence[int] = getattr(benchmark, "class_mapping", ())
    moved = [(old, new) for old, new in enumerate(mapping) if new not in (-1, old)]
    if not moved or ids == "new":
        return names
    if ids is None:
        old, new = moved[0]
        raise wrong_value(
            "ids",
            "given, because this benchmark has numbered the classes of its data set anew",
            f"None, where class {old} of the data set has the id {new}",
            "Say ids='original' if the names are in the order of the data set's labels (dataset.classes), or "
            "ids='new' if they are in the order of the benchmark's ids (its classes_order_original_ids).",
        )
    if len(names) != len(mapping):
        raise wrong_value(
            "names",
            f"{len(mapping)} names, one for each label of the data set from 0 to {len(mapping) - 1}",
            f"{len(names)} names",
            "Name every class of the data set once, in the order of its labels.",
        )
    order = sorted((new, old) for old, new in enumerate(mapping) if new != -1)
    datasets = [names.datasets[old] for _, old in order] if names.datasets else ()
    return ClassNames([names[old] for _, old in order], datasets)


def _check_name_count(benchmark: CLScenario[Any], names: ClassNames) -> None:
    labels: set[int] = set()
    for stream in benchmark.streams.values():
        if not isinstance(stream, SequenceCLStream) or _is_lazy(stream):
            continue
        for experience in stream:
            targets = getattr(getattr(experience, "dataset", None), "targets", None)
            if targets is None:
                raise wrong_value(
                    "benchmark",
                    "a benchmark with labelled data",
                    f"an experience of the stream {stream.name!r} whose data have no `targets`",
                )
            labels.update(map(int, targets.uniques))
    if labels and len(names) != max(labels) + 1:
        raise wrong_value(
            "names",
            f"{max(labels) + 1} names, one for each class id from 0 to the largest label {max(labels)}",
            f"{len(names)} names",
            "Name every class once, in the order of the class ids.",
        )


def _is_lazy(stream: CLStream[Any]) -> bool:
    return generated_on_demand(getattr(stream, "benchmark", None), stream.name)


def _named_definition(definition: StreamDef[Any], names: ClassNames) -> StreamDef[Any]:
    origin = definition.origin_dataset
    targets = getattr(origin, "targets", None)
    # A class that no experience has is -1 there, and has no name.
    if isinstance(origin, AvalancheDataset) and targets is not None and -1 not in targets.uniques:
        origin = name_dataset(origin, names)
    datasets = _named_datasets(definition.exps_data, names)
    return definition_over(definition, datasets, origin, on_demand=definition.is_lazy)


def _named_datasets(datasets: Iterable[Any], names: ClassNames) -> Iterator[Any]:
    for dataset in datasets:
        yield name_dataset(dataset, names)


def _named_stream(stream: CLStream[Any], names: ClassNames) -> CLStream[Any]:
    experiences = (experience_over(each, name_dataset(each.dataset, names)) for each in stream)
    if isinstance(stream, SequenceCLStream):
        return EagerCLStream(stream.name, list(experiences))
    return make_stream(stream.name, experiences)
