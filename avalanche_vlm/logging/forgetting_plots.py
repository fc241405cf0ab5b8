"""A picture of what single classes lose."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from matplotlib.figure import Figure

from avalanche_vlm._checks import check_choice, check_count, wrong_value
from avalanche_vlm.functional.label_space import LABEL_SPACES, LabelSpace
from avalanche_vlm.logging._figures import GREY, new_figure, of_benchmark
from avalanche_vlm.logging.result_row import ResultRow, Results
from avalanche_vlm.logging.results import as_rows, of_stream

_MOST_LETTERS = 32


def plot_forgetting_per_class(
    results: Results,
    *,
    method: str,
    space: LabelSpace = "seen",
    benchmark: str | None = None,
    most: int = 30,
    stream: str = "test",
) -> Figure:
    r"""Draw what every class has lost since it was best, the worst at the top, in percentage points.

    .. math:: f_c = \max_{l_c \le t \le T} a_{t,c} \;-\; a_{T,c}

    with the accuracy a of class c after t experiences, the number l_c of experiences after which the
    class was first learned, and the last measurement T. Classes not learned yet are left out. Over
    several seeds a bar is the mean, with a whisker of one standard deviation to either side.

    Args:
        results: path of a file of results, or rows; `ClassAccuracyMetric` measures what is drawn.
        method: which method.
        space: which label space.
        benchmark: which benchmark; needed if the results have several.
        most: number of classes to draw; of more the worst are drawn.
        stream: name of the evaluated stream.

    Raises:
        TypeError: ``most`` is no whole number.
        ValueError: there is no such method, label space, benchmark or stream among the results, or
            ``most`` is below 1.
    """
    check_choice("space", space, LABEL_SPACES)
    check_count("most", most)
    rows = [row for row in as_rows(results) if row.metric == "class_accuracy"]
    if not rows:
        raise wrong_value(
            "results", "rows with accuracies of single classes", "none", "ClassAccuracyMetric logs them."
        )
    rows = of_benchmark(of_stream(rows, stream), benchmark)
    check_choice("method", method, list(dict.fromkeys(row.method for row in rows)))
    rows = [row for row in rows if row.method == method]
    spaces = sorted({row.space for row in rows})
    rows = [row for row in rows if row.space == space]
    if not rows:
        raise wrong_value("space", f"one of the label spaces in the results ({spaces})", repr(space))
    forgetting = _forgetting(rows)
    if not forgetting:
        raise wrong_value("results", "classes that were learned", "accuracies from before training only")
    ordered = sorted(forgetting.items(), key=lambda item: (-statistics.fmean(item[1]), item[0]))
    return _bars(ordered[:most], len(ordered), method, space)


def _forgetting(rows: Sequence[ResultRow]) -> dict[str, list[float]]:
    """Return what each class has lost, in percentage points, one number a seed."""
    accuracies: dict[tuple[str, int | None], dict[int, float]] = defaultdict(dict)
    for row in rows:
        # A class that has not come yet has no experience that it came in.
        if row.experience is not None and row.value == row.value:
            accuracies[row.class_name, row.seed][row.after_experience or 0] = row.value
    forgetting: dict[str, list[float]] = defaultdict(list)
    for (name, _), curve in accuracies.items():
        forgetting[name].append(100 * (max(curve.values()) - curve[max(curve)]))
    return forgetting


def _bars(
    forgetting: Sequence[tuple[str, list[float]]], classes: int, method: str, space: LabelSpace
) -> Figure:
    count = len(forgetting)
    figure = new_figure(6.4, 1.3 + 0.22 * count)
    axes = figure.add_subplot()
    heights = [statistics.fmean(values) for _, values in forgetting]
    spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in forgetting]
    places = list(range(count))
    axes.barh(places, heights, height=0.72, color="#0072B2")
    if any(spreads):
        axes.errorbar(
            heights, places, xerr=spreads, fmt="none", ecolor="#222222", elinewidth=1.0, capsize=2.0
        )
    # Numbers stand in a column of their own, out of the way of bars and whiskers.
    right = 1.12 * max([high + spread for high, spread in zip(heights, spreads, strict=True)] + [1.0])
    for place, height in zip(places, heights, strict=True):
        axes.annotate(
            f"{height:.1f}",
            xy=(1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=GREY,
            annotation_clip=False,
        )
    left = 1.05 * min([0.0, *(height - spread for height, spread in zip(heights, spreads, strict=True))])
    axes.set_xlim(left, right)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks(places, [_shortened(name) for name, _ in forgetting], fontsize=8, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("lost since the best (percentage points)")
    several_classes = f"{count} class{'es' if count > 1 else ''}"
    shown = several_classes if count == classes else f"the worst {count} of {classes} classes"
    seeds = max(len(values) for _, values in forgetting)
    several = f", mean ± deviation of {seeds} seeds" if seeds > 1 else ""
    # At the left of the figure: beside long names the axes are narrow.
    figure.suptitle(method, x=0.01, ha="left", fontsize=11, parse_math=False)
    note = f"{shown}, label space: {space}{several}"
    figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color=GREY)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _shortened(name: str) -> str:
    """Return a name with its middle left out if it is long: names often differ at the end."""
    if len(name) <= _MOST_LETTERS:
        return name
    half = (_MOST_LETTERS - 1) // 2
    return f"{name[:half].rstrip()}…{name[-half:].lstrip()}"
