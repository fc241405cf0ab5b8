"""Streams of the rendered small world: what every example runs on without a download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks.scenarios.deprecated.classification_scenario import GenericCLScenario
from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from torch import Tensor
from typing_extensions import Unpack

from avalanche_vlm._checks import check_choice, check_count, check_sequence, wrong_value
from avalanche_vlm.benchmarks.class_incremental import ClassIncrementalArguments, StreamArguments
from avalanche_vlm.benchmarks.domain_benchmark import domain_benchmark
from avalanche_vlm.benchmarks.multi_dataset_benchmark import multi_dataset_benchmark
from avalanche_vlm.benchmarks.tensor_benchmark import tensor_benchmark
from avalanche_vlm.world import HELD_OUT, STYLES, WorldObject, render

_Parts = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def small_world_benchmark(
    *,
    style: str = "sketch",
    objects: Sequence[WorldObject] = HELD_OUT[:40],
    train_per_class: int = 30,
    test_per_class: int = 20,
    image_seed: int = 0,
    **stream: Unpack[ClassIncrementalArguments],
) -> NCScenario:
    """Return a class-incremental stream of rendered objects in one style.

    Args:
        style: one of `avalanche_vlm.world.STYLES`; the small CLIP has seen ``TRAINING_STYLES`` only.
        objects: the classes, in the order of their ids; by default 40 combinations of shape,
            colour and texture that the small CLIP has never seen.
        train_per_class: training images of a class.
        test_per_class: test images of a class.
        image_seed: of the images; the same seed renders the same pixels.
        **stream: see `ClassIncrementalArguments`; 5 experiences if it says nothing about them.

    Raises:
        ValueError: an unknown style, no object, or classes that cannot be dealt out as asked.

    >>> benchmark = small_world_benchmark(train_per_class=1, test_per_class=1)
    >>> len(benchmark.train_stream), benchmark.n_classes
    (5, 40)
    """
    check_choice("style", style, STYLES)
    _check_world((style,), objects, image_seed)
    if stream.get("n_experiences") is None and stream.get("classes_per_experience") is None:
        stream["n_experiences"] = 5
    train, test = _render_parts(objects, style, train_per_class, test_per_class, image_seed)
    return tensor_benchmark(train, test, class_names=[each.name for each in objects], **stream)


def small_world_domains_benchmark(
    *,
    styles: Sequence[str] = STYLES[:4],
    objects: Sequence[WorldObject] = HELD_OUT[:20],
    train_per_class: int = 30,
    test_per_class: int = 20,
    image_seed: int = 0,
    **stream: Unpack[StreamArguments],
) -> GenericCLScenario[Any, Any, Any]:
    """Return a domain-incremental stream: the same objects, one experience a style.

    Args:
        styles: the domains, in the order of the stream.
        objects: the classes, in the order of their ids.
        train_per_class: training images of a class in each style.
        test_per_class: test images of a class in each style.
        image_seed: of the images.
        **stream: see `StreamArguments`.

    Raises:
        ValueError: an unknown style, or no object.

    >>> benchmark = small_world_domains_benchmark(train_per_class=1, test_per_class=1)
    >>> len(benchmark.train_stream), benchmark.n_classes
    (4, 20)
    """
    _check_world(styles, objects, image_seed)
    parts: dict[str, tuple[Any, Any]] = {}
    for index, style in enumerate(styles):
        parts[style] = _render_parts(objects, style, train_per_class, test_per_class, image_seed + 2 * index)
    return domain_benchmark(parts, class_names=[each.name for each in objects], **stream)


def small_world_sequence_benchmark(
    *,
    styles: Sequence[str] = STYLES[:4],
    objects: Sequence[WorldObject] = HELD_OUT[:40],
    train_per_class: int = 30,
    test_per_class: int = 20,
    image_seed: int = 0,
    n_experiences_per_dataset: int = 1,
    **stream: Unpack[StreamArguments],
) -> NCScenario:
    """Return a stream over several data sets, each of other objects in another style, as MTIL is.

    Args:
        styles: one for each data set, in the order of the stream.
        objects: dealt out to the data sets in equal shares, in order.
        train_per_class: training images of a class.
        test_per_class: test images of a class.
        image_seed: of the images.
        n_experiences_per_dataset: number of experiences that each data set is cut into.
        **stream: see `StreamArguments`.

    Raises:
        ValueError: an unknown style, or objects that cannot be dealt out equally.

    >>> benchmark = small_world_sequence_benchmark(train_per_class=1, test_per_class=1)
    >>> [len(experience.classes_in_this_experience) for experience in benchmark.train_stream]
    [10, 10, 10, 10]
    """
    parts = small_world_parts(styles, objects, train_per_class, test_per_class, image_seed)
    return multi_dataset_benchmark(parts, n_experiences_per_dataset=n_experiences_per_dataset, **stream)


def small_world_parts(
    styles: Sequence[str],
    objects: Sequence[WorldObject],
    train_per_class: int,
    test_per_class: int,
    image_seed: int,
) -> dict[str, tuple[Any, Any, Sequence[str]]]:
    """Return data sets for `multi_dataset_benchmark`, one per style, each of its share of the objects."""
    _check_world(styles, objects, image_seed)
    if not styles or len(objects) % len(styles):
        raise wrong_value("objects", f"a multiple of the {len(styles)} styles", f"{len(objects)} objects")
    share = len(objects) // len(styles)
    parts: dict[str, tuple[Any, Any, Sequence[str]]] = {}
    for index, style in enumerate(styles):
        own = objects[index * share : (index + 1) * share]
        train, test = _render_parts(own, style, train_per_class, test_per_class, image_seed + 2 * index)
        parts[style] = (train, test, [each.name for each in own])
    return parts


def _check_world(styles: Any, objects: Any, image_seed: Any) -> None:
    """Raise for a wrong argument among those that say what is drawn."""
    check_sequence("styles", styles, str, "names of styles")
    for style in styles:
        check_choice("styles", style, STYLES)
    check_sequence("objects", objects, WorldObject, "objects of the small world")
    if not objects:
        raise wrong_value("objects", "at least one object", "none")
    check_count("image_seed", image_seed, at_least=0)


def _render_parts(
    objects: Sequence[WorldObject], style: str, train_per_class: int, test_per_class: int, seed: int
) -> _Parts:
    """Return training and test images with their labels, drawn from two generators."""
    check_count("train_per_class", train_per_class)
    check_count("test_per_class", test_per_class)

    def part(count: int, part_seed: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(len(objects)).repeat_interleave(count)
        generator = torch.Generator().manual_seed(part_seed)
        return render([objects[i] for i in y.tolist()], style=style, generator=generator), y

    return part(train_per_class, 2 * seed), part(test_per_class, 2 * seed + 1)
