"""The tables and the picture of `gift_small_world.py`, from its results alone."""

import json
import math
import statistics
from pathlib import Path

from gift_small_world_methods import (
    ALIGNED,
    ALIGNMENT_ONLY,
    COLUMNS_ONLY,
    COMBINATIONS,
    CONSOLIDATED,
    CURRENT,
    DISTILLED,
    DISTILLED_SLOW,
    FAITHFUL,
    FEATURES,
    FULL,
    GIFT_LORA,
    GIFT_REPLAY,
    HALF,
    INITIAL,
    LORA,
    MIXED,
    ORDER,
    PENALTY,
    REAL,
    REFERENCE,
    REPLAY,
    ROWS_ONLY,
    SELECTION_ORDER,
    SELECTION_SEEDS,
    STATIC,
    STUDY,
    TUNED,
    TUNED_FAST,
    ZERO_SHOT,
)
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from avalanche_vlm import logging as report

HERE = Path(__file__).parent


def by_seed(rows: list, metric: str, space: str) -> dict:
    """Return the last values of a metric by method and seed, in percent."""
    found: dict = {}
    for row in rows:
        if row.metric == metric and row.space == space and row.after_experience == len(ORDER):
            found.setdefault(row.method, {})[row.seed] = 100 * row.value
    return found


def paired(of: dict, method: str, base: str) -> tuple[float, float]:
    """Return the mean difference to another method with equal seeds, and half its 95 % interval."""
    differences = [value - of[base][seed] for seed, value in of[method].items() if seed in of[base]]
    count = len(differences)
    half = student_t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return statistics.fmean(differences), float(half)


MEASURES = (("Transfer", "transfer"), ("Average", "average_accuracy"), ("Last", "last_accuracy"))


def summary_table(rows: list, methods: tuple[str, ...], base: str) -> str:
    """Return means in both spaces, and what a method has over another in the same seeds."""
    measures = [(head, by_seed(rows, metric, "dataset")) for head, metric in MEASURES]
    over_all = [(head, by_seed(rows, metric, "all")) for head, metric in MEASURES]
    lines = [
        f"| method | seeds | Transfer | Average | Last | Transfer over {base} | Last over {base} | "
        "all classes: Transfer | Average | Last |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in methods:
        if method not in measures[0][1]:
            continue
        cells = [str(len(measures[0][1][method]))]
        cells += [_mean(of[method]) for _, of in measures]
        for _, of in (measures[0], measures[2]):
            cells.append("" if method == base else "{:+.1f} ± {:.1f}".format(*paired(of, method, base)))
        cells += [_mean(of[method]) for _, of in over_all]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: dict) -> str:
    numbers = list(values.values())
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.1f}{spread}"


# What is compared with what, as in the tables of the paper.
COMPARED = (
    (DISTILLED, TUNED),
    (DISTILLED, TUNED_FAST),
    (DISTILLED_SLOW, TUNED),
    (ALIGNED, DISTILLED),
    tuple(FAITHFUL)[::-1],
    (FULL, ALIGNED),
    (CONSOLIDATED, DISTILLED),
    (STATIC, FULL),
    (ALIGNED, ROWS_ONLY),
    (ALIGNED, COLUMNS_ONLY),
    (ALIGNED, FEATURES),
    (ALIGNED, INITIAL),
    (ALIGNED, MIXED),
    (ALIGNED, HALF),
    (FULL, REFERENCE),
    (FULL, PENALTY),
    (DISTILLED, CURRENT),
    (REAL, FULL),
    (GIFT_REPLAY, FULL),
    (REPLAY, FULL),
    (GIFT_LORA, LORA),
)


def differences_table(rows: list) -> str:
    """Return paired differences of what the paper compares."""
    measures = [by_seed(rows, metric, "dataset") for _, metric in MEASURES]
    lines = ["| first | second | Transfer | Average | Last |", "|---|---|---|---|---|"]
    for first, second in COMPARED:
        if first in measures[0] and second in measures[0]:
            cells = ["{:+.1f} ± {:.1f}".format(*paired(of, first, second)) for of in measures]
            lines.append(f"| {first} | {second} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def findings(rows: list) -> str:
    """Return what the tables say."""
    transfer, average, last = (by_seed(rows, metric, "dataset") for _, metric in MEASURES)
    anywhere = by_seed(rows, "last_accuracy", "all")

    def over(first: str, second: str) -> str:
        """Return paired differences in Transfer and in Last, with their intervals."""
        return " and ".join("{:+.1f} ± {:.1f}".format(*paired(of, first, second)) for of in (transfer, last))

    def mean(method: str, of: dict) -> str:
        """Return a mean."""
        return f"{statistics.fmean(of[method].values()):.1f}"

    first, second = tuple(FAITHFUL)[::-1]
    return (
        "Differences below are of Transfer and Last, inside each data set, unless said otherwise.\n\n"
        f"- **Distillation beats fine-tuning.** At the learning rate that fine-tuning chose: "
        f"{over(DISTILLED_SLOW, TUNED)}. At the one that distillation chose: "
        f"{over(DISTILLED, TUNED_FAST)}. Each at its own: {over(DISTILLED, TUNED)}: "
        "fine-tuning chose a tenth of the rate, and pays for Transfer with what it learns. Where an interval "
        "crosses zero, five seeds do not tell.\n"
        f"- **Consolidation** brings {over(FULL, ALIGNED)} beside alignment and "
        f"{over(CONSOLIDATED, DISTILLED)} without it; importances that stay as they were in the "
        f"first ten batches, against those of each batch, {over(STATIC, FULL)}.\n"
        f"- **Alignment costs here** ({over(ALIGNED, DISTILLED)}), where the paper gains 0.6 and "
        "0.3. It trusts captions, and here half of the images (1 - 0.8³) show something else than their "
        "caption; distillation asks the teacher instead. With images that show what their caption says, the "
        f"difference is {over(first, second)}.\n"
        f"- **Variants.** Both directions over rows alone {over(ALIGNED, ROWS_ONLY)}, over "
        f"columns alone {over(ALIGNED, COLUMNS_ONLY)}, over features "
        f"{over(ALIGNED, FEATURES)}.\n"
        f"- **Teachers.** The last model over the initial one {over(ALIGNED, INITIAL)}, over a "
        f"fifth of it {over(ALIGNED, MIXED)}, over a half {over(ALIGNED, HALF)}: "
        "on Last as in the paper; that more of the initial one gives more Transfer does not show.\n"
        f"- **Against others.** GIFT over ZSCL {over(FULL, REFERENCE)}, over the l2 penalty "
        f"{over(FULL, PENALTY)}; distillation on new-task images, less that on synthetic ones, "
        f"{over(CURRENT, DISTILLED)}.\n"
        f"- **Upper lines.** Over GIFT: real images of earlier data sets in the place of drawn ones "
        f"{over(REAL, FULL)}, GIFT beside the host's replay of ten real images a class "
        f"{over(GIFT_REPLAY, FULL)}. That replay alone, at a rate that it chose, is no upper line here: "
        f"{mean(REPLAY, transfer)} and {mean(REPLAY, last)}, against {mean(FULL, transfer)} and "
        f"{mean(FULL, last)} of GIFT and {mean(DISTILLED, transfer)} and {mean(DISTILLED, last)} of "
        "distillation. Ten images a class say nothing of what else the model knew, and in 32 steps it does "
        f"not learn it again. Over all classes it is: there Last is {mean(FULL, anywhere)} with GIFT, "
        f"{mean(REAL, anywhere)} with real images in the place of drawn ones, {mean(REPLAY, anywhere)} with "
        f"replay and {mean(GIFT_REPLAY, anywhere)} with both, because nothing else ever sets classes of two "
        "data sets against each other.\n"
        f"- **Combinations.** GIFT with LoRA over LoRA alone {over(GIFT_LORA, LORA)}; consolidation around "
        f"alignment alone, which has no teacher, over fine-tuning {over(ALIGNMENT_ONLY, TUNED)}.\n"
        f"- Zero-shot has {mean(ZERO_SHOT, transfer)} and {mean(ZERO_SHOT, last)} (Average "
        f"{mean(ZERO_SHOT, average)}): Transfer counts the digits too, which it cannot read.\n"
    )


def save_picture(rows: list) -> None:
    """Draw Transfer and Last of all methods: a dot a seed, a bar the mean."""
    methods = [method for method in STUDY if method in by_seed(rows, "transfer", "dataset")]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (head, metric) in zip(panels, (MEASURES[0], MEASURES[2]), strict=True):
        of = by_seed(rows, metric, "dataset")
        for height, method in enumerate(reversed(methods)):
            values = list(of[method].values())
            colour = "C1" if method in (DISTILLED, ALIGNED, FULL) else "0.35"
            axes.plot(values, [height] * len(values), "o", color=colour, alpha=0.45, markersize=5)
            mean = statistics.fmean(values)
            axes.plot([mean], [height], "|", color=colour, markersize=16, markeredgewidth=2.5)
        axes.set(xlabel=f"{head} (%)", yticks=range(len(methods)), yticklabels=methods[::-1])
        axes.grid(axis="x", color="#E5E5E5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    report.save_figure(figure, HERE / "gift_small_world.png")


def write_tables(results: Path, folder: Path) -> None:
    """Write the committed table, picture and short file."""
    rows = report.read_results(results)
    # A run that was stopped has been repeated: its rows are those of an earlier id.
    finished = set((folder / "finished.txt").read_text().splitlines())
    ids = {(row.method, row.seed): row.run for row in rows}
    wanted = {metric for _, metric in MEASURES} | {"forgetting"}
    kept = [
        row
        for row in rows
        if f"{row.method}/{row.seed}" in finished
        and row.run == ids[row.method, row.seed]
        and row.metric in wanted
        and row.after_experience == len(ORDER)
    ]
    short = HERE / "gift_small_world.csv"
    short.unlink(missing_ok=True)
    report.write_results(short, kept)
    lines = ""
    for path in sorted(folder.glob("chosen *.json")):
        choice = json.loads(path.read_text())
        scores = ", ".join(f"{each['mean']:.3f}" for each in choice["candidates"])
        lines += f"| {path.stem.removeprefix('chosen ')} | {choice['best']} | {scores} |\n"
    (HERE / "gift_small_world.md").write_text(
        "# GIFT on a stream that forgets, with the small CLIP\n\nWritten by "
        "`benchmarks/gift_small_world.py`, from `gift_small_world.csv`. Percent, mean ± standard deviation "
        "over seeds; accuracies inside each data set, and over all classes in the same run. "
        "Differences are paired by seed, with their 95 % intervals.\n\n"
        + findings(kept)
        + "\n![Transfer and Last of every method](gift_small_world.png)\n\n"
        f"{summary_table(kept, STUDY, TUNED)}\nThe comparisons of the paper, first less second:\n\n"
        f"{differences_table(kept)}\nCombinations, and images that show what their captions say:\n\n"
        f"{summary_table(kept, COMBINATIONS, TUNED)}\nChosen by validation on the order "
        f"{', '.join(SELECTION_ORDER)} with the seeds {SELECTION_SEEDS}, by Average inside each data set; "
        f"scores in the order of the candidates:\n\n| method | chosen | scores |\n|---|---|---|\n{lines}"
    )
    save_picture(kept)
