"""Pictures of results: accuracy matrices, and accuracy over the experiences.

Figures are made without pyplot, so nothing global is touched and nothing has to be closed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_type, wrong_value
from avalanche_vlm.functional.label_space import LABEL_SPACES, LabelSpace
from avalanche_vlm.logging.results import ResultRow, Results, as_rows, result_matrix

# Okabe and Ito's colours, told apart by colour-blind readers too; without the yellow, which is
# too light for lines and text on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
GREY = "#555555"
MOST_CELLS_WITH_NUMBERS = 20


def plot_accuracy_matrix(
    results: Results,
    *,
    method: str,
    space: LabelSpace = "seen",
    benchmark: str | None = None,
    experience_names: Sequence[str] | None = None,
) -> Figure:
    """Draw the accuracy matrix of one method, the mean over its seeds, in percent.

    Row 0 is zero-shot; a cell that was not measured or is not defined stays blank; the line
    separates experiences already trained on (below) from those still to come.

    Args:
        results: path of a file of results, or rows.
        method: which method.
        space: which label space.
        benchmark: which benchmark; needed if the results have several.
        experience_names: names of the T columns, instead of numbers.

    Raises:
        ValueError: there is no such method, label space or benchmark among the results.
    """
    matrices = _matrices(results, space, benchmark)
    check_choice("method", method, list(matrices))
    return _panels({method: matrices[method]}, space, experience_names)


def plot_accuracy_matrices(
    results: Results,
    *,
    space: LabelSpace = "seen",
    benchmark: str | None = None,
    experience_names: Sequence[str] | None = None,
) -> Figure:
    """Draw the accuracy matrices of all methods side by side, on one scale of colours.

    Args:
        results: path of a file of results, or rows.
        space: which label space.
        benchmark: which benchmark; needed if the results have several.
        experience_names: names of the T columns, instead of numbers.

    Raises:
        ValueError: there is no such label space or benchmark among the results.
    """
    return _panels(_matrices(results, space, benchmark), space, experience_names)


def plot_accuracy_over_experiences(
    results: Results, *, space: LabelSpace = "seen", benchmark: str | None = None
) -> Figure:
    """Draw the mean accuracy over the experiences seen so far, one line a method, in percent.

    Over several seeds the line is the mean, in a band of one standard deviation. A method measured
    only once, such as joint training or zero-shot, is a dashed horizontal line.

    Args:
        results: path of a file of results, or rows.
        space: which label space.
        benchmark: which benchmark; needed if the results have several.

    Raises:
        ValueError: there is no such label space or benchmark among the results.
    """
    matrices = _matrices(results, space, benchmark)
    figure = _figure(7.2, 4.2)
    axes = figure.add_subplot()
    last = max(stack.shape[2] for stack in matrices.values())
    labels: list[tuple[float, str, str]] = []
    for index, (method, stack) in enumerate(matrices.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        end = _draw_method(axes, stack, colour, marker, last)
        if end is not None:
            labels.append((end, f"{method}  {end:.1f}", colour))
    axes.set_xlim(1 - 0.02 * last, last + 0.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("experiences trained on")
    axes.set_ylabel("accuracy on experiences so far (%)")
    axes.set_title(f"label space: {space}", loc="left", fontsize=9, color=GREY)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 101.0))
    _label_ends(axes, labels)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dots_per_inch: int = 150) -> None:
    """Write a figure in the format that the ending of ``path`` names (.png, .pdf, .svg).

    The file appears complete or not at all.
    """
    check_type("figure", figure, Figure)
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        figure.savefig(temporary, dpi=dots_per_inch)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _matrices(results: Results, space: LabelSpace, benchmark: str | None) -> dict[str, Tensor]:
    """Return the matrices (seeds, T+1, T) of each method, in percent."""
    check_choice("space", space, LABEL_SPACES)
    rows = [row for row in as_rows(results) if row.metric == "accuracy"]
    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    if benchmark is not None:
        check_choice("benchmark", benchmark, benchmarks)
        rows = [row for row in rows if row.benchmark == benchmark]
    elif len(benchmarks) > 1:
        raise wrong_value("benchmark", f"one of {', '.join(map(repr, benchmarks))}", None)
    spaces = sorted({row.space for row in rows})
    rows = [row for row in rows if row.space == space]
    if not rows:
        raise wrong_value("space", f"one of the label spaces in the results ({spaces})", repr(space))
    return {method: _stack(method, rows) for method in dict.fromkeys(row.method for row in rows)}


def _stack(method: str, rows: Sequence[ResultRow]) -> Tensor:
    """Return the matrices (seeds, T+1, T) of one method, in percent."""
    own = [row for row in rows if row.method == method]
    matrices = [
        result_matrix([row for row in own if row.seed == seed])
        for seed in dict.fromkeys(row.seed for row in own)
    ]
    if len({matrix.shape for matrix in matrices}) > 1:
        raise wrong_value(
            "results",
            f"matrices of one size for {method!r}",
            [tuple(matrix.shape) for matrix in matrices],
            "Runs on different benchmarks need different names of benchmarks.",
        )
    return 100 * torch.stack(matrices)


def _panels(matrices: dict[str, Tensor], space: LabelSpace, names: Sequence[str] | None) -> Figure:
    size = max(stack.shape[2] for stack in matrices.values())
    columns = min(len(matrices), 3)
    lines = math.ceil(len(matrices) / columns)
    edge = min(max(0.42 * size, 2.2), 6.0)
    figure = _figure(columns * (edge + 0.9) + 0.9, lines * (edge * (size + 1) / size + 0.9))
    grid = figure.subplots(lines, columns, squeeze=False)
    image: AxesImage | None = None
    for axes, (method, stack) in zip(grid.flat, matrices.items(), strict=False):
        image = _draw_matrix(axes, stack.mean(dim=0), edge, names)
        axes.set_title(method, fontsize=11)
    for axes in grid.flat[len(matrices) :]:
        axes.set_visible(False)
    assert image is not None
    bar = figure.colorbar(image, ax=grid, shrink=0.9, aspect=30, pad=0.02)
    bar.set_label(f"accuracy (%), label space: {space}")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    figure.supxlabel("evaluated experience", fontsize=10)
    figure.supylabel("experiences trained on", fontsize=10)
    return figure


def _draw_matrix(axes: Axes, matrix: Tensor, edge: float, names: Sequence[str] | None) -> AxesImage:
    size = matrix.shape[1]
    if names is not None and len(names) != size:
        raise wrong_value("experience_names", f"{size} names, one a column", f"{len(names)} names")
    image = axes.imshow(matrix.numpy(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    every = max(1, math.ceil(size / MOST_CELLS_WITH_NUMBERS))
    if names is None:
        axes.set_xticks(range(0, size, every), [str(j + 1) for j in range(0, size, every)])
    else:
        axes.set_xticks(range(size), list(names), rotation=45, ha="right", rotation_mode="anchor")
    rows = [0, *range(1, size + 1, every)]
    axes.set_yticks(rows, ["zero-shot", *(str(t) for t in rows[1:])])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    if size <= MOST_CELLS_WITH_NUMBERS:
        # Four characters a cell, in points: the cell's width decides.
        points = min(9.0, 72 * edge / size / 2.6)
        for t, values in enumerate(matrix.tolist()):
            for j, value in enumerate(values):
                if value == value:
                    colour = "white" if value > 60 else "#222222"
                    text = f"{value:.1f}" if size <= 8 else f"{value:.0f}"
                    axes.text(j, t, text, ha="center", va="center", fontsize=points, color=colour)
    steps = [coordinate for j in range(size) for coordinate in ((j - 0.5, j + 0.5), (j + 0.5, j + 0.5))]
    axes.plot(*zip(*steps, strict=True), color=GREY, linewidth=1.0, solid_joinstyle="miter")
    return image


def _draw_method(axes: Axes, stack: Tensor, colour: str, marker: str, last: int) -> float | None:
    """Draw one method and return the height at which it ends, None if it was never measured."""
    size = stack.shape[2]
    seen = torch.ones(size, size, dtype=torch.bool).tril()
    curve = torch.where(seen, stack[:, 1:], 0.0).sum(dim=2) / seen.sum(dim=1)
    mean = curve.mean(dim=0)
    measured = mean.isfinite().nonzero().flatten()
    if len(measured) <= 1 and last > 1:
        level = float(mean[measured[0]] if len(measured) else stack[:, 0].mean())
        if not math.isfinite(level):
            return None
        axes.axhline(level, color=colour, linestyle=(0, (5, 3)), linewidth=1.6)
        return level
    steps, values = (measured + 1).tolist(), mean[measured]
    if len(curve) > 1:
        spread = curve[:, measured].std(dim=0)
        low, high = (values - spread).tolist(), (values + spread).tolist()
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(steps, values.tolist(), color=colour, marker=marker, markersize=4.5, linewidth=1.8)
    return float(values[-1])


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Name every line at its right end, moved apart where the ends lie close together."""
    if not labels:
        return
    low, high = axes.get_ylim()
    gap = 0.058 * (high - low)
    ordered = sorted(labels)
    heights = [end for end, _, _ in ordered]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    # Pushing upwards may leave the axes: move the stack down by what is too much.
    ceiling = high
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], ceiling)
        ceiling = heights[index] - gap
    for (end, text, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            text,
            xy=(1.0, end),
            xycoords=("axes fraction", "data"),
            xytext=(1.03, height),
            textcoords=("axes fraction", "data"),
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0},
        )
