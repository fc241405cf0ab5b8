"""How known data sets are listed: as image files with labels, without opening an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils.data import random_split

from avalanche_vlm.benchmarks.class_folders import LabelledFiles, class_folders, read_class_folders
from avalanche_vlm.benchmarks.labelled_tensors import LabelledTensors

SPLIT_SEED = 42
TRAIN_SHARE = 0.8


class LabelledParts(NamedTuple):
    """A data set as it was found.

    Attributes:
        train: the train part.
        test: the test part.
        labels: what torchvision or the folders call the classes, by class id; None if neither says.
    """

    train: LabelledTensors | LabelledFiles
    test: LabelledTensors | LabelledFiles
    labels: Sequence[str] | None


Reader = Callable[[Path, bool], LabelledParts]
"""Maps the root folder, and whether to download, to the parts of a data set."""


@final
@dataclass(frozen=True)
class InMemoryImages:
    """A data set of torchvision that keeps its images in one array, (N, H, W, 3) or grey (N, H, W).

    Attributes:
        factory: torchvision's class, called with ``root``, ``train`` and ``download``.
    """

    factory: Callable[..., Any]

    def __call__(self, root: Path, download: bool) -> LabelledParts:
        """Read both parts."""
        train = self.factory(root=root, train=True, download=download)
        test = self.factory(root=root, train=False, download=download)
        return LabelledParts(_labelled_images(train), _labelled_images(test), train.classes)


@final
@dataclass(frozen=True)
class OfficialSplits:
    """A data set of torchvision that has a train and a test part of its own.

    Attributes:
        factory: torchvision's class, called with ``root``, ``split`` and ``download``.
        train_split: what ``factory`` calls the train part.
    """

    factory: Callable[..., Any]
    train_split: str = "train"

    def __call__(self, root: Path, download: bool) -> LabelledParts:
        """List both parts."""
        train = self.factory(root=root, split=self.train_split, download=download)
        test = self.factory(root=root, split="test", download=download)
        # Older releases of torchvision have no names for Flowers102.
        return LabelledParts(_listed_files(train), _listed_files(test), getattr(train, "classes", None))


@final
@dataclass(frozen=True)
class RandomSplit:
    """A data set of torchvision without parts, of which 80 % are drawn for training.

    Attributes:
        factory: torchvision's class, called with ``root`` and ``download``.
    """

    factory: Callable[..., Any]

    def __call__(self, root: Path, download: bool) -> LabelledParts:
        """List the data set and draw both parts."""
        dataset = self.factory(root=root, download=download)
        labels = dataset.categories if hasattr(dataset, "categories") else dataset.classes
        return LabelledParts(*draw_split(_listed_files(dataset)), labels)


@final
@dataclass(frozen=True)
class ClassFolders:
    """Plain folders ``root/name/part/label/image``.

    Attributes:
        folder: the data set's folder below the root.
        test_part: what the folder of the test part is called.
    """

    folder: str
    test_part: str = "test"

    def __call__(self, root: Path, download: bool) -> LabelledParts:
        """List both parts; nothing can be downloaded."""
        folder = root / self.folder
        labels = class_folders(folder / "train", "root")
        train, test = (
            read_class_folders(folder / part, labels, "root") for part in ("train", self.test_part)
        )
        return LabelledParts(train, test, labels)


def draw_split(files: LabelledFiles) -> tuple[LabelledFiles, LabelledFiles]:
    """Return a train part of ⌊0.8 · N⌋ files and a test part of the rest, drawn with the seed 42.

    The files are sorted by path first, so that the draw is the same on every machine.
    """
    order = sorted(range(len(files)), key=lambda index: Path(files.paths[index]).as_posix())
    files = files.subset(order)
    count = int(TRAIN_SHARE * len(files))
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    train, test = random_split(files, [count, len(files) - count], generator=generator)
    return files.subset(train.indices), files.subset(test.indices)


def _labelled_images(dataset: Any) -> LabelledTensors:
    images, labels = dataset.data, dataset.targets
    if isinstance(images, Tensor) and images.ndim == 3:
        images = images[:, None].expand(-1, 3, -1, -1)  # as PIL turns grey into RGB, without a copy
    return LabelledTensors(images, labels)


def _listed_files(dataset: Any) -> LabelledFiles:
    # torchvision has the list of files and labels under a name that differs from class to class.
    if hasattr(dataset, "categories"):  # Caltech101
        folder = Path(dataset.root) / "101_ObjectCategories"
        numbered = zip(dataset.y, dataset.index, strict=True)
        paths = [folder / dataset.categories[y] / f"image_{number:04d}.jpg" for y, number in numbered]
        return _files(paths, dataset.y)
    samples = getattr(dataset, "samples", None) or getattr(dataset, "_samples", None)
    if samples:  # EuroSAT, StanfordCars
        return _files([path for path, _ in samples], [label for _, label in samples])
    paths = dataset._image_files if hasattr(dataset, "_image_files") else dataset._images  # OxfordIIITPet
    return _files(paths, dataset._labels)


def _files(paths: Sequence[Any], labels: Sequence[Any]) -> LabelledFiles:
    return LabelledFiles([str(path) for path in paths], [int(label) for label in labels])
