"""MTIL: eleven data sets one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario

from avalanche_vlm._checks import check_choice, wrong_type, wrong_value
from avalanche_vlm.benchmarks import known_sequence_benchmark
from avalanche_vlm.benchmarks.class_folders import AnyPath
from avalanche_vlm.benchmarks.class_incremental import Transform
from avalanche_vlm.models import OpenCLIPBackbone, ZeroShotHead
from avalanche_vlm.text import ClassNames, dataset_text
from avalanche_vlm.text.dataset_name import dataset_name

#: The data sets of MTIL in both published orders.
MTIL_ORDERS: dict[str, tuple[str, ...]] = {
    "I": (
        "aircraft",
        "caltech101",
        "cifar100",
        "dtd",
        "eurosat",
        "flowers102",
        "food101",
        "mnist",
        "oxford_pets",
        "stanford_cars",
        "sun397",
    ),
    "II": (
        "stanford_cars",
        "food101",
        "mnist",
        "oxford_pets",
        "flowers102",
        "sun397",
        "aircraft",
        "caltech101",
        "dtd",
        "eurosat",
        "cifar100",
    ),
}
"""The two published orders of the data sets."""

_CURATED = ("caltech101", "eurosat")


@final
@dataclass(frozen=True)
class MTILSetting:
    """Several data sets one after another, each evaluated among its own classes.

    Attributes:
        name: what to call the setting in a table.
        datasets: known data sets, in the order in which they arrive.
        model: a model name of open_clip.
        pretrained: the tag of its weights.
        templates: for each data set its templates; the first is the one to train with.
        seed: None: nothing is drawn but the train parts, by `KNOWN_DATASETS`.
        reference: where the setting was published.
    """

    name: str
    datasets: tuple[str, ...]
    model: str
    pretrained: str
    templates: Mapping[str, tuple[str, ...]]
    seed: int | None
    reference: str

    def backbone(self, **arguments: Any) -> OpenCLIPBackbone:
        """Return the model with its published weights, which open_clip downloads.

        Args:
            **arguments: for `OpenCLIPBackbone`, ``cache_dir`` for instance.
        """
        return OpenCLIPBackbone(self.model, pretrained=self.pretrained, **arguments)

    def head(self) -> ZeroShotHead:
        """Return the head that trains with the first template of each data set, and evaluates with all."""
        first = {dataset: own[:1] for dataset, own in self.templates.items()}
        return ZeroShotHead(self.templates, training_templates=first)

    def class_names(self) -> ClassNames:
        """Return the names of all classes, by class id, with the data set of each."""
        own = {dataset: _class_names(dataset) for dataset in self.datasets}
        return ClassNames(
            [name for names in own.values() for name in names],
            [dataset for dataset, names in own.items() for _ in names],
        )

    def benchmark(
        self,
        root: AnyPath,
        *,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        download: bool = False,
    ) -> NCScenario:
        """Return the stream, one experience a data set, for the label space ``"dataset"``.

        Args:
            root: the folder that holds the folders of all data sets: see `KNOWN_DATASETS`.
            train_transform: for the train stream, ``model.train_transform`` as a rule; image files
                need both.
            eval_transform: for the test stream, ``model.eval_transform`` as a rule.
            download: let torchvision fetch what is not there and what it can.

        Raises:
            ValueError: data that are missing, or no transform for image files.
            RuntimeError: a download failed.
        """
        return known_sequence_benchmark(
            self.datasets,
            root,
            download=download,
            class_names={dataset: _class_names(dataset) for dataset in self.datasets},
            allow_shared_names=True,
            train_transform=train_transform,
            eval_transform=eval_transform,
        )

    def describe(self) -> dict[str, Any]:
        """Return all attributes as a dictionary that JSON can hold, to be kept beside results."""
        return {
            "name": self.name,
            "datasets": list(self.datasets),
            "model": self.model,
            "pretrained": self.pretrained,
            "templates": {dataset: list(own) for dataset, own in self.templates.items()},
            "seed": self.seed,
            "reference": self.reference,
        }


def mtil(order: Literal["I", "II"] = "I", datasets: Sequence[str] | None = None) -> MTILSetting:
    """Return MTIL, multi-domain task-incremental learning: eleven data sets, OpenAI's ViT-B-16.

    Train and test parts are those of `KNOWN_DATASETS`. Class names are worded as in the official
    code: curated names for Caltech-101 and EuroSAT, and torchvision's labels with spaces for
    underscores for the others, so that MNIST has "0 - zero" and SUN397 "bow window/outdoor"
    ("pink-yellow dahlia" of Oxford 102 Flower loses its question mark). Templates are those of
    `dataset_text`, but that Food-101 has "a photo of a {}, a type of food." and Stanford Cars
    "a photo of a {}, a type of car." before the others.

    The official code trains with the first template of each data set and evaluates with the ensemble
    of all, and so does the head of `MTILSetting.head`.

    Args:
        order: ``"I"`` (alphabetical) or ``"II"``.
        datasets: some of the eleven, to leave out the others; they arrive as ``order`` has them.
            Case, spaces, "-" and "_" do not count.

    Raises:
        TypeError: ``datasets`` is no list.
        ValueError: an unknown order or data set, none, or one twice.

    References:
        Zheng et al., Preventing Zero-Shot Transfer Degradation in Continual Learning of
        Vision-Language Models, ICCV 2023 (ZSCL), section 5; order, splits and templates from
        github.com/Thunderbeee/ZSCL.

    Deviations:
        The random split of SUN397 is drawn from sorted files; the published one depends on the
        authors' file system.

    >>> mtil("II", ["mnist", "dtd"]).datasets
    ('mnist', 'dtd')
    >>> len(mtil().class_names())
    1201
    """
    check_choice("order", order, list(MTIL_ORDERS))
    chosen = MTIL_ORDERS[order]
    if datasets is not None:
        if isinstance(datasets, str) or not isinstance(datasets, Sequence):
            raise wrong_type("datasets", "a list of names of data sets", datasets)
        datasets = [dataset_name("datasets", dataset, MTIL_ORDERS["I"]) for dataset in datasets]
        if not datasets or len(set(datasets)) != len(datasets):
            raise wrong_value("datasets", "at least one data set, each at most once", datasets)
        chosen = tuple(dataset for dataset in chosen if dataset in datasets)
    return MTILSetting(
        name=f"MTIL, order {order}" + (f", {len(chosen)} of 11 data sets" if len(chosen) < 11 else ""),
        datasets=chosen,
        model="ViT-B-16",
        pretrained="openai",
        templates={dataset: _templates(dataset) for dataset in chosen},
        seed=None,
        reference="Zheng et al., ICCV 2023 (ZSCL)",
    )


def _templates(dataset: str) -> tuple[str, ...]:
    if dataset == "food101":
        return ("a photo of a {}, a type of food.",)
    own = tuple(template.text for template in dataset_text(dataset).templates)
    return ("a photo of a {}, a type of car.", *own) if dataset == "stanford_cars" else own


def _class_names(dataset: str) -> list[str]:
    text = dataset_text(dataset)
    if dataset in _CURATED:
        return list(text.class_names)
    return [label.replace("_", " ").rstrip("?") for label in text.labels]
