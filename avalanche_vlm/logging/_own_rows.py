"""What a run does with its own rows of a file that it may share with others: count, cut, rename."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from avalanche_vlm._files import file_lock
from avalanche_vlm.logging._records import header_end, records


def count_rows(path: Path, run: str) -> int:
    """Return how many rows a run has in a file, 0 if there is none.

    Raises:
        ValueError: the file has another header, or a damaged line.
    """
    if not path.exists():
        return 0
    data = path.read_bytes()
    if header_end(path, data) == 0 or run.encode() not in data:
        return 0
    return sum(record.cells[0] == run for record in records(path, data))


def cut_rows(path: Path, runs: Collection[str], *, keep: int = 0, after: int = 0) -> int:
    """Take rows of some runs out of a file of results; all others stay, byte for byte.

    Args:
        path: the file; nothing happens if there is none.
        runs: the ids of the runs.
        keep: how many of their rows stay, the first ones.
        after: what begins before this byte stays too.

    Returns:
        How many of their rows there are now.

    Raises:
        ValueError: the file has another header, or a damaged line; it is left alone.
    """
    if not path.exists():
        return 0
    # Other processes may append meanwhile: they wait for the lock, and find the end where it is then.
    with path.open("r+b") as file, file_lock(file):
        data = file.read()
        if header_end(path, data) == 0:
            return 0
        kept: list[bytes] = []
        start: int | None = None
        own = end = 0
        for record in records(path, data):
            end = record.end
            if record.cells[0] not in runs:
                if start is not None:
                    kept.append(data[record.start : end])
            elif record.start < after or own < keep:
                own += 1
                if start is not None:
                    kept.append(data[record.start : end])
            elif start is None:
                start = record.start
        if start is not None:
            # Written first and cut after: most often there is nothing to write, and one cut is all.
            file.seek(start)
            file.write(b"".join(kept))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    return own


def rename_rows(path: Path, old: str, new: str, *, keep: int) -> None:
    """Give the rows of a run the id of another, which is as long, but for the first ones.

    Args:
        path: the file.
        old: the id that they have.
        new: the id that they get.
        keep: how many stay as they are.
    """
    assert len(old) == len(new)
    with path.open("r+b") as file, file_lock(file):
        own = 0
        for record in records(path, file.read()):
            own += record.cells[0] == old
            if record.cells[0] == old and own > keep:
                file.seek(record.start)
                file.write(new.encode())
        file.flush()
        os.fsync(file.fileno())
