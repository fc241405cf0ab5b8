"""Folders of images from anywhere: only what is in them is read, and only what is ours in them is written."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_vlm.benchmarks.class_folders import LabelledFiles
from avalanche_vlm.sources import GeneratedImages, ImageSource, StoredImageSource

FORK = multiprocessing.get_context("fork")
no_warning = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Grey(ImageSource):
    """Grey images of a size."""

    def __init__(self, size=4):
        self.size = size
        self.asked = 0

    def _sample(self, prompts, seeds):
        self.asked += 1
        return GeneratedImages(
            torch.full((len(prompts), 3, self.size, self.size), 9, dtype=torch.uint8), prompts
        )

    def describe(self):
        return {"kind": "Grey"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4), (200, 0, 0)).save(tmp_path / "outside.png")
    return tmp_path / "images"


def listed(folder, *records, name="manifest.jsonl"):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def entry(file="cat.png", **more):
    return {"file": file, "prompt": "a cat", **more}


def refused(folder, message, source=None):
    before = {path.name: path.lstat().st_size for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message) as caught:
        StoredImageSource(folder, source).sample(["a cat"], [0])
    assert "`folder`" in str(caught.value)
    assert {path.name: path.lstat().st_size for path in folder.iterdir()} == before
    return str(caught.value)


OUTSIDE = ["../outside.png", "a/../../outside.png", "..", "/etc/passwd", "//host/x", "C:\\x.png", "c:x.png"]


@pytest.mark.parametrize("name", [*OUTSIDE, "..\\outside.png", "", "a//b", "/", "a\0b", "a\nb", "x" * 300])
@pytest.mark.parametrize("source", [None, Grey()])
def test_names_that_lead_out_are_refused(name, source, folder):
    refused(listed(folder, entry(name, seed=0)), "line 1 of 'manifest.jsonl'", source)


def test_absolute_names_are_refused_even_within(folder):
    Image.new("RGB", (4, 4)).save(folder / "cat.png")
    refused(listed(folder, entry(str(folder / "cat.png"))), "line 1")


def test_links_to_outside_are_refused_by_name(folder, tmp_path):
    (folder / "cat.png").symlink_to(tmp_path / "outside.png")
    refused(listed(folder, entry()), "'cat.png'.*outside the folder")
    (tmp_path / "others").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "others" / "cat.png")
    (folder / "sub").symlink_to(tmp_path / "others")
    refused(listed(folder, entry("sub/cat.png")), "'sub/cat.png'.*outside the folder")
    (folder / "round.png").symlink_to("round.png")
    refused(listed(folder, entry("round.png")), "'round.png'")


def test_links_within_and_a_folder_that_is_one_are_read(folder, tmp_path):
    (folder / "sub").mkdir()
    Image.new("RGB", (4, 4), (5, 5, 5)).save(folder / "sub" / "dog.png")
    (folder / "cat.png").symlink_to("sub/dog.png")
    listed(folder, entry(seed=0), entry("./sub/dog.png", seed=1))
    (tmp_path / "link").symlink_to(folder)
    images, _ = StoredImageSource(tmp_path / "link").sample(["a cat", "a cat"], [0, 1])
    assert (images == 5).all()


@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest-0.jsonl"])
def test_a_manifest_that_is_a_link_is_neither_read_nor_written(name, folder, tmp_path):
    (tmp_path / "notes").write_text("one line without an end")
    (folder / name).symlink_to(tmp_path / "notes")
    refused(folder, f"'{name}', which is a link", Grey())
    assert (tmp_path / "notes").read_text() == "one line without an end"
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, f"'{name}'.*no file", Grey())


@no_warning
def test_a_link_in_the_place_of_an_image_or_a_lock_is_not_written_through(folder, tmp_path):
    stored = StoredImageSource(folder, Grey())
    stored.generate(["a cat"], [0])
    (image,) = folder.glob("*.png")
    image.unlink()
    (tmp_path / "mine").write_bytes(b"mine")
    image.symlink_to(tmp_path / "gone")
    assert (stored.sample(["a cat"], [0]).images == 9).all()
    assert not image.is_symlink()
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"file": "cat.png", "prompt": "a cat", "more": ' + "[" * 500 + "]" * 500 + "}",
        '{"file": "cat.png", "prompt": "a cat", "file": "dog.png"}',
        '{"file": "cat.png", "prompt": "a cat", "seed": NaN}',
        '{"file": "cat.png", "prompt": "a cat", "weight": Infinity}',
        '{"file": "cat.png", "prompt": "a cat", "seed": ' + "9" * 5000 + "}",
        json.dumps(entry(seed=-1)),
        json.dumps(entry(seed=2**63)),
        json.dumps(entry(seed=1.0)),
        json.dumps(entry(seed=True)),
        json.dumps(entry(["cat.png"])),
        json.dumps({**entry(), "caption": 3}),
        json.dumps({**entry(), "prompt": None}),
        "[]",
        "null",
    ],
    ids=lambda line: line[:60],
)
@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest-0.jsonl"])
def test_a_line_that_cannot_be_is_named(line, name, folder):
    Image.new("RGB", (4, 4)).save(folder / "cat.png")
    refused(listed(folder, entry(), line, name=name), f"line 2 of '{name}'")


@pytest.mark.parametrize("settings", [3, "x", [], True, None, {"kind": "Other"}, {"kind": {"kind": {}}}])
def test_settings_that_cannot_be_are_named(settings, folder):
    listed(folder, {"source": settings}, name="manifest-0.jsonl")
    refused(folder, "settings|source", Grey())


# Pictures


def png(width, height):
    """Return a PNG that says it is large, and is small."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (0, 0)])
def test_a_picture_that_says_it_is_huge_is_named_and_not_unpacked(size, folder):
    (folder / "cat.png").write_bytes(png(*size))
    refused(listed(folder, entry()), "'cat.png', which cannot be read")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "data", [EPS, b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 ", b"II*\0\x08"]
)
def test_a_file_that_is_no_picture_is_named_and_no_program_is_asked(data, folder, monkeypatch):
    asked = []
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **_: asked.append(arguments))
    monkeypatch.setattr("subprocess.check_call", lambda *arguments, **_: asked.append(arguments))
    (folder / "cat.png").write_bytes(data)
    refused(listed(folder, entry()), "'cat.png', which cannot be read")
    assert not asked


def test_a_picture_in_a_class_folder_asks_no_program_either(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **_: asked.append(arguments))
    monkeypatch.setattr("subprocess.check_call", lambda *arguments, **_: asked.append(arguments))
    (folder / "cat.png").write_bytes(EPS)
    with pytest.raises(OSError, match=r"cat\.png"):
        LabelledFiles([str(folder / "cat.png")], [0])[0]
    assert not asked


def test_what_is_not_a_file_is_named(folder):
    (folder / "cat.png").mkdir()
    refused(listed(folder, entry()), "'cat.png'")
    (folder / "cat.png").rmdir()
    os.mkfifo(folder / "cat.png")
    refused(listed(folder, entry()), "'cat.png'")


# Making that would change nothing


def test_a_listed_file_of_another_name_that_is_gone_ends_before_anything_is_made(folder):
    source = Grey()
    refused(
        listed(folder, entry(seed=0)), "no file 'cat.png'.*'a cat' with seed 0.*Put the file back", source
    )
    assert not source.asked
    assert [path.name for path in folder.iterdir()] == ["manifest.jsonl"]
    # Other images are made, and the line may be mended.
    StoredImageSource(folder, source).generate(["a dog"], [0])
    Image.new("RGB", (4, 4)).save(folder / "cat.png")
    assert not StoredImageSource(folder, source).sample(["a cat"], [0]).images.any()


def test_images_that_vanish_as_soon_as_they_are_made_end_with_an_error(folder, monkeypatch):
    source = Grey()
    stored = StoredImageSource(folder, source, batch_size=1)
    manifest = stored._manifest

    def vanishing():
        for path in folder.glob("a-cat*.png"):
            path.unlink()
        return manifest()

    monkeypatch.setattr(stored, "_manifest", vanishing)
    with pytest.raises(RuntimeError, match=r"still not there.*\('a cat', 0\)") as caught:
        stored.generate(["a cat", "a dog"], [0, 1])
    assert str(folder) in str(caught.value)
    assert source.asked <= 5


# Crashes and full disks


@no_warning
def test_what_a_killed_generation_left_is_gone_after_the_next(folder, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def generate():
        monkeypatch.setattr(os, "replace", die)
        StoredImageSource(folder, Grey()).generate(["a cat"], [0])

    process = FORK.Process(target=generate)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(folder.glob(".*.tmp"))) == 1
    StoredImageSource(folder, Grey()).generate(["a dog"], [5])  # another image
    assert not list(folder.glob(".*.tmp"))


def test_a_full_disk_names_the_image(folder):
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)

    class Noise(Grey):
        def _sample(self, prompts, seeds):
            return GeneratedImages(torch.from_numpy(noise)[None].expand(len(prompts), -1, -1, -1), prompts)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be written in full") as caught:
            StoredImageSource(folder, Noise()).generate(["a cat"], [0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename.startswith(str(folder / "a-cat-0-"))
    assert not list(folder.glob("*.png"))
    assert not list(folder.glob(".*.tmp"))
