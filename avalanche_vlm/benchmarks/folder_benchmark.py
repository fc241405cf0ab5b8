"""A class-incremental benchmark from folders of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from typing_extensions import Unpack

from avalanche_vlm._checks import check_count, wrong_value
from avalanche_vlm.benchmarks.class_folders import (
    AnyPath,
    LabelledFiles,
    class_folders,
    names_of_folders,
    read_class_folders,
)
from avalanche_vlm.benchmarks.class_incremental import (
    ClassIncrementalArguments,
    Transform,
    class_incremental,
)
from avalanche_vlm.benchmarks.stratified_split import stratified_split

DEFAULT_TEST_FRACTION = 0.2
_TEST_PARTS = ("test", "val", "valid", "validation")


def folder_benchmark(
    train: AnyPath,
    test: AnyPath | None = None,
    *,
    class_names: Sequence[str] | Mapping[str, str] | None = None,
    test_fraction: float | None = None,
    split_seed: int = 0,
    **stream: Unpack[ClassIncrementalArguments],
) -> NCScenario:
    """Return a class-incremental benchmark from your own images, in one folder per class.

    Class ids follow the sorted names of the class folders. Images are read when they are needed and
    come as PIL images, so both transforms are needed: ``train_transform=model.train_transform,
    eval_transform=model.eval_transform``.

    Args:
        train: a folder with one folder of images per class; images may lie deeper, and hidden
            folders do not count.
        test: the same for the test stream, with the same class folders. Without it ``train`` is
            split.
        class_names: one name per class folder, as a list in the order of the sorted folders or as a
            mapping from folder to name. By default the folder's own name, without a number in front
            and with spaces for underscores: ``"000_golden_retriever"`` is named "golden retriever".
        test_fraction: where there is no ``test``, the share of each class that is kept for testing
            (0.2 if left out).
        split_seed: seed of that split; the same folders and seed give the same split everywhere.
        **stream: how the classes are dealt out: see `ClassIncrementalArguments`.

    Returns:
        The host's ``nc_benchmark`` over these images.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: no such folder, no class folders, a class folder without images, class folders
            that differ between ``train`` and ``test``, a folder whose folders are the parts of a data
            set and not its classes, names that do not fit the folders, a class with too few images to
            be split, no transform, or classes that cannot be dealt out as asked.

    Example::

        benchmark = folder_benchmark(
            "pets", n_experiences=4,
            train_transform=model.train_transform, eval_transform=model.eval_transform,
        )
    """
    check_count("split_seed", split_seed, at_least=0)
    folders = class_folders(train, "train")
    _check_no_parts(train, folders)
    if test is not None:
        class_folders(test, "test")
    check_image_transforms(stream.get("train_transform"), stream.get("eval_transform"))
    names = names_of_folders(folders, class_names)
    train_files = read_class_folders(train, folders, "train")
    if test is None:
        train_files, test_files = split_files(train_files, folders, test_fraction, split_seed)
    elif test_fraction is not None:
        raise wrong_value("test_fraction", "left out where `test` is given", test_fraction)
    else:
        test_files = read_class_folders(test, folders, "test")
    return class_incremental(train_files, test_files, names, **stream)


def _check_no_parts(root: AnyPath, folders: Sequence[str]) -> None:
    """Refuse ``root/{train,test}/class/image``, which would make two classes "train" and "test"."""
    parts = {folder.lower(): Path(root).expanduser() / folder for folder in folders}
    test = next((parts[part] for part in _TEST_PARTS if part in parts), None)
    if "train" not in parts or test is None or not set(parts) <= {"train", *_TEST_PARTS}:
        return
    if any(path.is_dir() for path in parts["train"].iterdir()):  # else a class of that name
        raise wrong_value(
            "train",
            "a folder with one folder of images per class",
            f"{str(root)!r}, whose folders {', '.join(map(repr, folders))} are the parts of a data set",
            f"Pass folder_benchmark({str(Path(root) / parts['train'].name)!r}, "
            f"{str(Path(root) / test.name)!r}).",
        )


def check_image_transforms(train_transform: Transform | None, eval_transform: Transform | None) -> None:
    """Raise `ValueError` unless both transforms are given, which image files need to become tensors."""
    # Otherwise the host's loader fails at the first minibatch, in words of its own.
    for argument, transform in (("train_transform", train_transform), ("eval_transform", eval_transform)):
        if transform is None:
            raise wrong_value(
                argument,
                "given, because images from folders are PIL images, which make no minibatch",
                None,
                "Pass train_transform=model.train_transform, eval_transform=model.eval_transform.",
            )


def split_files(
    files: LabelledFiles, folders: Sequence[str], test_fraction: float | None, split_seed: int
) -> tuple[LabelledFiles, LabelledFiles]:
    """Return a train and a test part with the same share of every class."""
    train, test = stratified_split(
        files.targets,
        test_fraction=DEFAULT_TEST_FRACTION if test_fraction is None else test_fraction,
        split_seed=split_seed,
        class_labels=folders,
    )
    return files.subset(train), files.subset(test)
