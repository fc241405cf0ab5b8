"""Names for a benchmark that was made by other means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from avalanche.benchmarks import CLScenario, CLStream, EagerCLStream, SequenceCLStream
from avalanche.benchmarks.scenarios.deprecated.dataset_scenario import StreamDef
from avalanche.benchmarks.scenarios.generic_scenario import make_stream
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_vlm._checks import wrong_type, wrong_value
from avalanche_vlm._host import generated_on_demand
from avalanche_vlm._host_benchmarks import AnyBenchmark, definition_over, experience_over, with_streams
from avalanche_vlm.benchmarks.class_names import name_dataset
from avalanche_vlm.text import ClassNames


def with_class_names(benchmark: AnyBenchmark, names: Iterable[str]) -> AnyBenchmark:
    """Return a copy of ``benchmark`` that knows its class names; see `class_names`.

    The copy is of the same class, has the same streams and shares the data; ``benchmark`` itself is
    left as it is. Names that it had before are replaced. Streams that are generated on demand stay
    so, and their labels are checked when they are generated.

    Args:
        benchmark: any benchmark of the host with labelled data: ``nc_benchmark``, the classic
            benchmarks, ``benchmark_from_datasets``, ``class_incremental_benchmark``, ...
        names: one name for each id from 0 to the largest label. Beware that ``nc_benchmark`` with
            ``class_ids_from_zero_from_first_exp=True`` has given the classes new ids: name them in
            the new order (``benchmark.classes_order_original_ids``).

    Raises:
        TypeError: ``benchmark`` is no benchmark.
        ValueError: there are fewer or more names than class ids.

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
    _check_name_count(benchmark, names)
    return with_streams(
        benchmark,
        definitions=lambda known: {name: _named_definition(each, names) for name, each in known.items()},
        streams=lambda _: [_named_stream(stream, names) for stream in benchmark.streams.values()],
    )


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
    if isinstance(origin, AvalancheDataset) and hasattr(origin, "targets"):
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
