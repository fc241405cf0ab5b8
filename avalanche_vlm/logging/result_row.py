"""Results in long format: one row a number, for all methods, seeds and benchmarks.

Rows with the metric ``accuracy`` are the entries of an accuracy matrix, with the place that they
have in it; other metrics in a label space summarise the run up to the experience that they name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from avalanche_vlm._checks import check_count, check_type, wrong_type, wrong_value

NUMBER = r"(?:-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|nan|-?inf)"
# A line break after what looks like the end of a row: nobody could tell such a name from rows that a stray
# quotation mark has swallowed.
ROW_END = re.compile(rf",(?:\d+)?,{NUMBER}\r?\n", re.ASCII)
MOST = 2**64  # seeds are smaller, and no count comes near


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
        value: between 0 and 1 for accuracies; NaN if not measured or not defined. A tensor or array of one
            number is taken as that number.

    Raises:
        TypeError: an argument has another type.
        ValueError: text that no file of results can hold (NUL, halves of surrogate pairs), or a number that
            is negative or too large.

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

    def __post_init__(self) -> None:
        for name in ("run", "method", "benchmark", "space", "stream", "metric", "class_name"):
            text: Any = getattr(self, name)
            if type(text) is not str or not text.isprintable():
                check_type(name, text, str)
                check_text(name, text)
                object.__setattr__(self, name, str(text))
        for name in ("seed", "after_experience", "experience", "step"):
            number: Any = getattr(self, name)
            if number is not None and (type(number) is not int or not 0 <= number < MOST):
                check_whole(name, number)
                object.__setattr__(self, name, int(number))
        if type(self.value) is not float:
            object.__setattr__(self, "value", _real(self.value))


#: Rows of results, or where they are: a file, or a folder of them (see `read_results`).
Results = str | os.PathLike[str] | Iterable[ResultRow]


def check_text(argument: str, text: str) -> None:
    """Raise `ValueError` unless text comes back from a file of results as it is."""
    if "\0" in text:
        raise wrong_value(
            argument, "text that a file of results can hold", "text with a NUL", "Leave it out."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"text with half of a surrogate pair: {text[:80]!r}"
        raise wrong_value(argument, "text that a file of results can hold", got, "Leave it out.") from error
    if ROW_END.search(text):
        got = f"text of which a line ends as a row of results does: {text[:80]!r}"
        raise wrong_value(argument, "text that is not taken for rows of results", got)


def check_whole(argument: str, value: Any) -> None:
    """Raise unless ``value`` is a whole number that the columns of whole numbers may hold."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise wrong_type(argument, "a whole number or None", value)
    if not 0 <= int(value) < MOST:
        raise wrong_value(argument, "a whole number from 0 to 2^64 - 1", "less" if int(value) < 0 else "more")


def _real(value: Any) -> float:
    """Return a number, or the one of a tensor or array, as a plain one."""
    number: Any = value
    if isinstance(value, Tensor) or (hasattr(value, "dtype") and hasattr(value, "item")):
        number = value.item() if _size(value) == 1 else value
    if isinstance(number, bool) or not isinstance(number, Real):
        raise wrong_type("value", "a number", value)
    try:
        return float(number)
    except OverflowError as error:
        raise wrong_value("value", "a number that a float can hold", "a larger one") from error


def _size(value: Any) -> int:
    size: Any = value.numel() if isinstance(value, Tensor) else getattr(value, "size", 1)
    return int(size)


def check_names(*, method: str | None, benchmark: str, seed: int | None) -> None:
    """Raise unless these can name a run; None for ``method`` means that the strategy names it."""
    check_type("benchmark", benchmark, str)
    check_text("benchmark", benchmark)
    if method is not None:
        check_type("method", method, str)
        check_text("method", method)
        if not method.strip():
            raise wrong_value("method", "a name", repr(method))
    if seed is not None:
        check_count("seed", seed, at_least=0)
        check_whole("seed", seed)
