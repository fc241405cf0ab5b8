"""What all pictures of results share: their numbers, and the figure that they are drawn on.

Figures are made without pyplot, so nothing global is touched and nothing has to be closed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_count, check_type, wrong_value
from avalanche_vlm._files import replacing
from avalanche_vlm.functional.label_space import LABEL_SPACES, LabelSpace
from avalanche_vlm.logging.result_row import ResultRow, Results
from avalanche_vlm.logging.results import accuracy_rows, result_matrix

GREY = "#555555"


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dots_per_inch: int = 150) -> None:
    """Write a figure in the format that the ending of ``path`` names (.png, .pdf, .svg).

    The file appears complete or not at all.

    Args:
        figure: what a function of this package drew.
        path: the file; its folder must exist.
        dots_per_inch: resolution of formats made of pixels.

    Raises:
        TypeError: ``figure`` is not a figure, or another argument has another type.
        ValueError: ``dots_per_inch`` is smaller than 1.
    """
    check_type("figure", figure, Figure)
    check_type("path", path, (str, os.PathLike))
    check_count("dots_per_inch", dots_per_inch)
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dots_per_inch, format=path.suffix[1:])


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def percent_matrices(
    results: Results, space: LabelSpace, benchmark: str | None, stream: str
) -> dict[str, Tensor]:
    """Return the matrices (seeds, T+1, T) of each method, in percent."""
    check_choice("space", space, LABEL_SPACES)
    rows = of_benchmark(accuracy_rows(results, stream), benchmark)
    spaces = sorted({row.space for row in rows})
    rows = [row for row in rows if row.space == space]
    if not rows:
        raise wrong_value("space", f"one of the label spaces in the results ({spaces})", repr(space))
    return {method: _stack(method, rows, stream) for method in dict.fromkeys(row.method for row in rows)}


def of_benchmark(rows: list[ResultRow], benchmark: str | None) -> list[ResultRow]:
    """Return the rows of one benchmark; it may be left open if there is only one."""
    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    if benchmark is not None:
        check_choice("benchmark", benchmark, benchmarks)
        return [row for row in rows if row.benchmark == benchmark]
    if len(benchmarks) > 1:
        raise wrong_value("benchmark", f"one of {', '.join(map(repr, benchmarks))}", None)
    return rows


def _stack(method: str, rows: Sequence[ResultRow], stream: str) -> Tensor:
    """Return the matrices (seeds, T+1, T) of one method, in percent."""
    own = [row for row in rows if row.method == method]
    matrices = [
        result_matrix([row for row in own if row.seed == seed], stream=stream)
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
