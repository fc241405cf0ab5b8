"""Files that are there whole or not at all, and files that grow by whole lines."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Generator
from io import FileIO, IOBase
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Give a path to write to, beside ``path``; what is written there takes its place at the end.

    At every moment the old file or the new one is there, whole, after a crash of the machine too.
    After an error in the block the old one stays, and nothing is left behind.

    Args:
        path: the file that is to appear or to be replaced; its folder must exist.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "notes")
    ...     with replacing(path) as temporary:
    ...         _ = temporary.write_text("new")
    ...     path.read_text(), len(os.listdir(folder))
    ('new', 1)
    """
    # A name of its own for each writer, so that two never share one.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Let the system write the new name to the disk, where folders can be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_lines(path: Path, whole: Callable[[bytes], int], lines: Callable[[bytes], bytes]) -> None:
    """Append to a file with a single write, after cutting off what an earlier crash left half written.

    What has been appended is there after a crash of the machine too.
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
        os.fsync(file.fileno())


@contextlib.contextmanager
def file_lock(file: IOBase) -> Generator[None]:
    """Hold the lock of a file, where there is one; closing the file gives it back."""
    with contextlib.suppress(ImportError, OSError):  # not on Windows, nor on some network file systems
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    yield
