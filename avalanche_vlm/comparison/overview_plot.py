"""Accuracy beside what it costs, for all methods on one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from avalanche_vlm._checks import check_sequence, check_type, wrong_value
from avalanche_vlm.logging import ResultRow, TableColumn, final_values
from avalanche_vlm.logging._figures import GREY, new_figure

_BLUE = "#0072B2"
_COSTS = (  # title, metric, units in one of what is drawn
    ("training (s)", "training_seconds", 1.0),
    ("peak memory (MB)", "peak_memory", 1e6),
    ("kept (KB)", "stored_bytes", 1e3),
)


def plot_overview(rows: Sequence[ResultRow], column: TableColumn) -> Figure:
    """Draw accuracy, time and memory of all methods on one benchmark, the most accurate at the top.

    Accuracy is a dot for each seed and a line at their mean, in percent; costs are means, on logarithmic
    scales.

    Args:
        rows: results of one benchmark, with those of `avalanche_vlm.metrics.CostMetric` and
            `avalanche_vlm.metrics.MemoryMetric`, as `compare` writes them.
        column: which accuracy.

    Raises:
        TypeError: ``column`` is no `TableColumn`.
        ValueError: the rows are of several benchmarks, or none has that accuracy.
    """
    check_type("column", column, TableColumn)
    check_sequence("rows", rows, ResultRow, "rows of results")
    rows = list(rows)
    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    if len(benchmarks) > 1:
        raise wrong_value("rows", "results of one benchmark", benchmarks)
    measured = values_by_method(rows, column.metric, column.space)
    if not measured:
        raise wrong_value("rows", f"results with {column.metric!r} in {column.space!r}", "none")
    accuracies = {method: list(values.values()) for method, values in measured.items()}
    methods = sorted(accuracies, key=lambda method: float(np.mean(accuracies[method])))
    figure = new_figure(11.0, 1.2 + 0.27 * len(methods))
    grid: Any = figure.subplots(1, 1 + len(_COSTS), sharey=True, width_ratios=[2.2, 1, 1, 1])
    _draw_accuracies(grid[0], [accuracies[method] for method in methods])
    grid[0].set_yticks(range(len(methods)), methods, parse_math=False)
    grid[0].set_title(
        f"{column.heading}, label space: {column.space} (%)", fontsize=9, color=GREY, loc="left"
    )
    for axes, (title, metric, unit) in zip(grid[1:], _COSTS, strict=True):
        costs = values_by_method(rows, metric, "")
        values = [
            float(np.mean(list(costs[method].values()))) / unit if method in costs else np.nan
            for method in methods
        ]
        _draw_costs(axes, values)
        axes.set_title(title, fontsize=9, color=GREY, loc="left")
    for axes in grid:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    return figure


def values_by_method(
    rows: Sequence[ResultRow], metric: str, space: str
) -> dict[str, Mapping[int | None, float]]:
    """Return ``method -> seed -> value`` at the end of the runs on one benchmark, of what was measured."""
    found = final_values(rows, metric, space=space, stream="test" if space else None)
    return {method: values for (_, method), values in found.items() if values}


def _draw_accuracies(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    for height, seeds in enumerate(values):
        percent = [100 * value for value in seeds]
        axes.plot(percent, [height] * len(percent), "o", color=_BLUE, markersize=4, alpha=0.5, mew=0)
        mean = float(np.mean(percent))
        axes.plot([mean, mean], [height - 0.3, height + 0.3], color=_BLUE, linewidth=2)
        axes.annotate(
            f"{mean:.1f}", (max(percent), height), (6, 0), textcoords="offset points", fontsize=8, va="center"
        )
    axes.margins(x=0.09)


def _draw_costs(axes: Axes, values: Sequence[float]) -> None:
    """Draw bars on a logarithmic scale; what is nothing has none, and says so."""
    positive = [value for value in values if value > 0]
    least = min(positive, default=1.0) / 2
    most = max(positive, default=1.0)
    axes.set_xscale("log")
    axes.set_xlim(least, most * 8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    for height, value in enumerate(values):
        if value == value:
            axes.barh(height, max(value - least, 0.0), left=least, height=0.55, color="#9DB8CC")
            text = "0" if value == 0 else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
            axes.annotate(
                text, (max(value, least), height), (3, 0), textcoords="offset points", fontsize=8, va="center"
            )
