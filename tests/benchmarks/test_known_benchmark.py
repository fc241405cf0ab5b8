import pytest
import torch
from torchvision.transforms import PILToTensor

from avalanche_vlm.benchmarks import class_names, known_benchmark
from avalanche_vlm.text import dataset_text

IMAGES = {"train_transform": PILToTensor(), "eval_transform": PILToTensor()}


def test_images_in_memory_come_as_uint8_tensors(fake_copies):
    fake_copies.write("cifar100")
    benchmark = known_benchmark("cifar100", fake_copies.root, n_experiences=5, seed=0)
    assert class_names(benchmark) == dataset_text("cifar100").class_names
    for part, stream in enumerate((benchmark.train_stream, benchmark.test_stream)):
        assert sum(len(experience.dataset) for experience in stream) == 200
        for x, y, _ in stream[3].dataset:
            assert x.shape == (3, 32, 32)
            assert x.dtype == torch.uint8
            assert int(x[1, 0, 0]) == y
            assert int(x[2, 0, 0]) == part


def test_image_files_are_read_when_they_are_needed(fake_copies):
    fake_copies.write("eurosat", per_class=30)
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    benchmark = known_benchmark(
        "eurosat", str(fake_copies.root), n_experiences=5, class_order=order, **IMAGES
    )
    assert [sorted(e.classes_in_this_experience) for e in benchmark.train_stream] == [
        sorted(order[start : start + 2]) for start in range(0, 10, 2)
    ]
    assert [sum(len(e.dataset) for e in s) for s in (benchmark.train_stream, benchmark.test_stream)] == [
        240,
        60,
    ]
    assert class_names(benchmark)[9] == "lake or sea"
    x, y, _ = benchmark.test_stream[0].dataset[0]
    assert x.shape == (3, 8, 8)
    assert y in (1, 3)


def test_a_missing_folder_is_named_before_missing_transforms(tmp_path):
    for name in ("dtd", "cub200"):
        with pytest.raises(ValueError, match=f"`root` must be .*'{name}'.*missing"):
            known_benchmark(name, tmp_path / "nowhere", n_experiences=1)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_named_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"`train_transform` must be given"):
        known_benchmark("food101", tmp_path, download=True, n_experiences=1)
    (tmp_path / "dtd").mkdir()
    with pytest.raises(ValueError, match=r"`train_transform` must be given"):
        known_benchmark("dtd", tmp_path, n_experiences=1)
    with pytest.raises(ValueError, match=r"`eval_transform` must be given"):
        known_benchmark("dtd", tmp_path, n_experiences=1, train_transform=PILToTensor())
    with pytest.raises(ValueError, match=r"`name` must be one of .*Did you mean 'cifar100', 'cifar10'"):
        known_benchmark("cifar-1000", tmp_path, n_experiences=10)
    with pytest.raises(ValueError, match=r"`root` must be .*'cifar100'.*missing.*Pass download=True"):
        known_benchmark("cifar100", tmp_path / "nowhere", n_experiences=10)
    assert list(tmp_path.rglob("*")) == [tmp_path / "dtd"]


@pytest.mark.parametrize("name", ["CIFAR100", "cifar-100", "Cifar 100", "cifar_100"])
def test_other_spellings_will_do(fake_copies, name):
    fake_copies.write("cifar100")
    benchmark = known_benchmark(name, fake_copies.root, n_experiences=1)
    assert class_names(benchmark) == dataset_text("cifar100").class_names


def test_a_class_without_samples_is_named(fake_copies):
    fake_copies.write("eurosat", per_class=1)
    with pytest.raises(ValueError, match="data with samples of every class; got none of"):
        known_benchmark("eurosat", fake_copies.root, n_experiences=1, **IMAGES)
