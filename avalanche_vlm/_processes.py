"""Work that several processes share, and the line that shows how far it is.

Under ``torchrun`` or ``accelerate launch`` each process knows its number from the environment. They need not
talk to each other: what is made is a file, whoever holds the lock of a piece makes it, and a lock is gone
with its process, so that nobody waits for the dead.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Piece = TypeVar("Piece")

_POLL_SECONDS = 0.1
_ROUNDS_IN_VAIN = 3


def process_rank() -> int:
    """Return the number of this process, 0 where there is one."""
    return int(os.environ.get("RANK", "0"))


def own_share_first(pieces: Sequence[Piece]) -> list[Piece]:
    """Return all pieces in the order in which this process tries them: its share first, a contiguous one.

    >>> own_share_first("abc")
    ['a', 'b', 'c']
    """
    first = process_rank() * len(pieces) // int(os.environ.get("WORLD_SIZE", "1"))
    return [*pieces[first:], *pieces[:first]]


def make_together(
    missing: Callable[[], Sequence[Piece]],
    make: Callable[[Sequence[Piece]], bool],
    *,
    place: Path | None = None,
) -> None:
    """Make what is missing until nothing is, here or in other processes.

    Args:
        missing: the pieces that are not there now.
        make: pieces -> whether this process has made any of them. It leaves out those whose lock
            another holds.
        place: where the pieces belong, for errors.

    Raises:
        RuntimeError: this process makes pieces again and again, and all that were missing still are.
    """
    left, in_vain = missing(), 0
    while left:
        made = make(left)
        if not made:
            time.sleep(_POLL_SECONDS)  # all that is missing is being made by others
        after = missing()
        if made and set(left) <= set(after):
            in_vain += 1  # once somebody may have removed what was just made
            if in_vain == _ROUNDS_IN_VAIN:
                raise _made_in_vain(after, place)
        elif made:
            in_vain = 0
        left = after


def _made_in_vain(pieces: Sequence[Any], place: Path | None) -> RuntimeError:
    shown = ", ".join(f"{piece!r:.80}" for piece in pieces[:4])
    more = f" and {len(pieces) - 4} more" if len(pieces) > 4 else ""
    where = "" if place is None else f" in {str(place)!r}"
    return RuntimeError(
        f"Made {_ROUNDS_IN_VAIN} times, and still not there{where}: {shown}{more}. Something removes or "
        "hides what is made. See whether another program cleans the folder, or whether a list in it names "
        "another file, or take a new folder."
    )


def free_lock(path: Path) -> FileLock | None:
    """Return the lock of a file, held, or None if another holds it.

    Raises:
        OSError: the file cannot be made; or it is a link, and what it leads to would be emptied.
    """
    lock = lock_of(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def lock_of(path: Path) -> FileLock:
    """Return the lock of a file, not held yet.

    Raises:
        OSError: the file is a link, and what it leads to would be emptied.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "a link is in the place of a lock; remove it", str(path))
    return FileLock(path)


class ProgressLine(NamedTuple):
    """How far some work is, on the terminal; see `progress_line`."""

    progress: Progress
    task: TaskID

    def advance(self, count: int = 1) -> None:
        """Count more as done."""
        self.progress.advance(self.task, count)

    def set_done(self, count: int) -> None:
        """Say how much is done, by others too."""
        self.progress.update(self.task, completed=count)


@contextmanager
def progress_line(title: str, total: int, unit: str) -> Generator[ProgressLine, None, None]:
    """Give a line of progress, shown at a terminal only, and by the first process only.

    Args:
        title: what is done.
        total: how much there is to do.
        unit: of what, in the plural.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn(unit))
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=process_rank() != 0 or not console.is_terminal,
    ) as progress:
        yield ProgressLine(progress, progress.add_task(title, total=total))


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Return the rate as text."""
        return Text(f"{task.speed or 0:.0f} {self.unit}/s")
