"""Class-incremental benchmarks over known data sets, by name."""

from __future__ import annotations

from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from typing_extensions import Unpack

from avalanche_vlm.benchmarks.class_folders import AnyPath
from avalanche_vlm.benchmarks.class_incremental import ClassIncrementalArguments, class_incremental
from avalanche_vlm.benchmarks.folder_benchmark import check_image_transforms
from avalanche_vlm.benchmarks.known_datasets import KNOWN_DATASETS, check_known_dataset, load_known_dataset


def known_benchmark(
    name: str,
    root: AnyPath,
    *,
    download: bool = False,
    **stream: Unpack[ClassIncrementalArguments],
) -> NCScenario:
    """Return a class-incremental benchmark over a known data set.

    Class ids are torchvision's, or those of the sorted class folders; class names are those of
    `dataset_text`. ``KNOWN_DATASETS[name].split`` says which samples are train and test. Images of
    CIFAR and MNIST come as uint8 tensors (3, H, W); all others are files, which are read when they
    are needed and come as PIL images, so that both transforms are needed. PACS, whose stream goes
    through domains, is for `domain_folder_benchmark`.

    Args:
        name: a key of `KNOWN_DATASETS`; case, spaces, "-" and "_" do not count, so that "CIFAR-100"
            will do.
        root: the folder that holds the data set's folder (``KNOWN_DATASETS[name].folder``).
        download: let torchvision fetch the data if they are not there; where it cannot, the error
            says how to get them.
        **stream: how the classes are dealt out: see `ClassIncrementalArguments`.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an unknown name, data that are not in ``root``, other classes than the data set
            has, no transform for image files, or classes that cannot be dealt out as asked.
        RuntimeError: the download failed.

    Example::

        benchmark = known_benchmark(
            "cifar100", "data", download=True, n_experiences=10,
            train_transform=model.train_transform, eval_transform=model.eval_transform,
        )
    """
    name = check_known_dataset(name, root, download=download)
    if not KNOWN_DATASETS[name].in_memory:
        check_image_transforms(stream.get("train_transform"), stream.get("eval_transform"))
    train, test, names = load_known_dataset(name, root, download=download)
    return class_incremental(train, test, names, **stream)
