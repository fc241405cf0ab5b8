"""A picture of how far old classes have drifted, at the boundary to new ones and far from it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.logging._figures import GREY, new_figure, of_benchmark
from avalanche_vlm.logging.curve_plots import COLOURS
from avalanche_vlm.logging.result_row import ResultRow, Results
from avalanche_vlm.logging.results import as_rows, of_stream

_PARTS = {"drift_boundary": "-", "drift_core": ":"}


def plot_semantic_drift(results: Results, *, benchmark: str | None = None, stream: str = "test") -> Figure:
    """Draw the drift of each experience, a colour a method: boundary solid, core dotted, in bits.

    Over several seeds a line is the mean.

    Args:
        results: path of a file of results, or rows; `SemanticDriftMetric` measures what is drawn.
        benchmark: which benchmark; needed if the results have several.
        stream: name of the evaluated stream.

    Raises:
        ValueError: there is no drift, or no such benchmark or stream among the results.
    """
    rows = [row for row in as_rows(results) if row.metric in _PARTS]
    if not rows:
        raise wrong_value("results", "rows with drift", "none", "SemanticDriftMetric logs them.")
    rows = of_benchmark(of_stream(rows, stream), benchmark)
    figure = new_figure(8.6, 4.2)
    axes = figure.add_subplot()
    methods = list(dict.fromkeys(row.method for row in rows))
    for number, method in enumerate(methods):
        for part, style in _PARTS.items():
            steps, means = _curve([row for row in rows if (row.method, row.metric) == (method, part)])
            axes.plot(steps, means, style, color=COLOURS[number % len(COLOURS)], marker="o", markersize=3.5)
    marks = [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], label=method)
        for number, method in enumerate(methods)
    ]
    marks += [
        Line2D([], [], color=GREY, linestyle="-", label="boundary"),
        Line2D([], [], color=GREY, linestyle=":", label="core"),
    ]
    # Beside the picture: there may be many methods.
    legend = axes.legend(
        handles=marks, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    steps = sorted({row.after_experience or 0 for row in rows})
    axes.set_xticks(range(steps[0], steps[-1] + 1, math.ceil(len(steps) / 15)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("experiences trained on")
    axes.set_ylabel("Jensen-Shannon divergence (bits)")
    axes.set_title("drift of old classes in each experience", loc="left", fontsize=9, color=GREY)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _curve(rows: Sequence[ResultRow]) -> tuple[list[int], list[float]]:
    """Return the experiences, and the mean over seeds of each."""
    values: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        values[row.after_experience or 0].append(row.value)
    steps = sorted(values)
    return steps, [statistics.fmean(values[step]) for step in steps]
