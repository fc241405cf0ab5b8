"""A stream like MTIL that needs no download: rendered objects, and handwritten digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import Unpack

from avalanche_vlm._checks import check_choice, wrong_type, wrong_value
from avalanche_vlm.benchmarks.class_incremental import StreamArguments
from avalanche_vlm.benchmarks.digits_benchmark import DIGIT_NAMES, digits
from avalanche_vlm.benchmarks.multi_dataset_benchmark import multi_dataset_benchmark
from avalanche_vlm.benchmarks.small_world import small_world_parts
from avalanche_vlm.functional.splits import shuffled_by_class
from avalanche_vlm.world import HELD_OUT, STYLES, WorldObject

_SIZE = 32  # pixels, as the small world has them


def small_world_and_digits_benchmark(
    *,
    styles: Sequence[str] = STYLES[:4],
    order: Sequence[str] | None = None,
    objects: Sequence[WorldObject] = HELD_OUT[:40],
    train_per_class: int = 30,
    test_per_class: int = 20,
    image_seed: int = 0,
    **stream: Unpack[StreamArguments],
) -> NCScenario:
    """Return a stream over data sets of rendered objects and scikit-learn's digits, as MTIL is.

    The data sets are those of `small_world_sequence_benchmark`, named by their styles, and "digits":
    handwritten digits (those of `digits_benchmark`) at 32×32 pixels, interpolated bilinearly, with the
    same numbers of images of a class. Two orders have the same data sets: each style keeps its objects
    and images.

    Args:
        styles: one for each data set of objects; their order deals out the objects.
        order: names of styles and "digits", in the order in which they arrive, each at most once; those
            not named are left out. None for the styles and then "digits".
        objects: dealt out to the styles in equal shares, in order.
        train_per_class: training images of a class.
        test_per_class: test images of a class.
        image_seed: of the rendered images, and of which digits are in which part.
        **stream: see `StreamArguments`.

    Raises:
        TypeError: ``order`` is no list of names.
        ValueError: an unknown style or name, a name twice, objects that cannot be dealt out equally, or
            more digits asked for than there are (174 of "digit eight").

    References:
        Zheng et al., ICCV 2023 (ZSCL), section 5, for the form of the stream; see `digits_benchmark` for
        the digits.

    >>> benchmark = small_world_and_digits_benchmark(
    ...     order=["digits", "night"], train_per_class=1, test_per_class=1
    ... )
    >>> [len(experience.classes_in_this_experience) for experience in benchmark.train_stream]
    [10, 10]
    """
    parts = small_world_parts(styles, objects, train_per_class, test_per_class, image_seed)
    parts["digits"] = _digits(train_per_class, test_per_class, image_seed)
    return multi_dataset_benchmark({name: parts[name] for name in _checked(order, list(parts))}, **stream)


def _checked(order: Any, names: list[str]) -> list[str]:
    if order is None:
        return names
    if isinstance(order, str) or not isinstance(order, Sequence):
        raise wrong_type("order", "a list of names of data sets", order)
    chosen = [*order]
    for name in chosen:
        check_choice("order", name, names)
    if not chosen or len(set(chosen)) < len(chosen):
        raise wrong_value("order", "at least one data set, each at most once", chosen)
    return chosen


def _digits(train_per_class: int, test_per_class: int, seed: int) -> tuple[Any, Any, Sequence[str]]:
    """Return so many digits of each class for training and for testing, and their names."""
    images, labels = (torch.from_numpy(part) for part in digits())
    fewest = int(labels.bincount().min())
    if train_per_class + test_per_class > fewest:
        raise wrong_value(
            "train_per_class",
            f"at most {fewest - test_per_class}, because there are {fewest} digits of a class, and "
            f"{test_per_class} of them are for testing",
            train_per_class,
        )
    drawn = shuffled_by_class(labels, torch.Generator().manual_seed(seed))
    test = [own[:test_per_class] for own in drawn]
    train = [own[test_per_class : test_per_class + train_per_class] for own in drawn]

    def part(ids: Tensor) -> tuple[Tensor, Tensor]:
        large = interpolate(images[ids].float(), size=(_SIZE, _SIZE), mode="bilinear", align_corners=False)
        return large.round().to(torch.uint8), labels[ids]

    return part(torch.cat(train)), part(torch.cat(test)), DIGIT_NAMES
