"""Pictures of accuracy over the experiences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from avalanche_vlm.functional.label_space import LabelSpace
from avalanche_vlm.logging._figures import GREY, new_figure, percent_matrices
from avalanche_vlm.logging.result_row import Results

# Okabe and Ito's colours, told apart by colour-blind readers too; without the yellow, which is
# too light for lines and text on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ((6.0, 3.0), (1.5, 1.5), (6.0, 2.0, 1.5, 2.0))
MOST_BANDS = 8  # more of them hide each other
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


def plot_accuracy_over_experiences(
    results: Results,
    *,
    space: LabelSpace = "seen",
    benchmark: str | None = None,
    stream: str = "test",
) -> Figure:
    """Draw the mean accuracy over the experiences seen so far, one line a method, in percent.

    Over several seeds the line is the mean, in a band of one standard deviation if there are at most eight
    methods. A method measured only once, such as joint training or zero-shot, is a dashed horizontal line.

    Args:
        results: path of a file of results, or rows.
        space: which label space.
        benchmark: which benchmark; needed if the results have several.
        stream: name of the evaluated stream.

    Raises:
        ValueError: there is no such label space, benchmark or stream among the results.
    """
    matrices = percent_matrices(results, space, benchmark, stream)
    figure = new_figure(7.2, max(4.2, 0.27 * len(matrices)))
    axes = figure.add_subplot()
    last = max(stack.shape[2] for stack in matrices.values())
    labels: list[tuple[float, str, str]] = []
    curves = levels = 0
    for method, stack in matrices.items():
        means = _means_so_far(stack)
        if means.mean(dim=0).isfinite().sum() > 1 or last == 1:
            colour = COLOURS[curves % len(COLOURS)]
            marker = MARKERS[curves % len(MARKERS)]
            end = _draw_curve(axes, means, colour, marker, band=len(matrices) <= MOST_BANDS)
            curves += 1
        else:
            colour = GREY
            end = _draw_level(axes, stack, means, DASHES[levels % len(DASHES)])
            levels += 1
        if math.isfinite(end):
            labels.append((end, f"{method}  {end:.1f}", colour))
    axes.set_xlim(1 - 0.02 * last, last + 0.02 * last)
    axes.set_xticks(range(1, last + 1, math.ceil(last / 15)))
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


def _means_so_far(stack: Tensor) -> Tensor:
    """Return the mean accuracy over the experiences seen after each (seeds, T)."""
    seen = torch.ones_like(stack[0, 1:], dtype=torch.bool).tril()
    return torch.where(seen, stack[:, 1:], 0.0).sum(dim=2) / seen.sum(dim=1)


def _draw_curve(axes: Axes, means: Tensor, colour: str, marker: str, *, band: bool) -> float:
    """Draw one method over the experiences and return where it ends."""
    measured = means.mean(dim=0).isfinite().nonzero().flatten()
    steps, values = (measured + 1).tolist(), means[:, measured].mean(dim=0)
    if len(means) > 1 and band:
        spread = means[:, measured].std(dim=0)
        low, high = (values - spread).tolist(), (values + spread).tolist()
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(steps, values.tolist(), color=colour, marker=marker, markersize=4.5, linewidth=1.8)
    return float(values[-1]) if len(values) else math.nan


def _draw_level(axes: Axes, stack: Tensor, means: Tensor, dashes: tuple[float, ...]) -> float:
    """Draw one method that was measured once, after or before training, and return where."""
    once = means.mean(dim=0)
    level = float(once[once.isfinite()][0] if once.isfinite().any() else stack[:, 0].mean())
    if math.isfinite(level):
        axes.axhline(level, color=GREY, linestyle=(0, dashes), linewidth=1.5)
    return level


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Name every line at its right end, moved apart where the ends lie close together."""
    if not labels:
        return
    low, high = axes.get_ylim()
    gap = 0.056 * (high - low) * 4.2 / axes.figure.get_figheight()  # pyright: ignore[reportAttributeAccessIssue]
    ordered = sorted(labels)
    heights = [end for end, _, _ in ordered]
    for _ in range(200):
        for index in range(1, len(heights)):
            missing = gap - (heights[index] - heights[index - 1])
            if missing > 0:
                heights[index - 1] -= missing / 2
                heights[index] += missing / 2
    # Then into the axes, where there is room for all: from the top down, and up again.
    if gap * (len(heights) - 1) <= high - low:
        for index in reversed(range(len(heights))):
            heights[index] = min(heights[index], high - gap * (len(heights) - 1 - index))
        for index in range(len(heights)):
            heights[index] = max(heights[index], low + gap * index)
    for (end, text, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            text,
            parse_math=False,  # a dollar sign in a method's name is one
            xy=(1.0, end),
            xycoords=("axes fraction", "data"),
            xytext=(1.03, height),
            textcoords=("axes fraction", "data"),
            # The lighter colours are hard to read as text.
            color=tuple(0.75 * part for part in to_rgb(colour)),
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "relpos": (0.0, 0.5),
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
