"""Class names and prompt templates of well-known data sets, as published."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from avalanche_vlm._checks import check_type, close_names, wrong_value
from avalanche_vlm.text.class_names import ClassNames, ordered
from avalanche_vlm.text.dataset_name import dataset_name
from avalanche_vlm.text.template import PromptTemplate, as_templates

#: The data sets that `dataset_text` knows.
DATASET_TEXTS: tuple[str, ...] = (
    "aircraft",
    "caltech101",
    "cifar10",
    "cifar100",
    "cub200",
    "dtd",
    "eurosat",
    "flowers102",
    "food101",
    "imagenet",
    "imagenet_r",
    "mnist",
    "oxford_pets",
    "pacs",
    "stanford_cars",
    "sun397",
    "ucf101",
)
_SHOWN = 5


@dataclass(frozen=True)
class DatasetText:
    """What is written about one data set: its class names and the templates to put them into.

    Class id i has the label ``labels[i]`` and the name ``class_names[i]``. Ids are those of
    torchvision where it has the data set, those of the sorted class folders elsewhere.

    Args:
        name: the name to ask `dataset_text` for, e.g. ``"cifar100"``.
        title: the name to print, e.g. ``"CIFAR-100"``.
        class_names: what goes into prompts, by class id.
        labels: what the data set itself calls its classes (class folders, torchvision's ``classes``,
            WordNet ids), by class id.
        templates: the published ensemble; the first is the one to train with.
        origin: where names, labels and templates come from.
        licence: the licence of the lists, not of the images; ``"facts"`` where nobody claims one.
        notes: what to look out for, and which names were reworded and why.

    >>> text = dataset_text("eurosat")
    >>> text.labels[0], text.class_names[0], text.templates[0].text
    ('AnnualCrop', 'annual crop land', 'a centered satellite photo of {}.')
    """

    name: str
    title: str
    class_names: ClassNames
    labels: tuple[str, ...]
    templates: tuple[PromptTemplate, ...]
    origin: str
    licence: str
    notes: str

    def names_for(self, labels: Iterable[str]) -> list[str]:
        """Return the names of these labels in this order: of a subset, or for another order.

        Args:
            labels: some of the data set's `labels`, as an ordered list.

        Raises:
            TypeError: ``labels`` is no ordered list of text.
            ValueError: the data set has no such label.

        >>> dataset_text("eurosat").names_for(["SeaLake", "Pasture"])
        ['lake or sea', 'pasture land']
        """
        wanted = _in_order(labels)
        name_of = dict(zip(self.labels, self.class_names, strict=True))
        unknown = [label for label in wanted if label not in name_of]
        if unknown:
            advice = [close_names(label, self.labels) for label in unknown[:_SHOWN]]
            raise wrong_value(
                "labels", f"labels of {self.title}", _listed(unknown), " ".join(dict.fromkeys(advice))
            )
        return [name_of[label] for label in wanted]

    def check_labels(self, labels: Sequence[str], what: str) -> None:
        """Raise unless these are exactly the labels of the data set, in the order of its class ids.

        Args:
            labels: e.g. ``dataset.classes`` of a torchvision data set.
            what: whose labels they are, for the error.

        Raises:
            TypeError: ``labels`` is no ordered list of text.
            ValueError: labels are missing, there are others, or their order differs.

        >>> dataset_text("mnist").check_labels(["0 - zero", "1 - one"], "my digits")
        Traceback (most recent call last):
        ...
        ValueError: `labels` must be the 10 labels of MNIST in its order, for my digits; got 2 labels, \
without '2 - two', '3 - three', '4 - four', '5 - five', '6 - six', ... (8 in all). Names for a part \
of the classes or in another order: dataset_text('mnist').names_for(labels).
        """
        given = _in_order(labels)
        if given == self.labels:
            return
        got = [f"{len(given)} labels"]
        missing = list((Counter(self.labels) - Counter(given)).elements())
        extra = list((Counter(given) - Counter(self.labels)).elements())
        if missing:
            got.append(f"without {_listed(missing)}")
        if extra:
            got.append(f"with {_listed(extra)} too many")
        if not missing and not extra:
            index = next(i for i, label in enumerate(given) if label != self.labels[i])
            got.append(f"with {given[index]!r} as class {index}, where {self.labels[index]!r} belongs")
        raise wrong_value(
            "labels",
            f"the {len(self.labels)} labels of {self.title} in its order, for {what}",
            ", ".join(got),
            f"Names for a part of the classes or in another order: "
            f"dataset_text({self.name!r}).names_for(labels).",
        )


def dataset_text(name: str) -> DatasetText:
    """Return class names, labels and templates of a well-known data set.

    Args:
        name: one of `DATASET_TEXTS`; case, spaces, "-" and "_" do not count.

    Raises:
        ValueError: no data set of this name is known.

    >>> dataset_text("cifar100").class_names[:2]
    ('apple', 'aquarium fish')
    >>> dataset_text("Oxford Pets").name
    'oxford_pets'
    """
    return _read(dataset_name("name", name, DATASET_TEXTS))


@cache
def _read(name: str) -> DatasetText:
    file = files("avalanche_vlm.text") / "data" / f"{name}.json"
    entry: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    labels, names = zip(*entry["classes"], strict=True)
    return DatasetText(
        name=name,
        title=entry["title"],
        class_names=ClassNames(names),
        labels=labels,
        templates=as_templates(entry["templates"]),
        origin=entry["origin"],
        licence=entry["licence"],
        notes=entry["notes"],
    )


def _in_order(labels: Iterable[str]) -> tuple[str, ...]:
    result = ordered("labels", labels, "an ordered list of labels")
    for index, label in enumerate(result):
        check_type(f"labels[{index}]", label, str)
    return result


def _listed(labels: Sequence[str]) -> str:
    text = ", ".join(map(repr, labels[:_SHOWN]))
    return text if len(labels) <= _SHOWN else f"{text}, ... ({len(labels)} in all)"
