"""The table of known data sets: how each is read, which split is used, where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple, final

from torchvision.datasets import (
    CIFAR10,
    CIFAR100,
    DTD,
    MNIST,
    SUN397,
    Caltech101,
    EuroSAT,
    FGVCAircraft,
    Flowers102,
    Food101,
    OxfordIIITPet,
    StanfordCars,
)

from avalanche_vlm._checks import check_type, wrong_value
from avalanche_vlm.benchmarks.class_folders import AnyPath, LabelledFiles
from avalanche_vlm.benchmarks.known_dataset_readers import (
    ClassFolders,
    InMemoryImages,
    OfficialSplits,
    RandomSplit,
    Reader,
)
from avalanche_vlm.benchmarks.labelled_tensors import LabelledTensors
from avalanche_vlm.text import ClassNames, dataset_text
from avalanche_vlm.text.dataset_name import dataset_name

_RANDOM = (
    "no official parts: of N images sorted by path, int(0.8 · N) are drawn for training by "
    "torch.utils.data.random_split with a generator of seed 42"
)
_OFFICIAL = "the official train and test parts"
_NO_VALIDATION = "the official train and test parts; the validation part is not used"
_FOLDERS = "the train and test folders, as the authors of class-incremental methods prepare them"


class NamedParts(NamedTuple):
    """A train part, a test part, and the names of their classes by class id."""

    train: LabelledTensors | LabelledFiles
    test: LabelledTensors | LabelledFiles
    class_names: ClassNames


@final
@dataclass(frozen=True)
class KnownDataset:
    """One row of the table.

    Attributes:
        read: lists both parts below a root folder.
        folder: where the data lie below the root.
        split: which samples are for training and which for testing.
        page: where the data come from.
        by_hand: how to get the data without torchvision, and the layout expected; empty where
            ``download=True`` fetches them.
    """

    read: Reader
    folder: str
    split: str
    page: str
    by_hand: str = ""

    @property
    def downloadable(self) -> bool:
        """Whether torchvision can fetch the data."""
        return not self.by_hand

    @property
    def in_memory(self) -> bool:
        """Whether images come as uint8 tensors; they are read from files as PIL images otherwise."""
        return isinstance(self.read, InMemoryImages)


#: The data sets that `known_benchmark` reads, by name, with how each is read and where to get it.
KNOWN_DATASETS: dict[str, KnownDataset] = {
    "aircraft": KnownDataset(
        OfficialSplits(FGVCAircraft),
        "fgvc-aircraft-2013b",
        _NO_VALIDATION,
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    ),
    "caltech101": KnownDataset(
        RandomSplit(Caltech101), "caltech101", _RANDOM, "https://data.caltech.edu/records/mzrjq-6wc02"
    ),
    "cifar10": KnownDataset(
        InMemoryImages(CIFAR10),
        "cifar-10-batches-py",
        _OFFICIAL,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": KnownDataset(
        InMemoryImages(CIFAR100),
        "cifar-100-python",
        _OFFICIAL,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cub200": KnownDataset(
        ClassFolders("cub200"),
        "cub200",
        _FOLDERS + "; train_test_split.txt of the data set says which image belongs to which",
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "Put the images into cub200/{train,test}/001.Black_footed_Albatross/ and so on",
    ),
    "dtd": KnownDataset(
        OfficialSplits(DTD),
        "dtd",
        _NO_VALIDATION + "; the first of the ten partitions",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    ),
    "eurosat": KnownDataset(RandomSplit(EuroSAT), "eurosat", _RANDOM, "https://github.com/phelber/eurosat"),
    "flowers102": KnownDataset(
        OfficialSplits(Flowers102),
        "flowers-102",
        _NO_VALIDATION,
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    "food101": KnownDataset(
        OfficialSplits(Food101),
        "food-101",
        _OFFICIAL,
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    ),
    "imagenet": KnownDataset(
        ClassFolders("imagenet", test_part="val"),
        "imagenet",
        "the official training images; the validation images for testing",
        "https://image-net.org/download.php",
        "It needs an account. Put the archives into the folder imagenet and unpack them by "
        "torchvision.datasets.ImageNet(root / 'imagenet', split) with the splits 'train' and 'val', "
        "which makes imagenet/{train,val}/n01440764/ and so on",
    ),
    "imagenet_r": KnownDataset(
        ClassFolders("imagenet_r"),
        "imagenet_r",
        _FOLDERS + "; the data set itself has no parts, and copies differ",
        "https://github.com/hendrycks/imagenet-r",
        "Put the images into imagenet_r/{train,test}/n01443537/ and so on",
    ),
    "mnist": KnownDataset(
        InMemoryImages(MNIST),
        "MNIST",
        _OFFICIAL + "; grey images are repeated over the three channels",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "oxford_pets": KnownDataset(
        OfficialSplits(OxfordIIITPet, train_split="trainval"),
        "oxford-iiit-pet",
        "the official trainval and test parts",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    "stanford_cars": KnownDataset(
        OfficialSplits(StanfordCars),
        "stanford_cars",
        _OFFICIAL,
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html (gone)",
        "The authors' server is gone and torchvision fetches nothing: pytorch/vision#7545 collects "
        "copies. Expected: stanford_cars/{devkit,cars_train,cars_test}/ and "
        "stanford_cars/cars_test_annos_withlabels.mat",
    ),
    "sun397": KnownDataset(
        RandomSplit(SUN397),
        "SUN397",
        _RANDOM + ". Published MTIL numbers do not sort: their split depends on the order in which a "
        "file system listed the images, and cannot be drawn again",
        "https://vision.princeton.edu/projects/2010/SUN/",
        "torchvision's link is dead (pytorch/vision#9348). Unpack SUN397.tar.gz from elsewhere; expected: "
        "SUN397/ClassName.txt and SUN397/a/abbey/ and so on",
    ),
    "ucf101": KnownDataset(
        ClassFolders("ucf101"),
        "ucf101",
        _FOLDERS + ", one frame a video",
        "https://www.crcv.ucf.edu/data/UCF101.php",
        "Put frames of the videos into ucf101/{train,test}/ApplyEyeMakeup/ and so on",
    ),
}
"""The data sets that `known_benchmark` and `known_sequence_benchmark` know, by name.

PACS is none of them, because its stream goes through domains: see `domain_folder_benchmark`.
"""


def load_known_dataset(name: str, root: AnyPath, *, download: bool = False) -> NamedParts:
    """Return both parts of a known data set, listed without opening an image, and its class names.

    Args:
        name: a key of `KNOWN_DATASETS`, in any spelling: see `dataset_name`.
        root: the folder that holds the data set's folder.
        download: let torchvision fetch the data if they are not there and it can.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an unknown name, data that are missing, or classes that are not those of the data
            set.
        RuntimeError: the download failed.
    """
    name = check_known_dataset(name, root, download=download)
    known, folder = KNOWN_DATASETS[name], Path(root).expanduser()
    fetch = download and known.downloadable
    try:
        train, test, labels = known.read(folder, fetch)
    except (OSError, RuntimeError) as error:
        if fetch:
            raise RuntimeError(
                f"Fetching the data set {name!r} into {str(folder)!r} failed ({error}). Try again, or get it "
                f"from {known.page} and unpack it to {str(folder / known.folder)!r}."
            ) from error
        raise _missing(name, folder, download) from error
    text = dataset_text(name)
    if labels is not None:
        text.check_labels(labels, repr(str(folder / known.folder)))
    return NamedParts(train, test, text.class_names)


def check_known_dataset(name: str, root: AnyPath, *, download: bool = False) -> str:
    """Return the data set's key in `KNOWN_DATASETS`, before anything of it is read or fetched.

    Args:
        name: see `load_known_dataset`, as for the arguments that follow.
        root: likewise.
        download: likewise.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an unknown name, or a folder that is missing and is not to be fetched.
    """
    name = dataset_name("name", name, KNOWN_DATASETS)
    check_type("root", root, (str, PathLike))
    check_type("download", download, bool)
    known, folder = KNOWN_DATASETS[name], Path(root).expanduser()
    # Asked here, because some classes of torchvision make their folder before they miss the data.
    if not (download and known.downloadable) and not (folder / known.folder).is_dir():
        raise _missing(name, folder, download)
    return name


def _missing(name: str, root: Path, download: bool) -> ValueError:
    known = KNOWN_DATASETS[name]
    advice = [known.by_hand or "Pass download=True to fetch it"]
    if download:
        advice.insert(0, "It cannot be downloaded")
    if isinstance(known.read, ClassFolders):  # nobody but the reader makes these parts
        advice.append(f"Its parts: {known.split}")
    return wrong_value(
        "root",
        f"a folder with the data set {name!r} in its folder {known.folder!r}",
        f"{str(root)!r}, where it is missing or incomplete",
        f"{'. '.join(advice)}. Its page: {known.page}.",
    )
