"""Images that are kept: what is asked of the source, what a crash leaves, folders of users."""

import hashlib
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_vlm._processes import progress_line
from avalanche_vlm.sources import (
    GeneratedImages,
    ImageSource,
    RenderedImageSource,
    StoredImageSource,
    _image_manifest,
    _making_images,
)

FORK = multiprocessing.get_context("fork")  # a fresh process would spend its seconds on imports


class Noise(ImageSource):
    """Noise from prompt and seed; what it was asked for can be read."""

    def __init__(self, *, size=4, level=(1, 2), go_wrong_after=None, pause=0.0):
        self.size = size
        self.level = level
        self.go_wrong_after = go_wrong_after
        self.pause = pause
        self.asked = []
        self.batches = []
        self.device = None

    def _sample(self, prompts, seeds):
        if self.go_wrong_after is not None and len(self.batches) >= self.go_wrong_after:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        self.batches.append(len(prompts))
        self.asked += zip(prompts, seeds, strict=True)
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            digest = hashlib.sha256(f"{prompt} {seed}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
            images.append(torch.randint(256, (3, self.size, self.size), generator=generator).byte())
        return GeneratedImages(torch.stack(images), [f"seen: {prompt}" for prompt in prompts])

    def describe(self):
        return {"kind": "Noise", "nested": {"size": self.size, "level": self.level}}

    def to(self, device):
        self.device = device
        return self


PROMPTS = ["a cat", "a dog", "Ein Käfer? 虫", "a cat", "x" * 300]
SEEDS = [0, 1, 2, 2**63 - 1, 4]
PAIRS = list(zip(PROMPTS, SEEDS, strict=True))


def expected(prompts=PROMPTS, seeds=SEEDS):
    return Noise().sample(prompts, seeds)


def check_equal(found, wanted):
    assert torch.equal(found.images, wanted.images)
    assert found.captions == wanted.captions


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_folder(folder, records, sizes=(4, 4)):
    """Write images of one grey each, and a manifest by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, record in enumerate(records):
        if "file" in record:
            grey = Image.fromarray(np.full((*sizes, 3), 10 * index, dtype=np.uint8))
            grey.save(folder / record["file"])
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(record) for record in records))


def test_what_is_stored_is_what_the_source_makes(tmp_path):
    source = Noise()
    stored = StoredImageSource(tmp_path / "deep" / "images", source, batch_size=2)
    check_equal(stored.sample(PROMPTS, SEEDS), expected())
    assert source.asked == PAIRS
    assert source.batches == [2, 2, 1]
    check_equal(stored.sample(PROMPTS[::-1], SEEDS[::-1]), expected(PROMPTS[::-1], SEEDS[::-1]))
    other = Noise()
    check_equal(StoredImageSource(stored.folder, other).sample(PROMPTS, SEEDS), expected())
    check_equal(StoredImageSource(str(stored.folder)).sample(PROMPTS, SEEDS), expected())
    assert len(source.asked) == 5
    assert other.asked == []


def test_only_what_is_missing_is_made(tmp_path):
    StoredImageSource(tmp_path, Noise()).generate(PROMPTS[:2], SEEDS[:2])
    source = Noise()
    stored = StoredImageSource(tmp_path, source)
    check_equal(stored.sample(PROMPTS, SEEDS), expected())
    assert source.asked == PAIRS[2:]
    # Another seed is another image, and one that is asked for twice is made once.
    check_equal(stored.sample(["a cat", "a cat"], [7, 7]), expected(["a cat", "a cat"], [7, 7]))
    assert source.asked == [*PAIRS[2:], ("a cat", 7)]


def test_the_folder_holds_images_and_a_list_of_them(tmp_path):
    StoredImageSource(tmp_path, Noise(), batch_size=2).generate(PROMPTS, SEEDS)
    assert {path.suffix for path in tmp_path.iterdir() if path.name[0] != "."} == {".png", ".jsonl"}
    header, *records = lines_of(tmp_path / "manifest-0.jsonl")
    assert header == {"source": {"kind": "Noise", "nested": {"size": 4, "level": [1, 2]}}}
    assert [(record["prompt"], record["seed"]) for record in records] == PAIRS
    assert [record["caption"] for record in records] == expected().captions
    for record, image in zip(records, expected().images, strict=True):
        assert np.array_equal(np.array(Image.open(tmp_path / record["file"])), image.permute(1, 2, 0))
    assert not list(tmp_path.glob(".batch*"))


def test_an_error_in_the_middle_loses_one_batch(tmp_path):
    failing = Noise(go_wrong_after=2)
    with pytest.raises(KeyboardInterrupt):
        StoredImageSource(tmp_path, failing, batch_size=2).sample(PROMPTS, SEEDS)
    source = Noise()
    check_equal(StoredImageSource(tmp_path, source).sample(PROMPTS, SEEDS), expected())
    assert source.asked == PAIRS[4:]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_process_leaves_nothing_half_written(tmp_path):
    prompts, seeds = ["a cat"] * 60, list(range(60))
    slow = StoredImageSource(tmp_path, Noise(pause=0.02), batch_size=4)
    process = FORK.Process(target=slow.generate, args=(prompts, seeds))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.png"))) < 13:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.join()
    whole = (tmp_path / "manifest-0.jsonl").read_bytes().count(b"\n") - 1
    source = Noise()
    check_equal(StoredImageSource(tmp_path, source).sample(prompts, seeds), expected(prompts, seeds))
    assert 8 <= whole < 60
    assert len(source.asked) == 60 - whole  # and nobody waits for the dead
    assert len(lines_of(tmp_path / "manifest-0.jsonl")) == 61


@pytest.mark.parametrize("left", [0, 1, 20, -2, -1])
@pytest.mark.parametrize("line", [0, 3])
def test_a_torn_last_line_is_repaired(tmp_path, line, left):
    StoredImageSource(tmp_path, Noise()).generate(PROMPTS, SEEDS)
    path = tmp_path / "manifest-0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:line]) + lines[line][: len(lines[line]) + left if left < 0 else left])
    known = line - (left != -1)  # without its end of line, a line still tells all
    source = Noise()
    check_equal(StoredImageSource(tmp_path, source).sample(PROMPTS, SEEDS), expected())
    assert source.asked == PAIRS[max(0, known) :]
    assert path.read_bytes() == b"".join(lines)
    check_equal(StoredImageSource(tmp_path).sample(PROMPTS, SEEDS), expected())


def test_an_image_that_was_removed_is_made_anew(tmp_path):
    stored = StoredImageSource(tmp_path, Noise())
    stored.generate(PROMPTS, SEEDS)
    file = lines_of(tmp_path / "manifest-0.jsonl")[2]["file"]
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"`folder`.*{file}"):
        StoredImageSource(tmp_path).sample(PROMPTS, SEEDS)
    source = Noise()
    check_equal(StoredImageSource(tmp_path, source).sample(PROMPTS, SEEDS), expected())
    assert source.asked == PAIRS[1:2]


def test_a_damaged_image_is_named(tmp_path):
    source = RenderedImageSource()
    stored = StoredImageSource(tmp_path, source)
    stored.generate(["digit one"], [3])
    (file,) = tmp_path.glob("*.png")
    data = file.read_bytes()
    for damaged in (b"", data[:20], data[: len(data) // 2], b"no image at all"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"`folder`.*{file.name}.*Remove"):
            stored.sample(["digit one"], [3])


def test_images_of_users_are_found_by_their_prompt(tmp_path):
    records = [
        {"file": "a.png", "prompt": "a cat"},
        {"file": "b.png", "caption": "a dog"},
        {"file": "c.jpg", "prompt": "a cat", "caption": "a fat cat"},
        {"file": "d.png", "prompt": "a cat", "seed": 7},
    ]
    write_folder(tmp_path, records)
    stored = StoredImageSource(tmp_path)
    prompts = ["a cat"] * 5 + ["a dog"] * 2
    images, captions = stored.sample(prompts, [0, 1, 2, 6, 7, 0, 5])
    # Three cats in the order of the manifest; seed 7 has an image of its own.
    assert (images[:, 0, 0, 0].float() / 10).round().tolist() == [0, 2, 3, 0, 3, 1, 1]
    assert captions == ["a cat", "a fat cat", "a cat", "a cat", "a cat", "a dog", "a dog"]


def test_a_source_adds_to_images_of_users(tmp_path):
    write_folder(tmp_path, [{"file": "a.png", "prompt": "a cat", "seed": 3}])
    before = (tmp_path / "manifest.jsonl").read_bytes()
    source = Noise()
    images, captions = StoredImageSource(tmp_path, source).sample(["a cat", "a cat"], [3, 4])
    assert source.asked == [("a cat", 4)]
    assert captions == ["a cat", "seen: a cat"]
    assert not images[0].any()
    assert (tmp_path / "manifest.jsonl").read_bytes() == before


def test_what_is_not_there_is_named(tmp_path):
    StoredImageSource(tmp_path, Noise()).generate(["a cat"], [0])
    for method in ("sample", "generate"):
        with pytest.raises(ValueError, match="'a dog' with seed 5.*`source`"):
            getattr(StoredImageSource(tmp_path), method)(["a cat", "a dog"], [0, 5])


def test_a_folder_without_manifest_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="`folder`.*manifest.*`source`"):
            StoredImageSource(folder).sample(["a cat"], [0])
    assert not (tmp_path / "nowhere").exists()


def test_other_settings_are_refused_by_name(tmp_path):
    StoredImageSource(tmp_path, Noise()).generate(["a cat"], [0])
    with pytest.raises(ValueError, match=r"`folder`.*`size` is 4 and 8.*another folder"):
        StoredImageSource(tmp_path, Noise(size=8)).sample(["a cat"], [0])
    with pytest.raises(ValueError, match=r"`level` is \[1, 2\] and \[1, 3\]"):
        StoredImageSource(tmp_path, Noise(level=(1, 3))).sample(["a dog"], [0])
    with pytest.raises(ValueError, match="`kind` is 'Noise' and 'RenderedImageSource'"):
        StoredImageSource(tmp_path, RenderedImageSource()).generate(["digit one"], [0])
    assert len(lines_of(tmp_path / "manifest-0.jsonl")) == 2


def test_parts_of_different_sources_are_refused(tmp_path):
    StoredImageSource(tmp_path, Noise()).generate(["a cat"], [0])
    (tmp_path / "manifest-1.jsonl").write_text('{"source": {"kind": "Other"}}\n')
    with pytest.raises(ValueError, match="`folder`.*`kind` is 'Noise' and 'Other'.*manifest-1"):
        StoredImageSource(tmp_path).sample(["a cat"], [0])


def test_images_of_two_sizes_are_named(tmp_path):
    write_folder(tmp_path, [{"file": "a.png", "prompt": "a cat"}, {"file": "b.png", "prompt": "a dog"}])
    Image.new("RGB", (6, 4)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="'a.png' of 4×4 pixels and 'b.png' of 6×4"):
        StoredImageSource(tmp_path).sample(["a cat", "a dog"], [0, 0])


@pytest.mark.parametrize(
    "line",
    [
        '{"file": "a.png"',
        '{"file": "a.png"}',
        '{"prompt": "a"}',
        '{"file": "a", "prompt": "a", "seed": "1"}',
        "3",
    ],
)
def test_a_line_that_says_nothing_is_named(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_text('{"file": "a.png", "prompt": "a cat"}\n\n' + line)
    with pytest.raises(ValueError, match="`folder`.*in line 3 of 'manifest.jsonl'"):
        StoredImageSource(tmp_path).sample(["a cat"], [0])


def test_grey_and_transparent_images_become_rgb(tmp_path):
    write_folder(tmp_path, [{"file": "a.png", "prompt": "a"}, {"file": "b.png", "prompt": "b"}])
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    Image.new("RGBA", (4, 4), (9, 9, 9, 255)).save(tmp_path / "b.png")
    assert (StoredImageSource(tmp_path).sample(["a", "b"], [0, 0]).images == 9).all()


def test_the_description_says_what_decides_the_images(tmp_path):
    source = Noise()
    stored = StoredImageSource(tmp_path, source)
    assert stored.describe() == {"kind": "StoredImageSource", "source": source.describe()}
    stored.generate(["a cat"], [0])
    before = StoredImageSource(tmp_path).describe()
    assert before["source"] == {"kind": "Noise", "nested": {"size": 4, "level": [1, 2]}}
    assert json.loads(json.dumps(before)) == before
    assert StoredImageSource(tmp_path).describe() == before
    stored.generate(["a cat"], [1])
    assert StoredImageSource(tmp_path).describe() != before


def test_a_store_in_a_store(tmp_path):
    inner = StoredImageSource(tmp_path / "a", Noise())
    check_equal(StoredImageSource(tmp_path / "b", inner).sample(PROMPTS, SEEDS), expected())


def test_the_device_is_the_sources():
    source = Noise()
    stored = StoredImageSource("nowhere", source)
    assert stored.to("cuda") is stored
    assert source.device == "cuda"
    assert StoredImageSource("nowhere").to("cuda")
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("named", ["folder", "source", "batch_size"])
def test_faults_are_named(named):
    with pytest.raises((TypeError, ValueError), match=f"`{named}`"):
        StoredImageSource(**{"folder": "images", named: 0})


def test_what_is_prepared_is_made_in_one_pass_and_then_only_read(tmp_path, monkeypatch):
    titles = []

    def line(title, total, unit):
        titles.append((title, total, unit))
        return progress_line(title, total, unit)

    monkeypatch.setattr(_making_images, "progress_line", line)
    source = Noise()
    stored = StoredImageSource(tmp_path, source, batch_size=4)
    stored.prepare(PROMPTS, SEEDS)
    assert source.batches == [4, 1]
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        check_equal(stored.sample(PROMPTS[part], SEEDS[part]), expected(PROMPTS[part], SEEDS[part]))
    stored.prepare(PROMPTS, SEEDS)
    assert source.batches == [4, 1]
    assert titles == [("Making images", 5, "images")]
    with pytest.raises(ValueError, match="'a bird' with seed 5.*`source`"):
        StoredImageSource(tmp_path).prepare(["a bird"], [5])


def test_each_line_of_the_manifest_is_read_once(tmp_path, monkeypatch):
    StoredImageSource(tmp_path, Noise(), batch_size=50).generate(["a cat"] * 50, range(50))
    parsed, whole = [], _image_manifest._image

    def image(path, number, record):
        parsed.append((path.name, number, record["seed"]))
        return whole(path, number, record)

    monkeypatch.setattr(_image_manifest, "_image", image)
    stored = StoredImageSource(tmp_path, Noise(), batch_size=2)
    stored.generate(["a cat"] * 60, range(60))
    assert parsed == [("manifest-0.jsonl", seed + 2, seed) for seed in range(60)]
    # A part of another process, of which a line is being written.
    lines = (tmp_path / "manifest-0.jsonl").read_text().splitlines(keepends=True)
    part = tmp_path / "manifest-1.jsonl"
    part.write_text(lines[0] + lines[1].replace('"seed": 0', '"seed": 77') + lines[2][:9])
    assert stored.sample(["a cat"], [77]).captions == ["seen: a cat"]
    part.write_text(part.read_text() + lines[2][9:].replace('"seed": 1', '"seed": 78'))
    assert stored.sample(["a cat"], [78]).captions == ["seen: a cat"]
    assert parsed[60:] == [("manifest-1.jsonl", 2, 77), ("manifest-1.jsonl", 3, 78)]


def test_a_manifest_that_was_changed_is_read_anew(tmp_path):
    stored = StoredImageSource(tmp_path, Noise())
    stored.generate(["a cat", "a dog"], [0, 1])
    part = tmp_path / "manifest-0.jsonl"
    part.write_text(part.read_text().replace("seen: a dog", "A DOG"))
    assert stored.sample(["a dog"], [1]).captions == ["A DOG"]
    (tmp_path / "manifest.jsonl").write_text(user := '{"file": "no.png", "prompt": "a dog", "seed": 1}')
    assert stored._find([("a dog", 1)])[0].file == "no.png"  # what users have listed comes first
    (tmp_path / "manifest.jsonl").write_text(user + "\n?")
    for _ in range(2):  # refused for as long as it is so
        with pytest.raises(ValueError, match="in line 2 of 'manifest.jsonl'"):
            stored.sample(["a cat"], [0])
    (tmp_path / "manifest.jsonl").unlink()
    assert stored.sample(["a dog"], [1]).captions == ["A DOG"]
    part.unlink()
    source = Noise()
    stored.source = source
    stored.sample(["a dog"], [1])
    assert source.asked == [("a dog", 1)]


def share(folder, rank, go, results):
    """What a process of torchrun does, whose number stands in its environment."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    source = Noise(pause=0.02)  # so that both have something to do
    go.wait()
    images, _ = StoredImageSource(folder, source, batch_size=4).sample(["a cat", "a dog"] * 50, range(100))
    results.put((rank, [seed for _, seed in source.asked], int(images.long().sum())))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_share_the_work(tmp_path, capfd):
    results, go = FORK.Queue(), FORK.Barrier(2)
    processes = [FORK.Process(target=share, args=(tmp_path, rank, go, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = {rank: told for rank, *told in (results.get(timeout=60) for _ in processes)}
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert "Making images" not in capfd.readouterr().err  # progress is for terminals
    # Each image once, each process from its own end of the list on.
    assert sorted(found[0][0] + found[1][0]) == list(range(100))
    assert found[0][0][:1] == [0]
    assert found[1][0][:1] == [48]  # the thirteenth of 25 batches
    for rank, (made, _) in found.items():
        records = lines_of(tmp_path / f"manifest-{rank}.jsonl")[1:]
        assert [record["seed"] for record in records] == made
    prompts = ["a cat", "a dog"] * 50
    wanted = Noise().sample(prompts, range(100))
    assert found[0][1] == found[1][1] == int(wanted.images.long().sum())
    check_equal(StoredImageSource(tmp_path).sample(prompts, range(100)), wanted)
    source = Noise()
    check_equal(StoredImageSource(tmp_path, source).sample(prompts, range(100)), wanted)
    assert not source.asked
