"""Benchmarks of tiny images in every shape that builders give, and a backbone that counts."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    class_incremental_benchmark,
    nc_benchmark,
    with_classes_timeline,
)
from avalanche.benchmarks.utils import as_classification_dataset
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from avalanche_vlm.benchmarks import (
    domain_benchmark,
    domain_folder_benchmark,
    folder_benchmark,
    multi_dataset_benchmark,
    small_world_benchmark,
    tensor_benchmark,
    with_class_names,
    with_validation_stream,
)
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_images

NAMES = list(TINY_CLASSES)


def counting_backbone():
    """Return a backbone that remembers how many images it encoded, and in batches of which size."""
    backbone = TinyBackbone()
    backbone.batches = []
    watch(backbone, lambda *args: backbone.batches.append(len(args[-1])))
    return backbone


def watch(backbone, hook):
    """Call a hook that changes nothing whenever images are encoded."""
    hook.transform_name = ""
    backbone.image_tower.conv1.register_forward_hook(hook)


@pytest.fixture
def backbone():
    return counting_backbone().train()


def pixels(seed=0, per_class=4):
    x, y = tiny_images(per_class=per_class, seed=seed)
    return (x * 40 + 128).clamp(0, 255).to(torch.uint8), y


def transforms(backbone):
    return {"train_transform": backbone.train_transform, "eval_transform": backbone.eval_transform}


def class_incremental(backbone, tmp_path):
    order = [5, 0, 1, 4, 2, 3]
    return tensor_benchmark(
        pixels(0),
        pixels(1),
        class_names=NAMES,
        n_experiences=3,
        class_order=order,
        task_labels=True,
        **transforms(backbone),
    )


def some_classes(backbone, tmp_path):
    return tensor_benchmark(
        pixels(0),
        pixels(1),
        class_names=NAMES,
        n_experiences=2,
        class_order=[5, 0],
        **transforms(backbone),
    )


def domains(backbone, tmp_path):
    parts = {"day": (pixels(0), pixels(1)), "night": (pixels(2), pixels(3))}
    return domain_benchmark(parts, class_names=NAMES, task_labels=True, **transforms(backbone))


def several_datasets(backbone, tmp_path):
    (x, y), (a, b) = pixels(0), pixels(1)
    low = (x[y < 3], y[y < 3]), (a[b < 3], b[b < 3])
    files = write_folders(tmp_path / "several", NAMES[3:])
    high = folder_benchmark(files / "train", files / "test", n_experiences=1, **transforms(backbone))
    # The files' own data sets, so that labels of files are moved too.
    leaves = [stream[0].dataset._flat_data for stream in (high.train_stream, high.test_stream)]
    while not hasattr(leaves[0], "paths"):
        leaves = [leaf._datasets[0] for leaf in leaves]
    parts = {"low": (*low, NAMES[:3]), "high": (*leaves, NAMES[3:])}
    return multi_dataset_benchmark(parts, **transforms(backbone))


def folders(backbone, tmp_path):
    files = write_folders(tmp_path / "folders", NAMES)
    return folder_benchmark(files / "train", files / "test", n_experiences=3, seed=3, **transforms(backbone))


def domain_folders(backbone, tmp_path):
    for index, domain in enumerate(("day", "night")):
        write_images(tmp_path / "domains" / domain, NAMES[:3], seed=index)
    return domain_folder_benchmark(tmp_path / "domains", test_fraction=0.5, **transforms(backbone))


def validated(backbone, tmp_path):
    return with_validation_stream(class_incremental(backbone, tmp_path), fraction=0.25)


def dataset_of_host(seed=0):
    x, y = pixels(seed)
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return data


def host_new_classes(backbone, tmp_path):
    """With labels that the host renumbers."""
    plain = nc_benchmark(
        dataset_of_host(0),
        dataset_of_host(1),
        n_experiences=3,
        task_labels=False,
        seed=1,
        class_ids_from_zero_from_first_exp=True,
        **transforms(backbone),
    )
    return with_class_names(plain, NAMES, ids="original")


def host_task_incremental(backbone, tmp_path):
    return nc_benchmark(
        dataset_of_host(0),
        dataset_of_host(1),
        n_experiences=3,
        task_labels=True,
        seed=1,
        class_ids_from_zero_in_each_exp=True,
        **transforms(backbone),
    )


def host_dataset(backbone, seed, **arguments):
    groups = {"train": (backbone.train_transform, None), "eval": (backbone.eval_transform, None)}
    return as_classification_dataset(dataset_of_host(seed), transform_groups=groups, **arguments)


def host_class_incremental(backbone, tmp_path):
    parts = {"train": host_dataset(backbone, 0), "test": host_dataset(backbone, 1).eval()}
    plain = class_incremental_benchmark(parts, num_experiences=3, seed=1)
    return with_class_names(with_classes_timeline(plain), NAMES)


def host_from_datasets(backbone, tmp_path):
    """With a plain subset, and with the same data twice."""
    whole = host_dataset(backbone, 0)
    data = dataset_of_host(0)
    part = Subset(data, list(range(12, 24)))
    part.targets = data.targets[12:]
    groups = {"train": (backbone.train_transform, None), "eval": (backbone.eval_transform, None)}
    subset = as_classification_dataset(part, transform_groups=groups)
    return with_class_names(benchmark_from_datasets(train=[whole, subset], test=[whole.eval()]), NAMES)


def small_world(backbone, tmp_path):
    return small_world_benchmark(train_per_class=1, test_per_class=1, **transforms(backbone))


SHAPES = [
    class_incremental,
    some_classes,
    domains,
    several_datasets,
    folders,
    domain_folders,
    validated,
    host_new_classes,
    host_task_incremental,
    host_class_incremental,
    host_from_datasets,
    small_world,
]


def write_images(folder, names, seed=0, per_class=2):
    generator = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            array = generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)
            Image.fromarray(array).save(folder / name / f"{index}.png")
    return folder


def write_folders(folder, names):
    write_images(folder / "train", names, seed=0)
    write_images(folder / "test", names, seed=1)
    return folder


def all_x(experience):
    """Return x of all samples of an experience, in order."""
    return torch.stack([experience.dataset[i][0] for i in range(len(experience.dataset))])
