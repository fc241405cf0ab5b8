import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from avalanche_vlm.benchmarks import (
    class_names,
    small_world_and_digits_benchmark,
    small_world_sequence_benchmark,
)
from avalanche_vlm.benchmarks.digits_benchmark import DIGIT_NAMES, digits
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone
from avalanche_vlm.strategies import ZeroShot
from avalanche_vlm.world import HELD_OUT

SMALL = {"train_per_class": 2, "test_per_class": 3, "objects": HELD_OUT[:8], "styles": ("sketch", "night")}


def contents(benchmark):
    """Return, by data set, the samples of both parts: pixels, and the name of the class."""
    names, found = class_names(benchmark), {}
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience in stream:
            samples = [(x, names[y]) for x, y, _ in experience.dataset]
            origin = {names.datasets[c] for c in experience.classes_in_this_experience}
            assert len(origin) == 1
            found.setdefault(origin.pop(), []).append(samples)
    return found


def same(first, second):
    # The host goes through the classes of an experience in the order of a set of their ids.
    def ordered(samples):
        return sorted((name, x.numpy().tobytes()) for x, name in samples)

    return [ordered(part) for part in first] == [ordered(part) for part in second]


def test_the_styles_are_those_of_the_sequence_and_digits_come_last():
    benchmark = small_world_and_digits_benchmark(**SMALL)
    found = contents(benchmark)
    assert list(found) == ["sketch", "night", "digits"]
    sequence = contents(small_world_sequence_benchmark(**SMALL))
    assert all(same(found[style], sequence[style]) for style in sequence)
    assert class_names(benchmark)[8:] == DIGIT_NAMES
    for samples, count in zip(found["digits"], (2, 3), strict=True):
        assert len(samples) == 10 * count
        assert {tuple(x.shape) for x, _ in samples} == {(3, 32, 32)}
        assert {x.dtype for x, _ in samples} == {torch.uint8}


def test_two_orders_are_the_same_data_sets():
    first = contents(small_world_and_digits_benchmark(**SMALL))
    order = ["digits", "night", "sketch"]
    second = contents(small_world_and_digits_benchmark(order=order, **SMALL))
    assert list(second) == order
    assert all(same(first[name], second[name]) for name in order)
    third = contents(small_world_and_digits_benchmark(order=["night"], **SMALL))
    assert list(third) == ["night"]
    assert same(third["night"], first["night"])


def test_digits_are_those_of_scikit_learn_and_in_one_part_only():
    images, labels = digits()
    train, test = contents(small_world_and_digits_benchmark(**SMALL))["digits"]
    means = [x.double().mean().item() for x, _ in (*train, *test)]
    assert len(set(means)) > 45
    # Enlarging by bilinear interpolation changes the mean by the border only.
    for (x, name), mean in zip((*train, *test), means, strict=True):
        small = x.double().reshape(3, 8, 4, 8, 4).mean(dim=(2, 4))
        near = min(range(len(images)), key=lambda i: abs(small.numpy() - images[i]).sum())
        assert DIGIT_NAMES[labels[near]] == name
        assert abs(mean - images[near].mean()) < 3
    pixels = [{x.numpy().tobytes() for x, _ in part} for part in (train, test)]
    assert not pixels[0] & pixels[1]
    more = contents(small_world_and_digits_benchmark(**{**SMALL, "train_per_class": 5}))["digits"]
    assert same([more[1]], [test])


def test_the_small_clip_reads_all_data_sets_in_one_run():
    model = CLIPClassifier(OpenCLIPBackbone("small-clip", pretrained="small-world"))
    benchmark = small_world_and_digits_benchmark(
        **{**SMALL, "styles": ("photo", "night")},
        train_transform=model.train_transform,
        eval_transform=model.eval_transform,
    )
    model.set_classes(class_names(benchmark))
    metrics = continual_metrics(spaces=("dataset", "all"))
    strategy = ZeroShot(model=model, evaluator=EvaluationPlugin(*metrics, loggers=[]), eval_mb_size=16)
    strategy.eval(benchmark.test_stream)
    inside, among_all = (metric.matrix()[0] for metric in metrics)
    assert (inside >= among_all).all()
    assert inside[0] > 0.9


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"order": "night"}, TypeError, "`order` must be a list"),
        ({"order": []}, ValueError, "`order` must be at least one"),
        ({"order": ["night", "night"]}, ValueError, "each at most once"),
        ({"order": ["nihgt"]}, ValueError, "`order` must be one of .*Did you mean 'night'"),
        ({"styles": ["digits"]}, ValueError, "`styles` must be one of"),
        ({"objects": HELD_OUT[:3]}, ValueError, "`objects` must be a multiple of the 2 styles"),
        ({"train_per_class": 172}, ValueError, "`train_per_class` must be at most 171"),
        ({"test_per_class": 0}, ValueError, "`test_per_class`"),
    ],
)
def test_mistakes_are_named(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        small_world_and_digits_benchmark(**{**SMALL, **arguments})
