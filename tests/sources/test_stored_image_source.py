"""Images that are kept: what is asked of the source, what a crash leaves, folders of users."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_vlm.sources import GeneratedImages, ImageSource, RenderedImageSource, StoredImageSource

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


# What a user would write; the source takes its time, so that both have something to do.
SCRIPT = """
import json, os, sys, time
import torch
torch.set_num_threads(1)
from avalanche_vlm.sources import ImageSource, RenderedImageSource, StoredImageSource

class Slow(ImageSource):
    made = []
    def _sample(self, prompts, seeds):
        time.sleep(0.02 * len(prompts))
        self.made += seeds
        return RenderedImageSource().sample(prompts, seeds)
    def describe(self):
        return RenderedImageSource().describe()

source = Slow()
stored = StoredImageSource(sys.argv[1], source, batch_size=4)
ready = [f"{sys.argv[1]}-{rank}" for rank in "01"]
open(ready[int(os.environ["RANK"])], "w").close()
while not all(map(os.path.exists, ready)):
    time.sleep(0.01)
images, captions = stored.sample(["digit one", "a red plain ring"] * 50, list(range(100)))
told = {"rank": os.environ["RANK"], "made": source.made, "sum": int(images.long().sum())}
print(json.dumps(told), flush=True)
"""


def test_processes_share_the_work(tmp_path):
    script, folder = tmp_path / "script.py", tmp_path / "images"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.returncode == 0, done.stderr
    assert "Making images" not in done.stderr  # progress is for terminals
    found = {told["rank"]: told for line in done.stdout.splitlines() for told in [json.loads(line)]}
    assert sorted(found) == ["0", "1"]
    assert found["0"]["sum"] == found["1"]["sum"]
    # Each image once, each process from its own end of the list on.
    assert sorted(found["0"]["made"] + found["1"]["made"]) == list(range(100))
    assert found["0"]["made"][:1] == [0]
    assert found["1"]["made"][:1] == [48]  # the thirteenth of 25 batches
    for rank, told in found.items():
        records = lines_of(folder / f"manifest-{rank}.jsonl")[1:]
        assert [record["seed"] for record in records] == told["made"]
    prompts = ["digit one", "a red plain ring"] * 50
    wanted = RenderedImageSource().sample(prompts, range(100))
    check_equal(StoredImageSource(folder).sample(prompts, range(100)), wanted)
    check_equal(StoredImageSource(folder, RenderedImageSource()).sample(prompts, range(100)), wanted)
