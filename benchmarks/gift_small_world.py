"""GIFT taken apart on a stream that forgets: the small CLIP, fine-tuned in full on one domain after another.

    python benchmarks/gift_small_world.py --output results

Four data sets one after another, each with ten classes of its own: rendered objects that the small CLIP
never saw, in three styles that it never saw, and scikit-learn's digits. Both towers train, for 32 iterations
of 32 images a data set, by AdamW without weight decay, fresh in each experience, with a warm-up and a
cosine. Accuracy is taken inside each data set and over all classes in the same run.

The text-to-image model is the renderer. It would draw the classes perfectly, so it is held back: it draws
in another style than those of the stream, and one in five colours, textures, shapes and digits is not the
one of the caption. General names, in ImageNet's place, are the 320 objects that the small CLIP was trained
on. "real images" puts the real images of earlier data sets into the place of the drawn ones; replay is the
host's, with ten real images a class.

Methods have five seeds, of images, batches and draws; some variants and combinations have three. Strengths
and learning rates are chosen by `choose_hyperparameters` with the data sets in another order and validation
images cut from the training images; what a method does not choose it takes from the method that it varies.
Runs that the output folder has already are not repeated; several processes may share it, each with
``--methods`` of its own.

Writes ``gift_small_world.csv`` to the output folder; beside this script a short file of it, and from that
file and the choices alone ``gift_small_world.md`` and a picture.
"""

import argparse
import json
import logging
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from gift_small_world_methods import (
    ALIGNED,
    BENCHMARK,
    COMBINATIONS,
    DISTILLED,
    FEWER,
    FEWER_SEEDS,
    FULL,
    GRIDS,
    SEEDS,
    SELECTION_SEEDS,
    STUDY,
    TAKEN,
    ZERO_SHOT,
    build,
    make_benchmark,
)
from gift_small_world_report import write_tables
from rich.progress import Progress

from avalanche_vlm import logging as report
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.selection import choose_hyperparameters


def run(method: str, benchmark, seed: int, settings: dict, test: str, loggers: list):
    """Train a method, evaluate it after each experience on the stream ``test``, and return its metrics."""
    torch.manual_seed(seed)
    metrics = continual_metrics(spaces=("dataset", "all"))
    evaluator = EvaluationPlugin(*metrics, loggers=loggers)
    strategy = build(method, benchmark, seed, settings, evaluator=evaluator)
    evaluated = getattr(benchmark, f"{test}_stream")
    strategy.eval(evaluated)
    for experience in benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        strategy.eval(evaluated)
    return metrics


def settings_of(method: str, folder: Path) -> dict:
    """Return the settings of a method: those of the methods that it varies, and its own choice."""
    settings: dict = {}
    for other in TAKEN.get(method, (DISTILLED, ALIGNED, FULL)):
        settings |= settings_of(other, folder) if other not in GRIDS else choice_of(other, folder)["best"]
    return settings | (choice_of(method, folder)["best"] if method in GRIDS else {})


def choice_of(method: str, folder: Path) -> dict:
    """Return the choice of a method, made now if the folder does not have it."""
    path = folder / f"chosen {method}.json"
    if path.exists():
        return json.loads(path.read_text())
    taken: dict = {}
    for other in TAKEN[method]:
        taken |= choice_of(other, folder)["best"]

    def train_and_score(benchmark, *, seed: int, **own: float) -> float:
        metrics = run(method, benchmark, seed, taken | own, "valid", [])
        return metrics[0].summary("valid")["average_accuracy"]

    choice = choose_hyperparameters(
        GRIDS[method],
        make_benchmark=make_benchmark,
        train_and_score=train_and_score,
        selection_seeds=SELECTION_SEEDS,
        reported_seeds=SEEDS,
        validation_fraction=0.25,
    ).describe()
    path.write_text(json.dumps(choice, indent=1))
    return choice


def main() -> None:
    """Run what the output folder does not have yet, then write the tables."""
    parser = argparse.ArgumentParser(description="GIFT on a stream that forgets.")
    every = [*STUDY, *COMBINATIONS]
    parser.add_argument("--methods", nargs="+", default=every, choices=every)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    results, finished = folder / "gift_small_world.csv", folder / "finished.txt"
    runs = [
        (method, seed)
        for method in arguments.methods
        for seed in arguments.seeds
        if method not in FEWER or seed in FEWER_SEEDS
    ]
    with Progress() as progress:
        task = progress.add_task("runs", total=len(runs))
        for method, seed in runs:
            progress.update(task, description=f"{method}, {seed}")
            done = set(finished.read_text().splitlines()) if finished.exists() else set()
            if f"{method}/{seed}" not in done:
                settings = {} if method == ZERO_SHOT else settings_of(method, folder)
                logger = report.ResultsLogger(
                    results, method=method, benchmark=BENCHMARK, seed=seed, settings={"chosen": settings}
                )
                run(method, make_benchmark(seed), seed, settings, "test", [logger])
                with finished.open("a") as file:
                    file.write(f"{method}/{seed}\n")
            progress.advance(task)
    done = set(finished.read_text().splitlines())
    wanted = [(method, seed) for method in every for seed in (FEWER_SEEDS if method in FEWER else SEEDS)]
    if all(f"{method}/{seed}" in done for method, seed in wanted):
        write_tables(results, folder)


if __name__ == "__main__":
    main()
