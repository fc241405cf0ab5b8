"""Files that are there whole or not at all, files that grow by whole lines, and what is read from either."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Generator, Iterable
from functools import cache
from io import FileIO, IOBase
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\..+\.(?:(?P<place>[0-9a-f]{8})-)?(?P<process>\d+)-[0-9a-f]{8}\.tmp")
_DAY_SECONDS = 24 * 3600
_DEEPEST = 100  # lists and objects in each other
_LONGEST_NAME = 1000
_ALWAYS_SWEPT = 256  # entries of a folder that are looked through at every write
_WRITES_SHARE = 16  # a larger folder is looked through once for each 1/16 of its entries that is written
_swept: dict[str, tuple[int, int]] = {}  # folder -> its entries when last swept, and writes since


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Give a path to write to, beside ``path``; what is written there takes its place at the end.

    At every moment the old file or the new one is there, whole, after a crash of the machine too.
    After an error in the block the old one stays, and nothing is left behind. What a writer that was
    killed has left in the folder is removed by the next one: if that process is known to be gone, or
    after a day.

    Args:
        path: the file that is to appear or to be replaced; its folder must exist.

    Raises:
        OSError: it could not be written; the error names ``path`` and says what is there now.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "notes")
    ...     with replacing(path) as temporary:
    ...         _ = temporary.write_text("new")
    ...     path.read_text(), len(os.listdir(folder))
    ('new', 1)
    """
    path = Path(path)
    _sweep(path.parent)
    # A name of its own for each writer, so that two never share one.
    name = f".{path.name}.{_place()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)
    try:
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            if error.filename is None or _is_one_of(error.filename, temporary, path):
                raise _unwritten(path, error, "what was there before is left as it was") from error
            raise  # of another file: the block reads some too
        try:
            _sync_folder(path.parent)
        except OSError as error:
            kept = "it is there, but may be gone again after a crash of the machine"
            raise _unwritten(path, error, kept) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_one_of(name: Any, *paths: Path) -> bool:
    with contextlib.suppress(TypeError, ValueError):
        return any(os.path.abspath(os.fsdecode(name)) == os.path.abspath(path) for path in paths)
    return False  # the number of an open file


def _unwritten(path: Path, error: OSError, kept: str) -> OSError:
    """Return an error of the kind of ``error`` that names the file which the user knows."""
    reason = error.strerror or str(error) or type(error).__name__
    text = f"{reason}; this file could not be written in full ({kept})"
    if error.errno is None:
        return OSError(f"{text}: {str(path)!r}")
    return OSError(error.errno, text, str(path))


def _sync_folder(folder: Path) -> None:
    """Let the system write the new name to the disk, where folders can be opened for that."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # a folder may be written to and not read
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot do it at all
            raise
    finally:
        os.close(descriptor)


@cache
def _place() -> str:
    """Return what tells the processes whose numbers this process can look up from those of others.

    The machine since it was last started, and within it the container: elsewhere the same number is
    another process.
    """
    facts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with contextlib.suppress(OSError):
            facts.append(read())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder.

    A folder of many files is not looked through at each of their writes, so that a write costs the same
    in all of them.
    """
    key = os.path.abspath(folder)
    entries, writes = _swept.get(key, (0, 0))
    if entries > _ALWAYS_SWEPT and writes * _WRITES_SHARE < entries:
        _swept[key] = entries, writes + 1
        return
    count = 0
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            count += 1
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and _is_abandoned(match, entry):
                    os.unlink(entry.path)
    _swept[key] = count, 0


def _is_abandoned(match: re.Match[str], entry: os.DirEntry[str]) -> bool:
    """Return whether nobody writes to a temporary file any more; in doubt somebody does."""
    if match["place"] == _place() and not _is_alive(int(match["process"])):
        return True
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY_SECONDS


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # there, asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's
    return True


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
        OSError: the file could not be written in full; it is put back to its whole lines. The error
            names ``path``.
    """
    kept = None
    try:
        # Unbuffered, so that one write is one; in append mode, so that it goes to the end as it is then.
        with FileIO(path, "a+") as file, file_lock(file):
            file.seek(0)
            found = file.readall()
            end = whole(found)
            data = lines(found[:end])
            try:
                if end < len(found):
                    file.truncate(end)
                kept = end
                _write_all(file, data)
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    if kept is not None:
                        file.truncate(kept)
                raise
    except OSError as error:
        if error.filename is None or _is_one_of(error.filename, Path(path)):
            raise _unwritten(Path(path), error, "the lines that were there before are left") from error
        raise


def _write_all(file: FileIO, data: bytes) -> None:
    written = file.write(data) if data else 0
    if written == len(data):
        return
    # What is wrong is told by the system when the rest is tried.
    if file.write(data[written:]) != len(data) - written:
        raise OSError(errno.ENOSPC, "Only a part went into the file; is the disk full?")


@contextlib.contextmanager
def file_lock(file: IOBase) -> Generator[None]:
    """Hold the lock of a file, where there is one; closing the file gives it back."""
    with contextlib.suppress(ImportError, OSError):  # not on Windows, nor on some network file systems
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    yield


def parsed_json(text: str | bytes) -> Any:
    """Return the value that a text from a file says, which need not be of our writing.

    Raises:
        ValueError: it is not JSON, nests too deeply, names a key twice, or holds NaN or infinity.

    >>> parsed_json('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    """
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refused, parse_float=_finite)
    except RecursionError:
        # From None: the chain would show a thousand frames.
        raise ValueError("the JSON is nested too deeply") from None
    inner: list[Any] = [value]
    for _ in range(_DEEPEST):
        inner = [each for outer in inner for each in _members(outer)]
        if not inner:
            return value
    raise ValueError("the JSON is nested too deeply")


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def is_plain_name(name: str) -> bool:
    """Return whether a text from a file is the name of a file below a folder, on any system.

    >>> [is_plain_name(name) for name in ("cat.png", "cats/1.png", "../cat.png", "/cat.png", "C:cat.png", "")]
    [True, True, False, False, False, False]
    """
    parts = name.split("/")
    return (
        len(name) <= _LONGEST_NAME
        and "\\" not in name
        and min(name, default=" ") >= " "
        and re.match("[A-Za-z]:", name) is None
        and all(part not in ("", "..") and len(part.encode(errors="replace")) <= 255 for part in parts)
    )


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path leads to something in a folder, links followed; where nothing is, by its name."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return number
