"""The file of a checkpoint: written whole or not at all, checked before anything in it is used.

Layout: 8 bytes that name the format, the SHA-256 of all that follows, the length of the header
(8 bytes), the header as JSON, then the sections that it lists, one after the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._files import replacing

FORMAT = 3
_MAGIC = b"avlmckpt"
_START = len(_MAGIC) + 32 + 8
_NAME = re.compile(r"experience-(\d+)(?:-epoch-(\d+))?\.ckpt")


class DamagedCheckpoint(ValueError):
    """The file is no checkpoint, or not the one that was written."""


@dataclass(frozen=True)
class CheckpointFile:
    """What a file holds: plain facts, and sections of bytes by name."""

    header: dict[str, Any]
    sections: dict[str, bytes]


def checkpoint_name(experiences: int, epochs: int = 0) -> str:
    """Return the file name for so many experiences, and epochs of the next one, that are done."""
    return f"experience-{experiences:04d}" + (f"-epoch-{epochs:04d}" if epochs else "") + ".ckpt"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first; none if there is no folder.

    What has the name of one counts, even if it is a folder or a link to nothing: it is told when it is read.
    """
    found: list[tuple[int, int, Path]] = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if _NAME.fullmatch(path.name):
            found.append((*position_of(path), path))
    return [path for *_, path in sorted(found, reverse=True)]


def in_place_of_checkpoint(path: Path) -> bool:
    """Return whether something else has the name of a checkpoint in a folder with others."""
    return (
        bool(_NAME.fullmatch(path.name)) and (path.is_symlink() or path.is_dir()) and not checkpoints_in(path)
    )


def checksums_in(folder: Path) -> dict[str, bytes]:
    """Return the checksum of each checkpoint of a folder, by name; nothing in place of damaged ones."""
    found: dict[str, bytes] = {}
    for path in checkpoints_in(folder):
        try:
            with path.open("rb") as file:
                found[path.name] = file.read(len(_MAGIC) + 32)
        except OSError:
            found[path.name] = b""
    return found


def position_of(path: Path) -> tuple[int, int]:
    """Return how many experiences, and epochs of the next one, were done at a checkpoint of a folder."""
    name = _NAME.fullmatch(path.name)
    return (0, 0) if name is None else (int(name[1]), int(name[2] or 0))


def run_of(path: Path) -> str | None:
    """Return the id of the run that wrote a file, None if it is damaged or says none."""
    try:
        with path.open("rb") as file:
            start = file.read(_START)
            header = json.loads(file.read(int.from_bytes(start[-8:], "big") if len(start) == _START else 0))
        return str(header["run"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError, RecursionError):
        return None


def set_aside_newer(folder: Path, position: tuple[int, int]) -> None:
    """Rename checkpoints of a folder that are newer than a position: the run goes another way from there."""
    for path in checkpoints_in(folder):
        if position_of(path) > position:
            os.replace(path, path.with_name(f"{path.name}.replaced"))


def write_checkpoint(path: Path, header: Mapping[str, Any], sections: Mapping[str, bytes]) -> None:
    """Write a file so that at every moment the old one or the new one is there, whole.

    Raises:
        OSError: the file could not be written; what was there before still is.
    """
    listed = [[name, len(data)] for name, data in sections.items()]
    head = json.dumps({**header, "format": FORMAT, "sections": listed}).encode()
    body = b"".join([len(head).to_bytes(8, "big"), head, *sections.values()])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(_MAGIC + hashlib.sha256(body).digest())
            file.write(body)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"the checkpoint could not be written ({reason}); earlier ones are still there"
        raise OSError(error.errno, message, str(path)) from error


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read and check a file.

    Raises:
        DamagedCheckpoint: it is truncated, changed, or was never a checkpoint.
        ValueError: another version of the format.
        OSError: the file could not be read.
    """
    if path.is_dir() or not path.exists():
        kind = "a folder" if path.is_dir() else "a link to a file that is not there"
        if path.is_dir() or path.is_symlink():
            raise DamagedCheckpoint(f"{path} is not a checkpoint: it is {kind}")
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise DamagedCheckpoint(f"{path} is no checkpoint: its first bytes are others")
    body = memoryview(data)[len(_MAGIC) + 32 :]
    if len(data) < _START or hashlib.sha256(body).digest() != data[len(_MAGIC) : len(_MAGIC) + 32]:
        raise DamagedCheckpoint(f"{path} is damaged: {len(data)} bytes whose checksum is not the written one")
    try:
        length = int.from_bytes(body[:8], "big")
        if length > len(body) - 8:
            raise ValueError(f"{length} bytes of header")
        header: dict[str, Any] = dict(json.loads(bytes(body[8 : 8 + length])))
        written, listed = int(header["format"]), [(str(name), int(size)) for name, size in header["sections"]]
        if written == FORMAT:
            _check_header(header)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path} is damaged: its header is not one ({error!r:.60})") from error
    if written != FORMAT:
        raise wrong_value(
            "path",
            f"a checkpoint of format {FORMAT}",
            f"{path} of format {written}, written by avalanche-vlm {header.get('versions', {})}",
            "Resume it with the version that wrote it.",
        )
    sections: dict[str, bytes] = {}
    start = 8 + length
    if any(size < 0 for _, size in listed) or sum(size for _, size in listed) != len(body) - start:
        raise DamagedCheckpoint(f"{path} is damaged: its sections are not as long as it says")
    for name, size in listed:
        sections[name] = bytes(body[start : start + size])
        start += size
    if "state" not in sections:
        raise DamagedCheckpoint(f"{path} is damaged: it has no state")
    return CheckpointFile(header, sections)


def _check_header(header: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless a header has what `write_checkpoint` was given."""
    counts: Any = [header["experiences"], header["epochs"], *header["evaluations"]]
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("counts below 0")
    versions: Any = header["versions"]
    texts: Any = [header["run"], header["strategy"], *versions.keys(), *versions.values()]
    if any(type(text) is not str for text in texts):
        raise ValueError("names that are not text")


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what an earlier crash left half written."""
    for path in [path for path in checkpoints_in(folder) if not path.is_dir()][keep:]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".experience-*.ckpt.*.tmp"):
        path.unlink(missing_ok=True)
