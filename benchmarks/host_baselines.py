"""Avalanche's own baselines beside zero-shot, on stored CLIP features and on rendered images.

    AVALANCHE_VLM_DATA=folder python benchmarks/host_baselines.py --output results

On features (caltech101, oxford_pets; see ``real_features.py``) a cosine head with scale 100 trains that
starts from the text features: AdamW 1e-3, batches of 128, 30 epochs. On images of the small world (20
classes, ten images each) LoRA of rank 8 trains in the image tower: AdamW 1e-3, batches of 32, 3 epochs. The
optimizer's state is fresh in each experience. Memories hold five samples a class. Three class orders. The
strengths of EWC, MAS, SI, LwF and DER are chosen by `choose_hyperparameters` on two other class orders and
validation data of each set of features; the images take those of caltech101. Runs that the output folder
has already are not repeated, so that the study can be interrupted.

Writes ``host_baselines.csv`` to the output folder, and from this file alone ``host_baselines.md``, a picture
a stream, and a ``host_baselines.csv`` beside this script without what neither of them needs.
"""

import argparse
import json
import logging
import os
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from real_features import STREAMS, load
from rich.progress import Progress
from torch.optim import AdamW

from avalanche_vlm import logging as report
from avalanche_vlm.benchmarks import class_names, small_world_benchmark, tensor_benchmark
from avalanche_vlm.metrics import MemoryMetric, continual_metrics
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    LoRA,
    OpenCLIPBackbone,
    TextFeatureHead,
)
from avalanche_vlm.selection import choose_hyperparameters
from avalanche_vlm.strategies import ZeroShot, host_baselines
from avalanche_vlm.world import HELD_OUT

SEEDS, SELECTION_SEEDS = (0, 1, 2), (100, 101)
METHODS = ("zero-shot", *host_baselines(memory_size=1, n_experiences=1))
GRIDS = {
    "EWC": [{"ewc_lambda": value} for value in (1e4, 1e6, 1e8, 1e10)],
    "MAS": [{"lambda_reg": value} for value in (0.001, 0.01, 0.1, 1.0)],
    "SI": [{"si_lambda": value} for value in (1.0, 1e2, 1e4, 1e6)],
    "LwF": [{"alpha": value} for value in (5.0, 20.0, 100.0, 500.0)],
    "DER": [{"alpha": value} for value in (0.1, 0.5, 2.0)],
}
WRITTEN = {"average_incremental_accuracy", "last_accuracy", "forgetting", "ci_transfer", "stored_bytes"}
HERE = Path(__file__).parent


class FeatureStream:
    """Stored features of one data set."""

    train_mb_size, train_epochs = 128, 30

    def __init__(self, name: str) -> None:
        parts, self.n_experiences, _ = STREAMS[name]
        path = Path(os.environ["AVALANCHE_VLM_DATA"]) / "clip_vitb32_features.npz"
        self.train, self.test, self.names, self.text = load(path, name, parts)

    def model(self, method: str) -> CLIPClassifier:
        """Return the classifier that a method begins with."""
        head = TextFeatureHead(self.text)
        return CLIPClassifier(EmbeddingBackbone(512), head if method == "zero-shot" else CosineHead(head))

    def benchmark(self, seed: int):
        """Return the stream in the class order of a seed."""
        stream = {"n_experiences": self.n_experiences, "seed": seed}
        return tensor_benchmark(self.train, self.test, class_names=self.names, **stream)


class SmallWorldStream:
    """Rendered images, through the image tower."""

    train_mb_size, train_epochs, n_experiences = 32, 3, 5

    def model(self, method: str) -> CLIPClassifier:
        """Return the classifier that a method begins with."""
        return CLIPClassifier(
            OpenCLIPBackbone("small-clip", pretrained="small-world"),
            trainable=LoRA(rank=8, towers=("image",)),
        )

    def benchmark(self, seed: int):
        """Return the stream in the class order of a seed."""
        model = self.model("")
        transforms = {"train_transform": model.train_transform, "eval_transform": model.eval_transform}
        images = {"objects": HELD_OUT[:20], "train_per_class": 10, "test_per_class": 10}
        return small_world_benchmark(n_experiences=self.n_experiences, seed=seed, **images, **transforms)


MAKERS = {
    "caltech101": lambda: FeatureStream("caltech101"),
    "oxford_pets": lambda: FeatureStream("oxford_pets"),
    "small-world": SmallWorldStream,
}


def run(stream, method: str, benchmark, seed: int, strength: dict, test: str, loggers: list) -> list:
    """Train one method, evaluate it after each experience on the stream ``test``, and return its metrics."""
    torch.manual_seed(seed)
    model = stream.model(method)
    names = class_names(benchmark)
    model.set_classes(names)
    metrics = continual_metrics(spaces=("seen", "all"))
    arguments = {"model": model, "train_mb_size": stream.train_mb_size, "eval_mb_size": 512}
    arguments["evaluator"] = EvaluationPlugin(*metrics, MemoryMetric(), loggers=loggers)
    builders = host_baselines(memory_size=5 * len(names), n_experiences=stream.n_experiences)
    if method == "zero-shot":
        strategy = ZeroShot(**arguments)
    else:
        arguments["optimizer"] = AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
        strategy = builders[method](train_epochs=stream.train_epochs, **arguments, **strength)
    evaluated = getattr(benchmark, f"{test}_stream")
    strategy.eval(evaluated)
    for experience in [benchmark.train_stream] if method == "joint training" else benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        strategy.eval(evaluated)
    return metrics


def choose(stream, method: str) -> dict:
    """Return the strength of a method, chosen on class orders that are not reported, and how."""

    def train_and_score(benchmark, *, seed: int, **strength: float) -> float:
        metrics = run(stream, method, benchmark, seed, strength, "valid", [])
        return metrics[0].summary("valid")["average_incremental_accuracy"]

    choice = choose_hyperparameters(
        GRIDS[method],
        make_benchmark=stream.benchmark,
        train_and_score=train_and_score,
        selection_seeds=SELECTION_SEEDS,
        reported_seeds=SEEDS,
        validation_fraction=0.2,
    )
    return choice.describe()


def write_tables(results: Path, choices: dict) -> None:
    """Write the committed table, pictures and short file, from the file of results alone."""
    rows = report.read_results(results)
    last = {}
    for row in rows:
        if row.metric != "accuracy" and row.after_experience is not None:
            key = (row.benchmark, row.method, row.seed)
            last[key] = max(last.get(key, 0), row.after_experience)
    kept = [
        row
        for row in rows
        if (row.metric == "accuracy" and row.space == "seen")
        or (row.metric in WRITTEN and row.after_experience == last.get((row.benchmark, row.method, row.seed)))
    ]
    short = HERE / "host_baselines.csv"
    short.unlink(missing_ok=True)
    report.write_results(short, kept)
    title = "Avalanche's baselines, 3 class orders"
    table = report.table_text(report.results_table(short, title=title), width=110)
    chosen = "".join(
        f"| {stream} | {method} | {choice['best']} | "
        + ", ".join(f"{each['mean']:.3f}" for each in choice["candidates"])
        + " |\n"
        for (stream, method), choice in choices.items()
    )
    text = (
        "# Avalanche's own baselines\n\nWritten by `benchmarks/host_baselines.py`, from "
        f"`host_baselines.csv`.\n\n```\n{table}```\n\nStrengths, chosen by validation on the orders of the "
        f"seeds {SELECTION_SEEDS}; scores in the order of the candidates:\n\n"
        f"| stream | method | chosen | scores |\n|---|---|---|---|\n{chosen}"
    )
    (HERE / "host_baselines.md").write_text(text)
    for name in dict.fromkeys(row.benchmark for row in kept):
        curves = report.plot_accuracy_over_experiences(short, benchmark=name)
        report.save_figure(curves, HERE / f"host_baselines_{name.replace('-', '_')}.png")


def main() -> None:
    """Run what the file of results does not have yet, then write the tables."""
    parser = argparse.ArgumentParser(description="Avalanche's own baselines.")
    parser.add_argument("--streams", nargs="+", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results, chosen = arguments.output / "host_baselines.csv", arguments.output / "choices.json"
    choices = (
        {tuple(k.split("/")): v for k, v in json.loads(chosen.read_text()).items()} if chosen.exists() else {}
    )
    finished = arguments.output / "finished.txt"
    done = set(finished.read_text().splitlines()) if finished.exists() else set()
    with Progress() as progress:
        task = progress.add_task("runs", total=len(arguments.streams) * len(METHODS) * len(SEEDS))
        for name in arguments.streams:
            stream = MAKERS[name]()
            for method in METHODS:
                # The host's SI and EWC are slow on a whole CLIP: the images take what the features chose.
                key = ("caltech101" if name == "small-world" else name, method)
                if method in GRIDS and key not in choices:
                    progress.update(task, description=f"{', '.join(key)}: choosing")
                    choices[key] = choose(MAKERS[key[0]](), method)
                    chosen.write_text(json.dumps({"/".join(k): v for k, v in choices.items()}, indent=1))
                strength = choices[key]["best"] if method in GRIDS else {}
                for seed in SEEDS:
                    progress.update(task, description=f"{name}, {method}, seed {seed}")
                    if f"{name}/{method}/{seed}" not in done:
                        settings = {"strength": strength}
                        logger = report.ResultsLogger(
                            results, method=method, benchmark=name, seed=seed, settings=settings
                        )
                        run(stream, method, stream.benchmark(seed), seed, strength, "test", [logger])
                        with finished.open("a") as file:
                            file.write(f"{name}/{method}/{seed}\n")
                    progress.advance(task)
    write_tables(results, choices)


if __name__ == "__main__":
    main()
