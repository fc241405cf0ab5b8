"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator
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
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
