"""Streams of rendered objects: which object, which style, which pixels where."""

import pytest
import torch

from avalanche_vlm.benchmarks import (
    class_names,
    small_world_benchmark,
    small_world_domains_benchmark,
    small_world_sequence_benchmark,
)
from avalanche_vlm.world import HELD_OUT, STYLES, render

OBJECTS = HELD_OUT[:4]
FEW = {"objects": OBJECTS, "train_per_class": 3, "test_per_class": 2}


def images(experience):
    return torch.stack([torch.as_tensor(sample[0]) for sample in experience.dataset])


def rendered(style, seed, per_class, objects=OBJECTS):
    y = [each for each in objects for _ in range(per_class)]
    return render(y, style=style, generator=torch.Generator().manual_seed(seed))


def test_each_domain_has_all_objects_in_a_style_of_its_own():
    benchmark = small_world_domains_benchmark(styles=STYLES[1:4], **FEW)
    assert class_names(benchmark).names == tuple(each.name for each in OBJECTS)
    for stream, per_class in ((benchmark.train_stream, 3), (benchmark.test_stream, 2)):
        assert len(stream) == 3
        for experience in stream:
            labels = sorted(int(label) for label in experience.dataset.targets)
            assert labels == [label for label in range(4) for _ in range(per_class)]
            assert images(experience).shape == (4 * per_class, 3, 32, 32)


def test_the_pixels_of_each_domain_are_those_of_its_style_and_seed():
    benchmark = small_world_domains_benchmark(styles=["night", "sketch"], image_seed=5, **FEW)
    for index, style in enumerate(["night", "sketch"]):
        # Seeds of the training and the test images of domain d are 2 (s + 2 d) and one more.
        seed = 2 * (5 + 2 * index)
        assert torch.equal(images(benchmark.train_stream[index]), rendered(style, seed, 3))
        assert torch.equal(images(benchmark.test_stream[index]), rendered(style, seed + 1, 2))


def test_a_seed_decides_the_pixels_of_domains():
    def all_images(seed):
        benchmark = small_world_domains_benchmark(styles=STYLES[:2], image_seed=seed, **FEW)
        return torch.cat([images(each) for each in (*benchmark.train_stream, *benchmark.test_stream)])

    assert torch.equal(all_images(0), all_images(0))
    assert not torch.equal(all_images(0), all_images(1))
    # No image is in two places.
    every = all_images(3)
    assert len(every.flatten(1).unique(dim=0)) == len(every) == 2 * 4 * (3 + 2)


def test_transforms_of_domains_are_passed_on():
    benchmark = small_world_domains_benchmark(
        styles=STYLES[:2],
        train_transform=lambda image: torch.zeros(1),
        eval_transform=lambda image: torch.ones(1),
        **FEW,
    )
    assert images(benchmark.train_stream[1]).unique().tolist() == [0]
    assert images(benchmark.test_stream[1]).unique().tolist() == [1]


def test_by_default_there_are_four_styles():
    benchmark = small_world_domains_benchmark(train_per_class=1, test_per_class=1)
    assert len(benchmark.train_stream) == 4
    assert len(class_names(benchmark)) == 20


@pytest.mark.parametrize(
    ("build", "wrong", "error", "words"),
    [
        (
            small_world_domains_benchmark,
            {"styles": ["sketch", "baroque"]},
            ValueError,
            "`styles` must be one of",
        ),
        (small_world_domains_benchmark, {"objects": []}, ValueError, "`objects` must be at least one object"),
        (small_world_domains_benchmark, {"train_per_class": 0}, ValueError, "`train_per_class` must be"),
        (small_world_domains_benchmark, {"test_per_class": "two"}, TypeError, "`test_per_class` must be"),
        (small_world_domains_benchmark, {"image_seed": -1}, ValueError, "`image_seed` must be"),
        (small_world_benchmark, {"style": "baroque"}, ValueError, "`style` must be one of"),
        (small_world_sequence_benchmark, {"objects": OBJECTS[:3]}, ValueError, "a multiple of the 4 styles"),
    ],
)
def test_wrong_arguments_are_named(build, wrong, error, words):
    with pytest.raises(error, match=words):
        build(**wrong)
