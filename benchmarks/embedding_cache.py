"""What the embedding cache brings: whole runs, rate of extraction, two processes, fingerprints.

    python benchmarks/embedding_cache.py

Writes ``embedding_cache.md`` beside this file. Times are of one run on one machine; read the ratios. Every
process has one thread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from PIL import Image
from torch.optim import AdamW

from avalanche_vlm.benchmarks import class_names, folder_benchmark, small_world_benchmark
from avalanche_vlm.embedding import embed
from avalanche_vlm.embedding.data_fingerprint import FileIndex
from avalanche_vlm.metrics import AccuracyMatrixMetric
from avalanche_vlm.models import CLIPClassifier, CosineHead, OpenCLIPBackbone, ZeroShotHead
from avalanche_vlm.strategies import FineTune

HERE = Path(__file__).parent


def seconds(function) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def stream(backbone: OpenCLIPBackbone, **arguments):
    """Return the small world in 10 experiences, under the eval transform only."""
    transform = backbone.eval_transform
    return small_world_benchmark(
        n_experiences=10, train_transform=transform, eval_transform=transform, **arguments
    )


def run(benchmark) -> torch.Tensor:
    """Train a head on a frozen tower, evaluating on every class after each experience."""
    torch.manual_seed(0)
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    names = class_names(benchmark)
    model = CLIPClassifier(backbone, CosineHead(ZeroShotHead()), class_names=names)
    metric = AccuracyMatrixMetric("all")
    strategy = FineTune(
        model=model,
        optimizer=AdamW(model.parameters(), lr=1e-3),
        train_mb_size=32,
        eval_mb_size=256,
        train_epochs=5,
        evaluator=EvaluationPlugin(metric),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    return torch.as_tensor(metric.matrix())


def timed(build) -> tuple[float, torch.Tensor]:
    """Return how long it takes to build a benchmark and run on it, and the matrix of accuracies."""
    start = time.perf_counter()
    matrix = run(build())
    return time.perf_counter() - start, matrix


def whole_runs(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Time the run on images, and on embeddings with an empty and with a filled cache."""
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    images = stream(backbone)
    plain, on_images = timed(lambda: images)
    cold, _ = timed(lambda: embed(images, backbone, cache_dir=folder / "run"))
    warm, on_embeddings = timed(lambda: embed(images, backbone, cache_dir=folder / "run"))
    name = "10 experiences, 1,200 + 800 images, 5 epochs"
    rows.append((f"{name}: images", f"{plain:.1f} s"))
    rows.append((f"{name}: embeddings, empty cache", f"{cold:.1f} s = 1 / {plain / cold:.1f}"))
    rows.append((f"{name}: embeddings, filled cache", f"{warm:.1f} s = 1 / {plain / warm:.1f}"))
    difference = float((on_images - on_embeddings).nan_to_num().abs().max())
    rows.append((f"{name}: largest difference of an accuracy", f"{100 * difference:.2f} points"))


LARGE = {"train_per_class": 150, "test_per_class": 10}
LARGE_COUNT = 40 * 160


def extract(folder: Path, mode: str, part: int, parts: int) -> None:
    """Do the work of one process of `processes`, once it is told to begin, and say when it is done.

    Args:
        folder: where processes meet.
        mode: ``"cache"`` embeds the larger stream into a shared cache; ``"wait"`` does so with a
            model that waits 2 ms an image more, as for a device of its own; ``"bare"`` encodes a part
            of the same images and keeps nothing.
        part: number of this process.
        parts: number of processes.
    """
    torch.set_num_threads(1)
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world").eval()
    benchmark = stream(backbone, **LARGE)
    if mode == "wait":

        def wait(*args) -> None:
            time.sleep(0.002 * len(args[-1]))

        wait.transform_name = ""  # changes nothing, so that the cache need not know it
        backbone.image_tower.conv1.register_forward_hook(wait)
    datasets = [e.dataset.eval() for name in ("train", "test") for e in benchmark.streams[name]]
    samples = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    (folder / f"ready {part}").touch()
    while not (folder / "go").exists():
        time.sleep(0.002)
    if mode != "bare":
        embed(benchmark, backbone, cache_dir=folder / "cache", batch_size=64)
    else:
        own = samples[part::parts]
        for start in range(0, len(own), 64):
            x = torch.stack([dataset[index][0] for dataset, index in own[start : start + 64]])
            with torch.inference_mode():
                backbone.encode_image(x)
    (folder / f"done {part}").touch()


def processes(folder: Path, mode: str, count: int) -> float:
    """Return how long so many processes need together, without their start; see `extract`."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--extract", str(folder), mode, str(part), str(count)], env=environment
        )
        for part in range(count)
    ]
    while len(list(folder.glob("ready*"))) < count:
        time.sleep(0.05)
    start = time.perf_counter()
    (folder / "go").touch()
    while len(list(folder.glob("done*"))) < count:
        time.sleep(0.01)
        if any(process.poll() for process in started):
            raise SystemExit("a process failed")
    elapsed = time.perf_counter() - start
    for process in started:
        process.wait()
    return elapsed


def extraction(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Time one and two processes in each mode, in turns; the fastest of each counts.

    The bare ones tell what the machine gives a second process while others use it too.
    """
    titles = {
        "cache": "into the cache",
        "bare": "keeping nothing, for comparison",
        "wait": "into the cache, waiting 2 ms for each",
    }
    times: dict[tuple[str, int], float] = {}
    for repeat in range(2):
        for mode in titles:
            for count in (1, 2):
                elapsed = processes(folder / f"{mode} {count} {repeat}", mode, count)
                times[mode, count] = min(times.get((mode, count), elapsed), elapsed)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    rows.append((f"load of the machine meanwhile (1, 5, 15 minutes; {os.cpu_count()} cores)", load))
    for mode, title in titles.items():
        one, two = times[mode, 1], times[mode, 2]
        rate = f"{one:.1f} s, {LARGE_COUNT / one:.0f} images/s"
        rows.append((f"encoding 6,400 images {title}: one process", rate))
        rows.append((f"encoding 6,400 images {title}: two processes", f"{two:.1f} s = 1 / {one / two:.2f}"))


def fingerprints(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Time what a call costs whose embeddings are all there."""
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    benchmark = stream(backbone, **LARGE)
    cache = folder / "large"
    embed(benchmark, backbone, cache_dir=cache, batch_size=64)
    again = statistics.median(seconds(lambda: embed(benchmark, backbone, cache_dir=cache)) for _ in range(5))
    rows.append((f"a call that finds everything, {LARGE_COUNT:,} images in memory", f"{again:.2f} s"))

    pictures = folder / "pictures"
    paths = write_pictures(pictures, count=2000)
    index = FileIndex(folder / "files.sqlite")
    rows.append(
        ("2,000 PNG files: fingerprint, first time", f"{seconds(lambda: index.digests(paths)):.3f} s")
    )
    rows.append(("2,000 PNG files: fingerprint, later", f"{seconds(lambda: index.digests(paths)):.3f} s"))
    transform = {"train_transform": backbone.eval_transform, "eval_transform": backbone.eval_transform}
    files = folder_benchmark(pictures, pictures, n_experiences=10, **transform)
    first = seconds(lambda: embed(files, backbone, cache_dir=folder / "files"))
    later = seconds(lambda: embed(files, backbone, cache_dir=folder / "files"))
    rows.append(("the same files: a call that encodes all / none of them", f"{first:.2f} s / {later:.2f} s"))


def write_pictures(folder: Path, *, count: int) -> list[str]:
    """Write random pictures of 64×64 pixels into 10 class folders, with an old time stamp."""
    generator = torch.Generator().manual_seed(0)
    old = time.time() - 100
    paths: list[str] = []
    for index in range(count):
        path = folder / f"class {index % 10}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
        os.utime(path, (old, old))
        paths.append(str(path))
    return paths


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole_runs(folder, rows)
        extraction(folder, rows)
        fingerprints(folder, rows)
    lines = ["| measured | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    title = "# Embedding cache, small CLIP on the small world, one CPU thread a process"
    head = [title, "", "Written by `benchmarks/embedding_cache.py`.", ""]
    (HERE / "embedding_cache.md").write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--extract", nargs=4)
    arguments = parser.parse_args()
    if arguments.extract:
        place, mode, part, parts = arguments.extract
        extract(Path(place), mode, int(part), int(parts))
    else:
        main()
