"""Closed forms beside what is trained: stored features of a real CLIP, five orders, and few shots.

    AVALANCHE_VLM_DATA=folder python benchmarks/closed_forms.py --output results

Streams of caltech101 (7 experiences), oxford_pets (5) and imagenet with 4 shots (10), as in
``compare_features.py``, which has the learner of all methods that train. Of a closed form nothing is trained;
fusion weights of those that do not choose one were chosen by cross-entropy on a quarter of the training rows
(``FUSION``). For the curve over shots, so many rows of each class are drawn five times, and all classes are
learned at once.

Writes beside this script: ``closed_forms.md``, ``closed_forms.csv`` (each run's Last accuracy, bytes and
seconds), ``closed_forms_shots.csv``, ``closed_forms_shots.png`` and ``closed_forms_memory.png``. The output
folder keeps runs; the same command goes on.
"""

import argparse
import csv
import logging
import os
import statistics
from functools import partial
from pathlib import Path

import torch
from compare_features import cgil, host, parts, prepare, zero_shot
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from real_features import STREAMS, load
from rich.progress import track

from avalanche_vlm import sources
from avalanche_vlm.comparison import compare, grid, paired_difference
from avalanche_vlm.logging import final_values, mean_text, save_figure
from avalanche_vlm.models import (
    CLIPClassifier,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    LogLinearFusion,
    NearestClassMeanHead,
    RandomProjection,
    RidgeRegressionHead,
    TextFeatureHead,
)
from avalanche_vlm.strategies import ClosedForm

HERE = Path(__file__).parent
FUSION = {  # of the second scorer, chosen on held-out training rows
    "means": {"caltech101": 0.5, "oxford_pets": 1.5, "imagenet": 0.1},
    "ridge": {"caltech101": 0.75, "oxford_pets": 1.0, "imagenet": 0.25},
    "projected": {"caltech101": 0.5, "oxford_pets": 0.75, "imagenet": 0.25},
}
ALONE = LogLinearFusion(1.0, temperature=0.0)
JOINT, DEFAULT = "joint training", "closed form"
SHOTS = (1, 2, 4, 8, 16)
DRAWS = 5
SHOWN = {  # in the picture of memory, by what the method is
    "zero-shot": ("zero-shot", "#7f7f7f", "s"),
    DEFAULT: (DEFAULT, "#d62728", "*"),
    "CGIL, rank-8 Gaussians": ("CGIL", "#1f77b4", "o"),
    "seeds": ("k-means seeds", "#2ca02c", "^"),
    "replay": ("Avalanche's replay", "#ff7f0e", "D"),
    JOINT: (JOINT, "black", "P"),
}


def projected(setup):
    """Return RanPAC's features."""
    return RandomProjection(2048, seed=setup.seed)


# From (text head, name of the data set, setup) to a head.
HEADS = {
    "nearest class mean": lambda text, name, setup: NearestClassMeanHead(text),
    "zero-shot + nearest class mean": lambda text, name, setup: NearestClassMeanHead(
        text, fusion_weight=LogLinearFusion(FUSION["means"][name])
    ),
    "ridge regression": lambda text, name, setup: RidgeRegressionHead(text),
    "zero-shot + ridge regression": lambda text, name, setup: RidgeRegressionHead(
        text, fusion_weight=LogLinearFusion(FUSION["ridge"][name])
    ),
    "RanPAC, 2048": lambda text, name, setup: RidgeRegressionHead(text, projection=projected(setup)),
    "zero-shot + RanPAC, 2048": lambda text, name, setup: RidgeRegressionHead(
        text, projection=projected(setup), fusion_weight=LogLinearFusion(FUSION["projected"][name])
    ),
    "plain discriminant": lambda text, name, setup: GaussianDiscriminantHead(
        text, mean_prior="none", fusion_weight=ALONE
    ),
    "zero-shot + plain discriminant, a = 0.3": lambda text, name, setup: GaussianDiscriminantHead(
        text, mean_prior="none", fusion_weight=0.3
    ),
    "zero-shot + plain discriminant, chosen": lambda text, name, setup: GaussianDiscriminantHead(
        text, mean_prior="none"
    ),
    "discriminant, means from text": lambda text, name, setup: GaussianDiscriminantHead(
        text, fusion_weight=ALONE
    ),
    DEFAULT: lambda text, name, setup: GaussianDiscriminantHead(text),
    "closed form, means from classes": lambda text, name, setup: GaussianDiscriminantHead(
        text, mean_prior="classes"
    ),
    "closed form, sketch": lambda text, name, setup: GaussianDiscriminantHead(text, sketch=4),
}
IN_SHOTS = (
    "nearest class mean",
    "zero-shot + plain discriminant, a = 0.3",
    "closed form, means from classes",
    DEFAULT,
)


def closed(setup, evaluator, name, head):
    """Add up what a head needs; train nothing."""
    model = setup.model(HEADS[head](setup.head(), name, setup))
    return ClosedForm(model=model, eval_mb_size=512, evaluator=evaluator)


def methods(name: str) -> dict:
    """Return the methods on a data set, by name."""
    own = {
        "zero-shot": zero_shot,
        **{head: partial(closed, head=head) for head in HEADS},
        "CGIL, rank-8 Gaussians": partial(cgil, generator=partial(sources.LowRankGaussian, rank=8)),
        "seeds": partial(parts, names=("seeds",)),
        "replay": partial(host, method="replay"),
        JOINT: partial(host, method="joint training"),
    }
    return {method: partial(build, name=name) for method, build in own.items()}


def few_shots() -> list[dict]:
    """Return the accuracy of closed forms that have seen a few rows of each class, at once."""
    rows: list[dict] = []
    path = Path(os.environ["AVALANCHE_VLM_DATA"]) / "clip_vitb32_features.npz"
    for name, (used, _, _) in STREAMS.items():
        (x, y), (test_x, test_y), _, text = load(path, name, used)
        counts = [k for k in SHOTS if k <= int(y.bincount().min())]
        for k in track(counts, description=f"{name}, shots"):
            for draw in range(DRAWS):
                order = torch.randperm(len(y), generator=torch.Generator().manual_seed(draw))
                kept = torch.cat([order[y[order] == c][:k] for c in range(len(text))])
                for method in ("zero-shot", *IN_SHOTS):
                    head = TextFeatureHead(text)
                    if method != "zero-shot":
                        head = HEADS[method](head, name, None)
                    names = [f"class {c}" for c in range(len(text))]
                    model = CLIPClassifier(EmbeddingBackbone(512), head, class_names=names).eval()
                    if method != "zero-shot":
                        head.update(x[kept], y[kept])
                    with torch.no_grad():
                        right = (model(test_x).argmax(dim=1) == test_y).double().mean()
                    row = {"stream": name, "shots": k, "draw": draw, "method": method}
                    rows.append({**row, "accuracy": float(right)})
    return rows


def measured(folder: Path, name: str) -> list[dict]:
    """Return Last, bytes and seconds of each run on a stream."""
    last, stored, seconds = (
        final_values(folder, metric, space=space)
        for metric, space in (
            ("pooled_last_accuracy", "seen"),
            ("stored_bytes", ""),
            ("training_seconds", ""),
        )
    )
    return [
        {
            **{"stream": name, "method": method, "seed": seed, "last": value},
            "bytes": stored.get((stream, method), {}).get(seed, 0.0),
            "seconds": seconds.get((stream, method), {}).get(seed),
        }
        for (stream, method), by_seed in last.items()
        if stream == name
        for seed, value in by_seed.items()
    ]


def by_seed(rows: list[dict], method: str, key: str) -> dict:
    """Return a number of a method for each seed."""
    return {row["seed"]: row[key] for row in rows if row["method"] == method and row[key] is not None}


def stream_table(rows: list[dict], name: str, classes: int) -> str:
    """Return the table of a stream."""
    lines = [
        f"## {name}, {classes} classes\n",
        "| method | Last | less than joint training | bytes a class | seconds | over orders |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    joint = by_seed(rows, JOINT, "last")
    for method in methods(name):
        last, kept = by_seed(rows, method, "last"), by_seed(rows, method, "bytes")
        if not last:
            continue
        gap = "" if method == JOINT else paired_difference(last, joint).text(100)
        seconds = by_seed(rows, method, "seconds")
        spread = 100 * (max(last.values()) - min(last.values()))
        bytes_each = statistics.fmean(kept.values()) / classes
        lines.append(
            f"| {method} | {mean_text(last, scale=100)} | {gap} | {bytes_each:,.0f} | "
            f"{mean_text(seconds, digits=2)} | {spread:.1f} |"
        )
    return "\n".join(lines) + "\n"


def shots_table(rows: list[dict]) -> str:
    """Return accuracies over shots."""
    lines = ["## Few shots\n", "| data | shots | " + " | ".join(("zero-shot", *IN_SHOTS)) + " |"]
    lines.append("|---|--:|" + "--:|" * (1 + len(IN_SHOTS)))
    for name, k in dict.fromkeys((row["stream"], row["shots"]) for row in rows):
        cells = []
        for method in ("zero-shot", *IN_SHOTS):
            own = [r for r in rows if (r["stream"], r["shots"], r["method"]) == (name, k, method)]
            cells.append(mean_text({r["draw"]: r["accuracy"] for r in own}, scale=100))
        lines.append(f"| {name} | {k} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shots_figure(rows: list[dict]) -> Figure:
    """Return curves over shots, one panel a data set."""
    names = list(dict.fromkeys(row["stream"] for row in rows))
    figure = Figure(figsize=(4 * len(names), 3.6), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    colours = dict(zip(IN_SHOTS, ("#1f77b4", "#ff7f0e", "#9467bd", "#d62728"), strict=True))
    for axis, name in zip(axes, names, strict=True):
        own = [row for row in rows if row["stream"] == name]
        shots = sorted({row["shots"] for row in own})
        for method in ("zero-shot", *IN_SHOTS):
            means, errors = [], []
            for k in shots:
                values = [100 * r["accuracy"] for r in own if (r["shots"], r["method"]) == (k, method)]
                means.append(statistics.fmean(values))
                errors.append(statistics.stdev(values))
            if method == "zero-shot":
                axis.axhline(means[0], color="#7f7f7f", linestyle="--", label=method)
            else:
                axis.errorbar(
                    shots, means, errors, marker="o", capsize=2, color=colours[method], label=method
                )
        axis.set(xscale="log", xlabel="shots a class", title=name)
        axis.set_xticks(shots, [str(k) for k in shots])
        axis.minorticks_off()
    axes[0].set_ylabel("accuracy over all classes, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def memory_figure(rows: dict[str, list[dict]], classes: dict[str, int]) -> Figure:
    """Return Last against the bytes that are kept of a class, one panel a data set."""
    figure = Figure(figsize=(4 * len(rows), 3.6), layout="constrained")
    axes = figure.subplots(1, len(rows), squeeze=False)[0]
    for axis, (name, own) in zip(axes, rows.items(), strict=True):
        for method, (label, colour, marker) in SHOWN.items():
            last = [100 * value for value in by_seed(own, method, "last").values()]
            kept = statistics.fmean(by_seed(own, method, "bytes").values()) / classes[name]
            if method in ("zero-shot", JOINT):  # which keep nothing, or see everything at once
                axis.axhline(statistics.fmean(last), color=colour, linestyle="--", label=label)
                continue
            size = 13 if marker == "*" else 7
            style = {"marker": marker, "color": colour, "markersize": size, "capsize": 3, "linestyle": "none"}
            axis.errorbar([kept], [statistics.fmean(last)], [statistics.pstdev(last)], label=label, **style)
        axis.set(xscale="log", xlabel="bytes kept, a class", title=name, xlim=(1e3, 1e6))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("Last accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows of equal keys."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Make the runs that the output folder does not have, and all tables and pictures."""
    parser = argparse.ArgumentParser(description="Closed forms beside what is trained.")
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    runs = [
        run
        for name in arguments.streams
        for run in grid(methods(name), {name: partial(prepare, name=name)}, arguments.seeds)
    ]
    compare(runs, arguments.output, processes=arguments.processes)
    rows = {name: measured(arguments.output, name) for name in arguments.streams}
    classes = {name: prepare(0, name).benchmark.n_classes for name in arguments.streams}
    shots = few_shots()
    write_csv(HERE / "closed_forms.csv", [row for own in rows.values() for row in own])
    write_csv(HERE / "closed_forms_shots.csv", shots)
    save_figure(shots_figure(shots), HERE / "closed_forms_shots.png")
    save_figure(memory_figure(rows, classes), HERE / "closed_forms_memory.png")
    text = (
        "# Closed forms on features of OpenAI's ViT-B/32\n\n"
        f"Written by `benchmarks/closed_forms.py`: {len(arguments.seeds)} class orders, mean ± standard "
        "deviation; what is less than joint training is paired by order, with a 95 % interval. Bytes are "
        "what is kept of data in all, divided by the number of classes; seconds those of training in all. "
        "The last column is the span over orders, in points.\n\n"
    )
    text += "\n".join(stream_table(rows[name], name, classes[name]) for name in rows)
    text += "\n![Last accuracy against memory](closed_forms_memory.png)\n\n" + shots_table(shots)
    text += "\n![accuracy over shots](closed_forms_shots.png)\n"
    (HERE / "closed_forms.md").write_text(text)


if __name__ == "__main__":
    main()
