"""The list of a folder of images: which file shows what, as lines of JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from avalanche_vlm._checks import wrong_value

MANIFEST = "manifest.jsonl"
_PART = re.compile(r"manifest-(\d+)\.jsonl")


class StoredImage(NamedTuple):
    """A line of a manifest; ``file`` is relative to the folder, ``seed`` is None where nobody knows it."""

    file: str
    prompt: str
    seed: int | None
    caption: str


class ImageManifest:
    """All manifests of a folder, as they were when it was read: the one without a number, then the parts.

    A part is written by this package, and may end in a torn line, which is as good as not there. What was
    listed first counts.

    Args:
        folder: of the images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stamp = _stamp(folder)
        self.settings: dict[str, Any] | None = None
        self.images: list[StoredImage] = []
        for path, *_ in self.stamp:
            for number, record in _records(path):
                if "source" in record:
                    self._add_settings(path, record["source"])
                else:
                    self.images.append(_image(path, number, record))

    def _add_settings(self, path: Path, settings: dict[str, Any]) -> None:
        if self.settings is None:
            self.settings = settings
        difference = first_difference(self.settings, settings)
        if difference:
            raise wrong_value(
                "folder",
                f"{str(self.folder)!r} with images of one source",
                f"parts that were made with other settings: {difference} in {path.name!r}",
                "Keep each source in a folder of its own.",
            )

    def is_current(self) -> bool:
        """Return whether the files are still those that were read."""
        return self.stamp == _stamp(self.folder)

    @cached_property
    def by_key(self) -> dict[tuple[str, int | None], StoredImage]:
        """The images by prompt and seed."""
        return {(each.prompt, each.seed): each for each in reversed(self.images)}

    @cached_property
    def by_prompt(self) -> dict[str, list[StoredImage]]:
        """The images of each prompt, in the order of the manifest."""
        found: dict[str, list[StoredImage]] = {}
        for each in self.images:
            found.setdefault(each.prompt, []).append(each)
        return found


def append_images(
    folder: Path, part: int, settings: Mapping[str, Any], images: Iterable[StoredImage]
) -> None:
    """Append to a part of the manifest, after repairing what a crash left half written.

    Args:
        folder: of the images.
        part: number of the part; only one process at a time may write it.
        settings: of the source, for the first line.
        images: what to list; their files must be there.
    """
    with open(folder / f"manifest-{part}.jsonl", "ab+") as file:
        file.seek(0)
        data = file.read()
        tail = data[data.rfind(b"\n") + 1 :]
        if _parsed(tail) is not None:
            lines = ["\n"]  # only the end of the line is missing, and readers have believed it
        else:
            file.truncate(len(data) - len(tail))
            lines = [] if len(data) > len(tail) else [_line({"source": dict(settings)})]
        lines += [_line(each._asdict()) for each in images]
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def first_difference(one: Any, other: Any) -> str:
    """Return which setting differs first, and how, or an empty text."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in {**one, **other}:
            inner = first_difference(one.get(name), other.get(name))
            if inner:
                return inner if inner.startswith("`") else f"`{name}` is {inner}"
        return ""
    return "" if one == other else f"{one!r} and {other!r}"


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _stamp(folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """Return the manifests with their sizes and times, in the order in which they count."""
    found: list[tuple[int, Path]] = []
    for name in os.listdir(folder) if folder.is_dir() else ():
        match = _PART.fullmatch(name)
        if match or name == MANIFEST:
            found.append((int(match[1]) if match else -1, folder / name))
    stats = [(path, path.stat()) for _, path in sorted(found)]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def _records(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is not None:
            yield number, record
        elif line.strip() and not (number == len(lines) and path.name != MANIFEST):
            got = f"{line[:60].decode(errors='replace')!r} in line {number} of {path.name!r}"
            raise wrong_value(
                "folder", f"{str(path.parent)!r} with a manifest of JSON objects, one a line", got
            )


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _image(path: Path, number: int, record: dict[str, Any]) -> StoredImage:
    file, seed = record.get("file"), record.get("seed")
    prompt = record.get("prompt", record.get("caption"))
    caption = record.get("caption", prompt)
    texts = all(isinstance(each, str) for each in (file, prompt, caption))
    if not texts or not (seed is None or type(seed) is int):
        raise wrong_value(
            "folder",
            f"{str(path.parent)!r} with a manifest whose lines have texts 'file' and 'prompt' (or "
            "'caption'), and perhaps a whole number 'seed'",
            f"{json.dumps(record)[:80]} in line {number} of {path.name!r}",
        )
    return StoredImage(str(file), str(prompt), seed, str(caption))
