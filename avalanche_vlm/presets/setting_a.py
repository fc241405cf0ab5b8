"""Setting A: OpenAI's ViT-B-16, ten experiences, published class orders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files

from avalanche_vlm._checks import wrong_type, wrong_value
from avalanche_vlm.presets.class_incremental_setting import ClassIncrementalSetting, checked_classes
from avalanche_vlm.text import dataset_text
from avalanche_vlm.text.dataset_name import dataset_name

_N_EXPERIENCES = 10
_CLASS_COUNTS = {"cifar100": 100, "cub200": 200, "imagenet100": 100, "imagenet_r": 200, "ucf101": 101}
#: The data sets that `setting_a` knows.
SETTING_A_DATASETS = tuple(_CLASS_COUNTS)


def setting_a(
    dataset: str, *, class_order: Sequence[int] | None = None, classes: Sequence[str] | None = None
) -> ClassIncrementalSetting:
    """Return setting A: OpenAI's ViT-B-16, ten experiences, "a good photo of a {}.".

    The class orders are those of RAPF, which its successors use. All data sets but CIFAR-100 are
    read from prepared copies ``root/<dataset>/{train,test}/<label>/``.

    ``imagenet100`` is a part of ImageNet: the 100 class folders that the authors chose by a list,
    which their repository does not hold. Give a copy of these folders, or the list as ``classes``,
    to read them from ``root/imagenet``.

    Args:
        dataset: one of `SETTING_A_DATASETS`; case, spaces, "-" and "_" do not count.
        class_order: needed for ``ucf101``, whose order is not published in that repository: class ids
            in the order in which they arrive, ten at least. They are dealt out evenly, the first
            experiences getting one more where ten does not divide them. Left out otherwise.
        classes: for ``imagenet100`` without a copy: its 100 WordNet ids, in the order of the class ids
            (sorted, in a copy).

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an unknown data set; a class order that is missing, not wanted or no list of
            different ids; classes that are not wanted or no 100 labels.

    References:
        Huang et al., Class-Incremental Learning with CLIP: Adaptive Representation Adjustment and
        Parameter Fusion, ECCV 2024 (RAPF); class orders from github.com/linlany/RAPF.

    Deviations:
        None in template, weights and orders. A prepared copy decides which images are train and test.

    >>> setting = setting_a("cifar100")
    >>> setting.class_order[:4], setting.classes_per_experience
    ((87, 0, 52, 58), (10, 10, 10, 10, 10, 10, 10, 10, 10, 10))
    """
    dataset = dataset_name("dataset", dataset, SETTING_A_DATASETS)
    count = _CLASS_COUNTS[dataset]
    source = "imagenet" if dataset == "imagenet100" else dataset
    if classes is not None:
        if dataset != "imagenet100":
            raise wrong_value("classes", "left out but for 'imagenet100'", f"some for {dataset!r}")
        classes = checked_classes(classes, source, count)
    order = _class_order(dataset, class_order)
    each, more = divmod(len(order), _N_EXPERIENCES)
    return ClassIncrementalSetting(
        name=f"setting A, {dataset}",
        dataset=dataset,
        source=source,
        model="ViT-B-16",
        pretrained="openai",
        templates=("a good photo of a {}.",),
        class_order=order,
        classes_per_experience=tuple(each + (index < more) for index in range(_N_EXPERIENCES)),
        class_count=count,
        classes=classes,
        seed=None,
        reference="Huang et al., ECCV 2024 (RAPF); class orders from github.com/linlany/RAPF",
    )


def _class_order(dataset: str, class_order: Sequence[int] | None) -> tuple[int, ...]:
    if dataset != "ucf101":
        if class_order is not None:
            raise wrong_value("class_order", f"left out for {dataset!r}, whose order is published", "a list")
        file = files("avalanche_vlm.presets") / "class_orders_setting_a.json"
        return tuple(json.loads(file.read_text(encoding="utf-8"))["orders"][dataset])
    count = len(dataset_text(dataset).labels)
    if class_order is None:
        raise wrong_value(
            "class_order",
            "given for 'ucf101', because its order in setting A is not published with the others",
            None,
            f"Pass class ids from 0 to {count - 1} in the order in which they arrive.",
        )
    if not isinstance(class_order, Sequence) or not all(type(index) is int for index in class_order):
        raise wrong_type("class_order", "a list of class ids", class_order)
    ids = set(class_order)
    if len(ids) < len(class_order) or len(ids) < _N_EXPERIENCES or not ids <= set(range(count)):
        raise wrong_value(
            "class_order",
            f"at least {_N_EXPERIENCES} different class ids from 0 to {count - 1}",
            f"{len(class_order)} ids, {len(ids)} different, from {min(ids, default=None)} to "
            f"{max(ids, default=None)}",
        )
    return tuple(class_order)
