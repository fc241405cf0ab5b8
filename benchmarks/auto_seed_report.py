"""The tables and pictures of `auto_seed_features.py`, from its results and from its memories made anew."""

import statistics
from pathlib import Path

import torch
from matplotlib.figure import Figure
from study import mean_text, newest_runs, paired_text
from torch.nn import functional as F

from avalanche_vlm import logging as report
from avalanche_vlm.functional import class_mean_cosines, largest_cosines, variance_shares

HERE = Path(__file__).parent
METRICS = {
    ("pooled_average_incremental_accuracy", "seen"): "Average",
    ("pooled_last_accuracy", "seen"): "Last",
    ("forgetting", "seen"): "Forgetting",
    ("forward_transfer", "experience"): "FWT",
}
# First less second, Last.
COMPARED = (
    ("class means, int8", "class means"),
    ("class means, int8, jitter", "class means"),
    ("generated, 1", "class means"),
    ("generated, 2", "class means"),
    ("k-means, 3", "class means"),
    ("k-means, 4", "class means"),
    ("k-means, 3", "real features, 1"),
    ("generated, 4", "generated, 4, not trained"),
    ("generated, 4", "generated, 4, network kept"),
    ("generated, 4", "generated, 4, noise-conditioned"),
    ("generated, 4", "generated, 4, consistency 0.5"),
    ("brief: full", "brief: without consistency"),
    ("brief: full", "brief: random seeds"),
    ("brief: full", "brief: noise-conditioned"),
    ("brief: full", "brief: without generator updates"),
    ("brief: full", "brief: without outer term"),
    ("brief: full", "brief: without pruning"),
    ("generated, 2", "brief: full"),
)
CURVES = {
    "k-means": ("class means, int8, jitter", "k-means, 2", "k-means, 3", "k-means, 4", "k-means, 8"),
    "generated pairs": ("generated, 1", "generated, 2", "generated, 4"),
    "real features": ("real features, 1", "real features, 2", "real features, 4", "real features, 8"),
}
IMAGE_BYTES = 224 * 224 * 3


def write_report(folder: Path, streams: list, methods: tuple, make_stream, memory_of) -> None:
    """Write table, short file and pictures beside the script."""
    rows = [row for path in sorted(folder.glob("*.csv")) for row in report.read_results(path)]
    rows = newest_runs(rows, folder)
    last: dict = {}
    for row in rows:
        key = (row.benchmark, row.method, row.seed)
        last[key] = max(last.get(key, 0), row.after_experience or 0)
    kept = [
        row
        for row in rows
        if ((row.metric, row.space) in METRICS or row.metric.startswith("stored_bytes"))
        and row.after_experience == last[row.benchmark, row.method, row.seed]
    ]
    kept.sort(key=lambda row: (streams.index(row.benchmark), methods.index(row.method), row.seed))
    short = HERE / "auto_seed_features.csv"
    short.unlink(missing_ok=True)
    report.write_results(short, kept)
    values: dict = {}
    for row in kept:
        heading = METRICS.get((row.metric, row.space), row.metric)
        factor = 100 if heading in METRICS.values() else 1
        values.setdefault((row.benchmark, row.method, heading), {})[row.seed] = factor * row.value
    text = [
        "# Memories of seeds on stored features of OpenAI's ViT-B/32\n",
        "Written by `benchmarks/auto_seed_features.py`. Mean and standard deviation over class orders, as "
        "many as the last column says; accuracies among the classes seen, all samples alike. FWT: accuracy "
        "on an experience before it is trained on, less zero-shot's, among its own classes. KB: what the "
        "memory keeps for a class after the last experience, a network that goes on included.\n",
    ]
    for name in streams:
        text.append(table(name, methods, values, len(make_stream(name).names)))
    text.append(comparisons(streams, values))
    text.append(memories(streams, make_stream, memory_of))
    (HERE / "auto_seed_features.md").write_text("\n".join(text))
    save_curves(streams, values, make_stream)


def table(name: str, methods: tuple, values: dict, classes: int) -> str:
    """Return the table of a stream."""
    headings = ("Average", "Last", "Forgetting", "FWT")
    lines = [
        f"## {name}\n",
        "| method | " + " | ".join(headings) + " | KB a class | orders |",
        "|---|" + "---|" * (len(headings) + 2),
    ]
    for method in methods:
        if (name, method, "Last") not in values:
            continue
        cells = [
            mean_text(found) if (found := finite(values.get((name, method, heading), {}))) else "–"
            for heading in headings
        ]
        stored = values.get((name, method, "stored_bytes"), {})
        size = f"{statistics.fmean(stored.values()) / classes / 1024:.1f}" if stored else "0"
        lines.append(
            f"| {method} | " + " | ".join(cells) + f" | {size} | {len(values[name, method, 'Last'])} |"
        )
    return "\n".join(lines) + "\n"


def finite(values: dict) -> dict:
    """Return the numbers that are none of the undefined ones."""
    return {seed: value for seed, value in values.items() if value == value}


def comparisons(streams: list, values: dict) -> str:
    """Return paired differences of Last."""
    lines = [
        "## Paired differences, Last, 95 %\n",
        "| first less second | " + " | ".join(streams) + " |",
        "|---|" + "---|" * len(streams),
    ]
    for first, second in COMPARED:
        cells = []
        for name in streams:
            pair = [values.get((name, method, "Last"), {}) for method in (first, second)]
            cells.append(paired_text(*pair) if set(pair[0]) & set(pair[1]) else "–")
        lines.append(f"| {first} less {second} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def memories(streams: list, make_stream, memory_of) -> str:
    """Return how seeds lie to real features, in the first class order, for sources that ask no model."""
    lines = [
        "## Looking into memories\n",
        "First class order. Cosine of the mean seed of a class with the mean of its features; variance "
        "within classes in directions in which class means differ, and in all others, over that of features; "
        "seeds nearer to a feature than its class's features come to any other one.\n",
        "| stream | source | cosine | relevant | irrelevant | too near |",
        "|---|---|---|---|---|---|",
    ]
    for name in streams:
        stream = make_stream(name)
        benchmark, kinds = stream.benchmark(0), ("class means", "k-means, 4", "sigma points, 4")
        for kind in kinds if name != "imagenet" else kinds[:1]:
            memory, near, known = memory_of(kind, len(stream.names), 0), 0, []
            for experience in benchmark.train_stream:
                pairs = [(x, y) for x, y, *_ in experience.dataset]
                x = F.normalize(torch.stack([pair[0] for pair in pairs]), dim=1)
                y = torch.tensor([int(pair[1]) for pair in pairs])
                memory.update_from_features(None, x, y)
                own = memory.visual[torch.isin(memory.labels, y)]
                near += int(((own @ x.T) > largest_cosines(x, y)).any(dim=1).sum())
                known.append((x, y))
            x, y = (torch.cat(part) for part in zip(*known, strict=True))
            cosines = class_mean_cosines(memory.visual, memory.labels, x, y)
            shares = variance_shares(memory.visual, memory.labels, x, y)
            ratios = [
                f"{shares[f'seeds_{each}'] / shares[f'features_{each}']:.2f}"
                if shares[f"features_{each}"] > 1e-9
                else "–"  # more classes than dimensions: every direction is relevant
                for each in ("relevant", "irrelevant")
            ]
            lines.append(
                f"| {name} | {kind} | {float(cosines.mean()):.3f} ± {float(cosines.std()):.3f} | "
                f"{ratios[0]} | {ratios[1]} | {near} of {len(memory)} |"
            )
            if kind == "k-means, 4":
                figure = report.plot_seeds(memory.visual, memory.labels, x, y, stream.names)
                report.save_figure(figure, HERE / f"auto_seed_{name}.png", dots_per_inch=90)
    return "\n".join(lines) + "\n"


def save_curves(streams: list, values: dict, make_stream) -> None:
    """Draw Last against bytes a class, a panel a stream."""
    shown = [name for name in streams if (name, "class means", "Last") in values]
    figure = Figure(figsize=(4.6 * len(shown), 4.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        classes = len(make_stream(name).names)

        def mean(method, heading, name=name):
            return statistics.fmean(values[name, method, heading].values())

        for number, (label, members) in enumerate(CURVES.items()):
            found = [method for method in members if (name, method, "Last") in values]
            sizes = [mean(method, "stored_bytes") / classes / 1024 for method in found]
            lasts = [mean(method, "Last") for method in found]
            axes.plot(sizes, lasts, "os^"[number] + "-", color=f"C{number}", label=label)
            if label == "real features":  # a frozen tower makes the same features of images
                images = [IMAGE_BYTES * int(method[-1]) / 1024 for method in found]
                axes.plot(images, lasts, "x--", color="C3", label="real images, 224 × 224")
        for method, mark in (("class means", "D"), ("class means, int8", "d")):
            if (name, method, "Last") in values:
                size = mean(method, "stored_bytes") / classes / 1024
                axes.plot(size, mean(method, "Last"), mark, color="black", label=method)
        for method, style in (("naive", ":"), ("zero-shot", "-."), ("joint training", "--")):
            if (name, method, "Last") in values and method != "naive":
                axes.axhline(mean(method, "Last"), color="0.5", linestyle=style, label=method)
        axes.set(xscale="log", xlabel="memory (KB a class)", ylabel="last accuracy (%)", title=name)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small", frameon=False)
    report.save_figure(figure, HERE / "auto_seed_features.png")
