import json

import pytest

from avalanche_vlm.benchmarks import class_names
from avalanche_vlm.presets import SETTING_A_DATASETS, setting_a
from avalanche_vlm.presets import class_incremental_setting as parts
from avalanche_vlm.text import dataset_text

FIRST_IDS = {
    "cifar100": (87, 0, 52, 58, 44, 91, 68, 97),
    "cub200": (110, 54, 8, 122, 168, 136, 42, 139),
    "imagenet_r": (29, 75, 18, 9, 62, 46, 133, 54),
    "imagenet100": (68, 56, 78, 8, 23, 84, 90, 65),
}


@pytest.mark.parametrize("dataset", list(FIRST_IDS))
def test_orders_are_the_published_ones(dataset):
    setting = setting_a(dataset)
    assert setting.class_order[:8] == FIRST_IDS[dataset]
    count = 200 if dataset in ("cub200", "imagenet_r") else 100
    assert sorted(setting.class_order) == list(range(count))
    assert setting.class_count == count
    assert setting.classes_per_experience == (count // 10,) * 10
    assert (setting.model, setting.pretrained, setting.seed) == ("ViT-B-16", "openai", None)
    assert [t.text for t in setting.head().templates] == ["a good photo of a {}."]


def test_the_order_of_ucf101_is_the_callers():
    with pytest.raises(ValueError, match="`class_order` must be given for 'ucf101'.*not published"):
        setting_a("ucf101")
    setting = setting_a("ucf101", class_order=list(range(100, -1, -1)))
    assert setting.class_order[:2] == (100, 99)
    assert setting.classes_per_experience == (11,) + (10,) * 9
    assert setting_a("ucf101", class_order=range(100)).classes_per_experience == (10,) * 10


def test_a_prepared_copy_becomes_the_stream(write_copy, transforms):
    labels = dataset_text("imagenet_r").labels
    root = write_copy("imagenet_r", labels)
    setting = setting_a("imagenet_r")
    benchmark = setting.benchmark(root, **transforms)
    assert class_names(benchmark) == dataset_text("imagenet_r").class_names
    assert len(benchmark.train_stream) == 10
    assert sorted(benchmark.train_stream[0].classes_in_this_experience) == sorted(setting.class_order[:20])
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for x, y, _ in stream[4].dataset:
            assert int(x[0, 0, 0]) == y


def test_imagenet100_takes_its_names_from_the_folders_of_the_copy(write_copy, transforms):
    text = dataset_text("imagenet")
    root = write_copy("imagenet100", text.labels[500:600])
    benchmark = setting_a("imagenet100").benchmark(root, **transforms)
    assert class_names(benchmark).names == text.class_names.names[500:600]


def test_imagenet100_by_list_is_a_part_of_imagenet(write_copy, transforms):
    text = dataset_text("imagenet")
    root = write_copy("imagenet", text.labels, test_part="val")
    chosen = text.labels[300:200:-1]
    setting = setting_a("imagenet100", classes=chosen)
    benchmark = setting.benchmark(root, **transforms)
    assert class_names(benchmark).names == tuple(text.class_names[index] for index in range(300, 200, -1))
    experience = benchmark.test_stream[0]
    assert sorted(experience.classes_in_this_experience) == sorted(setting.class_order[:10])
    for x, y, _ in experience.dataset:
        assert int(x[0, 0, 0]) == (300 - y) % 256


def test_missing_data_are_named(tmp_path, write_copy, transforms):
    with pytest.raises(
        ValueError, match="`root` must be .*imagenet100/.train,test.*fixed by the authors' copy"
    ):
        setting_a("imagenet100").benchmark(tmp_path, **transforms)
    with pytest.raises(ValueError, match=r"`root` must be .*'cub200'.*missing.*cub200/.train,test"):
        setting_a("cub200").benchmark(tmp_path, **transforms)
    with pytest.raises(ValueError, match=r"`root` must be .*'cifar100'.*Pass download=True"):
        setting_a("cifar100").benchmark(tmp_path, **transforms)
    root = write_copy("imagenet100", dataset_text("imagenet").labels[:99])
    with pytest.raises(ValueError, match="imagenet100/train has 100 class folders; got 99"):
        setting_a("imagenet100").benchmark(root, **transforms)


def test_missing_data_are_named_before_missing_transforms(tmp_path):
    for dataset in ("imagenet100", "cub200"):
        with pytest.raises(ValueError, match="`root` must be "):
            setting_a(dataset).benchmark(tmp_path)
    with pytest.raises(TypeError, match="`root` must be str or PathLike"):
        setting_a("cub200").benchmark(3)


def test_other_spellings_will_do():
    assert setting_a("CUB-200") == setting_a("cub200")
    assert setting_a("ImageNet-R").dataset == "imagenet_r"


def test_image_files_need_transforms(write_copy):
    root = write_copy("imagenet_r", dataset_text("imagenet_r").labels)
    with pytest.raises(ValueError, match="`eval_transform` must be given"):
        setting_a("imagenet_r").benchmark(root, train_transform=str)
    with pytest.raises(ValueError, match=r"`train_transform` must be given.*model\.eval_transform"):
        setting_a("imagenet_r").benchmark(root)


def test_the_backbone_has_the_published_weights(monkeypatch):
    asked = {}

    def build(model, **arguments):
        asked.update(model=model, **arguments)

    monkeypatch.setattr(parts, "OpenCLIPBackbone", build)
    setting_a("cifar100").backbone(cache_dir="weights")
    assert asked == {"model": "ViT-B-16", "pretrained": "openai", "cache_dir": "weights"}


@pytest.mark.parametrize("dataset", SETTING_A_DATASETS)
def test_descriptions_are_json(dataset):
    setting = setting_a(dataset, **({"class_order": range(101)} if dataset == "ucf101" else {}))
    described = setting.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["class_order"] == list(setting.class_order)
    assert described["name"] == f"setting A, {dataset}"


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"dataset": "cifar10"}, ValueError, "`dataset` must be one of .*Did you mean 'cifar100'"),
        (
            {"dataset": "cub200", "class_order": [1]},
            ValueError,
            "`class_order` must be left out for 'cub200'",
        ),
        ({"dataset": "ucf101", "class_order": "abc"}, TypeError, "`class_order` must be a list of class ids"),
        ({"dataset": "ucf101", "class_order": [0] * 20}, ValueError, "20 ids, 1 different, from 0 to 0"),
        ({"dataset": "ucf101", "class_order": range(9)}, ValueError, "at least 10 different"),
        ({"dataset": "ucf101", "class_order": range(5, 105)}, ValueError, "from 0 to 100.*from 5 to 104"),
        ({"dataset": "cub200", "classes": ["a"]}, ValueError, "`classes` must be left out"),
        ({"dataset": "imagenet100", "classes": "n01440764"}, TypeError, "`classes` must be a list of labels"),
        ({"dataset": "imagenet100", "classes": ["a", "a"]}, ValueError, "got 2 labels, some twice"),
        ({"dataset": "imagenet100", "classes": [str(i) for i in range(100)]}, ValueError, "`labels` must be"),
    ],
)
def test_mistakes_are_named(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        setting_a(**arguments)
