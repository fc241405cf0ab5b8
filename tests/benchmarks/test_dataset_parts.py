"""Folders that are no classes are not taken for classes, and what is no user's file is no sample."""

import os
import re
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import PILToTensor

from avalanche_vlm.benchmarks import class_names, domain_folder_benchmark, folder_benchmark
from avalanche_vlm.benchmarks.dataset_parts import check_no_parts

TENSORS = {"train_transform": PILToTensor(), "eval_transform": PILToTensor()}
ACCENTED = "Café"


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(path)


def tree(root, *paths, count=2):
    """Write pictures into folders, of another grey value each."""
    for value, path in enumerate(paths):
        for number in range(count):
            picture(root / path / f"{number}.png", value * 10 + number)
    return root


def parts(*names, classes=("cat", "dog"), around=""):
    return [f"{around}{name}/{label}" for name in names for label in classes]


# Folders, and the paths that the error says to pass; None where the folders are classes.
LAYOUTS = {
    "Kaggle": (parts("Training", "Testing"), ["Training", "Testing"]),
    "three parts": (parts("train", "dev", "eval"), ["train", "eval"]),
    "dev and eval": (parts("dev", "eval"), ["dev", "eval"]),
    "prefixed": (parts("seg_train", "seg_test"), ["seg_train", "seg_test"]),
    "prefixed and doubled": (
        [*parts("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred"],
        ["seg_train/seg_train", "seg_test/seg_test"],
    ),
    "capitals and numbers": (parts("TrainImages", "val2017"), ["TrainImages", "val2017"]),
    "flat test part": ([*parts("train"), "test"], ["train"]),
    "unlabeled part": ([*parts("train", "test"), "unlabeled"], ["train", "test"]),
    "test part without a class": ([*parts("train"), "test/cat"], ["train", "test"]),
    "parts and papers": ([*parts("Training", "Test"), "papers"], ["Training", "Test"]),
    "wrapped": (["flowers/rose", "flowers/tulip"], ["flowers"]),
    "wrapped twice": (["a/b/rose", "a/b/tulip"], ["a/b"]),
    "wrapped parts": (parts("train", "test", around="data/"), ["data/train", "data/test"]),
    "same folders": (parts("Lernen", "Pruefen", classes=("rose", "tulip")), []),
    "domains": (parts("photo", "sketch", "cartoon", classes=("cat", "dog", "hen")), []),
    "parts in the classes": (["cat/train", "cat/test", "dog/train", "dog/test"], []),
    "parts in the classes, and masks": (
        ["cat/train/good", "cat/test/bad", "cat/ground_truth", "dog/train/good", "dog/test/bad"],
        [],
    ),
    "plain": (["cat", "dog"], None),
    "one class": (["cat"], None),
    "a class called train": (["train", "bus", "tram"], None),
    "classes called like parts": (["valid", "invalid"], None),
    "classes of tests": (
        ["test_positive/a", "test_positive/b", "test_negative/c"],
        None,
    ),
    "a part beside masks": ([*parts("train"), "masks/x"], ["train"]),
    "four cameras": (parts("c1", "c2", "c3", "c4", classes=("normal", "defect")), []),
    "a test tube among others": (["test tube/a", "train station/b", "car/c"], None),
    "folds": (parts("fold1", "fold2", "fold3", "fold4"), []),
    "images in each class": (["n01/images", "n02/images", "n03/images"], None),
    "years in each of many classes": (parts(*"abcdefg", classes=("2019", "2020")), None),
    "different folders in each class": (["cat/persian", "cat/manx", "dog/poodle", "dog/boxer"], None),
    "a stray picture in a part": ([*parts("train", "test"), "train"], ["train", "test"]),
    "a stray picture in the root": ([*parts("train", "test"), ""], ["train", "test"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_are_told_from_classes(tmp_path, name):
    paths, wanted = LAYOUTS[name]
    root = tree(tmp_path / "data set", *paths)
    if wanted is None:
        folders = {path.split("/")[0] for path in paths}
        benchmark = folder_benchmark(root, n_experiences=1, **TENSORS)
        assert len(class_names(benchmark)) == len(folders)
        return
    with pytest.raises(
        ValueError, match="`train` must be a folder with one folder of images per class"
    ) as told:
        folder_benchmark(root, n_experiences=1, **TENSORS)
    advised = re.search(r"Pass folder_benchmark\((.*?)\)\.", str(told.value))
    if not wanted:
        assert advised is None
        return
    # What it says to pass works.
    assert advised.group(1) == ", ".join(repr(str(root / path)) for path in wanted)
    if name != "test part without a class":
        benchmark = folder_benchmark(*(root / path for path in wanted), n_experiences=1, **TENSORS)
        assert len(class_names(benchmark)) == 2


@pytest.mark.parametrize("name", [name for name, (_, wanted) in LAYOUTS.items() if wanted is not None])
def test_a_mapping_says_that_folders_are_classes(tmp_path, name):
    root = tree(tmp_path / "data", *LAYOUTS[name][0])
    paths = [path for path in LAYOUTS[name][0] if path]
    folders = {path.split("/")[0]: f"class {index}" for index, path in enumerate(paths)}
    check_no_parts(root, folders)
    if len(folders) > 1:
        benchmark = folder_benchmark(root, n_experiences=1, class_names=folders, **TENSORS)
        assert set(class_names(benchmark)) == set(folders.values())


def test_the_folder_of_the_test_part_is_looked_at_too(tmp_path):
    train = tree(tmp_path / "train", "cat", "dog")
    for number, (paths, wanted) in enumerate(
        ((["w/cat", "w/dog"], "w"), (parts("train", "test"), "test"), (parts("a", "val", around="x/"), None))
    ):
        root = tree(tmp_path / str(number), *paths)
        with pytest.raises(ValueError, match="`test` must be a folder") as told:
            folder_benchmark(train, root, n_experiences=1, **TENSORS)
        if wanted is not None:
            assert f"Pass test={str(root / wanted)!r}." in str(told.value)
            folder_benchmark(train, root / wanted, n_experiences=1, **TENSORS)


def test_a_folder_is_no_test_part_of_itself(tmp_path):
    root = tree(tmp_path / "data", "cat", "dog")
    (tmp_path / "link").symlink_to(root)
    tree(root / "cat", "test/cat", "test/dog")
    for other in (root, tmp_path / "link", f"{root}/../data", root / "cat" / "test"):
        with pytest.raises(ValueError, match="`test` must be another folder than `train`.*Leave `test` out"):
            folder_benchmark(root, other, n_experiences=1, **TENSORS)


DOMAINS = {
    "an ordinary data set": (
        parts("train", "test"),
        "is called like a part.*Pass folder_benchmark.*domains=",
    ),
    "Training and Testing": (parts("Training", "Testing"), "Pass folder_benchmark"),
    "a part beside domains": (parts("photo", "sketch", "test"), "'test' is called like a part"),
    "parts in the domains": (
        [f"{domain}/{part}" for domain in ("photo", "sketch") for part in parts("train", "test")],
        "'train' are the parts of a data set.*domain_benchmark",
    ),
    "parts in the classes": (
        [f"{domain}/{label}/{part}" for domain in ("a", "b") for label in "xy" for part in ("train", "test")],
        "the parts of a data set.*domain_benchmark",
    ),
    "wrapped": (parts("Art", "Clipart", around="OfficeHome/"), "Pass domain_folder_benchmark.*OfficeHome'"),
    "wrapped classes": (
        parts("a", "b", around="x/") and ["a/images/cat", "a/images/dog"],
        "only folder holds 2",
    ),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_parts_are_told_from_domains(tmp_path, name):
    paths, sentence = DOMAINS[name]
    root = tree(tmp_path / "data", *paths)
    with pytest.raises(ValueError, match=f"`root` must be a folder with.*{sentence}"):
        domain_folder_benchmark(root, test_fraction=0.5, **TENSORS)


def test_named_domains_are_domains(tmp_path):
    root = tree(tmp_path / "VisDA", *parts("train", "validation"))
    benchmark = domain_folder_benchmark(root, domains=["train", "validation"], test_fraction=0.5, **TENSORS)
    assert len(benchmark.train_stream) == 2
    only = domain_folder_benchmark(root, domains=["train"], test_fraction=0.5, **TENSORS)
    assert len(only.train_stream) == 1


OF_THE_SYSTEM = (
    *(".ipynb_checkpoints/0-checkpoint.png", ".git/logo.png", ".thumbnails/normal/a.png", ".svn/x.png"),
    *("._0.png", ".DS_Store", "@eaDir/0.png/SYNOPHOTO_THUMB_M.png", "@eaDir/SYNO.png", "#recycle/old.png"),
    *("__MACOSX/cat/._0.png", "__MACOSX/0.png", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN/x.png"),
    *("System Volume Information/a.png", "lost+found/a.png", "@Recently-Snapshot/a.png", ".@__thumb/a.png"),
)


def litter(folder):
    for number, name in enumerate(OF_THE_SYSTEM):
        if name.endswith(".png") and not name.startswith("._"):
            picture(folder / name, 200 + number)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"\0\5\x16\7")


@pytest.mark.filterwarnings("error")
def test_what_systems_leave_behind_is_no_sample(tmp_path):
    root = tree(tmp_path / "data", "cat", "cat/deeper", "dog", count=4)
    domains = tree(tmp_path / "domains", *parts("photo", "sketch"), count=4)
    before = [pixels(folder_benchmark(root, n_experiences=1, **TENSORS)), pixels(domain(domains))]
    for place in (
        root,
        root / "cat",
        root / "cat" / "deeper",
        domains,
        domains / "photo",
        domains / "photo" / "cat",
    ):
        litter(place)
    after = [pixels(folder_benchmark(root, n_experiences=1, **TENSORS)), pixels(domain(domains))]
    assert before == after
    assert class_names(folder_benchmark(root, n_experiences=1, **TENSORS)).names == ("cat", "dog")


def domain(root):
    return domain_folder_benchmark(root, test_fraction=0.5, **TENSORS)


def pixels(benchmark):
    return [
        [(int(x[0, 0, 0]), int(y)) for x, y, *_ in experience.dataset]
        for stream in (benchmark.train_stream, benchmark.test_stream)
        for experience in stream
    ]


def test_endings_that_are_pictures_are_read(tmp_path):
    root = tree(tmp_path / "data", "cat", "dog")
    flat = Image.new("RGB", (4, 4), (99, 99, 99))
    for ending, form in [("gif", "GIF"), ("jfif", "JPEG"), ("JPG", "JPEG"), ("jpe", "JPEG"), ("Tif", "TIFF")]:
        flat.save(root / "cat" / f"more.{ending}", form)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        benchmark = folder_benchmark(root, n_experiences=1, test_fraction=0.5, **TENSORS)
    values = [
        int(x[0, 0, 0])
        for part in (benchmark.train_stream, benchmark.test_stream)
        for x, *_ in part[0].dataset
    ]
    assert values.count(99) == 5


def test_pictures_that_are_left_out_are_told(tmp_path):
    root = tree(tmp_path / "data", "cat", "dog")
    (root / "cat" / "notes.txt").write_text("words")
    (root / "cat" / "LICENSE").write_text("words")
    (root / "cat" / "phone.HEIC").write_bytes(b"ftypheic")
    os.link(root / "dog" / "0.png", root / "dog" / "without_ending")
    sentence = r"2 pictures below .*data' are left out, the first is .*phone\.HEIC'.*Convert the others"
    with pytest.warns(UserWarning, match=sentence):
        folder_benchmark(root, n_experiences=1, **TENSORS)
    for path in (root / "cat").glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no image in 'cat' and 2 of other formats, as .*phone\.HEIC'"):
        folder_benchmark(root, n_experiences=1, **TENSORS)


def test_pipes_are_no_samples(tmp_path):
    root = tree(tmp_path / "data", "cat", "dog")
    for name in ("pipe", "pipe.png"):
        os.mkfifo(root / "cat" / name)
    benchmark = folder_benchmark(root, n_experiences=1, test_fraction=0.5, **TENSORS)
    assert len(benchmark.train_stream[0].dataset) + len(benchmark.test_stream[0].dataset) == 4


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root = tree(tmp_path / "data", "cat", "cat/deeper", "dog")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("deeper"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="deeper"):
        folder_benchmark(root, n_experiences=1, class_names={"cat": "cat", "dog": "dog"}, **TENSORS)


def test_a_name_in_another_encoding_is_named(tmp_path):
    root = tree(tmp_path / "data", "cat", "dog")
    os.mkdir(os.fsencode(root) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"`train` must be .*names in UTF-8; got 'caf\\udce9'.*Rename"):
        folder_benchmark(root, n_experiences=1, **TENSORS)


def test_links_are_followed_once(tmp_path):
    root = tree(tmp_path / "data", "cat", "dog")
    (root / "cat" / "again").symlink_to(root / "cat")
    (root / "dog" / "up").symlink_to(root / "dog")
    benchmark = folder_benchmark(root, n_experiences=1, test_fraction=0.5, **TENSORS)
    assert len(benchmark.train_stream[0].dataset) + len(benchmark.test_stream[0].dataset) == 4


def test_classes_with_pictures_of_their_own_are_classes(tmp_path):
    paths = ["cat", "cat/2019", "cat/2020", "dog", "dog/2019", "dog/2020"]
    benchmark = folder_benchmark(tree(tmp_path / "data", *paths, count=4), n_experiences=1, **TENSORS)
    assert class_names(benchmark).names == ("cat", "dog")


def test_a_link_to_the_root_leads_to_no_other_class(tmp_path):
    root = tree(tmp_path / "data", "cat", "dog")
    (root / "cat" / "loop").symlink_to(root)
    benchmark = folder_benchmark(root, n_experiences=1, test_fraction=0.5, **TENSORS)
    assert len(benchmark.train_stream[0].dataset) + len(benchmark.test_stream[0].dataset) == 4


def test_numbers_that_belong_to_a_name_stay(tmp_path):
    folders = ["7-eleven", "2-door car", "4-door car", "Recycled", "003-owl", "1²3"]
    benchmark = folder_benchmark(tree(tmp_path / "data", *folders), n_experiences=1, **TENSORS)
    assert set(class_names(benchmark)) == {"7-eleven", "2-door car", "4-door car", "Recycled", "owl", "1²3"}


def test_domains_are_one_however_they_are_written(tmp_path):
    one, two = (unicodedata.normalize(form, ACCENTED) for form in ("NFC", "NFD"))
    root = tree(tmp_path / "data", f"{two}/cat", f"{two}/dog", "Bar/cat", "Bar/dog")
    benchmark = domain_folder_benchmark(root, domains=[one, "Bar"], test_fraction=0.5, **TENSORS)
    assert len(benchmark.train_stream) == 2


NUMBERS = [str(number) for number in range(13)]
NAMES = [f"name {number}" for number in range(13)]


@pytest.mark.parametrize(
    "folders",
    [NUMBERS, [f"class_{n}" for n in NUMBERS], [f"{n}_x{n}" for n in NUMBERS], ["Zebra", "ape", "bee"]],
)
def test_a_list_of_names_in_a_doubtful_order_is_refused(tmp_path, folders):
    root = tree(tmp_path / "data", *folders)
    names = NAMES[: len(folders)]
    with pytest.raises(ValueError, match="`class_names` must be a mapping.*read in two ways.*Pass a mapping"):
        folder_benchmark(root, n_experiences=1, class_names=names, **TENSORS)
    mapping = dict(zip(folders, names, strict=True))
    benchmark = folder_benchmark(root, n_experiences=1, class_names=mapping, **TENSORS)
    assert class_names(benchmark).names == tuple(mapping[folder] for folder in sorted(folders))


def test_a_list_of_names_in_no_doubt_is_taken(tmp_path):
    padded = [f"{number:02d}" for number in range(13)]
    benchmark = folder_benchmark(tree(tmp_path / "a", *padded), n_experiences=1, class_names=NAMES, **TENSORS)
    assert class_names(benchmark).names == tuple(NAMES)
    numbers = tree(tmp_path / "numbers", "-1", "0", "1")
    benchmark = folder_benchmark(numbers, n_experiences=1, class_names=["bad", "none", "good"], **TENSORS)
    assert class_names(benchmark).names == ("bad", "none", "good")
    root = tree(tmp_path / "b", "1_cat", "10_dog", "2_cow")
    benchmark = folder_benchmark(root, n_experiences=1, class_names=["dog", "cat", "cow"], **TENSORS)
    assert class_names(benchmark).names == ("dog", "cat", "cow")


def test_a_list_that_mixes_the_folders_up_is_refused(tmp_path):
    root = tree(tmp_path / "data", "cat", "cow", "dog")
    for names in (["dog", "cat", "cow"], ["Dog", "house cat", "cattle"]):
        with pytest.raises(
            ValueError, match="`class_names` must be the names.*for the folder 'cat', which is how"
        ):
            folder_benchmark(root, n_experiences=1, class_names=names, **TENSORS)
    swapped = {"cat": "dog", "dog": "cat", "cow": "cow"}
    benchmark = folder_benchmark(root, n_experiences=1, class_names=swapped, **TENSORS)
    assert class_names(benchmark).names == ("dog", "cow", "cat")


def test_accented_letters_are_one_however_they_are_written(tmp_path):
    one, two = (unicodedata.normalize(form, ACCENTED) for form in ("NFC", "NFD"))
    assert one != two
    train, test = tree(tmp_path / "train", one, "Bar"), tree(tmp_path / "test", two, "Bar")
    benchmark = folder_benchmark(
        train, test, n_experiences=1, class_names={two: "café", "Bar": "bar"}, **TENSORS
    )
    assert class_names(benchmark).names == ("bar", "café")
    assert [len(benchmark.test_stream[0].dataset), len(benchmark.train_stream[0].dataset)] == [4, 4]
    both = tree(tmp_path / "both", one, two)
    with pytest.raises(ValueError, match=r"'Caf\\xe9'.*'Cafe\\u0301'.*differ only in how accented letters"):
        folder_benchmark(both, n_experiences=1, **TENSORS)


def test_the_order_of_accented_folders_is_that_of_the_letters(tmp_path):
    folders = ["Cafz", unicodedata.normalize("NFD", "Cafés")]
    for form in ("NFC", "NFD"):
        root = tree(tmp_path / form, *(unicodedata.normalize(form, folder) for folder in folders))
        benchmark = folder_benchmark(root, n_experiences=1, **TENSORS)
        assert class_names(benchmark)[0] == "Cafz"
