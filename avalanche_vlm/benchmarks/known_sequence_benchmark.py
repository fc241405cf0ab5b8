"""A stream over several known data sets, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from typing_extensions import Unpack

from avalanche_vlm._checks import check_type, wrong_type, wrong_value
from avalanche_vlm.benchmarks.class_folders import AnyPath
from avalanche_vlm.benchmarks.class_incremental import StreamArguments
from avalanche_vlm.benchmarks.folder_benchmark import check_image_transforms
from avalanche_vlm.benchmarks.known_datasets import KNOWN_DATASETS, check_known_dataset, load_known_dataset
from avalanche_vlm.benchmarks.multi_dataset_benchmark import multi_dataset_benchmark
from avalanche_vlm.text import ClassNames
from avalanche_vlm.text.dataset_name import dataset_name


def known_sequence_benchmark(
    names: Sequence[str],
    root: AnyPath,
    *,
    download: bool = False,
    class_names: Mapping[str, Iterable[str]] | None = None,
    n_experiences_per_dataset: int = 1,
    seed: int | None = None,
    allow_shared_names: bool = False,
    **stream: Unpack[StreamArguments],
) -> NCScenario:
    """Return a benchmark that goes through several known data sets, in one label space.

    The data sets are read as by `known_benchmark` and joined as by `multi_dataset_benchmark`.

    Args:
        names: keys of `KNOWN_DATASETS`, in the order in which the data sets arrive; spelled as freely
            as for `known_benchmark`.
        root: the folder that holds the folders of all data sets.
        download: let torchvision fetch what is not there.
        class_names: for some of ``names``, other class names than those of `dataset_text`, by class
            id.
        n_experiences_per_dataset: see `multi_dataset_benchmark`.
        seed: likewise.
        allow_shared_names: likewise; many data sets have a class in common ("rose" is one in
            CIFAR-100 and in Oxford 102 Flower).
        **stream: see `StreamArguments`; image files need both transforms.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an unknown or repeated name, data that are missing, class names of another number
            than classes, no transform for image files, or what `multi_dataset_benchmark` refuses.
        RuntimeError: a download failed.

    Example::

        benchmark = known_sequence_benchmark(
            ["dtd", "eurosat", "mnist"], "data", download=True,
            train_transform=model.train_transform, eval_transform=model.eval_transform,
        )
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise wrong_type("names", "a list of names of data sets", names)
    names = [dataset_name("names", name, KNOWN_DATASETS) for name in names]
    if not names or len(set(names)) != len(names):
        raise wrong_value("names", "at least one data set, each at most once", names)
    check_type("class_names", class_names, (Mapping, type(None)))
    renamed: dict[str, ClassNames] = {}
    for spelled, own in (class_names or {}).items():
        name = dataset_name("class_names", spelled, names)
        if name in renamed:
            raise wrong_value("class_names", "one list of names for each data set", f"two for {name!r}")
        renamed[name] = ClassNames(own)
    for name in names:
        check_known_dataset(name, root, download=download)
    if not all(KNOWN_DATASETS[name].in_memory for name in names):
        check_image_transforms(stream.get("train_transform"), stream.get("eval_transform"))
    datasets = {name: load_known_dataset(name, root, download=download) for name in names}
    for name, own in renamed.items():
        own.check_count(len(datasets[name].class_names), f"the data set {name!r}")
        datasets[name] = datasets[name]._replace(class_names=own)
    return multi_dataset_benchmark(
        datasets,
        n_experiences_per_dataset=n_experiences_per_dataset,
        seed=seed,
        allow_shared_names=allow_shared_names,
        **stream,
    )
