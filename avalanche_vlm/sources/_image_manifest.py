"""The list of a folder of images: which file shows what, as lines of JSON."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._files import append_lines, is_plain_name, parsed_json

MANIFEST = "manifest.jsonl"
_PART = re.compile(r"manifest-(\d+)\.jsonl")


class StoredImage(NamedTuple):
    """A line of a manifest; ``file`` is relative to the folder, ``seed`` is None where nobody knows it."""

    file: str
    prompt: str
    seed: int | None
    caption: str


class ImageManifest:
    """All manifests of a folder: the one without a number, then the parts.

    A part is written by this package, and may end in a torn line, which is as good as not there. What was
    listed first counts. Nothing is read before `refresh`.

    Args:
        folder: of the images.

    Attributes:
        settings: of the source that made the images, if a manifest says.
        by_key: the images by prompt and seed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._forget()

    def _forget(self) -> None:
        self.settings: dict[str, Any] | None = None
        self.by_key: dict[tuple[str, int | None], StoredImage] = {}
        self._stamp: dict[Path, tuple[int, int]] = {}
        self._read: dict[Path, bytes] = {}  # what of each file was understood
        self._images: dict[Path, list[StoredImage]] = {}
        self._by_prompt: dict[str, list[StoredImage]] = {}

    def refresh(self) -> None:
        """Read what was appended to the parts since the last time; all, where anything else has changed.

        Raises:
            ValueError: something stands in a manifest that does not belong there. This object is then of
                no use any more.
        """
        stamp = _stamp(self.folder)
        if stamp == self._stamp:
            return
        changed = {path: path.read_bytes() for path in stamp if stamp[path] != self._stamp.get(path)}
        appended = all(data.startswith(self._read.get(path, b"")) for path, data in changed.items())
        # Images of users come before all others.
        if self.folder / MANIFEST in changed or not appended or not self._stamp.keys() <= stamp.keys():
            changed |= {path: path.read_bytes() for path in stamp if path not in changed}
            self._forget()
        for path in stamp:
            if path in changed:
                self._add(path, changed[path])
        self._by_prompt = {}
        self._stamp = stamp

    def _add(self, path: Path, data: bytes) -> None:
        known = self._read.get(path, b"")
        images = self._images.setdefault(path, [])
        for number, record in _records(path, data[len(known) :], known.count(b"\n")):
            if "source" in record and "file" not in record:  # images may have a field of that name
                self._add_settings(path, record["source"])
            else:
                images.append(_image(path, number, record))
                self.by_key.setdefault((images[-1].prompt, images[-1].seed), images[-1])
        self._read[path] = data[: _whole_lines(data)]

    def _add_settings(self, path: Path, settings: Any) -> None:
        if not isinstance(settings, dict):
            expected = f"{str(self.folder)!r} with a manifest whose 'source' is an object of settings"
            raise wrong_value("folder", expected, f"{settings!r:.60} in {path.name!r}")
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

    @property
    def is_there(self) -> bool:
        """Whether there was a manifest."""
        return bool(self._stamp)

    @property
    def images(self) -> list[StoredImage]:
        """All images, in the order of the manifest."""
        return [image for path in self._stamp for image in self._images[path]]

    @property
    def by_prompt(self) -> dict[str, list[StoredImage]]:
        """The images of each prompt, in the order of the manifest."""
        if not self._by_prompt:
            for each in self.images:
                self._by_prompt.setdefault(each.prompt, []).append(each)
        return self._by_prompt


def append_images(
    folder: Path, part: int, settings: Mapping[str, Any], images: Iterable[StoredImage]
) -> None:
    """Append to a part of the manifest, after repairing what a crash left half written.

    Args:
        folder: of the images.
        part: number of the part.
        settings: of the source, for the first line.
        images: what to list; their files must be there.
    """
    lines = "".join(_line(each._asdict()) for each in images).encode()

    def addition(kept: bytes) -> bytes:
        if not kept:
            return _line({"source": dict(settings)}).encode() + lines
        return lines if kept.endswith(b"\n") else b"\n" + lines

    append_lines(folder / f"manifest-{part}.jsonl", _whole_lines, addition)


def _whole_lines(data: bytes) -> int:
    """Return how many bytes are lines that tell all; only the end of the last one may be missing."""
    end = data.rfind(b"\n") + 1
    return end if _parsed(data[end:]) is None else len(data)


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


def _stamp(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the manifests with their sizes and times, in the order in which they count."""
    found: list[tuple[int, Path]] = []
    for name in os.listdir(folder) if folder.is_dir() else ():
        match = _PART.fullmatch(name)
        if match or name == MANIFEST:
            found.append((int(match[1]) if match else -1, folder / name))
    told = {path: path.lstat() for _, path in sorted(found)}
    for path, status in told.items():
        if not stat.S_ISREG(status.st_mode):
            # A link would be followed when lines are appended, to a file that is not of this folder.
            raise wrong_value(
                "folder",
                f"{str(folder)!r} with manifests that are plain files",
                f"{path.name!r}, which is a link or no file",
                "Put the file itself there.",
            )
    return {path: (status.st_size, status.st_mtime_ns) for path, status in told.items()}


def _records(path: Path, data: bytes, lines_before: int) -> Iterable[tuple[int, dict[str, Any]]]:
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=lines_before + 1):
        record = _parsed(line)
        if record is not None:
            yield number, record
        elif line.strip() and not (number == lines_before + len(lines) and path.name != MANIFEST):
            got = f"{line[:60].decode(errors='replace')!r} in line {number} of {path.name!r}"
            raise wrong_value(
                "folder", f"{str(path.parent)!r} with a manifest of JSON objects, one a line", got
            )


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = parsed_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _image(path: Path, number: int, record: dict[str, Any]) -> StoredImage:
    file, seed = record.get("file"), record.get("seed")
    prompt = record.get("prompt", record.get("caption"))
    caption = record.get("caption", prompt)
    texts = all(isinstance(each, str) for each in (file, prompt, caption))
    if not texts or not (seed is None or (type(seed) is int and 0 <= seed < 2**63)):
        raise wrong_value(
            "folder",
            f"{str(path.parent)!r} with a manifest whose lines have texts 'file' and 'prompt' (or "
            "'caption'), and perhaps a 'seed', a whole number from 0 to 2**63 - 1",
            f"{json.dumps(record)[:80]} in line {number} of {path.name!r}",
        )
    if not is_plain_name(str(file)):
        raise wrong_value(
            "folder",
            f"{str(path.parent)!r} with a manifest of files that are in it, named from there with '/'",
            f"{str(file)[:80]!r} in line {number} of {path.name!r}",
        )
    return StoredImage(str(file), str(prompt), seed, str(caption))
