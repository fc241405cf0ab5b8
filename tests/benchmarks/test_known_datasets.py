import shutil
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from torchvision.datasets import DTD, StanfordCars

from avalanche_vlm.benchmarks import KNOWN_DATASETS
from avalanche_vlm.benchmarks.known_datasets import load_known_dataset
from avalanche_vlm.text import dataset_text

RANDOM = ("caltech101", "eurosat", "sun397")
IN_MEMORY = ("cifar10", "cifar100", "mnist")
WITH_PARTS = sorted(set(KNOWN_DATASETS) - set(RANDOM) - set(IN_MEMORY))


def listed(files):
    return dict(zip(files.paths, files.targets, strict=True))


def never(*arguments, **keywords):
    raise AssertionError("an image was opened")


def drawn(files):
    """Return the train and test files of a data set without parts, by the definition of the draw."""
    paths = sorted(files)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(42)).tolist()
    count = int(0.8 * len(paths))
    return [paths[index] for index in order[:count]], [paths[index] for index in order[count:]]


def test_the_table_has_what_has_names():
    assert set(KNOWN_DATASETS) >= {
        "aircraft",
        "caltech101",
        "cifar10",
        "cifar100",
        "cub200",
        "dtd",
        "eurosat",
    }
    for name, known in KNOWN_DATASETS.items():
        assert known.split
        assert known.page.startswith("http")
        assert dataset_text(name).labels
    fetched = {name for name, known in KNOWN_DATASETS.items() if known.downloadable}
    by_hand = {"cub200", "imagenet", "imagenet_r", "stanford_cars", "sun397", "ucf101"}
    assert fetched == set(KNOWN_DATASETS) - by_hand
    assert {name for name, known in KNOWN_DATASETS.items() if known.in_memory} == set(IN_MEMORY)


@pytest.mark.parametrize("name", WITH_PARTS)
def test_official_parts_are_listed_without_opening_an_image(name, fake_copies, monkeypatch):
    train, test = fake_copies.write(name)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", never)
        parts = load_known_dataset(name, fake_copies.root)
    assert listed(parts.train) == train
    assert listed(parts.test) == test
    assert set(train.values()) == set(test.values()) == set(range(len(parts.class_names)))
    assert parts.class_names == dataset_text(name).class_names
    image, label = parts.test[3]
    assert (image.mode, image.size, label) == ("RGB", (8, 8), parts.test.targets[3])


@pytest.mark.parametrize("name", RANDOM)
def test_parts_are_drawn_by_the_formula(name, fake_copies, monkeypatch):
    files = fake_copies.write(name)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", never)
        parts = load_known_dataset(name, fake_copies.root)
    train, test = drawn(files)
    assert parts.train.paths == train
    assert parts.test.paths == test
    assert {**listed(parts.train), **listed(parts.test)} == files
    assert parts.class_names == dataset_text(name).class_names
    assert parts.train[0][0].mode == "RGB"


def test_the_draw_does_not_depend_on_the_order_in_which_files_are_found(fake_copies, monkeypatch):
    fake_copies.write("sun397")
    first = load_known_dataset("sun397", fake_copies.root)
    found = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(found(self, pattern), reverse=True))
    second = load_known_dataset("sun397", fake_copies.root)
    assert listed(first.train) == listed(second.train)
    assert first.train.paths == second.train.paths


@pytest.mark.parametrize("name", IN_MEMORY)
def test_data_in_memory_stay_there_as_rgb(name, fake_copies):
    fake_copies.write(name)
    parts = load_known_dataset(name, fake_copies.root)
    assert parts.class_names == dataset_text(name).class_names
    size = 28 if name == "mnist" else 32
    for number, part in enumerate((parts.train, parts.test)):
        assert part.x.shape == (len(part), 3, size, size)
        assert part.x.dtype == torch.uint8
        assert set(Counter(part.targets).values()) == {3 if name == "mnist" else 2}
        if name == "mnist":
            assert (part.x[:, :, 0, 0] == part.y[:, None]).all()  # grey, in all three channels
            assert (part.x[:, :, 0, 1] == number).all()
        else:
            assert torch.equal(part.x[:, 1, 0, 0].long(), part.y)
            assert (part.x[:, 2, 0, 0] == number).all()


@pytest.mark.parametrize("name", list(KNOWN_DATASETS))
@pytest.mark.parametrize("exists", [True, False])
def test_missing_data_say_how_to_get_them(name, exists, tmp_path):
    known = KNOWN_DATASETS[name]
    root = tmp_path / "data"
    if exists:
        root.mkdir()
    with pytest.raises(ValueError, match=f"`root` must be .*'{name}' in its folder") as caught:
        load_known_dataset(name, root, download=not known.downloadable)
    sentence = str(caught.value)
    assert known.folder in sentence
    assert str(root) in sentence
    assert known.page in sentence
    assert ("Pass download=True" in sentence) == known.downloadable
    assert known.by_hand in sentence
    assert ("It cannot be downloaded" in sentence) == (not known.downloadable)
    assert (known.split in sentence) == (name in ("cub200", "imagenet", "imagenet_r", "ucf101"))
    assert list(tmp_path.rglob("*")) == [root] * exists


def test_half_a_copy_is_a_missing_one(fake_copies):
    fake_copies.write("dtd")
    (fake_copies.root / "dtd/dtd/labels/test1.txt").unlink()
    with pytest.raises(ValueError, match="'dtd'.*missing or incomplete.*Pass download=True"):
        load_known_dataset("dtd", fake_copies.root)
    fake_copies.write("ucf101")
    shutil.rmtree(fake_copies.root / "ucf101/test/Archery")
    with pytest.raises(ValueError, match="without 'Archery'"):
        load_known_dataset("ucf101", fake_copies.root)


@pytest.mark.parametrize("name", ["aircraft", "cub200", "eurosat", "mnist", "sun397"])
def test_other_classes_are_refused(name, fake_copies, monkeypatch):
    text = dataset_text(name)
    fake_copies.write(name)
    fewer = list(text.labels[:-1])
    if name == "mnist":
        monkeypatch.setattr("torchvision.datasets.MNIST.classes", fewer)
    elif name in ("cub200", "eurosat"):
        for path in list(fake_copies.root.rglob(text.labels[-1])):
            shutil.rmtree(path)
    else:
        shutil.rmtree(fake_copies.root)
        getattr(fake_copies, name)(fewer)
    sentence = rf"the {len(text.labels)} labels of .*; got {len(fewer)} labels, without '{text.labels[-1]}'"
    with pytest.raises(ValueError, match=sentence):
        load_known_dataset(name, fake_copies.root)


def test_a_download_that_fails_says_what_else_to_do(tmp_path, monkeypatch):
    def unreachable(self):
        raise URLError("no route")

    monkeypatch.setattr(DTD, "_download", unreachable)
    with pytest.raises(RuntimeError, match=r"'dtd'.*no route.*https://www.robots.*unpack it to") as caught:
        load_known_dataset("dtd", tmp_path, download=True)
    assert isinstance(caught.value.__cause__, URLError)


def test_a_download_is_left_out_where_torchvision_cannot(fake_copies, monkeypatch):
    monkeypatch.setattr(StanfordCars, "download", never)
    fake_copies.write("stanford_cars")
    assert len(load_known_dataset("stanford_cars", fake_copies.root, download=True).train) == 196


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (("cifar-1000", "x"), ValueError, r"`name` must be one of 'aircraft'.*Did you mean 'cifar100'"),
        (("cifar10", 3), TypeError, "`root` must be"),
    ],
)
def test_mistakes_are_named(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        load_known_dataset(*arguments)
    with pytest.raises(TypeError, match="`download` must be bool"):
        load_known_dataset("cifar10", "x", download="yes")
