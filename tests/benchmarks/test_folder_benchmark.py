import pickle

import pytest
import torch
from torchvision.transforms import PILToTensor

from avalanche_vlm.benchmarks import class_names, folder_benchmark
from avalanche_vlm.benchmarks.stratified_split import stratified_split

FOLDERS = ["000_red_fox", "001_barn_owl", "002_hen", "003_cow"]


def tensors(**arguments):
    return {"train_transform": PILToTensor(), "eval_transform": PILToTensor(), **arguments}


def paths_of(stream):
    """Return the grey values and numbers that the images of a stream hold, per experience."""
    return [
        sorted((int(x[0, 1, 1]), int(x[0, 0, 0])) for x, _, _ in experience.dataset) for experience in stream
    ]


def test_two_folders(tmp_path, write_images):
    train, test = write_images(tmp_path / "train", FOLDERS), write_images(tmp_path / "test", FOLDERS, count=2)
    benchmark = folder_benchmark(train, str(test), **tensors(n_experiences=2, class_order=[3, 0, 2, 1]))
    assert class_names(benchmark).names == ("red fox", "barn owl", "hen", "cow")
    assert [sorted(e.classes_in_this_experience) for e in benchmark.train_stream] == [[0, 3], [1, 2]]
    assert [len(experience.dataset) for experience in benchmark.train_stream] == [10, 10]
    assert [len(experience.dataset) for experience in benchmark.test_stream] == [4, 4]
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience in stream:
            for x, y, _ in experience.dataset:
                assert x.shape == (3, 6, 7)
                assert int(x[0, 1, 1]) == 20 * y  # the label is the folder that the image lies in


def test_one_folder_is_split_the_same_way_each_time(tmp_path, write_images):
    root = write_images(tmp_path / "images", FOLDERS, count=10)
    build = lambda **arguments: folder_benchmark(root, **tensors(n_experiences=4, **arguments))  # noqa: E731
    benchmark = build()
    train, test = paths_of(benchmark.train_stream), paths_of(benchmark.test_stream)
    assert [len(part) for part in train] == [8] * 4
    assert [len(part) for part in test] == [2] * 4
    for value, (train_part, test_part) in enumerate(zip(train, test, strict=True)):
        assert sorted(train_part + test_part) == [(20 * value, number) for number in range(10)]
    assert paths_of(build(seed=1, split_seed=0).test_stream) != test  # another order ...
    assert sorted(paths_of(build(seed=1).test_stream)) == sorted(test)  # ... of the same split
    assert paths_of(build(split_seed=1).test_stream) != test
    assert [len(part) for part in paths_of(build(test_fraction=0.5).test_stream)] == [5] * 4
    elsewhere = write_images(tmp_path / "elsewhere", FOLDERS, count=10)
    assert paths_of(folder_benchmark(elsewhere, **tensors(n_experiences=4)).test_stream) == test


def test_names_may_be_given(tmp_path, write_images):
    root = write_images(tmp_path / "images", ["b", "a"])
    assert class_names(folder_benchmark(root, **tensors(n_experiences=1))).names == ("a", "b")
    as_list = folder_benchmark(root, **tensors(n_experiences=1, class_names=["ant", "bee"]))
    as_mapping = folder_benchmark(root, **tensors(n_experiences=1, class_names={"b": "bee", "a": "ant"}))
    assert class_names(as_list) == class_names(as_mapping)
    assert class_names(as_mapping).names == ("ant", "bee")


def test_hidden_folders_and_other_files_do_not_count(tmp_path, write_images):
    root = write_images(tmp_path / "images", ["a", "b"])
    (root / ".cache").mkdir()
    (root / "readme.txt").write_text("words")
    (root / "a" / "notes.txt").write_text("words")
    write_images(root / "b" / "deeper", ["down"], count=3)
    benchmark = folder_benchmark(root, **tensors(n_experiences=1, test_fraction=0.5))
    assert len(class_names(benchmark)) == 2
    assert len(benchmark.train_stream[0].dataset) + len(benchmark.test_stream[0].dataset) == 13


def test_images_are_read_when_they_are_asked_for(tmp_path, write_images):
    root = write_images(tmp_path / "images", ["a", "b"])
    benchmark = folder_benchmark(root, **tensors(n_experiences=1))
    data = pickle.loads(pickle.dumps(benchmark.train_stream[0].dataset))
    assert data[0][0].shape == (3, 6, 7)
    for path in root.rglob("*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        data[0]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"train": 3}, TypeError, "`train` must be str or PathLike"),
        (
            {"train": "nowhere"},
            ValueError,
            "`train` must be a folder.*'.*nowhere', which does not exist",
        ),
        ({"train": "file"}, ValueError, "`train` must be a folder.*'.*file', which is a file"),
        ({"train": "empty"}, ValueError, "`train`.*'.*empty', which has no folders.*folder of its own"),
        ({"train": "hollow"}, ValueError, "`train`.*'.*hollow' with no image in 'b'.*Remove the empty"),
        ({"test": "nowhere"}, ValueError, "`test` must be a folder.*'.*nowhere'"),
        ({"test": "fewer"}, ValueError, "`test` must be .*same 2 class folders.*'.*fewer' without 'b'"),
        ({"test": "more"}, ValueError, "`test` must be .*'.*more' with 'c'.*Spell"),
        ({"test": "other"}, ValueError, "`test` must be .*'.*other' without 'b' and with 'd'"),
        (
            {"test": "good", "test_fraction": 0.5},
            ValueError,
            "`test_fraction` must be left out where `test`",
        ),
        ({"test_fraction": 0}, ValueError, "`test_fraction` must be a finite number and above 0"),
        ({"test_fraction": 1}, ValueError, "`test_fraction` must be a finite number and above 0 and below 1"),
        ({"test_fraction": "x"}, TypeError, "`test_fraction` must be a number"),
        ({"split_seed": -1}, ValueError, "`split_seed` must be a whole number"),
        ({"train": "single"}, ValueError, "`test_fraction`.*one sample of 'b'.*pass a test set"),
        ({"class_names": ["ant"]}, ValueError, "`class_names` must be 2 names.*'a', 'b'.*got 1 names"),
        ({"class_names": "ab"}, TypeError, "`class_names` must be a list of names or a mapping"),
        (
            {"class_names": {"a": "ant"}},
            ValueError,
            "`class_names`.*each class folder; got none for 'b'",
        ),
        (
            {"class_names": {"a": "ant", "b": "bee", "bb": "fly"}},
            ValueError,
            "`class_names`.*one for 'bb', which is no folder.*Did you mean 'b'",
        ),
        (
            {"class_names": ["ant", "Ant"]},
            ValueError,
            "`class_names`.*'Ant' for the folders 'a' and 'b'.*mapping",
        ),
        (
            {"train": "alike"},
            ValueError,
            "`class_names`.*'fox' for the folders '000_fox' and '001_fox'",
        ),
        (
            {"n_experiences": 3},
            ValueError,
            "`n_experiences` must be a number that divides the 2 classes",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, write_images, arguments, error, sentence):
    folders = {
        "good": ["a", "b"],
        "fewer": ["a"],
        "more": ["a", "b", "c"],
        "other": ["a", "d"],
        "alike": ["000_fox", "001_fox"],
        "hollow": ["a"],
        "single": ["a"],
    }
    for folder, classes in folders.items():
        write_images(tmp_path / folder, classes, count=2)
    write_images(tmp_path / "single", ["b"], count=1)
    (tmp_path / "hollow" / "b").mkdir()
    (tmp_path / "hollow" / "b" / "words.txt").write_text("words")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("words")
    given = tensors(**{"train": "good", "n_experiences": 1, **arguments})
    given = {
        key: tmp_path / value if key in {"train", "test"} and value != 3 else value
        for key, value in given.items()
    }
    with pytest.raises(error, match=sentence):
        folder_benchmark(given.pop("train"), given.pop("test", None), **given)


def test_missing_folders_are_named_before_missing_transforms(tmp_path, write_images):
    root = write_images(tmp_path / "images", ["a", "b"])
    with pytest.raises(ValueError, match="`train` must be a folder.*nowhere', which does not exist"):
        folder_benchmark(tmp_path / "nowhere", n_experiences=3)
    with pytest.raises(ValueError, match="`test` must be a folder.*nowhere', which does not exist"):
        folder_benchmark(root, tmp_path / "nowhere", n_experiences=3)


@pytest.mark.parametrize(
    ("parts", "pair"),
    [
        (["train", "test"], ["train", "test"]),
        (["Train", "Test", "val"], ["Train", "Test"]),
        (["train", "val"], ["train", "val"]),
    ],
)
def test_parts_are_not_taken_for_classes(tmp_path, write_images, parts, pair):
    for part in parts:
        write_images(tmp_path / "p3" / part, ["a", "b"])
    wanted = r"folder_benchmark\('.*p3.{}', '.*p3.{}'\)".format(*pair)
    with pytest.raises(ValueError, match=f"`train` must be .*are the parts of a data set. Pass {wanted}"):
        folder_benchmark(tmp_path / "p3", **tensors(n_experiences=2))


@pytest.mark.parametrize("folders", [["train", "test"], ["train", "bus"], ["test", "val"], ["train"]])
def test_classes_may_be_called_like_parts(tmp_path, write_images, folders):
    root = write_images(tmp_path / "images", folders)
    if folders == ["train", "bus"]:
        write_images(root / "train", ["deeper"])
    assert set(class_names(folder_benchmark(root, **tensors(n_experiences=1)))) == set(folders)


@pytest.mark.parametrize("missing", ["train_transform", "eval_transform"])
def test_images_without_a_transform_are_refused(tmp_path, write_images, missing):
    root = write_images(tmp_path / "images", ["a", "b"])
    sentence = (
        f"`{missing}` must be given.*PIL images.*Pass train_transform=model.train_transform, "
        "eval_transform=model.eval_transform"
    )
    given = tensors(n_experiences=1)
    del given[missing]
    for arguments in (given, {**given, missing: None}):
        with pytest.raises(ValueError, match=sentence):
            folder_benchmark(root, **arguments)


def test_the_split_keeps_the_share_of_every_class():
    targets = torch.arange(5).repeat(20).tolist() + [5] * 2 + [6] * 3
    labels = list("abcdefg")
    train, test = stratified_split(targets, test_fraction=0.25, split_seed=0, class_labels=labels)
    assert sorted(train + test) == list(range(len(targets)))
    counts = [sum(targets[index] == label for index in test) for label in range(7)]
    assert counts == [5] * 5 + [1, 1]
