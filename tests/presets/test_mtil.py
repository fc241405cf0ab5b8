import json
from collections import Counter

import pytest
import torch
from PIL import Image

from avalanche_vlm.benchmarks import class_names
from avalanche_vlm.presets import MTIL_ORDERS, mtil
from avalanche_vlm.testing import TinyBackbone
from avalanche_vlm.text import dataset_text

CLASSES = {
    "aircraft": 100,
    "caltech101": 101,
    "cifar100": 100,
    "dtd": 47,
    "eurosat": 10,
    "flowers102": 102,
    "food101": 101,
    "mnist": 10,
    "oxford_pets": 37,
    "stanford_cars": 196,
    "sun397": 397,
}
TEMPLATES = {
    "aircraft": (2, "a photo of a {}, a type of aircraft."),
    "caltech101": (34, "a photo of a {}."),
    "cifar100": (18, "a photo of a {}."),
    "dtd": (8, "a photo of a {} texture."),
    "eurosat": (3, "a centered satellite photo of {}."),
    "flowers102": (1, "a photo of a {}, a type of flower."),
    "food101": (1, "a photo of a {}, a type of food."),
    "mnist": (1, 'a photo of the number: "{}".'),
    "oxford_pets": (1, "a photo of a {}, a type of pet."),
    "stanford_cars": (9, "a photo of a {}, a type of car."),
    "sun397": (2, "a photo of a {}."),
}


def test_both_orders_go_through_the_same_eleven():
    assert mtil().datasets == tuple(CLASSES) == MTIL_ORDERS["I"]
    assert sorted(mtil("II").datasets) == sorted(CLASSES)
    assert mtil("II").datasets[:3] == ("stanford_cars", "food101", "mnist")
    assert mtil("II").datasets[-1] == "cifar100"
    assert mtil("II", ["cifar100", "mnist"]).datasets == ("mnist", "cifar100")
    assert mtil("II", ["cifar100", "mnist"]).name == "MTIL, order II, 2 of 11 data sets"


def test_there_are_1201_classes_worded_as_in_the_official_code():
    names = mtil().class_names()
    assert len(names) == 1201
    assert Counter(names.datasets) == CLASSES
    own = {
        dataset: [n for n, d in zip(names, names.datasets, strict=True) if d == dataset]
        for dataset in CLASSES
    }
    assert own["mnist"][0] == "0 - zero"
    assert own["caltech101"][0] == "off-center face"
    assert own["eurosat"][0] == "annual crop land"
    assert own["cifar100"][1] == "aquarium fish"
    assert "pink-yellow dahlia" in own["flowers102"]
    assert "globe-flower" in own["flowers102"]
    assert "bow window/outdoor" in own["sun397"]
    assert own["oxford_pets"][1] == "American Bulldog"
    assert not any("_" in name for name in names)


@pytest.mark.parametrize("dataset", list(TEMPLATES))
def test_templates_are_the_published_ones(dataset):
    count, first = TEMPLATES[dataset]
    setting = mtil()
    assert len(setting.templates[dataset]) == count == len(set(setting.templates[dataset]))
    assert setting.templates[dataset][0] == first
    assert [t.text for t in setting.head().training_templates[dataset]] == [first]
    assert len(setting.head().templates_of(dataset)) == count


def test_the_head_takes_the_names_of_all_eleven():
    setting, backbone = mtil(), TinyBackbone()
    # The tokenizer of the tiny model knows few words: here every text has tokens of its own.
    backbone._tokenizer = lambda texts: TinyBackbone().tokenize(["a"] * len(texts)) + own_numbers(texts)
    head = setting.head()
    head.set_classes(setting.class_names(), backbone)
    assert len(head._tokens) == sum(CLASSES[d] * count for d, (count, _) in TEMPLATES.items())
    assert len(head._training_tokens) == 1201


def own_numbers(texts):
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    tokens = torch.zeros(len(texts), 77, dtype=torch.long)
    tokens[:, 70] = torch.tensor([numbers[text] for text in texts])
    return tokens


def write_eurosat_and_dtd(root):
    picture = Image.new("RGB", (2, 2))
    for label in dataset_text("eurosat").labels:
        (root / "eurosat/2750" / label).mkdir(parents=True)
        for number in range(20):
            picture.save(root / "eurosat/2750" / label / f"{label}_{number}.jpg")
    (root / "dtd/dtd/labels").mkdir(parents=True)
    for part in ("train", "test"):
        lines = []
        for label in dataset_text("dtd").labels:
            (root / "dtd/dtd/images" / label).mkdir(parents=True, exist_ok=True)
            lines.append(f"{label}/{part}.jpg")
            picture.save(root / "dtd/dtd/images" / lines[-1])
        (root / f"dtd/dtd/labels/{part}1.txt").write_text("\n".join(lines))


def test_the_stream_has_one_experience_a_data_set(tmp_path, transforms):
    write_eurosat_and_dtd(tmp_path)
    setting = mtil("II", ["eurosat", "dtd"])
    benchmark = setting.benchmark(tmp_path, **transforms)
    assert class_names(benchmark) == setting.class_names()
    assert [sorted(e.classes_in_this_experience) for e in benchmark.train_stream] == [
        list(range(47)),
        list(range(47, 57)),
    ]
    assert [len(e.dataset) for e in benchmark.train_stream] == [47, 160]
    assert [len(e.dataset) for e in benchmark.test_stream] == [47, 40]


def test_missing_data_are_named(tmp_path, transforms):
    with pytest.raises(ValueError, match="`root` must be .*'stanford_cars'.*7545"):
        mtil("II").benchmark(tmp_path, download=True, **transforms)


def test_transforms_may_be_left_out_of_the_call_and_are_then_missed_by_name(tmp_path):
    write_eurosat_and_dtd(tmp_path)
    with pytest.raises(ValueError, match=r"`train_transform` must be given.*model\.eval_transform"):
        mtil("I", ["dtd"]).benchmark(tmp_path)


def test_other_spellings_will_do():
    assert mtil("I", ["Oxford-Pets", "MNIST"]) == mtil("I", ["mnist", "oxford_pets"])


def test_descriptions_are_json():
    described = mtil().describe()
    assert json.loads(json.dumps(described)) == described
    assert described["datasets"] == list(CLASSES)
    assert (described["model"], described["pretrained"]) == ("ViT-B-16", "openai")


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"order": "III"}, ValueError, "`order` must be one of 'I', 'II'"),
        ({"datasets": "mnist"}, TypeError, "`datasets` must be a list"),
        ({"datasets": []}, ValueError, "`datasets` must be at least one"),
        ({"datasets": ["mnist", "Mnist"]}, ValueError, "each at most once"),
        ({"datasets": ["cifar10"]}, ValueError, "`datasets` must be one of .*Did you mean 'cifar100'"),
    ],
)
def test_mistakes_are_named(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        mtil(**arguments)
