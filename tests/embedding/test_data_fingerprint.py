"""What samples are, for every kind of data set."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, Resize, ToTensor

from avalanche_vlm.benchmarks import LabelledTensors
from avalanche_vlm.benchmarks.class_folders import LabelledFiles
from avalanche_vlm.embedding import embed
from avalanche_vlm.embedding.data_fingerprint import FileIndex, sample_digests

from .conftest import NAMES, all_x, counting_backbone, pixels, write_images


class Listed(Dataset):
    """Any data set, which only says x and y."""

    def __init__(self, values):
        self.values = values
        self.targets = [index % 2 for index in range(len(values))]

    def __getitem__(self, index):
        value = self.values[index]
        return value() if callable(value) else value, self.targets[index]

    def __len__(self):
        return len(self.values)


@pytest.fixture
def index(tmp_path):
    return FileIndex(tmp_path / "index.sqlite")


def by_definition(dtype, array):
    header = json.dumps([dtype, list(array.shape)]).encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).digest()


def test_tensors_are_told_by_type_shape_and_bytes(index):
    x, y = pixels(0)
    expected = [by_definition("torch.uint8", x[row].numpy()) for row in (5, 0)]
    for leaf in (LabelledTensors(x, y), TensorDataset(x, y), Listed(list(x)), Listed(list(x.numpy()))):
        assert sample_digests(leaf, [5, 0], index) == expected
    assert sample_digests(Listed([x[0].float()]), [0], index) != expected[1:]
    assert sample_digests(Listed([x[0].reshape(8, 3, 8)]), [0], index) != expected[1:]
    bfloat = torch.ones(2, 3, dtype=torch.bfloat16)
    assert len(set(sample_digests(Listed([bfloat, bfloat.half(), bfloat + 1]), range(3), index))) == 3


def test_files_are_told_by_their_bytes(index, tmp_path):
    folder = write_images(tmp_path / "images", ["a", "b"])
    paths = sorted(map(str, folder.rglob("*.png")))
    expected = [hashlib.sha256(Path(path).read_bytes()).digest() for path in paths]
    assert sample_digests(LabelledFiles(paths, [0, 0, 1, 1]), range(4), index) == expected
    assert sample_digests(ImageFolder(str(folder)), [2, 1], index) == [expected[2], expected[1]]


def test_pictures_are_told_by_mode_size_and_pixels(index):
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    picture = Image.fromarray(array)
    values = [
        picture,
        picture.copy(),
        picture.convert("L"),
        picture.rotate(90),
        Image.fromarray(array.reshape(2, 8, 3)),
    ]
    digests = sample_digests(Listed(values), range(5), index)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_randomness_of_the_data_set_itself_is_seeded_by_the_row(index):
    leaf = Listed([lambda: torch.rand(3)] * 2)
    first = sample_digests(leaf, [0, 1], index)
    assert first == sample_digests(leaf, [0, 1], index)
    assert first[0] != first[1]


def test_what_is_no_image_is_refused(index):
    with pytest.raises(TypeError, match="data sets of pictures, tensors or arrays; got str"):
        sample_digests(Listed(["text"]), [0], index)


def host(train, test):
    return nc_benchmark(train, test, n_experiences=2, task_labels=False, shuffle=False)


def count(benchmark, folder):
    backbone = counting_backbone()
    embedded = embed(benchmark, backbone, cache_dir=folder)
    backbone.eval()
    with torch.no_grad():
        for images, embeddings in zip(benchmark.train_stream, embedded.train_stream, strict=True):
            assert torch.allclose(all_x(embeddings), backbone.encode_image(all_x(images)), atol=1e-6)
    return sum(backbone.batches) - sum(len(e.dataset) for e in benchmark.train_stream)


def test_image_folders_of_torchvision_with_transforms_of_their_own(tmp_path):
    folder = write_images(tmp_path / "images", NAMES)
    plain = ImageFolder(str(folder), Compose([Resize((8, 8)), ToTensor()]))
    other = ImageFolder(str(folder), Compose([Resize((8, 8)), ToTensor(), Normalize([0.5], [0.5])]))
    assert count(host(plain, plain), tmp_path / "cache") == 12
    assert count(host(plain, plain), tmp_path / "cache") == 0
    assert count(host(other, other), tmp_path / "cache") == 12


def test_any_data_set_with_targets(tmp_path):
    x = pixels(0)[0] / 255
    assert count(host(Listed(list(x)), Listed(list(x))), tmp_path) == 24
    assert count(host(Listed(list(x)), Listed(list(x))), tmp_path) == 0
    changed = list(x)
    changed[3] = changed[3] + 1e-3
    assert count(host(Listed(changed), Listed(list(x))), tmp_path) == 24


def test_a_random_transform_inside_the_data_gives_one_and_the_same_view(tmp_path):
    folder = write_images(tmp_path / "images", NAMES)

    def benchmark():
        data = ImageFolder(str(folder), Compose([Resize((8, 8)), RandomHorizontalFlip(), ToTensor()]))
        return host(data, data)

    one, other = (
        embed(benchmark(), counting_backbone(), cache_dir=tmp_path / name, batch_size=size)
        for name, size in (("a", 12), ("b", 5))
    )
    for a, b in zip(one.train_stream, other.train_stream, strict=True):
        assert torch.allclose(all_x(a), all_x(b), atol=1e-6)


def test_subsets_and_concatenations_of_torch_share_the_file_of_their_data(tmp_path):
    x, y = pixels(0)
    data = TensorDataset(x / 255, y)

    def with_targets(dataset, targets):
        dataset.targets = targets
        return dataset

    train = with_targets(Subset(data, list(range(0, 24, 2))), y[::2].tolist())
    test = with_targets(Subset(data, list(range(1, 24, 2))), y[1::2].tolist())
    assert count(host(train, test), tmp_path) == 24
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    ends = with_targets(
        Subset(ConcatDataset([data, data]), [-1, 0, -24, -25]), [int(y[-1]), *y[[0, 0, 23]].tolist()]
    )
    assert count(host(ends, ends), tmp_path / "ends") == 2
    both = with_targets(ConcatDataset([train, test]), y[::2].tolist() + y[1::2].tolist())
    assert count(host(both, test), tmp_path) == 0
