import json

import numpy as np
import pytest

from avalanche_vlm.benchmarks import class_names
from avalanche_vlm.presets import SETTING_B_DATASETS, setting_b
from avalanche_vlm.text import dataset_text

# Data set: classes used, of how many, increment, first template.
PUBLISHED = {
    "cifar100": (100, 100, 10, "a photo of a {}."),
    "cub200": (200, 200, 20, "a photo of a {}, a type of bird."),
    "imagenet_r": (200, 200, 20, "a photo of a {}."),
    "stanford_cars": (100, 196, 10, "a photo of a {}."),
    "aircraft": (100, 100, 10, "a photo of a {}, a type of aircraft."),
    "food101": (100, 101, 10, "a photo of {}, a type of food."),
    "sun397": (300, 397, 30, "a photo of a {}."),
    "ucf101": (100, 101, 10, "a photo of a person {}."),
}


def test_no_published_stream_is_left_out():
    assert set(PUBLISHED) == set(SETTING_B_DATASETS)


@pytest.mark.parametrize("dataset", list(PUBLISHED))
def test_streams_are_the_published_ones(dataset):
    count, of, increment, template = PUBLISHED[dataset]
    none, half = setting_b(dataset), setting_b(dataset, "half")
    assert len(dataset_text(dataset).labels) == of
    assert none.classes_per_experience == (increment,) * 10
    assert half.classes_per_experience == (count // 2,) + (increment,) * 5
    for setting in (none, half):
        assert setting.class_count == count == sum(setting.classes_per_experience)
        assert sorted(setting.class_order) == list(range(count))
        assert (setting.model, setting.pretrained, setting.seed) == ("ViT-B-16", "laion400m_e32", 1993)
        assert setting.templates == (template,)
        described = setting.describe()
        assert json.loads(json.dumps(described)) == described


def test_orders_are_what_numpys_old_generator_draws():
    # The well-known beginning of the order of class-incremental work on CIFAR-100.
    assert setting_b("cifar100").class_order[:10] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
    for count in (200, 300):
        np.random.seed(1993)
        drawn = np.random.permutation(count).tolist()
        dataset = {200: "cub200", 300: "sun397"}[count]
        assert list(setting_b(dataset).class_order) == drawn


def test_the_global_generator_is_left_alone():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    setting_b("cub200")
    assert np.random.rand() == expected


def test_a_part_of_the_classes_comes_from_the_copy(write_copy, transforms):
    text = dataset_text("ucf101")
    labels = [label for label in text.labels if label != "Archery"]
    benchmark = setting_b("ucf101", "half").benchmark(write_copy("ucf101", labels), **transforms)
    assert class_names(benchmark).names == tuple(text.names_for(labels))
    assert [len(e.classes_in_this_experience) for e in benchmark.train_stream] == [50, 10, 10, 10, 10, 10]
    for x, y, _ in benchmark.test_stream[1].dataset:
        assert int(x[0, 0, 0]) == y


def test_a_part_of_the_classes_comes_from_a_list(write_copy, transforms):
    text = dataset_text("ucf101")
    root = write_copy("ucf101", text.labels)
    labels = text.labels[:0:-1]
    benchmark = setting_b("ucf101", classes=labels).benchmark(root, **transforms)
    assert class_names(benchmark).names == tuple(text.names_for(labels))
    for stream in (benchmark.train_stream, benchmark.test_stream):
        assert sum(len(experience.dataset) for experience in stream) == 100
        for x, y, _ in stream[2].dataset:
            assert int(x[0, 0, 0]) == 100 - y


@pytest.mark.parametrize("dataset", ["food101", "stanford_cars", "sun397", "ucf101"])
def test_a_part_of_the_classes_needs_a_copy_or_a_list(dataset, tmp_path, transforms):
    sentence = f"`root` must be .*{dataset}/.train,test./.*not by a published list: get that copy, or pass"
    with pytest.raises(ValueError, match=sentence):
        setting_b(dataset).benchmark(tmp_path, download=True, **transforms)


def test_other_spellings_will_do():
    assert setting_b("Stanford Cars") == setting_b("stanford_cars")


def test_transforms_are_missed_before_a_download(tmp_path):
    with pytest.raises(ValueError, match="`train_transform` must be given"):
        setting_b("aircraft").benchmark(tmp_path, download=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dataset": "objectnet"}, "`dataset` must be one of"),
        ({"dataset": "cub200", "start": "B50"}, "`start` must be one of 'none', 'half'"),
        ({"dataset": "cub200", "classes": ["a"]}, "`classes` must be left out for 'cub200'"),
        (
            {"dataset": "ucf101", "classes": ["Archery"]},
            "`classes` must be 100 different labels.*got 1 labels",
        ),
    ],
)
def test_mistakes_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        setting_b(**arguments)
