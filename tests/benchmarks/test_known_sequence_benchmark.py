import pytest
from torchvision.transforms import Compose, PILToTensor, Resize

from avalanche_vlm.benchmarks import class_names, known_sequence_benchmark
from avalanche_vlm.text import dataset_text


class AsTensor:
    def __call__(self, image):
        return image if hasattr(image, "dtype") else PILToTensor()(image)


TO_16 = Compose([AsTensor(), Resize((16, 16))])
IMAGES = {"train_transform": TO_16, "eval_transform": TO_16}


def test_several_data_sets_in_one_label_space(fake_copies):
    for name in ("mnist", "dtd"):
        fake_copies.write(name)
    digits = [f"digit {number}" for number in range(10)]
    benchmark = known_sequence_benchmark(
        ["MNIST", "dtd"], fake_copies.root, class_names={"mnist ": digits}, **IMAGES
    )
    names = class_names(benchmark)
    assert names.names == (*digits, *dataset_text("dtd").class_names)
    assert names.datasets == ("mnist",) * 10 + ("dtd",) * 47
    assert [sorted(e.classes_in_this_experience) for e in benchmark.train_stream] == [
        list(range(10)),
        list(range(10, 57)),
    ]
    assert [len(e.dataset) for e in benchmark.train_stream] == [30, 94]
    for experience in benchmark.test_stream:
        x, y, _ = experience.dataset[0]
        assert x.shape == (3, 16, 16)
        assert y in experience.classes_in_this_experience


def test_names_may_be_shared_if_that_is_said(fake_copies):
    for name in ("cifar100", "flowers102"):
        fake_copies.write(name)
    with pytest.raises(ValueError, match="'sunflower' in 'cifar100' and in 'flowers102'.*allow_shared_names"):
        known_sequence_benchmark(["cifar100", "flowers102"], fake_copies.root, **IMAGES)
    benchmark = known_sequence_benchmark(
        ["cifar100", "flowers102"], fake_copies.root, allow_shared_names=True, **IMAGES
    )
    names = class_names(benchmark)
    assert len(names) == 202
    assert [names.datasets[i] for i, name in enumerate(names) if name == "rose"] == ["cifar100", "flowers102"]


def test_experiences_within_a_data_set(fake_copies):
    fake_copies.write("mnist")
    benchmark = known_sequence_benchmark(["mnist"], fake_copies.root, n_experiences_per_dataset=5, seed=1)
    classes = [sorted(e.classes_in_this_experience) for e in benchmark.train_stream]
    assert [len(own) for own in classes] == [2] * 5
    assert classes != [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_mistakes_are_named(fake_copies):
    root = fake_copies.root
    (root / "dtd").mkdir(parents=True)
    for names, arguments, error, sentence in [
        ("mnist", {}, TypeError, "`names` must be a list"),
        ([], {}, ValueError, "`names` must be at least one"),
        (["mnist", "mnist"], {}, ValueError, "`names` must be .* each at most once"),
        (["mnist", "MNIST"], {}, ValueError, "`names` must be .* each at most once"),
        (["mnist", "cat"], {}, ValueError, "`names` must be one of"),
        (["dtd", "cub200"], {}, ValueError, "`root` must be .*'cub200'.*missing"),
        (["dtd"], {}, ValueError, "`train_transform` must be given"),
        (["mnist"], {}, ValueError, "`root` must be .*'mnist'"),
        (["mnist"], {"class_names": ["a"]}, TypeError, "`class_names` must be Mapping"),
        (["mnist"], {"class_names": {"dtd": ["a"]}}, ValueError, "`class_names` must be one of 'mnist'"),
        (
            ["mnist"],
            {"class_names": {"mnist": ["a"], "MNIST": ["b"]}},
            ValueError,
            "`class_names` must be one list of names for each data set; got two for 'mnist'",
        ),
    ]:
        with pytest.raises(error, match=sentence):
            known_sequence_benchmark(names, root, **arguments)
    fake_copies.write("mnist")
    with pytest.raises(ValueError, match="`class_names` must be 10 names.*'mnist'; got 2 names"):
        known_sequence_benchmark(["mnist"], root, class_names={"mnist": ["a", "b"]})
    with pytest.raises(TypeError, match="`allow_shared_names` must be bool"):
        known_sequence_benchmark(["mnist"], root, allow_shared_names=1)
