"""Several processes on one cache, and processes that end in the middle."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import torch

from avalanche_vlm.embedding import embed
from avalanche_vlm.testing import TinyBackbone

from .conftest import class_incremental, counting_backbone, watch

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

FORK = multiprocessing.get_context("fork")  # a fresh process would spend its seconds on imports


def images():
    """Return a benchmark of 24 + 24 images with transforms."""
    return class_incremental(TinyBackbone(), None)


def encode_slowly(folder, results, go=None):
    """Embed the benchmark, 0.03 s an image, and tell how many images were encoded here."""
    backbone = counting_backbone()
    watch(backbone, lambda *arguments: time.sleep(0.03))
    if go is not None:
        go.wait()
    embedded = embed(images(), backbone, cache_dir=folder, batch_size=1)
    results.put((sum(backbone.batches), stored(embedded).tolist()))


# What a user would write, with the same benchmark.
SCRIPT = """
import json, os, sys
import torch
torch.set_num_threads(1)
from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.embedding import embed
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_images

backbone = TinyBackbone()
batches = []
count = lambda *arguments: batches.append(len(arguments[-1]))
count.transform_name = ""
backbone.image_tower.conv1.register_forward_hook(count)
parts = [tiny_images(seed=seed) for seed in (0, 1)]
benchmark = tensor_benchmark(
    *[((x * 40 + 128).clamp(0, 255).to(torch.uint8), y) for x, y in parts],
    class_names=TINY_CLASSES, n_experiences=2,
    train_transform=backbone.train_transform, eval_transform=backbone.eval_transform,
)
embedded = embed(benchmark, backbone, cache_dir=sys.argv[1], batch_size=1)
x = [experience.dataset[0][0].tolist() for experience in embedded.train_stream]
print(json.dumps({"rank": os.environ["RANK"], "count": sum(batches), "x": x}), flush=True)
"""


def stored(embedded):
    (node,) = {id(n): n for e in embedded.train_stream for n in e.dataset._flat_data._datasets}.values()
    return node.x


@pytest.fixture
def expected(tmp_path):
    """The embeddings of one process with the same batches."""
    return stored(embed(images(), TinyBackbone(), cache_dir=tmp_path / "alone", batch_size=1))


def check_whole(folder, expected):
    """The folder holds the two files, nothing else, and nothing is left to do."""
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert not list(folder.glob("*batches*"))
    backbone = counting_backbone()
    assert torch.equal(stored(embed(images(), backbone, cache_dir=folder)), expected)
    assert not backbone.batches


def test_two_processes_share_the_work(expected, tmp_path):
    folder, results, go = tmp_path / "cache", FORK.Queue(), FORK.Event()
    processes = [FORK.Process(target=encode_slowly, args=(folder, results, go)) for _ in range(2)]
    for process in processes:
        process.start()
    go.set()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert sum(count for count, _ in found) == 48  # no image twice
    assert all(count >= 8 for count, _ in found)
    assert all(x == expected.tolist() for _, x in found)
    check_whole(folder, expected)


def test_an_interrupted_run_is_continued(expected, tmp_path):
    folder = tmp_path / "cache"
    process = FORK.Process(target=encode_slowly, args=(folder, FORK.Queue()))
    process.start()
    deadline = time.monotonic() + 60
    while not list(folder.glob("*batches*/000001.safetensors")):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    shards = len(list(folder.glob("*batches*/*.safetensors")))
    assert shards >= 2
    files = len(list(folder.glob("*.safetensors")))
    backbone = counting_backbone()
    # Its locks are gone with it: nobody waits.
    embedded = embed(images(), backbone, cache_dir=folder, batch_size=1)
    assert sum(backbone.batches) == 48 - 24 * files - 8 * shards
    assert torch.equal(stored(embedded), expected)
    check_whole(folder, expected)


def test_an_error_in_the_middle_keeps_what_is_done(expected, tmp_path):
    failing = counting_backbone()

    def fail_late(*arguments):
        if sum(failing.batches) > 10:
            raise KeyboardInterrupt

    watch(failing, fail_late)
    with pytest.raises(KeyboardInterrupt):
        embed(images(), failing, cache_dir=tmp_path / "cache", batch_size=1)
    backbone = counting_backbone()
    embed(images(), backbone, cache_dir=tmp_path / "cache", batch_size=1)
    assert sum(backbone.batches) == 40
    check_whole(tmp_path / "cache", expected)


def test_torchrun_gives_the_same_files(expected, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = subprocess.run(
        [*command, str(script), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    ).stdout
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert sorted(each["rank"] for each in found) == ["0", "1"]
    assert sum(each["count"] for each in found) == 48
    assert found[0]["x"] == found[1]["x"]
    check_whole(tmp_path / "cache", expected)
    one, other = (tmp_path / name for name in ("cache", "alone"))
    for path in one.glob("*.safetensors"):
        assert path.read_bytes() == (other / path.name).read_bytes()
