"""CGIL's parts on stored features of a real CLIP: every generator, beside what needs no training.

    AVALANCHE_VLM_DATA=folder python benchmarks/cgil_features.py --output results

Streams of caltech101 (7 experiences), oxford_pets (5) and imagenet with 4 shots (10), in three class orders;
see ``real_features.py``. A cosine head with scale 100 trains that starts from the text features: AdamW 1e-3
without weight decay, fresh in each experience, batches of 128, 30 epochs over 128 draws a class, drawn
anew for each epoch (imagenet: 3 epochs over 32 draws, in batches of one draw of each class seen).
``GaussianDiscriminantHead`` fuses zero-shot scores, or the trained head's, with a Gaussian discriminant;
its weight was chosen by ``choose_hyperparameters``, on two class orders that are not reported and validation
rows cut from the training rows. Runs that the output folder has already are not repeated.

Average and Last count samples alike, not experiences. Writes ``cgil_features.csv`` to the output folder;
beside this script a short file of it, the tables ``cgil_features.md`` and the picture ``cgil_features.png``
(accuracy against memory).
"""

import argparse
import json
import logging
import os
import time
from functools import partial
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from matplotlib.figure import Figure
from real_features import STREAMS, load, unique
from rich.progress import Progress
from torch.optim import AdamW

from avalanche_vlm import logging as report
from avalanche_vlm import sources
from avalanche_vlm.benchmarks import class_names, tensor_benchmark
from avalanche_vlm.metrics import MemoryMetric, continual_metrics
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    TextFeatureHead,
)
from avalanche_vlm.plugins import GaussianDiscriminantPlugin
from avalanche_vlm.selection import choose_hyperparameters
from avalanche_vlm.strategies import CGIL, FineTune, GaussianDiscriminant, ZeroShot, host_baselines

SEEDS, SELECTION_SEEDS = (0, 1, 2), (100, 101)
SMALL_VAE = {"hidden": 128, "latent": 32, "passes": 100, "learning_rate": 2e-3}
GENERATORS = {
    "class mean": sources.ClassMean,
    "diagonal Gaussian": sources.DiagonalGaussian,
    "rank-8 Gaussian": partial(sources.LowRankGaussian, rank=8),
    "shared-covariance Gaussian": sources.SharedCovarianceGaussian,
    "full Gaussian": sources.FullGaussian,
    "Gaussian mixture": sources.GaussianMixture,
    "conditional VAE": sources.ConditionalVAE,
    "latent diffusion": sources.LatentDiffusion,
    "small VAE a class": partial(sources.ClassVAE, **SMALL_VAE),
    "VAE a class, as published": partial(sources.ClassVAE, noise_scale="variance"),
}
CLOSED = ("discriminant", "zero-shot + discriminant")
LEARNED = ("shared-covariance Gaussian, + discriminant",)
METHODS = ("zero-shot", "naive", *CLOSED, *GENERATORS, *LEARNED, "joint training")
FIXED = {"discriminant": {"fusion_weight": 1e6}}
CHOSEN = {
    "zero-shot + discriminant": [
        {"fusion_weight": weight} for weight in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
    ],
    "shared-covariance Gaussian, + discriminant": [
        {"fusion_weight": weight, "lr": 1e-4, "epochs": 3} for weight in (0.02, 0.1, 0.3)
    ],
}
SLOW = ("conditional VAE", "latent diffusion", "small VAE a class", "full Gaussian", "Gaussian mixture")
LEFT_OUT = {("imagenet", name) for name in (*SLOW, "VAE a class, as published")}
LEFT_OUT |= {(name, "latent diffusion") for name in STREAMS} | {("caltech101", "conditional VAE")}
ONE_ORDER = {("caltech101", name) for name in ("full Gaussian", "Gaussian mixture", "small VAE a class")}
ONE_ORDER |= {(name, "VAE a class, as published") for name in ("caltech101", "oxford_pets")}
POOLED = {"Average": "average_incremental_accuracy", "Last": "last_accuracy"}
COLUMNS = (
    *(report.TableColumn(title, f"pooled_{metric}", "seen") for title, metric in POOLED.items()),
    report.TableColumn("Forgetting", "forgetting", "seen"),
    report.TableColumn("CI-Transfer", "ci_transfer", "all"),
)
WRITTEN = {*(column.metric for column in COLUMNS), "stored_bytes"}
HERE = Path(__file__).parent


class Stream:
    """Stored features of one data set."""

    def __init__(self, name: str) -> None:
        parts, self.n_experiences, self.epochs = STREAMS[name]
        path = Path(os.environ["AVALANCHE_VLM_DATA"]) / "clip_vitb32_features.npz"
        self.train, self.test, names, self.text = load(path, name, parts)
        self.names = unique(names)
        self.samples_per_class = 32 if name == "imagenet" else 128
        # A thousand classes in batches of 128 would take hours: these hold each class seen once.
        self.batch = {"batch_samples_per_class": 1} if name == "imagenet" else {}
        self.epochs = 3 if name == "imagenet" else self.epochs

    def benchmark(self, seed: int):
        """Return the stream in the class order of a seed."""
        stream = {"n_experiences": self.n_experiences, "seed": seed}
        return tensor_benchmark(self.train, self.test, class_names=self.names, **stream)


def build(stream: Stream, method: str, seed: int, settings: dict, **arguments):
    """Return the strategy of a method; the optimizer's state is fresh in each experience."""
    text, backbone = TextFeatureHead(stream.text), EmbeddingBackbone(512)
    if method == "zero-shot":
        return ZeroShot(model=CLIPClassifier(backbone, text), **arguments)
    if method in CLOSED:
        head = GaussianDiscriminantHead(text, mean_prior="none", **settings)
        return GaussianDiscriminant(model=CLIPClassifier(backbone, head), **arguments)
    settings = dict(settings)
    learned = CosineHead(text)
    rate, epochs = settings.pop("lr", 1e-3), settings.pop("epochs", stream.epochs)
    plugins = [GaussianDiscriminantPlugin()] if method in LEARNED else []
    head = GaussianDiscriminantHead(learned, mean_prior="none", **settings) if method in LEARNED else learned
    arguments["model"] = model = CLIPClassifier(backbone, head, class_names=stream.names)
    arguments["optimizer"] = AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    arguments |= {"train_mb_size": 128, "train_epochs": epochs}
    if method == "naive":
        return FineTune(**arguments)
    if method == "joint training":
        return host_baselines(memory_size=1, n_experiences=1)["joint training"](**arguments)
    make = GENERATORS[method.removesuffix(", + discriminant")]
    arguments |= {"generator": make(seed=seed), "samples_per_class": stream.samples_per_class}
    return CGIL(plugins=plugins, **stream.batch, **arguments)


def run(stream: Stream, method: str, benchmark, seed: int, settings: dict, test: str, loggers: list):
    """Train a method, evaluate it after each experience on the stream ``test``, and return its metrics."""
    torch.manual_seed(seed)
    metrics = continual_metrics(spaces=("seen", "all"))
    evaluator = EvaluationPlugin(*metrics, MemoryMetric(), loggers=loggers)
    strategy = build(stream, method, seed, settings, evaluator=evaluator, eval_mb_size=512)
    strategy.model.set_classes(class_names(benchmark))
    evaluated = getattr(benchmark, f"{test}_stream")
    strategy.eval(evaluated)
    start, trained = time.process_time(), 0.0
    for experience in [benchmark.train_stream] if method == "joint training" else benchmark.train_stream:
        start = time.process_time()
        strategy.train(experience, reset_optimizer_state=True)
        trained += time.process_time() - start
        strategy.eval(evaluated)
    return metrics, trained


def choose(stream: Stream, method: str) -> dict:
    """Return the settings of a method, chosen on class orders that are not reported, and how."""

    def train_and_score(benchmark, *, seed: int, **settings: float) -> float:
        metrics, _ = run(stream, method, benchmark, seed, settings, "valid", [])
        return metrics[0].summary("valid")["average_incremental_accuracy"]

    choice = choose_hyperparameters(
        CHOSEN[method],
        make_benchmark=stream.benchmark,
        train_and_score=train_and_score,
        selection_seeds=SELECTION_SEEDS,
        reported_seeds=SEEDS,
        validation_fraction=0.25,
    )
    return choice.describe()


def write_tables(results: Path, choices: dict, seconds: dict) -> None:
    """Write the committed table, picture and short file."""
    rows = report.read_results(results)
    last: dict = {}
    for row in rows:
        if row.metric == "pooled_last_accuracy":
            key = (row.benchmark, row.method, row.seed)
            last[key] = max(last.get(key, 0), row.after_experience)
    kept = [
        row
        for row in rows
        if row.metric in WRITTEN and row.after_experience == last.get((row.benchmark, row.method, row.seed))
    ]
    kept.sort(key=lambda row: (list(STREAMS).index(row.benchmark), METHODS.index(row.method)))
    short = HERE / "cgil_features.csv"
    short.unlink(missing_ok=True)
    report.write_results(short, kept)
    table = report.table_text(
        report.results_table(short, columns=COLUMNS, title="CGIL on real features, 3 class orders"), width=120
    )
    memory = memory_table(kept, seconds)
    chosen = "".join(
        f"| {name} | {method} | {choice['best']} | "
        + ", ".join(f"{each['mean']:.3f}" for each in choice["candidates"])
        + " |\n"
        for (name, method), choice in choices.items()
    )
    (HERE / "cgil_features.md").write_text(
        "# CGIL on stored features of OpenAI's ViT-B/32\n\nWritten by `benchmarks/cgil_features.py`. "
        f"Rows without a deviation ran in the first order only.\n\n```\n{table}```\n\n{memory}\nChosen by "
        f"validation on the orders of the seeds {SELECTION_SEEDS}; scores in the order of the candidates:\n\n"
        f"| stream | method | chosen | scores |\n|---|---|---|---|\n{chosen}"
    )
    save_picture(kept)


def means_of(rows: list, metric: str, space: str | None) -> dict:
    """Return the mean of a metric over seeds, by stream and method."""
    found: dict = {}
    for row in rows:
        if row.metric == metric and (space is None or row.space == space):
            found.setdefault((row.benchmark, row.method), []).append(row.value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def memory_table(rows: list, seconds: dict) -> str:
    """Return bytes a class and seconds of training, by method and stream."""
    stored, classes = (
        means_of(rows, "stored_bytes", None),
        {name: len(Stream(name).names) for name in STREAMS},
    )
    lines = [
        "Kept by the generator, in KB a class, with what classes share divided among them (a discriminant's "
        "sums are part of the model, and not counted), and seconds of processor time of a run's training, "
        "fitting included:\n",
        "| method | " + " | ".join(f"{name}, KB | s" for name in STREAMS) + " |",
        "|---|" + "---|---|" * len(STREAMS),
    ]
    for method in METHODS:
        cells = []
        for name in STREAMS:
            own = [value for key, value in seconds.items() if key.startswith(f"{name}/{method}/")]
            size = stored.get((name, method))
            cells += [
                "" if size is None or not own else f"{size / classes[name] / 1024:.1f}",
                f"{sum(own) / len(own):.1f}" if own else "",
            ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def save_picture(rows: list) -> None:
    """Draw last accuracy against memory, a panel a stream."""
    stored, accuracy = means_of(rows, "stored_bytes", None), means_of(rows, "pooled_last_accuracy", "seen")
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(STREAMS)), STREAMS, strict=True):
        classes = len(Stream(name).names)
        for index, method in enumerate([*GENERATORS, *LEARNED]):
            if (name, method) in accuracy:
                size = stored[name, method] / classes / 1024
                axes.plot(
                    size,
                    100 * accuracy[name, method],
                    "osD^vPX*<>h"[index],
                    color=f"C{index % 10}",
                    label=method,
                )
        for method, style in (
            ("zero-shot", ":"),
            ("zero-shot + discriminant", "-"),
            ("joint training", "--"),
        ):
            if (name, method) in accuracy:
                axes.axhline(100 * accuracy[name, method], color="0.4", linestyle=style, label=method)
        axes.set(xscale="log", title=name, xlabel="memory (KB a class)", ylabel="last accuracy (%)")
        axes.set_xlim(1.4, 4000)
        axes.set_xticks([2, 10, 50, 250, 1000], ["2", "10", "50", "250", "1000"], minor=False)
        axes.set_xticks([], minor=True)
    handles: dict = {}
    for axes in figure.axes:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside right upper", fontsize="small", frameon=False
    )
    report.save_figure(figure, HERE / "cgil_features.png")


def main() -> None:
    """Run what the output folder does not have yet, then write the tables."""
    parser = argparse.ArgumentParser(description="CGIL on real features.")
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results, chosen = arguments.output / "cgil_features.csv", arguments.output / "choices.json"
    finished = arguments.output / "seconds.json"
    seconds = json.loads(finished.read_text()) if finished.exists() else {}
    read = json.loads(chosen.read_text()) if chosen.exists() else {}
    choices = {tuple(key.split("/")): value for key, value in read.items()}
    runs = [
        (name, method, seed)
        for name in arguments.streams
        for method in arguments.methods
        for seed in (SEEDS[:1] if (name, method) in ONE_ORDER else SEEDS)
        if (name, method) not in LEFT_OUT
    ]
    with Progress() as progress:
        task = progress.add_task("runs", total=len(runs))
        for name, method, seed in runs:
            progress.update(task, description=f"{name}, {method}, {seed}")
            stream = Stream(name)
            if method in CHOSEN and (name, method) not in choices:
                choices[name, method] = choose(stream, method)
                chosen.write_text(json.dumps({"/".join(k): v for k, v in choices.items()}, indent=1))
            settings = choices[name, method]["best"] if method in CHOSEN else FIXED.get(method, {})
            if f"{name}/{method}/{seed}" not in seconds:
                logger = report.ResultsLogger(
                    results, method=method, benchmark=name, seed=seed, settings={"chosen": settings}
                )
                _, spent = run(stream, method, stream.benchmark(seed), seed, settings, "test", [logger])
                seconds[f"{name}/{method}/{seed}"] = spent
                finished.write_text(json.dumps(seconds, indent=1))
            progress.advance(task)
    write_tables(results, choices, seconds)


if __name__ == "__main__":
    main()
