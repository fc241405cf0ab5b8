"""The small CLIP on streams of photographs, through the path that any user's images take.

    AVALANCHE_VLM_DATA=folder python benchmarks/real_images.py

The folder holds ``caltech101_128px.zip`` and ``cifar10_25k.zip`` (``train/class/`` and ``test/class/``) and
``pacs_128px.zip`` (``domain/class/``). The small CLIP knows rendered objects only: this shows that the path
runs from a folder of pictures to a table, and nothing about accuracy. Writes ``real_images.csv`` and
``real_images.md``.
"""

import logging
import os
import tempfile
import time
import zipfile
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from rich.progress import track
from torch.optim import AdamW

from avalanche_vlm.benchmarks import class_names, domain_folder_benchmark, folder_benchmark
from avalanche_vlm.logging import result_rows, results_table, table_text, write_results
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone
from avalanche_vlm.strategies import FineTune, ZeroShot

HERE = Path(__file__).parent


def unpack(archive: Path, folder: Path, per_class: int) -> Path:
    """Unpack at most so many pictures of each class folder."""
    counts: dict[str, int] = {}
    with zipfile.ZipFile(archive) as pictures:
        for name in pictures.namelist():
            parent = str(Path(name).parent)
            counts[parent] = counts.get(parent, 0) + 1
            if counts[parent] <= per_class:
                pictures.extract(name, folder)
    return folder


def build(name: str, folder: Path, model: CLIPClassifier):
    """Return the stream of a data set."""
    transforms = {"train_transform": model.train_transform, "eval_transform": model.eval_transform}
    if name == "pacs":
        return domain_folder_benchmark(folder, test_fraction=0.3, **transforms)
    return folder_benchmark(folder / "train", folder / "test", n_experiences=5, seed=0, **transforms)


def main() -> None:
    """Run both methods on the three data sets."""
    logging.captureWarnings(True)
    data = Path(os.environ["AVALANCHE_VLM_DATA"])
    results = HERE / "real_images.csv"
    results.unlink(missing_ok=True)
    seconds = []
    for name, archive, per_class in (
        ("caltech101", "caltech101_128px.zip", 20),
        ("pacs", "pacs_128px.zip", 60),
        ("cifar10", "cifar10_25k.zip", 200),
    ):
        with tempfile.TemporaryDirectory() as folder:
            unpack(data / archive, Path(folder), per_class)
            for method in ("zero-shot", "naive"):
                start = time.perf_counter()
                torch.manual_seed(0)
                model = CLIPClassifier(
                    OpenCLIPBackbone("small-clip", pretrained="small-world"), trainable="image"
                )
                benchmark = build(name, Path(folder), model)
                model.set_classes(class_names(benchmark))
                metrics = continual_metrics(spaces=("seen", "all"))
                common = {"model": model, "evaluator": EvaluationPlugin(*metrics), "train_mb_size": 64}
                if method == "zero-shot":
                    strategy = ZeroShot(**common)
                else:
                    strategy = FineTune(
                        optimizer=AdamW(model.parameters(), lr=3e-4), train_epochs=3, **common
                    )
                strategy.eval(benchmark.test_stream)
                for experience in track(benchmark.train_stream, description=f"{name}, {method}"):
                    strategy.train(experience)
                    strategy.eval(benchmark.test_stream)
                write_results(results, result_rows(metrics, method=method, benchmark=name, seed=0))
                seconds.append(f"{name}, {method}: {time.perf_counter() - start:.1f} s")
    table = table_text(results_table(results, title="small-clip on photographs: a test of the path"))
    text = (
        f"# Real images\n\nWritten by `benchmarks/real_images.py`.\n\n```\n{table}```\n\n"
        + "; ".join(seconds)
        + "\n"
    )
    (HERE / "real_images.md").write_text(text)


if __name__ == "__main__":
    main()
