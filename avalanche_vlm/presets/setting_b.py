"""Setting B: LAION-400M weights, class orders drawn with the seed 1993."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from avalanche_vlm._checks import check_choice, wrong_value
from avalanche_vlm.presets.class_incremental_setting import ClassIncrementalSetting, checked_classes
from avalanche_vlm.text import dataset_text
from avalanche_vlm.text.dataset_name import dataset_name

_SEED = 1993
# Number of classes used, and of classes an experience.
_STREAMS = {
    "aircraft": (100, 10),
    "cifar100": (100, 10),
    "cub200": (200, 20),
    "food101": (100, 10),
    "imagenet_r": (200, 20),
    "stanford_cars": (100, 10),
    "sun397": (300, 30),
    "ucf101": (100, 10),
}
#: The data sets that `setting_b` knows.
SETTING_B_DATASETS = tuple(_STREAMS)


def setting_b(
    dataset: str, start: Literal["none", "half"] = "none", *, classes: Sequence[str] | None = None
) -> ClassIncrementalSetting:
    """Return setting B: open_clip's ViT-B-16 of LAION-400M, a class order drawn with the seed 1993.

    The order is a permutation of numpy's legacy generator, and the template the first of the data
    set's list (`dataset_text`).

    Of Food-101, Stanford Cars, SUN397 and UCF101 a part of the classes is used. Which part is fixed
    by the authors' prepared copy and not by a published list, so that either a copy
    ``root/<dataset>/{train,test}/<label>/`` or ``classes`` is needed. Of the others a copy is read
    where there is one (it decides which images are train and test), and `load_known_dataset` reads
    them otherwise.

    Args:
        dataset: one of `SETTING_B_DATASETS`; case, spaces, "-" and "_" do not count.
        start: ``"none"`` for experiences of one size (B0), ``"half"`` for a first experience with
            half of the classes.
        classes: where a part of the classes is used: their labels, in the order of the class ids
            (that of the sorted folders in a copy).

    Raises:
        TypeError: ``classes`` is no list.
        ValueError: an unknown data set or start, or classes that are not wanted, not of the data set
            or not as many as the setting has.

    References:
        Zhou et al., Learning without Forgetting for Vision-Language Models, TPAMI 2025 (PROOF);
        increments from its logs.

    Deviations:
        ObjectNet is left out. Class ids of cifar100 and aircraft are torchvision's.

    >>> setting_b("cub200", "half").classes_per_experience
    (100, 20, 20, 20, 20, 20)
    """
    dataset = dataset_name("dataset", dataset, SETTING_B_DATASETS)
    check_choice("start", start, ("none", "half"))
    count, increment = _STREAMS[dataset]
    text = dataset_text(dataset)
    if classes is not None:
        if count == len(text.labels):
            raise wrong_value("classes", f"left out for {dataset!r}, all of whose classes are used", "a list")
        classes = checked_classes(classes, dataset, count)
    first = count // 2 if start == "half" else increment
    return ClassIncrementalSetting(
        name=f"setting B, {dataset}, {'B0' if start == 'none' else f'B{first}'} Inc{increment}",
        dataset=dataset,
        source=dataset,
        model="ViT-B-16",
        pretrained="laion400m_e32",
        templates=(text.templates[0].text,),
        # A generator of its own, but numpy's old one: that is what drew the published orders.
        class_order=tuple(np.random.RandomState(_SEED).permutation(count).tolist()),
        classes_per_experience=(first,) + (increment,) * ((count - first) // increment),
        class_count=count,
        classes=classes,
        seed=_SEED,
        reference="Zhou et al., TPAMI 2025 (PROOF)",
    )
