"""Pictures of accuracy matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_sequence, wrong_value
from avalanche_vlm.functional.label_space import LabelSpace
from avalanche_vlm.logging._figures import GREY, new_figure, percent_matrices
from avalanche_vlm.logging.result_row import Results

MOST_CELLS_WITH_NUMBERS = 20


def plot_accuracy_matrix(
    results: Results,
    *,
    method: str,
    space: LabelSpace = "seen",
    benchmark: str | None = None,
    experience_names: Sequence[str] | None = None,
    stream: str = "test",
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
        stream: name of the evaluated stream.

    Raises:
        ValueError: there is no such method, label space, benchmark or stream among the results.
    """
    matrices = percent_matrices(results, space, benchmark, stream)
    check_choice("method", method, list(matrices))
    return _panels({method: matrices[method]}, space, experience_names)


def plot_accuracy_matrices(
    results: Results,
    *,
    space: LabelSpace = "seen",
    benchmark: str | None = None,
    experience_names: Sequence[str] | None = None,
    stream: str = "test",
) -> Figure:
    """Draw the accuracy matrices of all methods side by side, on one scale of colours.

    Args:
        results: path of a file of results, or rows.
        space: which label space.
        benchmark: which benchmark; needed if the results have several.
        experience_names: names of the T columns, instead of numbers.
        stream: name of the evaluated stream.

    Raises:
        ValueError: there is no such label space, benchmark or stream among the results.
    """
    return _panels(percent_matrices(results, space, benchmark, stream), space, experience_names)


def _panels(matrices: dict[str, Tensor], space: LabelSpace, names: Sequence[str] | None) -> Figure:
    size = max(stack.shape[2] for stack in matrices.values())
    columns = min(len(matrices), 3 if len(matrices) <= 9 else 6)
    lines = math.ceil(len(matrices) / columns)
    edge = min(max(0.4 * size, 2.2), 6.0 if len(matrices) == 1 else 3.6)
    figure = new_figure(columns * (edge + 0.9) + 0.9, lines * (edge * (size + 1) / size + 0.9))
    grid = figure.subplots(lines, columns, squeeze=False)
    image: AxesImage | None = None
    for axes, (method, stack) in zip(grid.flat, matrices.items(), strict=False):
        image = _draw_matrix(axes, stack.mean(dim=0), edge, names)
        axes.set_title(method, fontsize=11, parse_math=False)  # a dollar sign in a name is one
    for axes in grid.flat[len(matrices) :]:
        axes.set_visible(False)
    assert image is not None
    bar = figure.colorbar(image, ax=grid, shrink=0.9 / lines, aspect=25, pad=0.02)
    bar.set_label(f"accuracy (%), label space: {space}")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    figure.supxlabel("evaluated experience", fontsize=10)
    figure.supylabel("experiences trained on", fontsize=10)
    return figure


def _draw_matrix(axes: Axes, matrix: Tensor, edge: float, names: Sequence[str] | None) -> AxesImage:
    size = matrix.shape[1]
    if names is not None:
        check_sequence("experience_names", names, str, "names")
    if names is not None and len(names) != size:
        raise wrong_value("experience_names", f"{size} names, one a column", f"{len(names)} names")
    image = axes.imshow(matrix.numpy(), cmap=_colours(), vmin=0, vmax=100, aspect="auto")
    every = max(1, math.ceil(size / MOST_CELLS_WITH_NUMBERS))
    if names is None:
        axes.set_xticks(range(0, size, every), [str(j + 1) for j in range(0, size, every)])
    else:
        axes.set_xticks(
            range(size), list(names), rotation=45, ha="right", rotation_mode="anchor", parse_math=False
        )
    rows = [0, *range(1, size + 1, every)]
    axes.set_yticks(rows, ["zero-shot", *(str(t) for t in rows[1:])])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_color("#CCCCCC")
    if size <= MOST_CELLS_WITH_NUMBERS:
        # Four characters a cell, in points: the cell's width decides.
        points = min(9.0, 72 * edge / size / 2.6)
        for t, values in enumerate(matrix.tolist()):
            for j, value in enumerate(values):
                if value == value:
                    colour = "white" if value > 62 else "#222222"
                    text = f"{value:.1f}" if size <= 8 else f"{value:.0f}"
                    axes.text(j, t, text, ha="center", va="center", fontsize=points, color=colour)
    steps = [coordinate for j in range(size) for coordinate in ((j - 0.5, j + 0.5), (j + 0.5, j + 0.5))]
    axes.plot(*zip(*steps, strict=True), color=GREY, linewidth=1.0, solid_joinstyle="miter")
    return image


def _colours() -> Colormap:
    """Return blues without the darkest, among which high accuracies all look alike."""
    return ListedColormap(matplotlib.colormaps["Blues"](torch.linspace(0.0, 0.86, 256).numpy()))
