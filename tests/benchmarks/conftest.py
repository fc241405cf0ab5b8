"""Data whose content tells its label and its identity, and tiny copies of known data sets."""

import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100

from avalanche_vlm.text import dataset_text

NAMES = ["cat", "dog", "cow", "fox", "hen", "owl"]
SAMPLES_PER_CLASS = 4


@pytest.fixture
def names():
    return list(NAMES)


@pytest.fixture
def embeddings():
    """Return a function that makes (x, y) with x = [one-hot label, number of the sample]."""

    def make(class_count=6, samples_per_class=SAMPLES_PER_CLASS, first=0.0):
        y = torch.arange(class_count).repeat(samples_per_class)
        number = first + torch.arange(len(y), dtype=torch.float32)
        return torch.cat([torch.eye(max(class_count, len(NAMES)))[y], number[:, None]], dim=1), y

    return make


@pytest.fixture
def write_images():
    """Return a function that writes small images of one grey value per class below a folder."""

    def write(root, folders, count=5):
        for value, folder in enumerate(folders):
            (root / folder).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((6, 7, 3), 20 * value, dtype=np.uint8)
                pixels[0, 0] = index
                Image.fromarray(pixels).save(root / folder / f"{index}.png")
        return root

    return write


class FakeCopies:
    """Writes a tiny copy of a known data set, in the layout that torchvision or the authors have.

    Each method writes one data set, and returns its train files and its test files, each as a
    mapping from path to class id; data sets without parts give one mapping. The arrays of data sets
    in memory hold the class id in their first pixel.
    """

    def __init__(self, root):
        self.root = root
        buffer = io.BytesIO()
        Image.new("L", (8, 8), 77).save(buffer, "JPEG")
        self.picture = buffer.getvalue()

    def write(self, name, **arguments):
        return getattr(self, name)(list(dataset_text(name).labels), **arguments)

    def image(self, path, label, files):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.picture)
        files[str(path)] = label

    def text(self, path, lines):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))

    def class_folders(self, name, labels, test_part="test", train_per_class=2):
        train, test = {}, {}
        for index, label in enumerate(labels):
            for number in range(train_per_class):
                self.image(f"{name}/train/{label}/{number}.jpg", index, train)
            self.image(f"{name}/{test_part}/{label}/x.jpg", index, test)
        return train, test

    def cub200(self, labels):
        return self.class_folders("cub200", labels)

    def imagenet_r(self, labels):
        return self.class_folders("imagenet_r", labels)

    def ucf101(self, labels):
        return self.class_folders("ucf101", labels)

    def imagenet(self, labels):
        return self.class_folders("imagenet", labels, "val", 1)

    def aircraft(self, labels):
        folder, parts = "fgvc-aircraft-2013b/data", []
        self.text(f"{folder}/variants.txt", labels)
        for part, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (4,))):
            files, lines = {}, []
            for index, label in enumerate(labels):
                for number in numbers:
                    lines.append(f"{number}{index:04d} {label}")
                    self.image(f"{folder}/images/{number}{index:04d}.jpg", index, files)
            self.text(f"{folder}/images_variant_{part}.txt", lines)
            parts.append(files)
        return parts[0], parts[2]

    def dtd(self, labels):
        parts = []
        for part, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (4,))):
            files, lines = {}, []
            for index, label in enumerate(labels):
                for number in numbers:
                    lines.append(f"{label}/{label}_{number}.jpg")
                    self.image(f"dtd/dtd/images/{lines[-1]}", index, files)
            self.text(f"dtd/dtd/labels/{part}1.txt", lines)
            parts.append(files)
        return parts[0], parts[2]

    def food101(self, labels):
        parts = []
        for part, numbers in (("train", (1, 2)), ("test", (3,))):
            files, listed = {}, {}
            for index, label in enumerate(labels):
                listed[label] = [f"{label}/{number}" for number in numbers]
                for path in listed[label]:
                    self.image(f"food-101/images/{path}.jpg", index, files)
            self.text(f"food-101/meta/{part}.json", [json.dumps(dict(reversed(listed.items())))])
            parts.append(files)
        return parts

    def flowers102(self, labels):
        parts, ids = ({}, {}, {}), ([], [], [])
        of_image = []
        for number, index in enumerate(list(range(len(labels))) * 4, start=1):
            part = (0, 0, 1, 2)[(number - 1) // len(labels)]
            of_image.append(index + 1)
            ids[part].append(number)
            self.image(f"flowers-102/jpg/image_{number:05d}.jpg", index, parts[part])
        savemat(self.root / "flowers-102/imagelabels.mat", {"labels": np.array(of_image)})
        names = dict(zip(("trnid", "valid", "tstid"), map(np.array, ids), strict=True))
        savemat(self.root / "flowers-102/setid.mat", names)
        return parts[0], parts[2]

    def oxford_pets(self, labels):
        parts = []
        for part, numbers in (("trainval", (1, 2)), ("test", (3,))):
            files, lines = {}, []
            for index, label in enumerate(labels):
                for number in numbers:
                    lines.append(f"{label.replace(' ', '_')}_{number} {index + 1} 1 1")
                    self.image(f"oxford-iiit-pet/images/{lines[-1].split()[0]}.jpg", index, files)
            self.text(f"oxford-iiit-pet/annotations/{part}.txt", lines)
            parts.append(files)
        return parts

    def stanford_cars(self, labels):
        folder, parts = self.root / "stanford_cars", []
        (folder / "devkit").mkdir(parents=True)
        savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(labels, dtype=object)})
        places = (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat"))
        for part, place in places:
            files, rows = {}, []
            for index in range(len(labels)):
                rows.append((f"{index:05d}.jpg", index + 1))
                self.image(f"stanford_cars/cars_{part}/{index:05d}.jpg", index, files)
            annotations = np.array(rows, dtype=[("fname", object), ("class", object)])
            savemat(folder / place, {"annotations": annotations})
            parts.append(files)
        return parts

    def caltech101(self, labels, per_class=5):
        files = {}
        self.image("caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg", -1, {})
        for index, label in enumerate(labels):
            for number in range(1, per_class + 1):
                path = f"caltech101/101_ObjectCategories/{label}/image_{number:04d}.jpg"
                self.image(path, index, files)
        return files

    def eurosat(self, labels, per_class=12):
        files = {}
        for index, label in enumerate(labels):
            for number in range(1, per_class + 1):
                self.image(f"eurosat/2750/{label}/{label}_{number}.jpg", index, files)
        return files

    def sun397(self, labels, per_class=3):
        files = {}
        self.text("SUN397/ClassName.txt", [f"/{label[0]}/{label}" for label in labels])
        for index, label in enumerate(labels):
            for number in range(per_class):
                self.image(f"SUN397/{label[0]}/{label}/sun_{number}.jpg", index, files)
        return files

    def cifar(self, dataset, label_key, labels):
        folder = self.root / dataset.base_folder
        folder.mkdir(parents=True)
        targets = list(range(len(labels))) * 2
        pixels = np.zeros((len(targets), 3, 32, 32), dtype=np.uint8)
        pixels[:, 1, 0, 0] = targets
        for part, (name, _) in enumerate(dataset.train_list[:1] + dataset.test_list):
            pixels[:, 2, 0, 0] = part
            entry = {"data": pixels.reshape(len(targets), -1), label_key: targets}
            (folder / name).write_bytes(pickle.dumps(entry))
        (folder / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: labels}))

    def cifar10(self, labels):
        self.cifar(CIFAR10, "labels", labels)

    def cifar100(self, labels):
        self.cifar(CIFAR100, "fine_labels", labels)

    def mnist(self, labels):
        folder = self.root / "MNIST/raw"
        folder.mkdir(parents=True)
        targets = np.tile(np.arange(10, dtype=np.uint8), 3)
        pixels = np.zeros((len(targets), 28, 28), dtype=np.uint8)
        pixels[:, 0, 0] = targets
        for part, name in enumerate(("train", "t10k")):
            pixels[:, 0, 1] = part
            for kind, array in (("images-idx3", pixels), ("labels-idx1", targets)):
                header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
                (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())


@pytest.fixture
def fake_copies(tmp_path, monkeypatch):
    """Tiny copies in a temporary folder; checks of the real archives' md5 sums are switched off."""
    for dataset in (CIFAR10, CIFAR100):
        monkeypatch.setattr(dataset, "_check_integrity", lambda self: True)
        monkeypatch.setattr(dataset, "train_list", dataset.train_list[:1])
    for module in ("cifar", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *arguments: True)
    return FakeCopies(tmp_path)
