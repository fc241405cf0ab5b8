"""Prepared copies of data sets: class folders with the smallest pictures."""

import pytest
from PIL import Image
from torchvision.transforms import PILToTensor


@pytest.fixture
def write_copy(tmp_path):
    """Return a function that writes ``<dataset>/{train,test}/<label>/`` and returns the root.

    The red value of a picture is the position of its label in the list, modulo 256.
    """

    def write(dataset, labels, test_part="test"):
        for index, label in enumerate(labels):
            for part in ("train", test_part):
                folder = tmp_path / dataset / part / label
                folder.mkdir(parents=True)
                Image.new("RGB", (2, 2), (index % 256, 0, 0)).save(folder / "0.png")
        return tmp_path

    return write


@pytest.fixture
def transforms():
    return {"train_transform": PILToTensor(), "eval_transform": PILToTensor()}
