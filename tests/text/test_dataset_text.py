import dataclasses
import hashlib
import importlib.util
import random
import re
import zipfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets as torchvision_datasets

from avalanche_vlm.text import DATASET_TEXTS, ClassNames, dataset_text, normalize_text

# Classes and templates as published; the first template word by word.
PUBLISHED = {
    "aircraft": (100, 2, "a photo of a {}, a type of aircraft."),
    "caltech101": (101, 34, "a photo of a {}."),
    "cifar10": (10, 18, "a photo of a {}."),
    "cifar100": (100, 18, "a photo of a {}."),
    "cub200": (200, 1, "a photo of a {}, a type of bird."),
    "dtd": (47, 8, "a photo of a {} texture."),
    "eurosat": (10, 3, "a centered satellite photo of {}."),
    "flowers102": (102, 1, "a photo of a {}, a type of flower."),
    "food101": (101, 1, "a photo of {}, a type of food."),
    "imagenet": (1000, 80, "a photo of a {}."),
    "imagenet_r": (200, 1, "a photo of a {}."),
    "mnist": (10, 1, 'a photo of the number: "{}".'),
    "oxford_pets": (37, 1, "a photo of a {}, a type of pet."),
    "pacs": (7, 1, "a photo of a {}."),
    "stanford_cars": (196, 8, "a photo of a {}."),
    "sun397": (397, 2, "a photo of a {}."),
    "ucf101": (101, 48, "a photo of a person {}."),
}

# Class ids that are known from elsewhere, with label and name; most where published orders disagree.
KNOWN = {
    "aircraft": [(0, "707-320", "707-320"), (34, "ATR-42", "ATR-42"), (99, "Yak-42", "Yak-42")],
    "caltech101": [
        (0, "Faces", "off-center face"),
        (1, "Faces_easy", "centered face"),
        (2, "Leopards", "leopard"),
        (4, "accordion", "accordion"),
        (19, "car_side", "side of a car"),
        (100, "yin_yang", "yin and yang symbol"),
    ],
    "cifar10": [(0, "airplane", "airplane"), (1, "automobile", "automobile"), (9, "truck", "truck")],
    "cifar100": [(0, "apple", "apple"), (1, "aquarium_fish", "aquarium fish"), (99, "worm", "worm")],
    "cub200": [
        (0, "001.Black_footed_Albatross", "black footed albatross"),
        (37, "038.Great_Crested_Flycatcher", "great crested flycatcher"),
        (158, "159.Black_and_white_Warbler", "black and white warbler"),
        (199, "200.Common_Yellowthroat", "common yellowthroat"),
    ],
    "dtd": [(0, "banded", "banded"), (30, "polka-dotted", "polka-dotted"), (46, "zigzagged", "zigzagged")],
    "eurosat": [
        (0, "AnnualCrop", "annual crop land"),
        (1, "Forest", "forest"),
        (2, "HerbaceousVegetation", "brushland or shrubland"),
        (3, "Highway", "highway or road"),
        (4, "Industrial", "industrial buildings or commercial buildings"),
        (5, "Pasture", "pasture land"),
        (6, "PermanentCrop", "permanent crop land"),
        (7, "Residential", "residential buildings or homes or apartments"),
        (8, "River", "river"),
        (9, "SeaLake", "lake or sea"),
    ],
    "flowers102": [
        (0, "pink primrose", "pink primrose"),
        (59, "pink-yellow dahlia?", "pink-yellow dahlia"),
        (101, "blackberry lily", "blackberry lily"),
    ],
    "food101": [
        (0, "apple_pie", "apple pie"),
        (16, "cheese_plate", "cheese plate"),
        (17, "cheesecake", "cheesecake"),
        (100, "waffles", "waffles"),
    ],
    "imagenet": [
        (0, "n01440764", "tench"),
        (207, "n02099601", "Golden Retriever"),
        (657, "n03773504", "missile"),
        (744, "n04008634", "projectile"),
        (836, "n04355933", "sunglass"),
        (837, "n04356056", "sunglasses"),
        (999, "n15075141", "toilet paper"),
    ],
    "imagenet_r": [(0, "n01443537", "goldfish"), (78, "n02134084", "ice bear")],
    "mnist": [(0, "0 - zero", "0"), (9, "9 - nine", "9")],
    "oxford_pets": [
        (0, "Abyssinian", "Abyssinian"),
        (1, "American Bulldog", "American Bulldog"),
        (5, "Bengal", "Bengal"),
        (36, "Yorkshire Terrier", "Yorkshire Terrier"),
    ],
    "pacs": [(0, "dog", "dog"), (6, "person", "person")],
    "stanford_cars": [
        (0, "AM General Hummer SUV 2000", "AM General Hummer SUV 2000"),
        (4, "Acura TSX Sedan 2012", "Acura TSX Sedan 2012"),
        (5, "Acura Integra Type R 2001", "Acura Integra Type R 2001"),
        (173, "Ram C/V Cargo Van Minivan 2012", "Ram C/V Cargo Van Minivan 2012"),
        (195, "smart fortwo Convertible 2012", "smart fortwo Convertible 2012"),
    ],
    "sun397": [
        (0, "abbey", "abbey"),
        (8, "apartment_building/outdoor", "apartment building outdoor"),
        (206, "jail/indoor", "jail indoor"),
        (207, "jail_cell", "jail cell"),
        (396, "youth_hostel", "youth hostel"),
    ],
    "ucf101": [
        (0, "ApplyEyeMakeup", "Apply Eye Makeup"),
        (34, "HammerThrow", "Hammer Throw"),
        (35, "Hammering", "Hammering"),
        (36, "HandstandPushups", "Hand Stand Pushups"),
        (100, "YoYo", "Yo Yo"),
    ],
}

# The class folders or labels of these are sorted.
SORTED = sorted(set(PUBLISHED) - {"flowers102", "oxford_pets", "stanford_cars", "sun397"})

# Names of ours beside those of the feature file, where they differ by more than underscores.
REWORDED = {
    "imagenet": {"projectile": "missile", "sunglass": "sunglasses"},
    "caltech101": {
        "off-center face": "face",
        "side of a car": "car side",
        "body of a cougar cat": "cougar body",
        "face of a cougar cat": "cougar face",
        "head of a crocodile": "crocodile head",
        "head of a flamingo": "flamingo head",
        "snoopy (cartoon beagle)": "snoopy",
        "yin and yang symbol": "yin yang",
    },
    "oxford_pets": {},
    "oxford_flowers": {"globe flower": "globe-flower", "air plant": "ball moss"},
    "dtd": {},
    "food10": {},
}
# Labels that are spelt otherwise than their names, where labels are words.
RELABELLED = {
    "caltech101": [
        "Faces",
        "Faces_easy",
        "Leopards",
        "Motorbikes",
        "airplanes",
        "car_side",
        "cougar_body",
        "cougar_face",
        "crocodile_head",
        "flamingo_head",
        "snoopy",
        "yin_yang",
    ],
    "flowers102": ["ball moss"],
}
OUR_NAME = {"oxford_flowers": "flowers102", "food10": "food101"}


def plain(name):
    return normalize_text(name.replace("_", " "))


def names_in_the_file(name):
    """Return our names as the feature file words them, class by class."""
    text = dataset_text(OUR_NAME.get(name, name))
    labels = [label for label in text.labels if label != "Faces_easy"]
    return [REWORDED[name].get(each, plain(each)) for each in text.names_for(labels)]


def test_every_file_is_listed():
    folder = files("avalanche_vlm.text") / "data"
    assert tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir())) == DATASET_TEXTS
    assert set(PUBLISHED) == set(KNOWN) == set(DATASET_TEXTS)


@pytest.mark.parametrize("name", DATASET_TEXTS)
def test_lists_are_as_published(name):
    text = dataset_text(name)
    count, templates, first = PUBLISHED[name]
    assert text.name == name
    assert len(text.class_names) == len(text.labels) == len(set(text.labels)) == count
    assert isinstance(text.class_names, ClassNames)  # which refuses duplicates
    assert len(text.templates) == len(set(text.templates)) == templates
    assert text.templates[0].text == first
    assert [text.labels.index(label) for _, label, _ in KNOWN[name]] == [index for index, _, _ in KNOWN[name]]
    assert [text.class_names[index] for index, _, _ in KNOWN[name]] == [each for _, _, each in KNOWN[name]]
    for words in (text.title, text.origin, text.licence, text.notes):
        assert words == words.strip() != ""
    for words in (*text.class_names, *text.labels):
        assert words == " ".join(words.split())
    assert "_" not in "".join(text.class_names)


def test_each_is_read_once_and_cannot_be_changed():
    text = dataset_text("pacs")
    assert dataset_text("pacs") is text
    with pytest.raises(dataclasses.FrozenInstanceError):
        text.name = "cifar10"


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("cifar-100", "cifar100"),
        ("CIFAR 100", "cifar100"),
        ("ImageNet-R", "imagenet_r"),
        ("oxford pets", "oxford_pets"),
        ("imagenet", "imagenet"),
    ],
)
def test_other_spellings_will_do(spelled, name):
    assert dataset_text(spelled) is dataset_text(name)


def test_no_two_data_sets_differ_in_spelling_only():
    assert len({dataset_text(name.upper().replace("_", "-")).name for name in DATASET_TEXTS}) == len(
        DATASET_TEXTS
    )


@pytest.mark.parametrize("wrong", ["cifar1000", "CIFAR-1OO", ["cifar100"]])
def test_unknown_data_sets_are_refused(wrong):
    with pytest.raises(ValueError, match="`name` must be one of 'aircraft'.*got .*Did you mean.*'cifar100'"):
        dataset_text(wrong)


def test_the_error_lists_the_names_once():
    with pytest.raises(ValueError, match="`name` must be one of 'aircraft'") as caught:
        dataset_text("xyzzy")
    for name in DATASET_TEXTS:
        assert str(caught.value).count(repr(name)) == 1


@pytest.mark.parametrize("name", SORTED)
def test_labels_are_in_the_order_of_sorted_folders(name):
    labels = dataset_text(name).labels
    assert list(labels) == sorted(labels)


def test_labels_are_those_of_torchvision():
    for name, kind in {
        "flowers102": torchvision_datasets.Flowers102,
        "mnist": torchvision_datasets.MNIST,
    }.items():
        dataset_text(name).check_labels(kind.classes, "torchvision")
    # Pets and SUN397 are sorted too, by breed without regard to case and by the folder of the first letter.
    pets, sun = dataset_text("oxford_pets").labels, dataset_text("sun397").labels
    assert list(pets) == sorted(pets, key=str.lower)
    assert list(sun) == sorted(sun, key=lambda label: (label[0], label))


def test_cars_are_in_the_order_of_the_meta_file():
    # No rule gives this order; the sum is of the 196 names as TensorFlow Datasets lists them.
    lines = "\n".join(dataset_text("stanford_cars").labels).encode()
    assert hashlib.sha256(lines).hexdigest().startswith("93d089469409bbd0")


@pytest.mark.parametrize("name", sorted(set(DATASET_TEXTS) - {"imagenet", "imagenet_r", "eurosat"}))
def test_labels_and_names_tell_the_same_class(name):
    # Letter by letter up to separators and case (digits too, but for the numbers of CUB's folders and
    # the words of MNIST's labels), except for the rewordings that the notes tell of.
    text = dataset_text(name)
    labels = [re.sub(r"^\d{3}\.| - \w+$", "", label) for label in text.labels]
    other = [
        label
        for label, each in zip(labels, text.class_names, strict=True)
        if re.sub(r"\W|_", "", label.lower()) != re.sub(r"\W|_", "", each.lower())
    ]
    assert other == RELABELLED.get(name, [])


@pytest.mark.parametrize(("name", "least"), [("imagenet", 817), ("imagenet_r", 200)])
def test_wordnet_ids_and_names_tell_the_same_class(name, least):
    # timm, which open_clip needs, lists the WordNet ids in label order and their words.
    folder = Path(importlib.util.find_spec("timm").origin).parent / "data" / "_info"
    synsets = (folder / "imagenet_synsets.txt").read_text().split()
    rows = (line.split("\t") for line in (folder / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    lemmas = {synset: set(normalize_text(words).split(", ")) for synset, words in rows}
    text = dataset_text(name)
    assert set(text.labels) <= set(synsets)
    assert name != "imagenet" or list(text.labels) == synsets
    names = [plain(each) for each in text.class_names]

    def agreeing(names):
        return sum(each in lemmas[label] for label, each in zip(text.labels, names, strict=True))

    assert agreeing(names) >= least
    assert agreeing(names[1:] + names[:1]) <= len(names) // 50


def test_imagenet_words_its_rendition_too():
    text, rendition = dataset_text("imagenet"), dataset_text("imagenet_r")
    names = ClassNames(text.names_for(rendition.labels))
    assert names[rendition.labels.index("n02134084")] == "polar bear"
    assert names[rendition.labels.index("n02797295")] == "wheelbarrow"


def test_names_for_a_subset_and_another_order():
    text = dataset_text("caltech101")
    few_shot = [label for label in text.labels if label != "Faces_easy"]
    assert text.names_for(few_shot) == [each for each in text.class_names if each != "centered face"]
    assert text.names_for(iter(["yin_yang", "Faces"])) == ["yin and yang symbol", "off-center face"]
    assert text.names_for(text.labels[::-1]) == list(text.class_names)[::-1]
    assert text.names_for([]) == []


def test_unknown_labels_are_named_with_close_ones():
    text = dataset_text("caltech101")
    with pytest.raises(
        ValueError, match="labels of Caltech-101; got 'faces_eesy', 'acordion'.*'Faces_easy'.*'acc"
    ):
        text.names_for(["Faces", "faces_eesy", "acordion"])
    with pytest.raises(ValueError, match=r"got 'x0', 'x1', 'x2', 'x3', 'x4', \.\.\. \(7 in all\)"):
        text.names_for([f"x{index}" for index in range(7)])


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("Faces", "`labels` must be an ordered list of labels; got str"),
        ({"Faces"}, "`labels` must be an ordered list of labels; got set.*no order"),
        ([0, 1], r"`labels\[0\]` must be str; got int"),
        ([("tench", "Tinca tinca")], r"`labels\[0\]` must be str; got tuple"),
    ],
)
def test_labels_are_ordered_text(labels, sentence):
    text = dataset_text("caltech101")
    for method in (text.names_for, lambda labels: text.check_labels(labels, "my data")):
        with pytest.raises(TypeError, match=sentence):
            method(labels)


@pytest.mark.parametrize("name", DATASET_TEXTS)
def test_own_labels_pass(name):
    text = dataset_text(name)
    text.check_labels(list(text.labels), "itself")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda labels: labels[1:], "9 labels, without 'AnnualCrop'"),
        (lambda labels: [*labels, "Desert"], "11 labels, with 'Desert' too many"),
        (lambda labels: [*labels, "River"], "11 labels, with 'River' too many"),
        (lambda labels: [*labels[:-1], "Sea"], "10 labels, without 'SeaLake', with 'Sea' too many"),
        (
            lambda labels: [labels[0], *labels[:0:-1]],
            "10 labels, with 'SeaLake' as class 1, where 'Forest' belongs",
        ),
        (lambda labels: [], r"0 labels, without 'AnnualCrop'.*\.\.\. \(10 in all\)"),
    ],
)
def test_other_labels_are_told(change, sentence):
    text = dataset_text("eurosat")
    start = r"`labels` must be the 10 labels of EuroSAT in its order, for my copy; got "
    end = r"\. Names for a part.*dataset_text\('eurosat'\)\.names_for\(labels\)"
    with pytest.raises(ValueError, match=start + sentence + end):
        text.check_labels(change(list(text.labels)), "my copy")


@pytest.mark.parametrize("name", sorted(REWORDED))
def test_names_are_those_of_the_real_features(real_data, name):
    with np.load(real_data / "clip_vitb32_features.npz", allow_pickle=False) as data:
        theirs = [plain(each) for each in data[f"{name}/names"].tolist()]
    ours = names_in_the_file(name)
    assert set(REWORDED[name]) <= {plain(each) for each in dataset_text(OUR_NAME.get(name, name)).class_names}
    if name == "food10":
        assert len(theirs) == 10
        assert [each for each in ours if each in theirs] == theirs
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    ("archive", "name", "left_out"),
    [("caltech101_128px", "caltech101", 1), ("cifar10_25k", "cifar10", 0), ("pacs_128px", "pacs", 0)],
)
def test_names_are_those_of_the_real_folders(real_data, archive, name, left_out):
    with zipfile.ZipFile(real_data / f"{archive}.zip") as images:
        folders = sorted({Path(path).parent.name for path in images.namelist() if path.endswith(".jpg")})
    theirs = [plain(folder.lstrip("0123456789_")) for folder in folders]
    text = dataset_text(name)
    ours = names_in_the_file(name) if name in REWORDED else list(text.class_names)
    assert len(folders) == len(text.labels) - left_out
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "accuracy"), [("imagenet", 61.1), ("caltech101", 92.4), ("oxford_pets", 89.1)]
)
def test_zero_shot_on_real_features_needs_our_order(real_data, name, accuracy):
    with np.load(real_data / "clip_vitb32_features.npz", allow_pickle=False) as data:
        theirs = [plain(each) for each in data[f"{name}/names"].tolist()]
        text = data[f"{name}/text"].astype(np.float32)
        images, targets = data[f"{name}/test_x"].astype(np.float32), data[f"{name}/test_y"]

    def zero_shot(names):
        """Return the accuracy in percent if class id i has the text feature of ``names[i]``."""
        weights = text[[theirs.index(each) for each in names]]
        with_text = np.flatnonzero(np.abs(text).sum(axis=1))  # by class id of the file, whatever our names
        rows = np.isin(targets, with_text)
        guesses = with_text[(images[rows] @ weights[with_text].T).argmax(axis=1)]
        return 100 * (guesses == targets[rows]).mean(), len(with_text)

    ours = names_in_the_file(name)
    assert zero_shot(ours)[0] == pytest.approx(accuracy, abs=0.3)
    shuffled = random.Random(0).sample(ours, len(ours))
    wrong, classes = zero_shot(shuffled)
    assert wrong < 4 * 100 / classes
