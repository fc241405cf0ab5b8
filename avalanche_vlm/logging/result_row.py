"""Results in long format: one row a number, for all methods, seeds and benchmarks.

Rows with the metric ``accuracy`` are the entries of an accuracy matrix, with the place that they
have in it; other metrics in a label space summarise the run up to the experience that they name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from avalanche_vlm._checks import check_count, check_type, wrong_value


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One number of one run.

    Args:
        run: id of the run's provenance (see `read_runs`), empty if that was not written.
        method: name of the method.
        benchmark: name of the benchmark, empty if there is only one.
        seed: seed of the run, None if it has none.
        space: label space that was measured in; empty for metrics that have none.
        stream: name of the stream that was measured on.
        metric: ``"accuracy"`` for an entry of the matrix, ``"class_accuracy"``, the name of a
            summary, or that of any other metric.
        after_experience: number of experiences trained on, 0 is zero-shot; None where unknown.
        experience: number, from 0, of the evaluated experience; for a class that of the trained
            experience that it first came in; None for the whole stream.
        class_name: name of the class that was measured alone, else empty.
        step: training iterations so far, None where it does not apply.
        value: between 0 and 1 for accuracies; NaN if not measured or not defined.

    >>> ResultRow(method="naive", metric="last_accuracy", space="seen", value=0.5).stream
    'test'
    """

    run: str = ""
    method: str
    benchmark: str = ""
    seed: int | None = None
    space: str = ""
    stream: str = "test"
    metric: str
    after_experience: int | None = None
    experience: int | None = None
    class_name: str = ""
    step: int | None = None
    value: float


Results = str | os.PathLike[str] | Iterable[ResultRow]


def check_names(*, method: str | None, benchmark: str, seed: int | None) -> None:
    """Raise unless these can name a run; None for ``method`` means that the strategy names it."""
    check_type("benchmark", benchmark, str)
    if method is not None:
        check_type("method", method, str)
        if not method.strip():
            raise wrong_value("method", "a name", repr(method))
    if seed is not None:
        check_count("seed", seed, at_least=0)
