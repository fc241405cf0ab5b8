"""A published class-incremental setting as a frozen description that builds its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, final

from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario

from avalanche_vlm._checks import check_type, wrong_type, wrong_value
from avalanche_vlm.benchmarks.class_folders import (
    AnyPath,
    LabelledFiles,
    class_folders,
    read_class_folders,
)
from avalanche_vlm.benchmarks.class_incremental import Transform, class_incremental
from avalanche_vlm.benchmarks.folder_benchmark import check_image_transforms
from avalanche_vlm.benchmarks.known_datasets import (
    KNOWN_DATASETS,
    NamedParts,
    check_known_dataset,
    load_known_dataset,
)
from avalanche_vlm.models import OpenCLIPBackbone, ZeroShotHead
from avalanche_vlm.text import ClassNames, dataset_text


@final
@dataclass(frozen=True)
class ClassIncrementalSetting:
    """One data set, cut into experiences of new classes as published.

    Attributes:
        name: what to call the setting in a table.
        dataset: the data set, and the folder of its prepared copy below the root.
        source: the known data set whose labels and names the classes have: ``dataset`` itself, or
            the larger one that it is a part of.
        model: a model name of open_clip.
        pretrained: the tag of its weights.
        templates: for `head`.
        class_order: class ids in the order in which they arrive. Id i is the i-th of ``classes``, or
            else of the sorted folders of the prepared copy, or else of ``source``.
        classes_per_experience: number of classes of each experience.
        class_count: number of classes; some of those of ``source`` if it is smaller.
        classes: labels of the classes, where they are chosen by list.
        seed: of the class order; None for a published list.
        reference: where the setting was published.
    """

    name: str
    dataset: str
    source: str
    model: str
    pretrained: str
    templates: tuple[str, ...]
    class_order: tuple[int, ...]
    classes_per_experience: tuple[int, ...]
    class_count: int
    classes: tuple[str, ...] | None
    seed: int | None
    reference: str

    def backbone(self, **arguments: Any) -> OpenCLIPBackbone:
        """Return the model with its published weights, which open_clip downloads.

        Args:
            **arguments: for `OpenCLIPBackbone`, ``cache_dir`` for instance.
        """
        return OpenCLIPBackbone(self.model, pretrained=self.pretrained, **arguments)

    def head(self) -> ZeroShotHead:
        """Return a head with the setting's templates."""
        return ZeroShotHead(self.templates)

    def benchmark(
        self,
        root: AnyPath,
        *,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        download: bool = False,
    ) -> NCScenario:
        """Return the stream.

        A prepared copy ``root/<dataset>/{train,test}/<label>/`` is read if there is one and
        ``classes`` does not choose others; `load_known_dataset` reads the data set otherwise.

        Args:
            root: the folder that holds the data set's folder.
            train_transform: for the train stream, ``model.train_transform`` as a rule; image files
                need both.
            eval_transform: for the test stream, ``model.eval_transform`` as a rule.
            download: let torchvision fetch the data if they are not there and it can.

        Raises:
            TypeError: an argument is of a wrong type.
            ValueError: data that are missing or have other classes, or no transform for image files.
            RuntimeError: the download failed.
        """
        check_type("root", root, (str, PathLike))
        copy = Path(root).expanduser() / self.dataset
        has_copy = self.classes is None and (copy / "train").is_dir()
        if not has_copy:
            self._check_source(root, download)
        if has_copy or not KNOWN_DATASETS[self.source].in_memory:
            check_image_transforms(train_transform, eval_transform)
        train, test, names = self._read_copy(copy) if has_copy else self._read_source(root, download)
        return class_incremental(
            train,
            test,
            names,
            class_order=self.class_order,
            classes_per_experience=list(self.classes_per_experience),
            train_transform=train_transform,
            eval_transform=eval_transform,
        )

    def describe(self) -> dict[str, Any]:
        """Return all attributes as a dictionary that JSON can hold, to be kept beside results."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    def _check_source(self, root: AnyPath, download: bool) -> None:
        text = dataset_text(self.source)
        if self.classes is None and self.class_count < len(text.labels):
            raise wrong_value(
                "root",
                f"a folder with the prepared copy {self.dataset}/{{train,test}}/<label>/ of the "
                f"{self.class_count} classes of this setting",
                f"{str(root)!r} without it",
                f"Which {self.class_count} of the {len(text.labels)} classes of {self.source!r} these are is "
                "fixed by the authors' copy, not by a published list: get that copy, or pass `classes=`, a "
                "list of labels.",
            )
        check_known_dataset(self.source, root, download=download)

    def _read_source(self, root: AnyPath, download: bool) -> NamedParts:
        parts = load_known_dataset(self.source, root, download=download)
        if self.classes is None:
            return parts
        text = dataset_text(self.source)
        ids = [text.labels.index(label) for label in self.classes]
        return NamedParts(
            _of_classes(parts.train, ids),
            _of_classes(parts.test, ids),
            ClassNames(text.names_for(self.classes)),
        )

    def _read_copy(self, copy: Path) -> NamedParts:
        folders = class_folders(copy / "train", "root")
        if len(folders) != self.class_count:
            raise wrong_value(
                "root",
                f"a folder whose {self.dataset}/train has {self.class_count} class folders",
                f"{len(folders)} in {str(copy / 'train')!r}",
            )
        train, test = (read_class_folders(copy / part, folders, "root") for part in ("train", "test"))
        return NamedParts(train, test, ClassNames(dataset_text(self.source).names_for(folders)))


def checked_classes(classes: Sequence[str], source: str, count: int) -> tuple[str, ...]:
    """Return ``classes`` as a tuple.

    Raises:
        TypeError: no list.
        ValueError: another number than ``count``, a label twice, or one that ``source`` has not.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise wrong_type("classes", "a list of labels, by class id", classes)
    if len(classes) != count or len(set(classes)) != count:
        got = f"{len(classes)} labels" + (", some twice" if len(set(classes)) < len(classes) else "")
        raise wrong_value("classes", f"{count} different labels of {source!r}", got)
    dataset_text(source).names_for(classes)
    return tuple(classes)


def _of_classes(dataset: Any, ids: Sequence[int]) -> LabelledFiles:
    """Return the samples of these classes; ``ids[i]`` becomes i."""
    new = {old: index for index, old in enumerate(ids)}
    kept = dataset.subset([index for index, label in enumerate(dataset.targets) if label in new])
    return LabelledFiles(kept.paths, [new[label] for label in kept.targets])
