import pytest
import torch
from torchvision.transforms import PILToTensor

from avalanche_vlm.benchmarks import (
    LabelledTensors,
    class_names,
    domain_benchmark,
    domain_folder_benchmark,
)
from avalanche_vlm.text import ClassNames

TENSORS = {"train_transform": PILToTensor(), "eval_transform": PILToTensor()}


@pytest.fixture
def domains(embeddings):
    return {
        "photo": (embeddings(first=0), embeddings(first=1000)),
        "sketch": (LabelledTensors(*embeddings(first=2000)), LabelledTensors(*embeddings(first=3000))),
    }


def test_one_experience_a_domain_with_the_same_classes(domains, names):
    benchmark = domain_benchmark(domains, class_names=names)
    assert class_names(benchmark) == ClassNames(names)
    assert benchmark.n_classes == 6
    for stream, offset in ((benchmark.train_stream, 0), (benchmark.test_stream, 1000)):
        assert len(stream) == 2
        for index, experience in enumerate(stream):
            assert experience.benchmark is benchmark
            assert sorted(experience.classes_in_this_experience) == list(range(6))
            assert experience.task_labels == [0]
            numbers = [int(x[-1]) for x, _, _ in experience.dataset]
            assert numbers == list(range(2000 * index + offset, 2000 * index + offset + 24))
            assert all(int(x[:6].argmax()) == y for x, y, _ in experience.dataset)


def test_task_labels_number_the_domains(domains, names):
    benchmark = domain_benchmark(domains, class_names=names, task_labels=True)
    assert [experience.task_labels for experience in benchmark.test_stream] == [[0], [1]]
    assert benchmark.train_stream[1].dataset[0][2] == 1


def test_transforms_are_applied(domains, names):
    benchmark = domain_benchmark(
        domains, class_names=names, train_transform=torch.neg, eval_transform=torch.exp
    )
    assert float(benchmark.train_stream[1].dataset[0][0][0]) == -1
    assert float(benchmark.test_stream[1].dataset[0][0][1]) == 1


def test_wrong_domains_are_named(domains, embeddings, names):
    x, y = embeddings()
    one_more = x, y + (y == 5)
    for wrong, error, sentence in [
        ([], TypeError, "`domains` must be Mapping"),
        ({}, ValueError, "`domains` must be at least one domain"),
        ({"photo": embeddings()[0]}, TypeError, r"`domains\['photo'\]` must be a pair \(train, test\)"),
        ({"photo": embeddings()}, TypeError, r"`domains\['photo'\] train` must be a pair"),
        (
            {**domains, "clip": (embeddings(5), embeddings())},
            ValueError,
            r"`train` must be .*every class of domain 'clip'; got none of 5 \('owl'\)",
        ),
        ({**domains, "clip": (embeddings(), one_more)}, ValueError, "`test` of domain 'clip'.*label 6"),
        (
            {"photo": ((torch.eye(2), [0]), embeddings())},
            ValueError,
            r"`domains\['photo'\] train` must be x and y",
        ),
    ]:
        with pytest.raises(error, match=sentence):
            domain_benchmark(wrong, class_names=names)
    with pytest.raises(TypeError, match=r"`task_labels` must be bool"):
        domain_benchmark(domains, class_names=names, task_labels=None)
    with pytest.raises(TypeError, match=r"`eval_transform` must be a callable"):
        domain_benchmark(domains, class_names=names, eval_transform=1)


def test_domains_have_inputs_of_one_shape(domains, embeddings, names):
    x, y = embeddings()
    domains["sketch"] = (domains["sketch"][0], (x[:, :-1], y))
    sentence = (
        r"`domains\['sketch'\] test` must be inputs of the shape \(7,\), as those of "
        r"`domains\['photo'\] train`; got inputs of the shape \(6,\)"
    )
    with pytest.raises(ValueError, match=sentence):
        domain_benchmark(domains, class_names=names)


@pytest.fixture
def root(tmp_path, write_images):
    for domain, count in (("photo", 5), ("art_painting", 10), ("sketch", 2)):
        write_images(tmp_path / "pacs" / domain, ["dog", "grey_elephant"], count=count)
    return tmp_path / "pacs"


def test_folders_of_domains(root):
    build = lambda **arguments: domain_folder_benchmark(root, **TENSORS, **arguments)  # noqa: E731
    benchmark = build()
    assert class_names(benchmark).names == ("dog", "grey elephant")
    assert [len(experience.dataset) for experience in benchmark.train_stream] == [16, 8, 2]  # sorted domains
    assert [len(experience.dataset) for experience in benchmark.test_stream] == [4, 2, 2]
    for train, test in zip(benchmark.train_stream, benchmark.test_stream, strict=True):
        samples = [(y, int(x[0, 0, 0])) for part in (train, test) for x, y, _ in part.dataset]
        assert len(set(samples)) == len(samples)
        assert all(int(x[0, 1, 1]) == 20 * y for x, y, _ in train.dataset)
    chosen = build(domains=["sketch", "art_painting"], test_fraction=0.5, class_names=["hound", "elephant"])
    assert [len(experience.dataset) for experience in chosen.train_stream] == [2, 10]
    assert class_names(chosen).names == ("hound", "elephant")
    assert [str(e.dataset[0][0].tolist()) for e in build().test_stream] == [
        str(e.dataset[0][0].tolist()) for e in benchmark.test_stream
    ]


def test_wrong_folders_of_domains_are_named(root, tmp_path, write_images):
    for arguments, error, sentence in [
        ({"domains": ["photos"]}, ValueError, "`domains` must be folders in.*'photos'.*Did you mean 'photo'"),
        ({"domains": ["photo", "photo"]}, ValueError, "`domains`.*at most once"),
        ({"domains": []}, ValueError, "`domains`.*at most once"),
        ({"domains": "photo"}, TypeError, "`domains` must be a list of domain folders"),
        ({"root": tmp_path / "none"}, ValueError, "`root` must be a folder"),
        ({"class_names": ["dog"]}, ValueError, "`class_names` must be 2 names"),
        ({"test_fraction": 2}, ValueError, "`test_fraction` must be"),
        (
            {"train_transform": None},
            ValueError,
            "`train_transform` must be given.*eval_transform=model.eval_transform",
        ),
        (
            {"eval_transform": None},
            ValueError,
            "`eval_transform` must be given.*eval_transform=model.eval_transform",
        ),
    ]:
        with pytest.raises(error, match=sentence):
            domain_folder_benchmark(**{"root": root, **TENSORS, **arguments})
    write_images(root / "cartoon", ["dog"], count=2)
    with pytest.raises(
        ValueError, match=r"`root` must be .*same 2 class folders.*cartoon' without 'grey_elephant'"
    ):
        domain_folder_benchmark(root, domains=["photo", "cartoon"], **TENSORS)
    write_images(root / "cartoon", ["grey_elephant"], count=1)
    with pytest.raises(ValueError, match=r"one sample of 'cartoon/grey_elephant'"):
        domain_folder_benchmark(root, **TENSORS)
