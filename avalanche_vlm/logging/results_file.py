"""The file of results: CSV in long format, one line a number, appended to by all runs."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from avalanche_vlm._checks import check_type, wrong_value
from avalanche_vlm._files import append_lines
from avalanche_vlm.logging.result_row import ResultRow

HEADER = [field.name for field in fields(ResultRow)]
_HEADER_LINE = (",".join(HEADER) + "\n").encode()


def write_results(path: str | os.PathLike[str], rows: Iterable[ResultRow]) -> None:
    """Append rows to a CSV file, or begin it, with one header.

    All rows are appended by one write to the end of the file; nothing that stands in it is written
    again. A crash in the middle leaves at most one torn line at the end: `read_results` ignores it,
    and the next call cuts it off. So a last line without its line end is never kept, even if
    somebody wrote it by hand.

    Several processes of one machine may append to one file: they take turns by a lock on the file,
    and the rows of one call stay together. This is not guaranteed on Windows and on network file
    systems without locks: there runs side by side each write a file of their own; `read_results`
    returns lists, which are joined with ``+``.

    Args:
        path: the file; its folder must exist. An empty file counts as new.
        rows: what to append.

    Raises:
        TypeError: something is no row; nothing is written then.
        ValueError: the file has another header; it is left alone.
        OSError: the file could not be written.
    """
    path = Path(path)
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")
    for row in rows:
        check_type("rows", row, ResultRow)
        writer.writerow([getattr(row, name) for name in HEADER])  # None is written as nothing
    data = "".join(lines.written).encode()

    def addition(whole: bytes) -> bytes:
        if not whole:
            return _HEADER_LINE + data
        _check_header(path, whole)
        return data

    append_lines(path, _whole_records, addition)


def read_results(path: str | os.PathLike[str]) -> list[ResultRow]:
    """Return all rows of a file that `write_results` wrote, in the order that they were written in.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another header, or a line of it is damaged.
    """
    path = Path(path)
    data = path.read_bytes()
    whole = data[: _whole_records(data)]
    _check_header(path, whole)
    whole = whole.removeprefix(codecs.BOM_UTF8)  # spreadsheets write one
    try:
        text = whole.decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, whole.count(b"\n", 0, error.start) + 1, error) from error
    # Without translation: a line break inside of a name stays the one that it is.
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        next(lines)
        return [_row(line) for line in lines]
    except (ValueError, csv.Error) as error:
        raise _damaged(path, lines.line_num, error) from error


def check_results_file(path: Path) -> None:
    """Raise `ValueError` unless results can be appended to a file, or a new one begun there."""
    if not path.parent.is_dir():
        raise wrong_value(
            "path",
            "a file in a folder that exists",
            f"{str(path)!r}, in {str(path.parent.absolute())!r}, which is none",
            "Make the folder first, or give another path.",
        )
    if path.exists():
        with path.open("rb") as file:
            first = file.readline()
        # A torn header, or nothing: the next rows begin the file anew.
        if not _HEADER_LINE.startswith(first):
            _check_header(path, first)


def _row(line: Sequence[str]) -> ResultRow:
    run, method, benchmark, seed, space, stream, metric, after, experience, class_name, step, value = line
    return ResultRow(
        run=run,
        method=method,
        benchmark=benchmark,
        seed=_integer(seed),
        space=space,
        stream=stream,
        metric=metric,
        after_experience=_integer(after),
        experience=_integer(experience),
        class_name=class_name,
        step=_integer(step),
        value=float(value),
    )


class _Lines:
    """Takes the lines of a CSV writer, and ends them with a line feed alone."""

    # The writer puts quotes around the characters of its own line end only, in Python before 3.13;
    # a bare "\r" in a name would end the line for the reader. So it is told of both.

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, line: str) -> None:
        self.written.append(line.removesuffix("\r\n") + "\n")


def _whole_records(data: bytes) -> int:
    """Return how many bytes of a CSV file, from its start, are whole lines.

    A line that ends inside of quotes is not whole: the quotes of whole lines come in pairs.
    """
    end = data.rfind(b"\n") + 1
    if end == 0 and not _HEADER_LINE.startswith(data):
        return len(data)  # not a torn header of ours: a file of somebody else, to be refused
    odd = data.count(b'"', 0, end) % 2
    while end and odd:
        start = data.rfind(b"\n", 0, end - 1) + 1
        odd ^= data.count(b'"', start, end) % 2
        end = start
    return end


def _check_header(path: Path, data: bytes) -> None:
    first = data.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)[0].decode(errors="replace").rstrip("\r")
    names = first.split(",")
    if names == HEADER:
        return
    advice = "Use another file."
    if {"method", "metric", "value"} <= set(names):
        added = [name for name in HEADER if name not in names]
        columns = f" (it lacks {', '.join(added)})" if added else ""
        advice = (
            f"Another version of avalanche-vlm wrote it{columns}: begin a new file, and keep this one for "
            "the version that it belongs to."
        )
    raise wrong_value(
        "path", f"a file with the header {','.join(HEADER)}", f"{first[:120]!r} in {path}", advice
    )


def _damaged(path: Path, line: int, error: Exception) -> ValueError:
    return wrong_value(
        "path",
        "a file of which every line is a row of results",
        f"line {line} of {path} ({error})",
        "Mend that line, or delete it.",
    )


def _integer(text: str) -> int | None:
    return int(text) if text else None
