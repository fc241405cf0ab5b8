"""The tables and pictures of `segp_cl_streams.py`, from its results alone."""

import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from segp_cl_methods import (
    BF16,
    CURRENT,
    FEWER,
    FULL,
    FULL_LWF,
    FULL_REPLAY,
    HALF,
    HELD,
    KEPT,
    MAIN,
    QUARTER,
    REFERENCE,
    REPLAY,
    SAME_RATE,
    SEEDS_ONLY,
    SELECTION_SEEDS,
    SHAPED,
    SLOW,
    SOFT,
    STALE,
    STREAMS,
    STUDY,
    SYNTHETIC,
    TEXT_ONLY,
    TUNED,
    TUNED_MOVED,
    TUNED_STALE,
    ZERO_SHOT,
)
from study import mean_text, newest_runs, paired_text

from avalanche_vlm import logging as report

HERE = Path(__file__).parent
SUMMARIES = {"average_incremental_accuracy", "last_accuracy", "forgetting"}
DRIFTS = ("drift_boundary", "drift_core", "drift_everywhere")
AVERAGE, LAST, OLD, NEW, FORGETTING = "Average", "Last", "old classes", "when learned", "Forgetting"
TRANSFER, ELSEWHERE = "CI-Transfer", "elsewhere"
HEADS = (AVERAGE, LAST, OLD, NEW, FORGETTING, TRANSFER, ELSEWHERE)
# What is compared with what, first less second.
COMPARED = (
    *(
        (KEPT, TUNED),
        (SLOW, TUNED),
        (KEPT, SAME_RATE),
        (SHAPED, KEPT),
        (STALE, SHAPED),
        (FULL, STALE),
        (FULL, TUNED),
    ),
    *((TUNED_STALE, TUNED), (TUNED_MOVED, TUNED_STALE), (TUNED_MOVED, TUNED)),
    *((CURRENT, TUNED), (SEEDS_ONLY, TUNED), (SYNTHETIC, TUNED), (REFERENCE, TUNED)),
    *((KEPT, CURRENT), (KEPT, SEEDS_ONLY), (KEPT, SYNTHETIC), (KEPT, REFERENCE)),
    *((FULL, TEXT_ONLY), (SOFT, KEPT), (HELD, KEPT), (FULL_LWF, FULL)),
    *((FULL_REPLAY, REPLAY), (FULL_REPLAY, FULL), (HALF, FULL), (QUARTER, FULL), (BF16, FULL)),
)


def kept_rows(rows: list) -> list:
    """Return what the tables are made of: summaries, drift, and some entries of the matrices."""
    last = {}
    for row in rows:
        if row.metric == "accuracy" and row.after_experience is not None:
            last[row.benchmark] = max(last.get(row.benchmark, 0), row.after_experience)
    return [
        row
        for row in rows
        if row.metric in (*DRIFTS, "accuracy_elsewhere")
        or (row.metric in SUMMARIES and row.space == "seen" and row.after_experience == last[row.benchmark])
        or (
            row.metric == "ci_transfer" and row.space == "all" and row.after_experience == last[row.benchmark]
        )
        or (row.metric == "last_accuracy" and row.space == "seen" and row.method == "joint training")
        or (
            row.metric == "accuracy"
            and row.space == "seen"
            and (row.after_experience == last[row.benchmark] or row.after_experience == row.experience + 1)
        )
    ]


def measures(rows: list, stream: str) -> dict:
    """Return the numbers of a stream in percent, by heading, method and seed."""
    found: dict = {head: {} for head in HEADS}
    places = {"average_incremental_accuracy": AVERAGE, "last_accuracy": LAST, "forgetting": FORGETTING}
    places |= {"ci_transfer": TRANSFER, "accuracy_elsewhere": ELSEWHERE}
    entries: dict = {}
    for row in rows:
        if row.benchmark != stream or row.value != row.value:
            continue
        if row.metric in places:
            found[places[row.metric]].setdefault(row.method, {})[row.seed] = 100 * row.value
        elif row.metric == "accuracy":
            own = entries.setdefault((row.method, row.seed), {})
            own[row.after_experience, row.experience] = 100 * row.value
    for (method, seed), own in entries.items():
        count = max(after for after, _ in own)
        if count < 2 or method == "joint training":
            continue
        old = [own[count, each] for each in range(count - 1)]
        found[OLD].setdefault(method, {})[seed] = statistics.fmean(old)
        new = [own[each + 1, each] for each in range(count)]
        found[NEW].setdefault(method, {})[seed] = statistics.fmean(new)
    return found


def summary_table(of: dict, methods: tuple[str, ...]) -> str:
    """Return means over seeds."""
    lines = [f"| method | seeds | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 2) + "|"]
    for method in methods:
        if method in of[LAST]:
            cells = [mean_text(of[head][method]) if method in of[head] else "" for head in HEADS]
            lines.append(f"| {method} | {len(of[LAST][method])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences_table(streams: dict) -> str:
    """Return paired differences in all streams."""
    heads = [f"{stream}: {head}" for stream in streams for head in (LAST, OLD, NEW)]
    lines = [f"| first | second | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for first, second in COMPARED:
        cells = [
            paired_text(of[head][first], of[head][second]) if first in of[head] and second in of[head] else ""
            for of in streams.values()
            for head in (LAST, OLD, NEW)
        ]
        if any(cells):
            lines.append(f"| {first} | {second} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def drift_table(rows: list) -> str:
    """Return the mean drift of an experience, at the boundary and in the core."""
    lines = ["| stream | method | boundary | core | boundary / core |", "|---|---|---|---|---|"]
    for stream in STREAMS:
        for method in (TUNED, KEPT, FULL):
            values = {
                metric: [
                    row.value
                    for row in rows
                    if (row.benchmark, row.method, row.metric) == (stream, method, metric)
                ]
                for metric in DRIFTS[:2]
            }
            if all(values.values()):
                boundary, core = (statistics.fmean(each) for each in values.values())
                cells = f"{boundary:.3f} | {core:.3f} | {boundary / core:.1f}"
                lines.append(f"| {stream} | {method} | {cells} |")
    return "\n".join(lines) + "\n"


def findings(streams: dict) -> str:
    """Return what the tables say."""

    def over(first: str, second: str, head: str = LAST) -> str:
        """Return a paired difference in each stream that has both."""
        told = [
            paired_text(of[head][first], of[head][second])
            for of in streams.values()
            if first in of[head] and second in of[head]
        ]
        return " and ".join(told) if told else "not run"

    def pooled(first: str, second: str, head: str = LAST) -> str:
        """Return a paired difference over the pairs of both streams together."""
        found = [
            {
                (stream, seed): value
                for stream, of in streams.items()
                for seed, value in of[head][method].items()
            }
            for method in (first, second)
        ]
        return paired_text(*found)

    def mean(method: str, head: str = LAST) -> str:
        """Return a mean in each stream that has it."""
        found = [of[head][method] for of in streams.values() if method in of[head]]
        return " and ".join(f"{statistics.fmean(each.values()):.1f}" for each in found)

    return "\n".join(
        [
            f"Numbers are on {' and '.join(streams)}, in percent among the classes seen (one number: on the "
            "second stream alone); differences are paired by seed, with their 95 % intervals. Where an "
            "interval "
            "crosses zero, the seeds do not tell.",
            "",
            f"- **Anchor distillation over LoRA fine-tuning**, each at its own learning rate: Last "
            f"{over(KEPT, TUNED)}, old classes {over(KEPT, TUNED, OLD)}. Both at the rate that fine-tuning "
            f"chose: {over(SLOW, TUNED)} and {over(SLOW, TUNED, OLD)}. Both at the rate that "
            f"distillation chose: "
            f"{over(KEPT, SAME_RATE)} and {over(KEPT, SAME_RATE, OLD)}. With the paper's weight and "
            f"temperature "
            f"(5 and 20), which are for another model and SGD, against the chosen ones: {over(SOFT, KEPT)}.",
            f"- **Ten pairs, both streams together**: ACGD over fine-tuning, each at its own rate, Last "
            f"{pooled(KEPT, TUNED)}, old classes {pooled(KEPT, TUNED, OLD)}; both at fine-tuning's rate "
            f"{pooled(SLOW, TUNED)} and {pooled(SLOW, TUNED, OLD)}; both at distillation's rate "
            f"{pooled(KEPT, SAME_RATE)} and {pooled(KEPT, SAME_RATE, OLD)}. Prototypes that are moved, "
            f"over those "
            f"that stay: {pooled(FULL, STALE)} and {pooled(FULL, STALE, OLD)}.",
            f"- **TSGR** adds {over(SHAPED, KEPT)}. **Two paths** add {over(STALE, SHAPED)} with prototypes "
            f"that stay where they were, and {over(FULL, STALE)} more with prototypes that the anchors "
            f"move; after "
            f"plain fine-tuning {over(TUNED_STALE, TUNED)}, and {over(TUNED_MOVED, TUNED_STALE)} more.",
            f"- **What to distil on**, Last over fine-tuning: anchors {over(KEPT, TUNED)}; their seeds "
            f"as they "
            f"are {over(SEEDS_ONLY, TUNED)}; new-task images {over(CURRENT, TUNED)}; synthetic images "
            f"{over(SYNTHETIC, TUNED)}; reference images {over(REFERENCE, TUNED)}. Old classes, in the same "
            f"order: {over(KEPT, TUNED, OLD)}; {over(SEEDS_ONLY, TUNED, OLD)}; {over(CURRENT, TUNED, OLD)}; "
            f"{over(SYNTHETIC, TUNED, OLD)}; {over(REFERENCE, TUNED, OLD)}.",
            f"  In the same seeds, anchors over their seeds {over(KEPT, SEEDS_ONLY)}, over new-task images "
            f"{over(KEPT, CURRENT)}, over synthetic ones {over(KEPT, SYNTHETIC)}, over reference ones "
            f"{over(KEPT, REFERENCE)}: the paper's order (anchors, synthetic, reference, new-task) does "
            f"not show. "
            "Reference images are pictures of the same world that the small CLIP was trained on, with every "
            "colour, texture and shape of the stream among them, which no reference data set of a real "
            "model is; "
            "and all sources have the weight and temperature that anchors chose.",
            f"- **The prototype as a second target** of the anchors: {over(FULL, TEXT_ONLY)} over text "
            f"alone.",
            f"- **Elsewhere**, zero-shot on styles and objects that no experience has: "
            f"{mean(ZERO_SHOT, ELSEWHERE)} before; after fine-tuning {mean(TUNED, ELSEWHERE)}, with ACGD "
            f"{mean(KEPT, ELSEWHERE)}, with SeGP-CL {mean(FULL, ELSEWHERE)}.",
            f"- **Combinations.** AWC around ACGD {over(HELD, KEPT)}; host LwF beside SeGP-CL "
            f"{over(FULL_LWF, FULL)}; host Replay of five images a class has {mean(REPLAY)}, SeGP-CL "
            f"{mean(FULL)}, "
            f"both {mean(FULL_REPLAY)}; joint training {mean('joint training')}.",
            f"- **Fewer anchors and half precision**, against SeGP-CL with 16 anchors a step in fp32: 8 "
            f"{over(HALF, FULL)}, 4 {over(QUARTER, FULL)}, bf16 {over(BF16, FULL)}. `segp_cl_cost.md` "
            f"has the "
            "time.",
            "",
        ]
    )


def save_picture(streams: dict) -> None:
    """Draw Last and old classes of all methods, a panel a stream: a dot a seed, a bar the mean."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(1, len(streams), sharey=True, squeeze=False)[0]
    methods = [method for method in STUDY if any(method in of[LAST] for of in streams.values())]
    for axes, (stream, of) in zip(panels, streams.items(), strict=True):
        for height, method in enumerate(reversed(methods)):
            values = list(of[LAST].get(method, {}).values())
            colour = "C1" if method in (KEPT, SHAPED, STALE, FULL) else "0.35"
            axes.plot(values, [height] * len(values), "o", color=colour, alpha=0.45, markersize=5)
            if values:
                mean = statistics.fmean(values)
                axes.plot([mean], [height], "|", color=colour, markersize=15, markeredgewidth=2.5)
        axes.set(title=stream, xlabel="Last (%)", yticks=range(len(methods)), yticklabels=methods[::-1])
        axes.grid(axis="x", color="#E5E5E5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    report.save_figure(figure, HERE / "segp_cl_streams.png")


def write_tables(results: Path, folder: Path) -> None:
    """Write the committed table, pictures and short file."""
    rows = kept_rows(newest_runs(report.read_results(results), folder))
    short = HERE / "segp_cl_streams.csv"
    short.unlink(missing_ok=True)
    report.write_results(short, rows)
    streams = {stream: measures(rows, stream) for stream in STREAMS}
    tables = "".join(
        f"\n## {stream}\n\n{summary_table(of, MAIN)}\nBeside the main line:\n\n{summary_table(of, FEWER)}"
        for stream, of in streams.items()
    )
    chosen = ""
    for path in sorted(folder.glob("chosen *.json")):
        choice = json.loads(path.read_text())
        scores = ", ".join(f"{each['mean']:.3f}" for each in choice["candidates"])
        chosen += f"| {path.stem.removeprefix('chosen ')} | {choice['best']} | {scores} |\n"
    drifts = "".join(
        f"![Drift, {stream}](segp_cl_drift_{place}.png)\n" for place, stream in enumerate(STREAMS)
    )
    parts = [
        "# SeGP-CL on streams that forget, with the small CLIP\n",
        "Written by `benchmarks/segp_cl_streams.py`, from `segp_cl_streams.csv`. Percent, mean ± standard "
        "deviation over seeds, each with an order of its own. Old classes: accuracy after the last "
        "experience "
        "on those of all experiences but the last; when learned: on each experience just after it; "
        "elsewhere: "
        "zero-shot on 20 other objects in two styles that no experience has, after the stream.\n",
        findings(streams),
        "![Last of every method](segp_cl_streams.png)",
        tables,
        f"## Paired differences\n\n{differences_table(streams)}",
        "## Drift\n\nMean Jensen-Shannon divergence of an experience, in bits: the quarter of old test "
        "images "
        f"that was nearest to the new classes, and the quarter that was farthest.\n\n{drift_table(rows)}",
        drifts,
        f"## Choices\n\nBy validation on the orders of the seeds {SELECTION_SEEDS}, by Last; scores in the "
        f"order of the candidates:\n\n| stream, method | chosen | scores |\n|---|---|---|\n{chosen}",
    ]
    (HERE / "segp_cl_streams.md").write_text("\n".join(parts))
    save_picture(streams)
    for place, stream in enumerate(STREAMS):
        report.save_figure(
            report.plot_semantic_drift(rows, benchmark=stream), HERE / f"segp_cl_drift_{place}.png"
        )
