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
from avalanche_vlm.benchmarks.dataset_parts import check_no_parts
from avalanche_vlm.benchmarks.stratified_split import stratified_split

DEFAULT_TEST_FRACTION = 0.2


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
        train: a folder with one folder of images per class; images may lie deeper. Hidden files and
            folders do not count at any depth, nor what systems leave behind (``__MACOSX``, ``@eaDir``,
            ...). Images become RGB, upright and on white, whatever their mode: 16-bit grey values are
            scaled by their range.
        test: the same for the test stream, with the same class folders. Without it ``train`` is
            split.
        class_names: one name per class folder, as a list in the order of the sorted folders (refused
            where that is not the order of the numbers in their names) or as a mapping from folder to name,
            which also says that these folders are classes whatever they look like. By default the folder's
            own name, without a number in front and with spaces for underscores:
            ``"000_golden_retriever"`` is named "golden retriever".
        test_fraction: where there is no ``test``, the share of each class that is kept for testing
            (0.2 if left out).
        split_seed: seed of that split; the same folders and seed give the same split everywhere.
        **stream: how the classes are dealt out: see `ClassIncrementalArguments`.

    Warns:
        UserWarning: pictures are left out because their format is not read.

    Returns:
        The host's ``nc_benchmark`` over these images.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: no such folder, no class folders, a class folder without images, class folders
            that differ between ``train`` and ``test``, one folder for both, a folder whose folders look
            like the parts of a data set and not like its classes, names that do not fit the folders, a
            class with too few images to be split, no transform, or classes that cannot be dealt out as
            asked. While images are read: one that cannot be, which is named.

    Example::

        benchmark = folder_benchmark(
            "pets", n_experiences=4,
            train_transform=model.train_transform, eval_transform=model.eval_transform,
        )
    """
    check_count("split_seed", split_seed, at_least=0)
    folders = class_folders(train, "train")
    check_no_parts(train, class_names)
    if test is not None:
        class_folders(test, "test")
        check_no_parts(test, class_names, "test")
    check_image_transforms(stream.get("train_transform"), stream.get("eval_transform"))
    names = names_of_folders(folders, class_names)
    train_files = read_class_folders(train, folders, "train")
    if test is None:
        train_files, test_files = split_files(train_files, folders, test_fraction, split_seed)
    elif test_fraction is not None:
        raise wrong_value("test_fraction", "left out where `test` is given", test_fraction)
    else:
        _check_apart(train, test)
        test_files = read_class_folders(test, folders, "test")
    return class_incremental(train_files, test_files, names, **stream)


def _check_apart(train: AnyPath, test: AnyPath) -> None:
    one, other = (Path(each).expanduser().resolve() for each in (train, test))
    if one == other or one in other.parents or other in one.parents:
        raise wrong_value(
            "test",
            "another folder than `train`, and none inside it, so that no image is both trained and tested on",
            repr(str(test)),
            "Leave `test` out: the images of `train` are then split.",
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
