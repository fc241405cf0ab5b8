import pickle

import pytest
import torch
from torch.utils.data import TensorDataset

from avalanche_vlm.benchmarks import class_names, multi_dataset_benchmark


class Labelled(TensorDataset):
    """A data set that is not in one tensor as far as the builder can tell."""

    @property
    def targets(self):
        return self.tensors[1]


def wide(pair, width=8):
    x, y = pair
    return torch.nn.functional.pad(x[:, :-1], (0, width - x.shape[1])), y


@pytest.fixture
def datasets(embeddings):
    pets, food, cars = wide(embeddings(2)), wide(embeddings(4)), wide(embeddings(6))
    return {
        "pets": (pets, pets, ["cat", "dog"]),
        "food": (Labelled(*food), Labelled(*food), ["pie", "soup", "bread", "cake"]),
        "cars": (cars, cars, ["van", "truck", "bus", "tram", "cab", "jeep"]),
    }


def classes_of(stream):
    return [sorted(experience.classes_in_this_experience) for experience in stream]


def test_one_label_space_over_all_data_sets(datasets):
    benchmark = multi_dataset_benchmark(datasets)
    names = class_names(benchmark)
    assert names.names == (
        "cat",
        "dog",
        "pie",
        "soup",
        "bread",
        "cake",
        "van",
        "truck",
        "bus",
        "tram",
        "cab",
        "jeep",
    )
    assert names.datasets == ("pets",) * 2 + ("food",) * 4 + ("cars",) * 6
    assert classes_of(benchmark.train_stream) == [[0, 1], [2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    offsets = {"pets": 0, "food": 2, "cars": 6}
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience, offset in zip(stream, offsets.values(), strict=True):
            assert experience.benchmark is benchmark
            assert class_names(experience) == names
            assert all(int(x.argmax()) + offset == y and task == 0 for x, y, task in experience.dataset)
    assert pickle.loads(pickle.dumps(benchmark.train_stream[1].dataset))[0][1] == 2


def test_several_experiences_per_data_set(datasets):
    benchmark = multi_dataset_benchmark(datasets, n_experiences_per_dataset=2, task_labels=True)
    assert classes_of(benchmark.train_stream) == [[0], [1], [2, 3], [4, 5], [6, 7, 8], [9, 10, 11]]
    assert [experience.task_labels for experience in benchmark.test_stream] == [[0], [1], [2], [3], [4], [5]]


def test_a_seed_shuffles_within_the_data_sets(datasets):
    build = lambda seed: classes_of(  # noqa: E731
        multi_dataset_benchmark(datasets, n_experiences_per_dataset=2, seed=seed).train_stream
    )
    assert build(1) == build(1)
    assert len({str(build(seed)) for seed in range(4)}) > 1
    for seed in range(4):
        parts = build(seed)
        joined = [sorted(parts[2 * index] + parts[2 * index + 1]) for index in range(3)]
        assert joined == [[0, 1], [2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_shared_names_are_allowed_if_that_is_said(datasets, embeddings):
    pair = wide(embeddings(2))
    datasets["farm"] = (pair, pair, ["Cat", "cow"])
    names = class_names(multi_dataset_benchmark(datasets, allow_shared_names=True))
    assert names.names[0] == "cat"
    assert names.names[-2:] == ("Cat", "cow")
    assert names.datasets[-2:] == ("farm", "farm")


def test_mistakes_are_named(datasets, embeddings):
    pair = wide(embeddings(2))
    for changes, arguments, error, sentence in [
        (
            {"farm": (pair, pair, ["Cat", "cow"])},
            {},
            ValueError,
            r"'Cat' in 'pets' and in 'farm'.*'Cat \(farm\)'.*allow_shared_names=True",
        ),
        (
            {"farm": (pair, pair, ["cow"])},
            {},
            ValueError,
            "every label of `train` of data set 'farm'.*label 1",
        ),
        (
            {"farm": (pair, pair, ["cow", "pig", "hen"])},
            {},
            ValueError,
            r"data set 'farm'; got none of 2 \('hen'\)",
        ),
        (
            {"farm": (pair, wide(pair, 9), ["cow", "pig"])},
            {},
            ValueError,
            r"`datasets\['farm'\] test` must be inputs of the shape \(7,\), as those of .*'pets'\] train`",
        ),
        ({"farm": (pair, pair)}, {}, TypeError, r"`datasets\['farm'\]` must be a triple"),
        ({"farm": (pair, 3, ["cow", "pig"])}, {}, TypeError, r"`datasets\['farm'\] test` must be a pair"),
        (
            {},
            {"n_experiences_per_dataset": 4},
            ValueError,
            "`n_experiences_per_dataset`.*2 classes of 'pets'",
        ),
        ({}, {"n_experiences_per_dataset": 0}, ValueError, "`n_experiences_per_dataset`"),
        ({}, {"allow_shared_names": "yes"}, TypeError, "`allow_shared_names` must be bool"),
        ({}, {"seed": "x"}, TypeError, "`seed` must be a whole number"),
        ({}, {"train_transform": 3}, TypeError, "`train_transform` must be a callable"),
    ]:
        with pytest.raises(error, match=sentence):
            multi_dataset_benchmark({**datasets, **changes}, **arguments)
    with pytest.raises(ValueError, match=r"`datasets` must be at least one data set"):
        multi_dataset_benchmark({})
    with pytest.raises(TypeError, match=r"`datasets` must be Mapping"):
        multi_dataset_benchmark([])
