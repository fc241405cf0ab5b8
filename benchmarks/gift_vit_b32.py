"""GIFT on a model of CLIP's size with a text-to-image pipeline of diffusers, killed and resumed.

    python benchmarks/gift_vit_b32.py

ViT-B-32 and the pipeline have random weights (the pipeline is a tiny Stable Diffusion, built from
configurations and saved), so that nothing is downloaded and accuracies mean nothing: what is shown is that
the whole way works at these shapes, and is exactly resumed. Both towers train in full over three small
data sets, with images that are stored as they are made. The run is made once without a break, and once with
a ``SIGKILL`` while images are made and another in the middle of training; each time it goes on in a new
process. Writes ``gift_vit_b32.md`` beside this file. Needs ``fork``, so Linux or macOS, 12 GB of memory and
10 GB of disk.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import warnings
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch.optim import AdamW

from avalanche_vlm.benchmarks import class_names, small_world_and_digits_benchmark
from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone
from avalanche_vlm.sources import (
    DiffusionImageSource,
    LearnedClassPrompts,
    NamePrompts,
    PromptUnion,
    StoredImageSource,
)
from avalanche_vlm.strategies import GIFT
from avalanche_vlm.testing import save_tiny_pipeline

HERE = Path(__file__).parent
ORDER, ITERATIONS, BATCH, IMAGES = ("sketch", "night", "digits"), 4, 8, 32
PER_STORED_BATCH = 4


def run(folder: Path, pipeline: Path) -> None:
    """Run to the end, from where an earlier process was killed; called in a new process."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = CLIPClassifier(OpenCLIPBackbone("ViT-B-32"), trainable="both")
    transform = {"train_transform": model.eval_transform, "eval_transform": model.eval_transform}
    benchmark = small_world_and_digits_benchmark(
        styles=("sketch", "night"), order=ORDER, train_per_class=2, test_per_class=1, **transform
    )
    model.set_classes(class_names(benchmark))
    drawn = DiffusionImageSource(pipeline, steps=2, height=64, width=64, batch_size=PER_STORED_BATCH)
    metrics = continual_metrics(spaces=("dataset", "all"))
    strategy = GIFT(
        model=model,
        optimizer=AdamW(model.parameters(), lr=1e-5, weight_decay=0.0),
        images=StoredImageSource(folder / "images", drawn, batch_size=PER_STORED_BATCH),
        prompts=PromptUnion([NamePrompts(["cat", "lighthouse", "teapot"]), LearnedClassPrompts()]),
        images_per_experience=IMAGES,
        image_batch_size=BATCH,
        train_mb_size=BATCH,
        train_iterations=ITERATIONS,
        eval_mb_size=16,
        plugins=[CheckpointPlugin(folder / "checkpoints", every_n_epochs=1)],
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
    )
    counter = os.open(folder / "iterations", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    strategy.optimizer.register_step_post_hook(lambda *_: os.write(counter, b"."))
    start = resume(strategy, folder / "checkpoints", benchmark)
    for experience in benchmark.train_stream[start:]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    tensors = dict(torch.nn.Module.named_parameters(model))
    ended = {
        "weights": {name: tensor.detach() for name, tensor in tensors.items()},
        "matrices": {metric.space: metric.matrix() for metric in metrics},
        "trained": sum(parameter.numel() for parameter in model.parameters()),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    torch.save(ended, folder / "ended.tmp")
    os.replace(folder / "ended.tmp", folder / "ended.pt")


def started(folder: Path, pipeline: Path):
    """Start a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=run, args=(folder, pipeline))
    process.start()
    return process


def images_in(folder: Path) -> int:
    """Return how many images there are, whole ones only."""
    return len(list((folder / "images").rglob("*.png")))


def steps_in(folder: Path) -> int:
    """Return how many optimizer steps were made."""
    path = folder / "iterations"
    return path.stat().st_size if path.exists() else 0


def killed_when(folder: Path, pipeline: Path, condition) -> dict:
    """Run until a condition holds, kill, and return what was there."""
    process = started(folder, pipeline)
    while process.is_alive() and not condition():
        time.sleep(0.002)
    if not process.is_alive():
        raise RuntimeError(f"the process ended before it could be killed, with {process.exitcode}")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return {"images": images_in(folder), "steps": steps_in(folder)}


def main() -> None:
    """Run whole and killed, compare, and write the report."""
    parser = argparse.ArgumentParser(description="GIFT at the size of ViT-B-32, killed and resumed.")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder without it")
    root = parser.parse_args().folder or Path(tempfile.mkdtemp())
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pipeline = save_tiny_pipeline(root / "pipeline")
    whole, killed = root / "whole", root / "killed"
    began = time.monotonic()
    process = started(whole, pipeline)
    process.join()
    seconds = time.monotonic() - began
    if process.exitcode:
        raise RuntimeError(f"the whole run ended with {process.exitcode}")
    # In the second of three experiences: some of its images, then some of its steps.
    kills = [
        killed_when(killed, pipeline, lambda: images_in(killed) >= IMAGES + IMAGES // 2),
        killed_when(killed, pipeline, lambda: steps_in(killed) >= ITERATIONS + 2),
    ]
    process = started(killed, pipeline)
    process.join()
    first, second = (torch.load(folder / "ended.pt", weights_only=False) for folder in (whole, killed))
    pairs = zip(first["weights"].values(), second["weights"].values(), strict=True)
    weights = sum(not torch.equal(*pair) for pair in pairs)
    matrices = all(
        torch.equal(first["matrices"][space].nan_to_num(), second["matrices"][space].nan_to_num())
        for space in first["matrices"]
    )
    facts = {
        "trained parameters": f"{first['trained']:,}",
        "seconds of the whole run": f"{seconds:.0f}",
        "peak memory of it, GB": f"{first['peak'] / 1e9:.1f}",
        "optimizer steps, whole run": steps_in(whole),
        "optimizer steps, with kills": steps_in(killed),
        "images, whole run": images_in(whole),
        "images, with kills": images_in(killed),
        "killed with (images, steps)": "; ".join(f"({each['images']}, {each['steps']})" for each in kills),
        "tensors that differ in any bit": f"{weights} of {len(first['weights'])}",
        "accuracy matrices": "the same" if matrices else "**differ**",
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    (HERE / "gift_vit_b32.md").write_text(
        "# GIFT at the size of ViT-B-32, killed and resumed\n\nWritten by `benchmarks/gift_vit_b32.py`: "
        "random weights, a tiny Stable Diffusion, three data sets; see there.\n\n"
        f"| what | value |\n|---|---|\n{table}"
    )
    (root / "facts.json").write_text(json.dumps(facts, indent=1))
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
