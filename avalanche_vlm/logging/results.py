"""Results in long format: one line a number, in one file for all methods, seeds and benchmarks.

Lines with the metric ``accuracy`` are the entries of an accuracy matrix, with the place that they
have in it; the other metrics summarise a whole run and leave those two columns empty.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_count, check_type, wrong_type, wrong_value
from avalanche_vlm.functional.accuracy_matrix import accuracy_matrix_summary
from avalanche_vlm.functional.label_space import LABEL_SPACES, LabelSpace


@dataclass(frozen=True)
class ResultRow:
    """One number of one run.

    Args:
        method: name of the method.
        benchmark: name of the benchmark, empty if there is only one.
        seed: seed of the run, None if it has none.
        space: label space that was measured in.
        metric: ``"accuracy"`` for an entry of the matrix, or the name of a summary.
        after_experience: number of experiences trained on, 0 is zero-shot; None for a summary.
        experience: position of the evaluated experience, from 0; None for a summary.
        value: between 0 and 1 for accuracies; NaN if not measured or not defined.
    """

    method: str
    benchmark: str
    seed: int | None
    space: str
    metric: str
    after_experience: int | None
    experience: int | None
    value: float


HEADER = [field.name for field in fields(ResultRow)]

Results = str | os.PathLike[str] | Iterable[ResultRow]


class MatrixMetric(Protocol):
    """What `result_rows` needs of a metric: `avalanche_vlm.metrics.AccuracyMatrixMetric` has it."""

    space: LabelSpace

    def matrix(self, stream: str = "test") -> Tensor:
        """Return the accuracies (T+1, T)."""
        ...

    def counts(self, stream: str = "test") -> Tensor:
        """Return the samples (T,)."""
        ...


def matrix_rows(
    accuracies: Tensor,
    *,
    method: str,
    space: LabelSpace,
    benchmark: str = "",
    seed: int | None = None,
    counts: Tensor | None = None,
) -> list[ResultRow]:
    """Return an accuracy matrix and its summaries as rows.

    Args:
        accuracies: (T+1, T), row 0 measured before training.
        method: name of the method, not empty.
        space: label space that the matrix was measured in.
        benchmark: name of the benchmark.
        seed: seed of the run.
        counts: (T,), samples of each experience; adds the summaries that weigh by them.

    Returns:
        T·(T+1) rows with the metric ``"accuracy"``, NaN ones too, then the summaries that are
        defined.

    Raises:
        TypeError: an argument has another type.
        ValueError: a shape does not fit, ``method`` is empty, or ``space`` is unknown.

    >>> rows = matrix_rows(torch.tensor([[0.25], [1.0]]), method="naive", space="all")
    >>> [(row.metric, row.after_experience, row.value) for row in rows][:3]
    [('accuracy', 0, 0.25), ('accuracy', 1, 1.0), ('average_incremental_accuracy', None, 1.0)]
    """
    check_type("method", method, str)
    check_type("benchmark", benchmark, str)
    check_choice("space", space, LABEL_SPACES)
    if not method.strip():
        raise wrong_value("method", "a name", repr(method))
    if seed is not None:
        check_count("seed", seed, at_least=0)
    summary = accuracy_matrix_summary(accuracies, space=space, counts=counts)

    def row(metric: str, after: int | None, experience: int | None, value: float) -> ResultRow:
        return ResultRow(method, benchmark, seed, space, metric, after, experience, value)

    entries = [
        row("accuracy", after, experience, float(value))
        for after, values in enumerate(accuracies.tolist())
        for experience, value in enumerate(values)
    ]
    defined = [row(name, None, None, value) for name, value in summary.items() if value == value]
    return entries + defined


def result_rows(
    metrics: MatrixMetric | Sequence[MatrixMetric],
    *,
    method: str,
    benchmark: str = "",
    seed: int | None = None,
    stream: str = "test",
) -> list[ResultRow]:
    """Return what accuracy-matrix metrics measured during a run as rows.

    Args:
        metrics: one metric, or those of `avalanche_vlm.metrics.continual_metrics`.
        method: name of the method, not empty.
        benchmark: name of the benchmark.
        seed: seed of the run.
        stream: name of the evaluated stream.

    Raises:
        ValueError: ``stream`` was not evaluated, or as `matrix_rows`.
    """
    several = list(metrics) if isinstance(metrics, Sequence) else [metrics]
    return [
        row
        for metric in several
        for row in matrix_rows(
            metric.matrix(stream),
            method=method,
            space=metric.space,
            benchmark=benchmark,
            seed=seed,
            counts=metric.counts(stream),
        )
    ]


def write_results(path: str | os.PathLike[str], rows: Iterable[ResultRow]) -> None:
    """Append rows to a CSV file, or begin it, with one header.

    The file is written anew beside the old one and then takes its place, so that a reader never
    sees half of it, and a crash leaves the old one. For the same reason only one process at a time
    may append to a file: of two that do so at once, one loses its rows. Runs side by side each write
    a file of their own; `read_results` returns lists, which are joined with ``+``.

    Args:
        path: the file; its folder must exist. An empty file counts as new.
        rows: what to append.

    Raises:
        ValueError: the file has another header.
    """
    path = Path(path)
    before = _read_text(path) if path.exists() else ""
    if before:
        _check_header(path, before)
    else:
        before = _csv_line(HEADER)
    parts = [before if before.endswith("\n") else before + "\n"]
    for row in rows:
        check_type("rows", row, ResultRow)
        parts.append(_csv_line(["" if value is None else value for value in asdict(row).values()]))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text("".join(parts), encoding="utf-8", newline="")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_results(path: str | os.PathLike[str]) -> list[ResultRow]:
    """Return the rows of a file that `write_results` wrote.

    Raises:
        ValueError: the file has another header.
    """
    path = Path(path)
    text = _read_text(path)
    _check_header(path, text)
    return [
        ResultRow(
            method=line["method"],
            benchmark=line["benchmark"],
            seed=_integer(line["seed"]),
            space=line["space"],
            metric=line["metric"],
            after_experience=_integer(line["after_experience"]),
            experience=_integer(line["experience"]),
            value=float(line["value"]),
        )
        for line in csv.DictReader(io.StringIO(text, newline=""))
    ]


def as_rows(results: Results) -> list[ResultRow]:
    """Return rows from rows or from the path of a file, the last of those that name one number.

    A run that is repeated appends its numbers again, and the later ones replace the earlier.
    """
    rows = read_results(results) if isinstance(results, str | os.PathLike) else list(results)
    latest: dict[tuple[object, ...], ResultRow] = {}
    for row in rows:
        if not isinstance(row, ResultRow):
            raise wrong_type("results", "a path or rows of results", row)
        key = (row.method, row.benchmark, row.seed, row.space, row.metric)
        latest[(*key, row.after_experience, row.experience)] = row
    return list(latest.values())


def result_matrix(results: Results) -> Tensor:
    """Return the accuracy matrix (T+1, T) of a single run in a single label space.

    Raises:
        ValueError: there is no accuracy, or more than one run or label space.

    >>> rows = matrix_rows(torch.tensor([[0.25], [1.0]]), method="naive", space="all")
    >>> result_matrix(rows).tolist()
    [[0.25], [1.0]]
    """
    rows = [row for row in as_rows(results) if row.metric == "accuracy"]
    runs = {(row.method, row.benchmark, row.seed, row.space) for row in rows}
    if len(runs) != 1:
        raise wrong_value("results", "the accuracies of one run in one label space", f"{len(runs)} runs")
    places = [(row.after_experience or 0, row.experience or 0, row.value) for row in rows]
    size = max(max(after, experience + 1) for after, experience, _ in places)
    matrix = torch.full((size + 1, size), float("nan"), dtype=torch.float64)
    for after, experience, value in places:
        matrix[after, experience] = value
    return matrix


def _read_text(path: Path) -> str:
    # Without translation: a line break inside of a name stays the one that it is.
    with path.open(encoding="utf-8", newline="") as file:
        return file.read()


def _csv_line(values: Sequence[object]) -> str:
    # The writer puts quotes around the characters of its own line end only, in Python before 3.13;
    # a bare "\r" in a name would end the line for the reader.
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _check_header(path: Path, text: str) -> None:
    first = text.splitlines()[0] if text else ""
    if first.split(",") != HEADER:
        raise wrong_value(
            "path",
            f"a file with the header {','.join(HEADER)}",
            f"{first[:80]!r} in {path}",
            "Use another file.",
        )


def _integer(text: str) -> int | None:
    return int(text) if text else None
