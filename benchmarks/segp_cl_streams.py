"""SeGP-CL taken apart on streams that forget: the small CLIP with LoRA, through images.

    python benchmarks/segp_cl_streams.py --output results

Two streams. *Small world, five styles*: 40 objects that the small CLIP never saw, in five styles that it
never saw, two experiences of four objects a style. *Digits and styles*: scikit-learn's digits and three
styles of ten objects, one experience each. The order of styles and digits, and which objects are where,
belong to the seed. LoRA of rank 32 in both towers, of which B trains, by AdamW without weight decay, fresh in
each experience, along a cosine; three epochs in batches of 32, and 16 images to distil on beside them. The
loss of the task is over the classes of the experience, unless a memory replays others.

Anchors: three seeds a class, five steps of 0.003. Synthetic images are drawn by the renderer, held back: in
a style that no experience has, and with one in five colours, textures, shapes and digits wrong. Reference
images are pictures that the small CLIP was trained on.

Learning rate, weight and temperature of the distillation and weight of the geometry are chosen by
`choose_hyperparameters` on two orders that are not reported, with validation images cut from the training
images; what a method does not choose it takes from the method that it varies. Methods have five seeds, those
beside the main line three. Runs that the output folder has already are not repeated; several processes may
share it, each with ``--streams`` or ``--methods`` of its own.

Writes ``segp_cl_streams.csv`` to the output folder; beside this script a short file of it, and from that file
and the choices alone ``segp_cl_streams.md`` and pictures.
"""

import argparse
import logging
from functools import partial
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from segp_cl_methods import (
    FEWER,
    FEWER_SEEDS,
    FULL,
    GRIDS,
    JOINT,
    KEPT,
    SEEDS,
    SELECTION_SEEDS,
    SHAPED,
    STREAMS,
    STUDY,
    TAKEN,
    TUNED,
    ZERO_SHOT,
    accuracy_elsewhere,
    build,
    make_benchmark,
)
from segp_cl_report import write_tables
from study import finish, is_finished, kept_choice

from avalanche_vlm import logging as report
from avalanche_vlm.metrics import SemanticDriftMetric, continual_metrics

DRIFT = (TUNED, KEPT, FULL)


def run(method: str, stream: str, benchmark, seed: int, settings: dict, test: str, loggers: list):
    """Train a method, evaluate it after each experience on the stream ``test``; return metrics and model."""
    torch.manual_seed(seed)
    metrics = continual_metrics(spaces=("seen", "all"))
    extra = [SemanticDriftMetric()] if method in DRIFT and loggers else []
    evaluator = EvaluationPlugin(*metrics, *extra, loggers=loggers)
    strategy = build(method, stream, benchmark, seed, settings, evaluator=evaluator)
    evaluated = getattr(benchmark, f"{test}_stream")
    strategy.eval(evaluated)
    for experience in [benchmark.train_stream] if method == JOINT else benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(evaluated)
    return metrics, strategy.model


def settings_of(method: str, stream: str, folder: Path) -> dict:
    """Return the settings of a method: what it takes from others, and its own choice."""
    settings: dict = {}
    for other in TAKEN.get(method, (KEPT, SHAPED)):
        settings |= choice_of(other, stream, folder)["best"]
    return settings | (choice_of(method, stream, folder)["best"] if method in GRIDS else {})


def choice_of(method: str, stream: str, folder: Path) -> dict:
    """Return the choice of a method, made now if the folder does not have it."""
    taken: dict = {}
    for other in TAKEN[method]:
        taken |= choice_of(other, stream, folder)["best"] if other != method else {}

    def train_and_score(benchmark, *, seed: int, **own: float) -> float:
        metrics, _ = run(method, stream, benchmark, seed, taken | own, "valid", [])
        return metrics[0].summary("valid")["last_accuracy"]

    return kept_choice(
        folder / f"chosen {stream}, {method}.json",
        GRIDS[method],
        make_benchmark=partial(make_benchmark, stream),
        train_and_score=train_and_score,
        selection_seeds=SELECTION_SEEDS,
        reported_seeds=SEEDS,
        validation_fraction=0.2,
    )


def main() -> None:
    """Run what the output folder does not have yet, then write the tables."""
    parser = argparse.ArgumentParser(description="SeGP-CL on streams that forget.")
    parser.add_argument("--streams", nargs="+", default=STREAMS, choices=STREAMS)
    parser.add_argument("--methods", nargs="+", default=STUDY, choices=STUDY)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--tables", action="store_true", help="write the tables of what is there")
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "segp_cl_streams.csv"

    def one(stream: str, method: str, seed: int) -> None:
        settings = {} if method == ZERO_SHOT else settings_of(method, stream, folder)
        logger = report.ResultsLogger(
            results, method=method, benchmark=stream, seed=seed, settings={"chosen": settings}
        )
        benchmark = make_benchmark(stream, seed)
        _, model = run(method, stream, benchmark, seed, settings, "test", [logger])
        row = report.ResultRow(
            run=logger.run,
            method=method,
            benchmark=stream,
            seed=seed,
            stream="elsewhere",
            metric="accuracy_elsewhere",
            value=accuracy_elsewhere(model),
        )
        report.write_results(results, [row])

    def runs(methods: tuple, seeds: tuple) -> list[tuple]:
        return [
            (stream, method, seed)
            for seed in seeds
            for method in methods
            for stream in arguments.streams
            if method not in FEWER or seed in FEWER_SEEDS
        ]

    if not arguments.tables:
        main_line = tuple(method for method in arguments.methods if method not in FEWER)
        others = tuple(method for method in arguments.methods if method in FEWER)
        finish(runs(main_line, arguments.seeds) + runs(others, arguments.seeds), folder, one)
    if arguments.tables or all(is_finished(each, folder) for each in runs(STUDY, SEEDS)):
        write_tables(results, folder)


if __name__ == "__main__":
    main()
