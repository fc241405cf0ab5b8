"""Folders of real images, where the data are at hand."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from torchvision.transforms import CenterCrop, Compose, PILToTensor

from avalanche_vlm.benchmarks import class_names, domain_folder_benchmark, folder_benchmark

DATA = os.environ.get("AVALANCHE_VLM_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="AVALANCHE_VLM_DATA names no folder of real data")

SMALL = Compose([CenterCrop(32), PILToTensor()])
FILES_PER_CLASS = 6


def unpack(name, target, wanted):
    """Unpack at most a few files of each folder for which ``wanted(parts of its path)`` holds."""
    archive = Path(DATA) / name
    if not archive.exists():
        pytest.skip(f"{name} is not in AVALANCHE_VLM_DATA")
    count = {}
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.namelist():
            folder = Path(entry).parent
            if entry.endswith("/") or not wanted(folder.parts) or count.get(folder, 0) >= FILES_PER_CLASS:
                continue
            count[folder] = count.get(folder, 0) + 1
            opened.extract(entry, target)
    return sorted(count)


def test_photographs_in_two_folders(tmp_path):
    kept = {}

    def wanted(parts):
        classes = kept.setdefault(parts[-2], set())
        if len(classes) < 4:
            classes.add(parts[-1])
        return parts[-1] in classes and parts[-1] in kept.get("train", classes)

    folders = unpack("caltech101_128px.zip", tmp_path, wanted)
    train, test = (
        tmp_path / next(f.parent for f in folders if f.parent.name == part) for part in ("train", "test")
    )
    benchmark = folder_benchmark(train, test, n_experiences=2, train_transform=SMALL, eval_transform=SMALL)
    assert len(class_names(benchmark)) == 4
    assert not any("_" in name or name[0].isdigit() for name in class_names(benchmark))
    x, y, _ = benchmark.train_stream[1].dataset[0]
    assert x.shape == (3, 32, 32)
    assert y in (2, 3)
    assert all(len(experience.dataset) > 0 for experience in benchmark.test_stream)


def test_domains_of_pacs(tmp_path):
    folders = unpack("pacs_128px.zip", tmp_path, lambda parts: parts[-1] in {"dog", "guitar", "house"})
    root = tmp_path / folders[0].parent.parent
    benchmark = domain_folder_benchmark(root, test_fraction=0.5, train_transform=SMALL, eval_transform=SMALL)
    assert class_names(benchmark).names == ("dog", "guitar", "house")
    assert len(benchmark.train_stream) == 4
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience in stream:
            assert len(experience.dataset) == 3 * FILES_PER_CLASS // 2
            assert torch.stack([x for x, _, _ in experience.dataset]).float().std() > 0


def test_small_images_of_one_folder(tmp_path):
    folders = unpack("cifar10_25k.zip", tmp_path, lambda parts: parts[-2] == "test")
    root = tmp_path / folders[0].parent
    benchmark = folder_benchmark(root, n_experiences=5, seed=0, train_transform=SMALL, eval_transform=SMALL)
    assert len(class_names(benchmark)) == 10
    assert sum(len(experience.dataset) for experience in benchmark.train_stream) == 10 * (FILES_PER_CLASS - 1)
