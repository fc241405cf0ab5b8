"""Files that are replaced or grow: what a crash, a full disk or a failing rename leaves, and what it says."""

import contextlib
import errno
import multiprocessing
import os
import re
import resource
import signal
import time
from pathlib import Path

import pytest

from avalanche_vlm import _files
from avalanche_vlm._files import append_lines, parsed_json, replacing

FORK = multiprocessing.get_context("fork")  # a fresh process would spend its seconds on imports
no_warning = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def write(path, data=b"new"):
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def append(path, line=b"c\n"):
    append_lines(path, lambda data: data.rfind(b"\n") + 1, lambda kept: line)


def killed_writer(path):
    """Return what a process leaves that is killed in the middle of writing a file."""

    def die():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=die)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = path.parent.glob(f".{path.name}.*.tmp")
    return left


@no_warning
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "file"
    write(path, b"old")
    left = killed_writer(path)
    assert path.read_bytes() == b"old"
    write(path)
    assert path.read_bytes() == b"new"
    assert not left.exists()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@no_warning
def test_it_is_removed_too_where_another_file_is_written(tmp_path):
    left = killed_writer(tmp_path / "one")
    write(tmp_path / "other")
    assert not left.exists()


@no_warning
def test_in_a_folder_of_many_files_it_is_removed_in_the_course_of_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "_ALWAYS_SWEPT", 4)
    for number in range(40):
        write(tmp_path / f"{number}")
    left = killed_writer(tmp_path / "one")
    looked = []
    monkeypatch.setattr(os, "scandir", lambda folder, real=os.scandir: looked.append(folder) or real(folder))
    for number in range(40):
        write(tmp_path / f"{number}")
    assert not left.exists()
    assert len(looked) < 16  # and not at each write


def test_what_others_write_now_and_files_of_other_names_are_left(tmp_path):
    place = _files._place()
    alive = [
        f".file.{place}-{os.getpid()}-01234567.tmp",  # a process that lives
        ".file.00000000-1-01234567.tmp",  # of another machine
        f".file.{os.getpid()}-01234567.tmp",  # of an earlier version, which does not say where
        ".file.tmp",
        "file.tmp",
        f"file.{place}-999999999-01234567.tmp",
        f".file.{place}-999999999-01234567.tmp.keep",
    ]
    for name in alive:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / f".folder.{place}-999999999-01234567.tmp").mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    (tmp_path / f".link.{place}-999999999-01234567.tmp").symlink_to(outside)
    write(tmp_path / "file")
    names = {each.name for each in tmp_path.iterdir()}
    assert set(alive) <= names
    assert f".folder.{place}-999999999-01234567.tmp" in names
    assert outside.exists()
    day_ago = time.time() - 25 * 3600
    for name in alive:
        os.utime(tmp_path / name, (day_ago, day_ago))
    write(tmp_path / "file")
    assert {each.name for each in tmp_path.iterdir()}.isdisjoint(alive[:3])
    assert set(alive[3:]) < {each.name for each in tmp_path.iterdir()}


def raising(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EXDEV])
@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_step_that_fails_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, step, number):
    path = tmp_path / "file"
    write(path, b"old")
    monkeypatch.setattr(os, step, raising(number))
    with pytest.raises(OSError, match="left as it was") as caught:
        write(path)
    monkeypatch.undo()
    assert caught.value.errno == number
    assert caught.value.filename == str(path)
    assert type(caught.value) is type(OSError(number, ""))
    assert ".tmp" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_in_the_block_names_the_file_unless_it_is_of_another(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(OSError, match="left as it was") as caught, replacing(path) as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match=re.escape(str(path))), replacing(path):
        raise OSError("encoder error -2")  # as Pillow says it, without a number
    with pytest.raises(FileNotFoundError) as caught, replacing(path):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")
    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path / "nowhere" / "file")
    assert caught.value.filename == str(tmp_path / "nowhere" / "file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write(tmp_path / "folder")
    assert caught.value.filename == str(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_synced_says_that_the_new_file_is_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write(path, b"old")
    monkeypatch.setattr(_files, "_sync_folder", raising(errno.EIO))
    with pytest.raises(OSError, match="it is there, but may be gone again") as caught:
        write(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"new"


@contextlib.contextmanager
def small_files(size):
    """Let no file grow beyond a size, as a full disk does; the system then raises EFBIG."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write(path, b"old")
    with small_files(1000), pytest.raises(OSError, match="left as it was") as caught:
        write(path, bytes(5000))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_lines_that_were_there(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"a\nb\ntorn")
    with small_files(100), pytest.raises(OSError, match="lines that were there before are left") as caught:
        append(path, b"x" * 500 + b"\n")
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"a\nb\n"
    append(path)
    assert path.read_bytes() == b"a\nb\nc\n"


def test_lines_that_cannot_be_synced_are_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append(path, b"a\n")
    monkeypatch.setattr(os, "fsync", raising(errno.EIO))
    with pytest.raises(OSError, match="lines that were there") as caught:
        append(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
    assert path.read_bytes() == b"a\n"


@pytest.mark.parametrize("place", ["nowhere/lines", "folder"])
def test_lines_that_have_no_place_name_it(tmp_path, place):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="could not be written") as caught:
        append(tmp_path / place)
    assert caught.value.filename == str(tmp_path / place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
        ('{"b": [{"a": 1, "a": 1}]}', "'a' stands twice"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e999]", "too large"),
        ("[" + "1" * 5000 + "]", "4300|digits"),
        ("{", "Expecting"),
        (b"\xff\xfe\xff", "decode|Expecting"),
        ("", "Expecting"),
    ],
)
def test_json_of_others_is_read_strictly(text, message):
    with pytest.raises(ValueError, match=message):
        parsed_json(text)


def test_a_path_of_text_will_do(tmp_path):
    write(str(tmp_path / "file"))
    assert Path(tmp_path, "file").read_bytes() == b"new"
