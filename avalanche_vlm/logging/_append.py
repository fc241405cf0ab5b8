"""Files that grow by whole lines, written by one process or by several at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from io import FileIO, IOBase
from pathlib import Path


def append_lines(path: Path, whole: Callable[[bytes], int], lines: Callable[[bytes], bytes]) -> None:
    """Append to a file with a single write, after cutting off what an earlier crash left half written.

    Where the system can lock a file, processes take turns, so that none mistakes what another is
    writing for the rest of a crash.

    Args:
        path: the file; made if it does not exist.
        whole: bytes of the file -> how many of them, from the start, are whole lines.
        lines: the whole lines of the file -> what to append. If it raises, the file stays as it is.

    Raises:
        OSError: the file could not be written in full; it is put back to its whole lines.
    """
    # Unbuffered, so that one write is one; in append mode, so that it goes to the end as it is then.
    with FileIO(path, "a+") as file, file_lock(file):
        file.seek(0)
        found = file.readall()
        kept = found[: whole(found)]
        data = lines(kept)
        if len(kept) < len(found):
            file.truncate(len(kept))
        if data and file.write(data) != len(data):
            file.truncate(len(kept))
            raise OSError(f"{path} could not be written in full; is the disk full?")


@contextlib.contextmanager
def file_lock(file: IOBase) -> Generator[None]:
    """Hold the lock of a file, where there is one; closing the file gives it back."""
    with contextlib.suppress(ImportError, OSError):  # not on Windows, nor on some network file systems
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    yield
