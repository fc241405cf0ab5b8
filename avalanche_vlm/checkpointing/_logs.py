"""Where loggers were in their files, and how to go back there.

A run that is killed has written lines after its last checkpoint; resumed, it writes them again.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from avalanche_vlm._files import file_lock
from avalanche_vlm.logging.provenance import provenance, run_id
from avalanche_vlm.logging.results_file import HEADER
from avalanche_vlm.logging.results_logger import ResultsLogger

_MOST_BYTES_KEPT = 1 << 20
_RUN = HEADER.index("run")


def log_positions(strategy: Any) -> list[Any]:
    """Return of each logger how far its files have been written."""
    positions: list[Any] = []
    for logger in _loggers(strategy):
        if isinstance(logger, ResultsLogger):
            positions.append(("rows", logger.run, _row_counts(logger.path)))
        else:
            positions.append(("files", {name: _position(file) for name, file in _files(logger).items()}))
    return positions


def set_log_positions(strategy: Any, positions: Sequence[Any], benchmark: Any) -> None:
    """Take out of the loggers' files what was written later; lines of other runs stay."""
    for logger, position in zip(_loggers(strategy), positions, strict=True):
        if position[0] == "rows":
            _, run, counts = position
            # Before the first line, a run has no id yet; it follows from how the run was set up.
            run = run or run_id(
                provenance(
                    strategy,
                    stream=benchmark.train_stream,
                    method=logger.method,
                    benchmark=logger.benchmark,
                    seed=logger.seed,
                    settings=logger.settings,
                )
            )
            keep_rows(logger.path, run, counts.get(run, 0))
        else:
            for name, file in _files(logger).items():
                if name in position[1]:
                    _go_back(file, *position[1][name])


def keep_rows(path: Path, run: str, count: int) -> None:
    """Take the rows of a run out of a file of results, all but the first ones.

    Args:
        path: the file that `ResultsLogger` writes; nothing happens if there is none.
        run: the id of the run.
        count: how many of its rows stay.
    """
    if not path.exists():
        return
    # Other processes may append meanwhile: they wait for the lock, and find the end where it is then.
    with path.open("r+b") as file, file_lock(file):
        records = list(_records(file.read()))
        kept: list[bytes] = []
        start: int | None = None
        own = offset = 0
        for record, its_run in records:
            own += its_run == run
            if its_run == run and own > count:
                start = offset if start is None else start
            elif start is not None:
                kept.append(record)
            offset += len(record)
        if start is not None:
            # Written first and cut after: most often there is nothing to write, and one cut is all.
            file.seek(start)
            file.write(b"".join(kept))
            file.truncate()


def _row_counts(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _, run in _records(path.read_bytes()) if path.exists() else ():
        if run is not None:
            counts[run] = counts.get(run, 0) + 1
    return counts


def _records(data: bytes) -> Generator[tuple[bytes, str | None]]:
    """Yield the records of a CSV file, byte for byte, with the id of their run; None for the header."""
    record, is_header = b"", True
    for line in data.splitlines(keepends=True) if b"\r" not in data else _lines(data):
        record += line
        if record.count(b'"') % 2 or not record.endswith(b"\n"):
            continue  # a line break inside of a name, or a torn end
        fields = next(csv.reader(io.StringIO(record.decode(), newline="")), [])
        yield record, None if is_header or len(fields) <= _RUN else fields[_RUN]
        record, is_header = b"", False
    if record:
        yield record, None


def _lines(data: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]


def _loggers(strategy: Any) -> Sequence[Any]:
    return getattr(getattr(strategy, "evaluator", None), "loggers", ())


def _files(logger: Any) -> dict[str, Any]:
    """Return the open files of a logger that lie on a disk, by attribute."""
    found: dict[str, Any] = {}
    attributes: dict[str, Any] = vars(logger)
    for name, value in attributes.items():
        if isinstance(value, io.IOBase) and _is_on_disk(value):
            found[name] = value
    return found


def _is_on_disk(file: Any) -> bool:
    name = getattr(file, "name", None)
    return isinstance(name, str) and not file.closed and file.writable() and os.path.isfile(name)


def _position(file: Any) -> tuple[int, bytes | None]:
    """Return the length of a file, and its content if its next opening may empty it."""
    file.flush()
    length = os.fstat(file.fileno()).st_size
    kept = "w" in str(getattr(file, "mode", "")) and length <= _MOST_BYTES_KEPT
    return length, Path(file.name).read_bytes() if kept else None


def _go_back(file: Any, length: int, content: bytes | None) -> None:
    file.flush()
    present = os.fstat(file.fileno()).st_size
    with Path(file.name).open("r+b") as raw:
        if content is not None:
            raw.truncate(0)
            raw.write(content)
        elif present >= length:
            raw.truncate(length)
        else:
            warnings.warn(
                f"{file.name} has {present} bytes, and had {length} when the checkpoint was written: earlier "
                "lines are gone. Open the file of a logger with mode 'a' in a run that may be resumed.",
                stacklevel=5,
            )
    file.seek(0, os.SEEK_END)
