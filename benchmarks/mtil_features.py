"""An offline stream like MTIL: four data sets of stored CLIP features, in two orders, in two label spaces.

    AVALANCHE_VLM_DATA=folder python benchmarks/mtil_features.py --output results

Image and text features of OpenAI's ViT-B/32 (see ``real_features.py``) of caltech101, oxford_pets, food10 and
the first 100 classes of imagenet, as one stream with an experience a data set. Classes without a text feature
are left out, and those whose name another of the data sets has, so that no two classes tie: of caltech101
"pizza", of imagenet whatever the three others name. Each run fills the accuracy matrix of the label space
"dataset", which is MTIL's, and that of "all" named classes, from the same predictions.

A cosine head with scale 100 that starts from the text features is trained by all methods but zero-shot and
the discriminant: AdamW 1e-3 without weight decay, fresh in each experience, 300 iterations of 128 an
experience, 30 of them warm-up to a cosine; joint training has as many epochs as these are on average. CGIL
draws from its default generator. The seed shuffles batches and draws; nothing was tuned. Runs that the output
folder has already are not repeated. Writes ``mtil_features.csv`` to the output folder, and beside this script
a short file of it and the tables ``mtil_features.md``.
"""

import argparse
import json
import logging
import os
import time
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, LwFPlugin
from real_features import load
from rich.progress import Progress
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from avalanche_vlm import logging as report
from avalanche_vlm.benchmarks import class_names, multi_dataset_benchmark
from avalanche_vlm.functional import WarmupCosine
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    TextFeatureHead,
)
from avalanche_vlm.strategies import CGIL, FineTune, GaussianDiscriminant, ZeroShot, host_baselines

SEEDS = (0, 1, 2)
SETS = {
    "caltech101": ("train", "val"),
    "oxford_pets": ("train", "val"),
    "food10": ("train",),
    "imagenet": ("train",),
}
IMAGENET_CLASSES = 100
ORDERS = {
    "order I": ("caltech101", "food10", "imagenet", "oxford_pets"),
    "order II": ("oxford_pets", "imagenet", "food10", "caltech101"),
}
METHODS = ("zero-shot", "naive", "LwF", "CGIL", "discriminant", "joint training")
WITHOUT_CHANCE = ("zero-shot", "discriminant")
ITERATIONS, WARMUP = 300, 30
SPACES = ("dataset", "all")
TITLES = {"Transfer": "transfer", "Average": "average_accuracy", "Last": "last_accuracy"}
COLUMNS = tuple(
    report.TableColumn(f"{title}, {space}", metric, space)
    for space in SPACES
    for title, metric in TITLES.items()
)
WRITTEN = {*TITLES.values(), "zero_shot_accuracy"}
HERE = Path(__file__).parent


def parts_of(folder: Path) -> dict:
    """Return (train, test, class names, text features) of each data set; no name is there twice."""
    parts = {
        name: load(folder / "clip_vitb32_features.npz", name, train_parts)
        for name, train_parts in SETS.items()
    }
    spelled = {name: [spelling(title) for title in part[2]] for name, part in parts.items()}
    kept = {}
    for name, titles in spelled.items():
        others = {
            title for other, own in spelled.items() if other != name and keeps(other, name) for title in own
        }
        wanted = [index for index, title in enumerate(titles) if title not in others]
        kept[name] = chosen(parts[name], wanted[:IMAGENET_CLASSES] if name == "imagenet" else wanted)
    return kept


def keeps(first: str, second: str) -> bool:
    """Return whether the first of two data sets keeps a name that both have."""
    rank = ["oxford_pets", "food10", "caltech101", "imagenet"]
    return rank.index(first) < rank.index(second)


def spelling(title: str) -> str:
    """Return a name as it is compared."""
    return title.lower().replace("_", " ")


def chosen(part, classes: list[int]):
    """Return a data set of some of its classes."""
    train, test, names, text = part
    new_id = torch.full((len(names),), -1)
    new_id[classes] = torch.arange(len(classes))
    pairs = [(x[new_id[y] >= 0], new_id[y][new_id[y] >= 0]) for x, y in (train, test)]
    return *pairs, [names[index].replace("_", " ") for index in classes], text[classes]


def make_benchmark(parts: dict, order: tuple[str, ...]):
    """Return the stream of an order, and the text features of its classes."""
    benchmark = multi_dataset_benchmark({name: parts[name][:3] for name in order})
    return benchmark, torch.cat([parts[name][3] for name in order])


def build(method: str, benchmark, text: torch.Tensor, **arguments):
    """Return the strategy of a method, for a stream."""
    head = TextFeatureHead(text)
    if method == "discriminant":
        head = GaussianDiscriminantHead(head, fusion_weight=0.3, mean_prior="none")
    elif method != "zero-shot":
        head = CosineHead(head)
    model = CLIPClassifier(EmbeddingBackbone(text.shape[1]), head, class_names=class_names(benchmark))
    arguments |= {"model": model, "eval_mb_size": 512}
    if method == "zero-shot":
        return ZeroShot(**arguments)
    if method == "discriminant":
        return GaussianDiscriminant(**arguments)
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    arguments |= {"optimizer": optimizer, "train_mb_size": 128}
    if method == "joint training":
        batches = sum(len(experience.dataset) for experience in benchmark.train_stream) / 128
        epochs = round(ITERATIONS * len(benchmark.train_stream) / batches)
        return host_baselines(memory_size=1, n_experiences=1)[method](train_epochs=epochs, **arguments)
    schedule = LambdaLR(optimizer, WarmupCosine(warmup=WARMUP, total=ITERATIONS))
    plugins = [LRSchedulerPlugin(schedule, step_granularity="iteration", reset_lr=False)]
    arguments |= {"train_iterations": ITERATIONS, "plugins": plugins}
    if method == "CGIL":
        return CGIL(**arguments)
    # The host's LwF is its plugin on a plain strategy: here on one that counts iterations.
    plugins += [LwFPlugin(alpha=1.0, temperature=2.0)] if method == "LwF" else []
    return FineTune(**arguments)


def run(method: str, benchmark, text: torch.Tensor, seed: int, loggers: list):
    """Train a method on a stream, evaluate it after each experience, and return its metrics."""
    torch.manual_seed(seed)
    metrics = continual_metrics(spaces=SPACES)
    strategy = build(method, benchmark, text, evaluator=EvaluationPlugin(*metrics, loggers=loggers))
    strategy.eval(benchmark.test_stream)
    for experience in [benchmark.train_stream] if method == "joint training" else benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        strategy.eval(benchmark.test_stream)
    return metrics


def write_tables(results: Path, seconds: dict, parts: dict) -> None:
    """Write the short file and the tables."""
    rows = report.read_results(results)
    final: dict = {}
    for row in rows:
        key = (row.benchmark, row.method, row.seed)
        final[key] = max(final.get(key, 0), row.after_experience)
    kept = [
        row
        for row in rows
        if row.metric in WRITTEN and row.after_experience == final[row.benchmark, row.method, row.seed]
    ]
    kept.sort(key=lambda row: (row.benchmark, METHODS.index(row.method)))
    short = HERE / "mtil_features.csv"
    short.unlink(missing_ok=True)
    report.write_results(short, kept)
    table = report.results_table(short, columns=COLUMNS, title="Four data sets of real features, 3 seeds")
    zero_shot = {
        (row.benchmark, row.space): row.value
        for row in kept
        if row.metric == "zero_shot_accuracy" and row.method == "zero-shot"
    }
    sizes = "; ".join(
        f"{name}: {len(part[2])} classes, {len(part[0][1])} training and {len(part[1][1])} test samples"
        for name, part in parts.items()
    )
    spent = ", ".join(
        f"{method} {sum(own) / len(own):.1f}"
        for method in METHODS
        if (own := [value for key, value in seconds.items() if key.split("/")[1] == method])
    )
    (HERE / "mtil_features.md").write_text(
        "# An MTIL-like stream of stored features of OpenAI's ViT-B/32\n\nWritten by "
        f"`benchmarks/mtil_features.py`.\n\n{sizes}.\n\n"
        + "".join(f"{name}: {', '.join(order)}.\n\n" for name, order in ORDERS.items())
        + f"```\n{report.table_text(table, width=140)}```\n\nZero-shot before any training, in percent: "
        + "; ".join(f"{name}, {space}: {100 * value:.1f}" for (name, space), value in zero_shot.items())
        + ".\nTransfer is over data sets not trained on yet; a method that leaves their classes alone has "
        'zero-shot\'s in the space "dataset". Joint training has neither Transfer nor Average, and needs all '
        f"data at once.\n\nSeconds of processor time of a run, evaluation included: {spent}.\n"
    )


def main() -> None:
    """Run what the output folder does not have yet, then write the tables."""
    parser = argparse.ArgumentParser(description="MTIL on real features.")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results, finished = arguments.output / "mtil_features.csv", arguments.output / "mtil_features.json"
    seconds = json.loads(finished.read_text()) if finished.exists() else {}
    parts = parts_of(Path(os.environ["AVALANCHE_VLM_DATA"]))
    runs = [
        (name, method, seed)
        for name in ORDERS
        for method in arguments.methods
        for seed in (SEEDS[:1] if method in WITHOUT_CHANCE else SEEDS)
    ]
    with Progress() as progress:
        task = progress.add_task("runs", total=len(runs))
        for name, method, seed in runs:
            progress.update(task, description=f"{name}, {method}, {seed}")
            if f"{name}/{method}/{seed}" not in seconds:
                benchmark, text = make_benchmark(parts, ORDERS[name])
                logger = report.ResultsLogger(results, method=method, benchmark=name, seed=seed)
                start = time.process_time()
                run(method, benchmark, text, seed, [logger])
                seconds[f"{name}/{method}/{seed}"] = time.process_time() - start
                finished.write_text(json.dumps(seconds, indent=1))
            progress.advance(task)
    write_tables(results, seconds, parts)


if __name__ == "__main__":
    main()
