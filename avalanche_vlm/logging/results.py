"""From accuracy matrices to rows of results, and back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_type, wrong_type, wrong_value
from avalanche_vlm.functional.accuracy_matrix import accuracy_matrix_summary
from avalanche_vlm.functional.label_space import LABEL_SPACES, LabelSpace
from avalanche_vlm.logging.result_row import ResultRow, Results, check_names
from avalanche_vlm.logging.results_file import read_results


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
    stream: str = "test",
    run: str = "",
) -> list[ResultRow]:
    """Return an accuracy matrix and its summaries as rows.

    Args:
        accuracies: (T+1, T), row 0 measured before training.
        method: name of the method, not empty.
        space: label space that the matrix was measured in.
        benchmark: name of the benchmark.
        seed: seed of the run.
        counts: (T,), samples of each experience; adds the summaries that weigh by them.
        stream: name of the evaluated stream.
        run: what `write_run` returned.

    Returns:
        T·(T+1) rows with the metric ``"accuracy"``, NaN ones too, then the summaries that are
        defined, after T experiences.

    Raises:
        TypeError: an argument has another type.
        ValueError: a shape does not fit, ``method`` is empty, or ``space`` is unknown.

    >>> rows = matrix_rows(torch.tensor([[0.25], [1.0]]), method="naive", space="all")
    >>> [(row.metric, row.after_experience, row.value) for row in rows][:3]
    [('accuracy', 0, 0.25), ('accuracy', 1, 1.0), ('average_incremental_accuracy', 1, 1.0)]
    """
    check_names(method=method, benchmark=benchmark, seed=seed)
    check_type("stream", stream, str)
    check_type("run", run, str)
    check_choice("space", space, LABEL_SPACES)
    summary = accuracy_matrix_summary(accuracies, space=space, counts=counts)

    def row(metric: str, after: int, experience: int | None, value: float) -> ResultRow:
        return ResultRow(
            run=run,
            method=method,
            benchmark=benchmark,
            seed=seed,
            space=space,
            stream=stream,
            metric=metric,
            after_experience=after,
            experience=experience,
            value=value,
        )

    entries = [
        row("accuracy", after, experience, float(value))
        for after, values in enumerate(accuracies.tolist())
        for experience, value in enumerate(values)
    ]
    last = len(accuracies) - 1
    return entries + [row(name, last, None, value) for name, value in summary.items() if value == value]


def result_rows(
    metrics: MatrixMetric | Sequence[MatrixMetric],
    *,
    method: str,
    benchmark: str = "",
    seed: int | None = None,
    stream: str = "test",
    run: str = "",
) -> list[ResultRow]:
    """Return what accuracy-matrix metrics measured during a run as rows.

    Args:
        metrics: one metric, or those of `avalanche_vlm.metrics.continual_metrics`.
        method: name of the method, not empty.
        benchmark: name of the benchmark.
        seed: seed of the run.
        stream: name of the evaluated stream.
        run: what `write_run` returned.

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
            stream=stream,
            run=run,
        )
    ]


def as_rows(results: Results) -> list[ResultRow]:
    """Return rows from rows or from the path of a file or folder, the last of those that name one number.

    A run that is repeated appends its numbers again, and the later ones replace the earlier; in a
    label space it does not matter after how many iterations. Of several runs (ids in the column
    ``run``) of one method, benchmark and seed only that counts which wrote last, so that no matrix
    is put together from two of them.
    """
    rows = all_rows(results)
    shown = shown_runs(rows)
    latest: dict[tuple[object, ...], ResultRow] = {}
    for row in rows:
        owner = (row.method, row.benchmark, row.seed)
        if row.run and row.run != shown[owner]:
            continue
        what = (row.space, row.stream, row.metric, row.class_name)
        when = (row.after_experience, row.experience, None if row.space else row.step)
        latest[(*owner, *what, *when)] = row
    return list(latest.values())


def all_rows(results: Results) -> list[ResultRow]:
    """Return rows from rows or from the path of a file or folder, those that were replaced later too."""
    if isinstance(results, str | os.PathLike):
        return read_results(results)
    if not isinstance(results, Iterable):
        raise wrong_type("results", "a path or rows of results", results)
    rows = list(results)
    for row in rows:
        if not isinstance(row, ResultRow):
            raise wrong_type("results", "a path or rows of results", row)
    return rows


def shown_runs(rows: Sequence[ResultRow]) -> dict[tuple[str, str, int | None], str]:
    """Return the run that wrote last, of each method, benchmark and seed of which runs are noted."""
    return {(row.method, row.benchmark, row.seed): row.run for row in rows if row.run}


def final_values(
    results: Results, metric: str, *, space: str = "", stream: str | None = None
) -> dict[tuple[str, str], dict[int | None, float]]:
    """Return what a metric was at the end of each run, or so far: after the most experiences.

    Args:
        results: path of a file or folder of results (see `read_results`), or rows.
        metric: the name in the column ``metric``.
        space: the label space; empty for a metric that has none.
        stream: name of the evaluated stream; None for any, the last that was written then.

    Returns:
        ``(benchmark, method) -> seed -> value``, in the order of the results; NaN is left out.

    >>> rows = matrix_rows(torch.tensor([[0.25], [1.0]]), method="naive", space="all", seed=0)
    >>> final_values(rows, "last_accuracy", space="all")
    {('', 'naive'): {0: 1.0}}

    Raises:
        TypeError: an argument has another type.
        ValueError: a damaged line in a file of results.
    """
    check_type("metric", metric, str)
    check_type("space", space, str)
    check_type("stream", stream, (str, type(None)))
    latest: dict[tuple[str, str], dict[int | None, ResultRow]] = {}
    for row in as_rows(results):
        if (row.metric, row.space) != (metric, space) or row.class_name or row.experience is not None:
            continue
        if stream is not None and row.stream != stream:
            continue
        seeds = latest.setdefault((row.benchmark, row.method), {})
        if row.seed not in seeds or _after(row) >= _after(seeds[row.seed]):
            seeds[row.seed] = row
    return {
        line: {seed: row.value for seed, row in seeds.items() if row.value == row.value}
        for line, seeds in latest.items()
    }


def _after(row: ResultRow) -> int:
    return -1 if row.after_experience is None else row.after_experience


def accuracy_rows(results: Results, stream: str) -> list[ResultRow]:
    """Return the entries of all accuracy matrices of a stream; if there are any, it must be one of them."""
    rows = [row for row in as_rows(results) if row.metric == "accuracy" and row.space and not row.class_name]
    return of_stream(rows, stream)


def of_stream(rows: Sequence[ResultRow], stream: str) -> list[ResultRow]:
    """Return the rows of one stream, which must be that of a row, if there are any."""
    if rows:
        check_choice("stream", stream, list(dict.fromkeys(row.stream for row in rows)))
    return [row for row in rows if row.stream == stream]


def result_matrix(results: Results, *, stream: str = "test") -> Tensor:
    """Return the accuracy matrix (T+1, T) of a single run in a single label space.

    Args:
        results: path of a file or folder of results (see `read_results`), or rows.
        stream: name of the evaluated stream.

    Raises:
        ValueError: there is no accuracy or no such stream, or more than one run or label space.

    >>> rows = matrix_rows(torch.tensor([[0.25], [1.0]]), method="naive", space="all")
    >>> result_matrix(rows).tolist()
    [[0.25], [1.0]]
    """
    rows = accuracy_rows(results, stream)
    runs = {(row.method, row.benchmark, row.seed, row.space) for row in rows}
    if len(runs) != 1:
        raise wrong_value("results", "the accuracies of one run in one label space", f"{len(runs)} runs")
    places = [(row.after_experience or 0, row.experience or 0, row.value) for row in rows]
    size = max(max(after, experience + 1) for after, experience, _ in places)
    matrix = torch.full((size + 1, size), float("nan"), dtype=torch.float64)
    for after, experience, value in places:
        matrix[after, experience] = value
    return matrix
