"""Data whose content tells its label and its identity."""

import numpy as np
import pytest
import torch

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
    from PIL import Image

    def write(root, folders, count=5):
        for value, folder in enumerate(folders):
            (root / folder).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((6, 7, 3), 20 * value, dtype=np.uint8)
                pixels[0, 0] = index
                Image.fromarray(pixels).save(root / folder / f"{index}.png")
        return root

    return write
