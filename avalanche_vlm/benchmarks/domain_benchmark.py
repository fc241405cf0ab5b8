"""Domain-incremental benchmarks: the same classes in every experience, one experience a domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche.benchmarks.scenarios.deprecated.classification_scenario import GenericCLScenario
from typing_extensions import Unpack

from avalanche_vlm._checks import check_sequence, check_type, close_names, wrong_type, wrong_value
from avalanche_vlm.benchmarks.class_folders import (
    AnyPath,
    class_folders,
    composed,
    names_of_folders,
    read_class_folders,
)
from avalanche_vlm.benchmarks.class_incremental import (
    StreamArguments,
    Transform,
    check_every_class_present,
    check_stream_arguments,
    host_dataset,
)
from avalanche_vlm.benchmarks.dataset_parts import check_domains
from avalanche_vlm.benchmarks.folder_benchmark import check_image_transforms, split_files
from avalanche_vlm.benchmarks.labelled_tensors import check_one_shape
from avalanche_vlm.benchmarks.tensor_benchmark import as_dataset, has_transform, is_sequence_of
from avalanche_vlm.text import ClassNames


def domain_benchmark(
    domains: Mapping[str, tuple[Any, Any]],
    *,
    class_names: Iterable[str],
    **stream: Unpack[StreamArguments],
) -> GenericCLScenario[Any, Any, Any]:
    """Return a domain-incremental benchmark: one experience per domain, in the order given.

    Args:
        domains: from the name of each domain to its train and test part. A part is a pair (x, y) of
            arrays or tensors as for `tensor_benchmark`, or a data set of (x, y) with ``targets``.
            Every part has samples of every class.
        class_names: one name per class id, the same for all domains.
        **stream: see `StreamArguments`. With ``task_labels=True`` the task label is the index of
            the domain.

    Returns:
        A ``GenericCLScenario`` of the host, whose experiences have what those of ``nc_benchmark``
        have: task labels in each sample, the classes of the experience, and the benchmark itself.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: no domain, wrong or different shapes, a label without a name, or a domain that
            lacks a class.

    >>> import torch
    >>> day, night = torch.eye(2), -torch.eye(2)
    >>> parts = {"day": ((day, [0, 1]), (day, [0, 1])), "night": ((night, [0, 1]), (night, [0, 1]))}
    >>> benchmark = domain_benchmark(parts, class_names=["cat", "dog"])
    >>> [experience.classes_in_this_experience for experience in benchmark.train_stream]
    [[0, 1], [0, 1]]
    """
    check_type("domains", domains, Mapping)
    if not domains:
        raise wrong_value("domains", "at least one domain", "an empty mapping")
    for domain, parts in domains.items():
        if not is_sequence_of(parts, 2):
            raise wrong_type(f"domains[{domain!r}]", "a pair (train, test)", parts)
    datasets = {
        domain: (
            as_dataset(train, f"domains[{domain!r}] train"),
            as_dataset(test, f"domains[{domain!r}] test"),
        )
        for domain, (train, test) in domains.items()
    }
    check_one_shape(
        {
            f"domains[{domain!r}] {part}": dataset
            for domain, pair in datasets.items()
            for part, dataset in zip(("train", "test"), pair, strict=True)
        },
        transformed=has_transform(stream),
    )
    return _domain_incremental(datasets, ClassNames(class_names), **stream)


def domain_folder_benchmark(
    root: AnyPath,
    *,
    domains: Sequence[str] | None = None,
    class_names: Sequence[str] | Mapping[str, str] | None = None,
    test_fraction: float | None = None,
    split_seed: int = 0,
    **stream: Unpack[StreamArguments],
) -> GenericCLScenario[Any, Any, Any]:
    """Return a domain-incremental benchmark from folders ``root/domain/class/image``, as of PACS.

    Args:
        root: a folder with one folder per domain, and in each of them the same class folders.
        domains: folders of the domains, in the order in which they arrive; all, sorted, by default, and
            then none may be called like a part of a data set ("train", "test").
        class_names: one name per class folder: see `folder_benchmark`.
        test_fraction: share of each class of each domain that is kept for testing (0.2 if left out).
        split_seed: seed of that split.
        **stream: see `StreamArguments`; images come as PIL images, so both transforms are needed.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: no such folder or domain, folders that look like the parts of a data set and not like
            domains or classes, class folders that differ between domains or hold no image, names that do
            not fit the folders, a class with too few images to be split, or no transform.

    Example::

        benchmark = domain_folder_benchmark(
            "pacs", domains=["photo", "art_painting", "cartoon", "sketch"],
            train_transform=model.train_transform, eval_transform=model.eval_transform,
        )
    """
    found = class_folders(root, "root")
    if domains is not None:
        check_sequence("domains", domains, str, "domain folders")
    spelled = {composed(domain): domain for domain in found}
    chosen = found if domains is None else [spelled.get(composed(each), each) for each in domains]
    unknown = [domain for domain in chosen if domain not in found]
    if unknown or not chosen or len(set(chosen)) != len(chosen):
        got = f"{unknown[0]!r}" if unknown else f"{chosen}"
        advice = close_names(unknown[0], found) if unknown else ""
        raise wrong_value("domains", f"folders in {str(root)!r}, each at most once", got, advice)
    check_domains(root, chosen, chosen=domains is not None, class_names=class_names)
    folders = class_folders(Path(root).expanduser() / chosen[0], "root")
    check_image_transforms(stream.get("train_transform"), stream.get("eval_transform"))
    names = names_of_folders(folders, class_names)
    datasets = {
        domain: split_files(
            read_class_folders(Path(root).expanduser() / domain, folders, "root"),
            [f"{domain}/{folder}" for folder in folders],
            test_fraction,
            split_seed,
        )
        for domain in chosen
    }
    return _domain_incremental(datasets, names, **stream)


def _domain_incremental(
    datasets: Mapping[str, tuple[Any, Any]],
    names: ClassNames,
    *,
    task_labels: bool = False,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> GenericCLScenario[Any, Any, Any]:
    check_stream_arguments(task_labels, train_transform, eval_transform)
    for domain, (train, test) in datasets.items():
        check_every_class_present(train, test, range(len(names)), names, where=f" of domain {domain!r}")
    groups = {"train": (train_transform, None), "eval": (eval_transform, None)}
    # The host's `dataset_benchmark` would hand out the test stream with the train transform.
    streams = {
        stream: [
            host_dataset(
                parts[position],
                names,
                task_labels=index if task_labels else 0,
                transform_groups=groups,
                initial_transform_group=group,
            )
            for index, parts in enumerate(datasets.values())
        ]
        for position, (stream, group) in enumerate((("train", "train"), ("test", "eval")))
    }
    benchmark = GenericCLScenario(stream_definitions={name: (parts,) for name, parts in streams.items()})
    setattr(benchmark, "n_classes", len(names))  # noqa: B010  (what the host's own scenarios have)
    return benchmark
