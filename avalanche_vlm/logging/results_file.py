"""The file of results: CSV in long format, one line a number, appended to by one run or by several."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from avalanche_vlm._checks import check_type, wrong_type, wrong_value
from avalanche_vlm._files import append_lines
from avalanche_vlm.logging._records import (
    HEADER_LINE,
    check_header,
    encoded,
    end_of_records,
    header_end,
    records,
    rows_of,
)
from avalanche_vlm.logging.result_row import ResultRow

#: The file of results in the folder of a run, and the folder that has those of several runs.
RESULTS = "results.csv"
RUNS = "runs"
_MOST_KNOWN = 64
_known: dict[str, tuple[int, int]] = {}  # path -> bytes that this process has checked, and their checksum


def write_results(path: str | os.PathLike[str], rows: Iterable[ResultRow]) -> None:
    """Append rows to a CSV file, or begin it, with one header.

    All rows are appended by one write to the end of the file; nothing that stands in it is written
    again. A crash in the middle leaves at most one torn line at the end: `read_results` ignores it,
    and the next call cuts it off. So a last line without its line end is never kept, even if
    somebody wrote it by hand. Nothing else is ever cut: a file with a damaged line is refused.

    Several processes of one machine may append to one file: they take turns by a lock on the file,
    and the rows of one call stay together. This is not guaranteed on Windows and on network file
    systems without locks: there runs side by side each write a file of their own; `read_results`
    reads a folder of them.

    Args:
        path: the file; its folder must exist. An empty file counts as new.
        rows: what to append.

    Raises:
        TypeError: something is not a row; nothing is written then.
        ValueError: the file has another header, or a line that is damaged; it is left alone.
        OSError: the file could not be written.
    """
    check_type("path", path, (str, os.PathLike))
    path = Path(path)
    _check_regular(path)
    if not isinstance(rows, Iterable):
        raise wrong_type("rows", "rows of results", rows)
    rows = list(rows)
    for row in rows:
        check_type("rows", row, ResultRow)
    data = encoded(rows)
    key = str(path.absolute())
    after = (0, 0)

    def whole(found: bytes) -> int:
        nonlocal after
        after = _checked(path, key, found)
        return after[0]

    def addition(kept: bytes) -> bytes:
        nonlocal after
        added = data if kept else HEADER_LINE + data
        after = after[0] + len(added), zlib.crc32(added, after[1])
        return added

    append_lines(path, whole, addition)
    while len(_known) >= _MOST_KNOWN:
        del _known[next(iter(_known))]
    _known[key] = after


def read_results(path: str | os.PathLike[str]) -> list[ResultRow]:
    """Return all rows of a file that `write_results` wrote, in the order that they were written in.

    Args:
        path: a file; or a folder, of which ``results.csv`` is read and then that of each of its runs,
            ``runs/*/results.csv``, by their names. `avalanche_vlm.comparison.compare` makes such folders.

    Raises:
        FileNotFoundError: there is no such file, or no results in such a folder.
        ValueError: a file has another header, or a line of it is damaged: it is named.
    """
    check_type("path", path, (str, os.PathLike))
    return [row for file in results_files(path) for row in read_file(file)]


def read_file(path: Path) -> list[ResultRow]:
    """Return all rows of one file; see `read_results`."""
    _check_regular(path)
    data = path.read_bytes()
    if header_end(path, data) == 0:
        check_header(path, data)
    return rows_of(records(path, data))


def results_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files of results of a folder, or the one file that a path names.

    Raises:
        FileNotFoundError: a folder has none.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = [path / RESULTS, *sorted(path.glob(f"{RUNS}/*/{RESULTS}"))]
    found = [file for file in found if os.path.lexists(file)]
    if not found:
        raise FileNotFoundError(f"{path} has neither {RESULTS} nor {RUNS}/*/{RESULTS}")
    return found


def check_results_file(path: Path) -> None:
    """Raise `ValueError` unless results can be appended to a file, or a new one begun there."""
    if not path.parent.is_dir():
        raise wrong_value(
            "path",
            "a file in a folder that exists",
            f"{str(path)!r}, in {str(path.parent.absolute())!r}, which is none",
            "Make the folder first, or give another path.",
        )
    _check_regular(path)
    if path.exists():
        with path.open("rb") as file:
            first = file.readline(4096)
        header_end(path, first)  # a torn header, or nothing: the next rows begin the file anew


def _checked(path: Path, key: str, data: bytes) -> tuple[int, int]:
    """Return how many bytes of a file, from its start, are finished records, and their checksum.

    Raises:
        ValueError: a record that is not the last unfinished one is damaged.
    """
    start, checksum = _known.get(key, (0, 0))
    view = memoryview(data)
    if not 0 < start <= len(data) or zlib.crc32(view[:start]) != checksum:
        start = header_end(path, data)
        checksum = zlib.crc32(view[:start])
    end = end_of_records(path, data, start) if start else 0
    return end, zlib.crc32(view[start:end], checksum)


def _check_regular(path: Path) -> None:
    """Raise `ValueError` if there is something else than a file, such as a folder or a pipe."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "something else"
        raise wrong_value("path", "a file", f"{str(path)!r}, which is {what}", "Give another path.")
