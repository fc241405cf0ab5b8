"""Tables and pictures of a comparison."""

from __future__ import annotations

import csv
import io
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from avalanche_vlm._checks import check_sequence, check_type, wrong_value
from avalanche_vlm._files import replacing
from avalanche_vlm.comparison._one_run import obstacle, run_folder
from avalanche_vlm.comparison.outcome import Outcome, is_finished, outcome_of, read_outcome
from avalanche_vlm.comparison.overview_plot import plot_overview, values_by_method
from avalanche_vlm.comparison.paired import paired_difference
from avalanche_vlm.comparison.run import Run
from avalanche_vlm.logging import (
    CLASS_INCREMENTAL_COLUMNS,
    MTIL_COLUMNS,
    ResultRow,
    TableColumn,
    mean_text,
    plot_accuracy_matrices,
    plot_accuracy_over_experiences,
    save_figure,
)
from avalanche_vlm.logging.results_file import RESULTS, read_file

_COSTS = (  # heading, metric, units in one of what is written
    ("Train s", "training_seconds", 1.0),
    ("Eval s", "evaluation_seconds", 1.0),
    ("Peak MB", "peak_memory", 1e6),
    ("Kept KB", "stored_bytes", 1e3),
)
_MOST_REASON = 300
_MOST_NAME = 80
_MOST_SHARP = 12


def write_comparison(
    runs: Sequence[Run],
    folder: str | os.PathLike[str],
    *,
    columns: Sequence[TableColumn] | None = None,
    title: str = "Comparison",
) -> Path:
    """Write tables and pictures of the runs that a folder has.

    - ``comparison.md``: for each stream a line a method, mean ± standard deviation over seeds; how much less
      its Last accuracy is than that of the method with the highest mean, paired by seed with a 95 %
      interval (`paired_difference`; the best is chosen on the same numbers, which flatters it); seconds,
      the peak of the memory and what the method keeps of data (see `avalanche_vlm.metrics`). A run
      that did not finish is told with its reason.
    - ``runs.csv``: a line a run, with its outcome.
    - for each stream pictures of curves, accuracy matrices, and accuracy beside costs.

    Only finished runs count; what others have left in their files stays there. A ``results.csv`` in
    ``folder`` itself, which an earlier version wrote for all runs together, is read too.

    Args:
        runs: those that were given to `compare`, or some of them.
        folder: likewise.
        columns: of the tables; None for those of class-incremental streams, in the label spaces of the
            `Setup`, or, if the first one is that of data sets, those of multi-domain streams. The second
            one is the Last accuracy that methods are compared by.
        title: heading of the page.

    Returns:
        The path of ``comparison.md``.

    Raises:
        TypeError: an argument has another type.
        ValueError: there are no runs, columns without a second, or a damaged line in a file of results.
    """
    check_type("folder", folder, (str, os.PathLike))
    check_sequence("runs", runs, Run, "runs")
    check_type("title", title, str)
    folder, runs = Path(folder), list(runs)
    if not runs:
        raise wrong_value("runs", "at least one run", "none")
    if columns is not None:
        check_sequence("columns", columns, TableColumn, "columns")
    if columns is not None and len(columns) < 2:
        raise wrong_value("columns", "at least two, of which methods are compared by the second", columns)
    outcomes = [_outcome(run, folder) for run in runs]
    folder.mkdir(parents=True, exist_ok=True)
    _write_outcomes(folder / "runs.csv", outcomes)
    finished = [run for run, outcome in zip(runs, outcomes, strict=True) if outcome.state == "finished"]
    rows = _finished_rows(_rows(finished, folder), outcomes)
    pages = [f"# {title}\n"]
    streams = list(dict.fromkeys(run.stream for run in runs))
    names = _file_names(streams)
    for stream in streams:
        own = [row for row in rows if row.benchmark == stream]
        chosen = columns or _columns(own)
        pages.append(f"## {stream}\n")
        pages.append(_table(own, [each for each in outcomes if each.stream == stream], chosen))
        if own:
            pages.extend(_pictures(own, folder, stream, names[stream], chosen[1]))
    path = folder / "comparison.md"
    with replacing(path) as temporary:
        text = "\n".join(pages)
        temporary.write_text(_encodable(text), encoding="utf-8")
    return path


def _rows(runs: Sequence[Run], folder: Path) -> list[ResultRow]:
    """Return the rows of runs: those of the file that all shared once, then those of their own."""
    files = [folder / RESULTS, *(run_folder(run, folder) / RESULTS for run in runs)]
    return [row for file in files if file.exists() for row in read_file(file)]


def _encodable(text: str) -> str:
    """Return text without halves of surrogate pairs, which names of files may have."""
    return text.encode("utf-8", "backslashreplace").decode()


def _outcome(run: Run, folder: Path) -> Outcome:
    """Return what became of a run as its functions read now."""
    own = run_folder(run, folder)
    if problem := obstacle(own):
        return outcome_of(run, "failed", problem)
    found = read_outcome(own)
    if found is None or (found.method, found.stream, found.seed) != (run.method, run.stream, run.seed):
        return outcome_of(run, "not begun")
    if found.state == "finished" and not is_finished(run, found):
        return outcome_of(run, "not begun", "what was made here before reads differently now")
    return found


def _finished_rows(rows: Sequence[ResultRow], outcomes: Sequence[Outcome]) -> list[ResultRow]:
    """Return the rows of finished runs, in the order of these, whoever wrote first."""
    order = {
        (each.stream, each.method, each.seed): place
        for place, each in enumerate(outcomes)
        if each.state == "finished"
    }
    kept = [row for row in rows if (row.benchmark, row.method, row.seed) in order]
    return sorted(kept, key=lambda row: order[row.benchmark, row.method, row.seed or 0])


def _columns(rows: Sequence[ResultRow]) -> Sequence[TableColumn]:
    """Return the columns in the label spaces that were measured, in their order."""
    spaces = list(dict.fromkeys(row.space for row in rows if row.space))
    if spaces[:1] == ["dataset"]:
        return MTIL_COLUMNS
    first, second = [*spaces, "seen", "all"][:2] if len(spaces) != 1 else (spaces[0], "all")
    own: Mapping[str, Any] = {"seen": first, "all": second}
    return [replace(column, space=own[column.space]) for column in CLASS_INCREMENTAL_COLUMNS]


def _write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    names = [field.name for field in fields(Outcome)]
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(names)
    writer.writerows([getattr(outcome, name) for name in names] for outcome in outcomes)
    with replacing(path) as temporary:
        temporary.write_text(_encodable(file.getvalue()), encoding="utf-8", newline="")


def _table(rows: Sequence[ResultRow], outcomes: Sequence[Outcome], columns: Sequence[TableColumn]) -> str:
    """Return the table of one stream in Markdown."""
    accuracies = [values_by_method(rows, column.metric, column.space) for column in columns]
    costs = [values_by_method(rows, metric, "") for _, metric, _ in _COSTS]
    compared = accuracies[1]
    best = max(compared, key=lambda method: statistics.fmean(compared[method].values()), default=None)
    headings = [
        "Method",
        "Seeds",
        *(column.heading for column in columns),
        f"{columns[1].heading} less the best's",
    ]
    lines = [
        [*headings, *(heading for heading, _, _ in _COSTS)],
        ["---", *["--:"] * (len(headings) + len(_COSTS) - 1)],
    ]
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.method == method]
        count = sum(outcome.state == "finished" for outcome in own)
        cells = [mean_text(values.get(method, {}), scale=100) for values in accuracies]
        if method == best:
            cells[1], distance = f"**{cells[1]}**", "best"
        elif best is not None and method in compared:
            distance = paired_difference(compared[method], compared[best]).text(100)
        else:
            distance = "–"
        spent = [
            mean_text(
                {None: statistics.fmean(values[method].values()) / unit}, digits=0 if unit == 1e6 else 1
            )
            if values.get(method)
            else "–"
            for values, (_, _, unit) in zip(costs, _COSTS, strict=True)
        ]
        name = method.replace("|", r"\|")
        lines.append(
            [name, f"{count}" if count == len(own) else f"{count} of {len(own)}", *cells, distance, *spent]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    spaces = "; ".join(f"{column.heading} in {column.space!r}" for column in columns)
    note = (
        f"Accuracies in percent, label spaces: {spaces}. Peak: of the process, beyond what it held with "
        "data and backbone, or of the CUDA device. Seconds: of the clock, beside what else ran. Kept: what "
        "plugins and memories hold beside the model."
    )
    return "\n\n".join([table, note, *_unfinished(outcomes)]) + "\n"


def _unfinished(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a list of the runs that did not finish, those of one reason together."""
    together: dict[tuple[str, str, str], list[int]] = {}
    for each in outcomes:
        if each.state != "finished":
            reason = " ".join(each.reason.split())
            together.setdefault((each.method, each.state, reason), []).append(each.seed)
    lines = [
        f"- **{method}**, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {state}"
        + (f": {reason[:_MOST_REASON]}" if reason else "")
        for (method, state, reason), seeds in together.items()
    ]
    return ["Not finished:\n\n" + "\n".join(lines)] if lines else []


def _file_names(streams: Sequence[str]) -> dict[str, str]:
    """Return a part of file names for each stream; those alike in what file systems keep get numbers."""
    names: dict[str, str] = {}
    for stream in streams:
        base = re.sub(r"[^A-Za-z0-9]+", "-", stream).strip("-")[:_MOST_NAME].strip("-") or "stream"
        taken = {name.lower() for name in names.values()}
        names[stream] = next(
            name
            for name in (base, *(f"{base}-{number}" for number in range(2, len(streams) + 2)))
            if name.lower() not in taken
        )
    return names


def _pictures(
    rows: Sequence[ResultRow], folder: Path, stream: str, name: str, compared: TableColumn
) -> list[str]:
    """Draw the pictures of one stream and return the lines that show them."""
    spaces = list(dict.fromkeys(row.space for row in rows if row.metric == "accuracy" and row.space))
    figures = {
        "overview": plot_overview(rows, compared),
        "curves": plot_accuracy_over_experiences(rows, space=compared.space),
        "matrices": plot_accuracy_matrices(rows, space=spaces[-1]),  # pyright: ignore[reportArgumentType]
    }
    lines: list[str] = []
    for kind, figure in figures.items():
        path = folder / f"{kind}_{name}.png"
        # Matrices of many methods make a large picture, whose numbers are in the file of results too.
        few = kind != "matrices" or len({row.method for row in rows}) <= _MOST_SHARP
        save_figure(figure, path, dots_per_inch=150 if few else 75)
        lines.append(f"![{kind} on {stream}]({path.name})\n")
    return lines
