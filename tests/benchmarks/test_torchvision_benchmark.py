import pickle

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from avalanche_vlm.benchmarks import TORCHVISION_DATASETS, class_names, torchvision_benchmark

PER_CLASS = 2


def write_cifar(root, dataset, class_count, label_key):
    """Write a tiny copy of a CIFAR folder; the first pixel of an image holds its label and its part."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    labels = list(range(class_count)) * PER_CLASS
    pixels = np.zeros((len(labels), 3, 32, 32), dtype=np.uint8)
    pixels[:, 1, 0, 0] = labels
    for part, (name, _) in enumerate(dataset.train_list[:1] + dataset.test_list):
        pixels[:, 2, 0, 0] = part
        entry = {"data": pixels.reshape(len(labels), -1), label_key: labels}
        (folder / name).write_bytes(pickle.dumps(entry))
    names = [f"wild_thing_{index}" for index in range(class_count)]
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: names}))


@pytest.fixture
def root(tmp_path, monkeypatch):
    for dataset, class_count, key in ((CIFAR10, 10, "labels"), (CIFAR100, 100, "fine_labels")):
        write_cifar(tmp_path, dataset, class_count, key)
        monkeypatch.setattr(dataset, "_check_integrity", lambda self: True)
        monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
        monkeypatch.setattr(dataset, "train_list", dataset.train_list[:1])
    return tmp_path


@pytest.mark.parametrize(("name", "class_count"), [("cifar10", 10), ("cifar100", 100)])
def test_names_and_labels_come_from_torchvision(root, name, class_count):
    benchmark = torchvision_benchmark(name, root, n_experiences=5, seed=0)
    assert class_names(benchmark).names == tuple(f"wild thing {index}" for index in range(class_count))
    for part, stream in enumerate((benchmark.train_stream, benchmark.test_stream)):
        assert sum(len(experience.dataset) for experience in stream) == PER_CLASS * class_count
        for x, y, _ in stream[3].dataset:
            assert x.shape == (3, 32, 32)
            assert x.dtype == torch.uint8
            assert int(x[1, 0, 0]) == y
            assert int(x[2, 0, 0]) == part


def test_missing_data_say_how_to_get_them(tmp_path):
    with pytest.raises(ValueError, match=r"`root` must be .*'cifar100'; got .*missing.*Pass download=True"):
        torchvision_benchmark("cifar100", tmp_path / "nowhere", n_experiences=10)
    assert not (tmp_path / "nowhere").exists()


def test_unknown_names_name_close_ones(tmp_path):
    with pytest.raises(ValueError, match=r"`name` must be one of 'cifar10', 'cifar100'.*Did you mean"):
        torchvision_benchmark("cifar-100", tmp_path, n_experiences=10)
    with pytest.raises(TypeError, match=r"`root` must be"):
        torchvision_benchmark("cifar10", 3, n_experiences=10)
    with pytest.raises(TypeError, match=r"`download` must be bool"):
        torchvision_benchmark("cifar10", tmp_path, download="yes", n_experiences=10)
    assert set(TORCHVISION_DATASETS) == {"cifar10", "cifar100"}
