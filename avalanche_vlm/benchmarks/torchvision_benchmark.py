"""Class-incremental benchmarks over data sets of torchvision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from torchvision.datasets import CIFAR10, CIFAR100
from typing_extensions import Unpack

from avalanche_vlm._checks import check_choice, check_type, wrong_value
from avalanche_vlm.benchmarks.class_folders import AnyPath
from avalanche_vlm.benchmarks.class_incremental import ClassIncrementalArguments, class_incremental
from avalanche_vlm.benchmarks.labelled_tensors import LabelledTensors


@final
@dataclass(frozen=True)
class InMemorySource:
    """A data set of torchvision that keeps its images in one array (N, H, W, 3).

    Attributes:
        factory: torchvision's class, called with ``root``, ``train`` and ``download``.
    """

    factory: Callable[..., Any]

    def __call__(self, root: Path, *, download: bool) -> tuple[LabelledTensors, LabelledTensors, list[str]]:
        """Return the train part, the test part and the class names."""
        train = self.factory(root=root, train=True, download=download)
        test = self.factory(root=root, train=False, download=download)
        names = [name.replace("_", " ") for name in train.classes]
        return LabelledTensors(train.data, train.targets), LabelledTensors(test.data, test.targets), names


TORCHVISION_DATASETS: dict[str, InMemorySource] = {
    "cifar10": InMemorySource(CIFAR10),
    "cifar100": InMemorySource(CIFAR100),
}
"""The data sets that `torchvision_benchmark` knows, by name."""


def torchvision_benchmark(
    name: str,
    root: AnyPath,
    *,
    download: bool = False,
    **stream: Unpack[ClassIncrementalArguments],
) -> NCScenario:
    """Return a class-incremental benchmark over a data set of torchvision.

    Class ids and names are torchvision's, with spaces for underscores. Images come as uint8 tensors
    (3, H, W).

    Args:
        name: a key of `TORCHVISION_DATASETS`: ``"cifar10"`` or ``"cifar100"``.
        root: the folder that torchvision keeps the data in.
        download: fetch the data if they are not there.
        **stream: how the classes are dealt out: see `ClassIncrementalArguments`.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an unknown name, data that are not in ``root``, or classes that cannot be dealt
            out as asked.

    Example::

        benchmark = torchvision_benchmark(
            "cifar100", "data", download=True, n_experiences=10,
            train_transform=model.train_transform, eval_transform=model.eval_transform,
        )
    """
    check_choice("name", name, sorted(TORCHVISION_DATASETS))
    check_type("root", root, (str, Path))
    check_type("download", download, bool)
    folder = Path(root).expanduser()
    try:
        train, test, class_names = TORCHVISION_DATASETS[name](folder, download=download)
    except RuntimeError as error:
        if download:
            raise
        raise wrong_value(
            "root",
            f"a folder with torchvision's copy of {name!r}",
            f"{str(folder)!r}, where it is missing or incomplete",
            "Pass download=True to fetch it.",
        ) from error
    return class_incremental(train, test, class_names, **stream)
