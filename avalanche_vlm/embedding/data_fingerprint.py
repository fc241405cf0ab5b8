"""What the samples of a data set are, told without reading every file each time."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import closing
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.datasets import DatasetFolder, ImageFolder

from avalanche_vlm._checks import wrong_type
from avalanche_vlm._pictures import CONVERSION
from avalanche_vlm.benchmarks.class_folders import LabelledFiles
from avalanche_vlm.benchmarks.labelled_tensors import LabelledTensors
from avalanche_vlm.embedding.seeding import seeded
from avalanche_vlm.embedding.transform_description import describe_transform

# A file that changes again within the resolution of its time stamp would keep its stamp.
_SETTLED_NS = 2_000_000_000
_DIGEST_BYTES = hashlib.sha256().digest_size


def leaf_transforms(leaf: Any) -> Any:
    """Return the description of what a data set itself does to x, as far as `sample_digests` needs it."""
    if type(leaf) in (DatasetFolder, ImageFolder):
        return [describe_transform(leaf.loader), describe_transform(leaf.transform)]
    return CONVERSION if isinstance(leaf, LabelledFiles) else None


def sample_digests(leaf: Any, rows: Sequence[int], index: FileIndex) -> list[bytes]:
    """Return the SHA-256 (32 bytes) of the x of each given sample of a data set.

    - A tensor in memory: its dtype, shape and bytes.
    - A file: its bytes, wherever it lies. They are read once, and again when its size or a time
      stamp is another (see `FileIndex`).
    - A picture in memory: its mode, size and values, its palette, and what was noted beside it (as
      transparency, orientation, colour profile).
    - Any other data set: x as the data set returns it, which is read every time; randomness in it
      is seeded by the row.

    Args:
        leaf: the data set that holds the samples.
        rows: which samples.
        index: the digests of files that are known.

    Raises:
        TypeError: x is no picture, tensor or array.
    """
    if type(leaf) in (LabelledTensors, TensorDataset):
        x = leaf.x if isinstance(leaf, LabelledTensors) else leaf.tensors[0]
        return [_digest(x[row]) for row in rows]
    if isinstance(leaf, LabelledFiles):
        return index.digests([leaf.paths[row] for row in rows])
    if type(leaf) in (DatasetFolder, ImageFolder):
        return index.digests([leaf.samples[row][0] for row in rows])
    digests: list[bytes] = []
    for row in rows:
        with seeded(row):
            digests.append(_digest(leaf[row][0]))
    return digests


def _digest(x: Any) -> bytes:
    if isinstance(x, Image.Image):
        return _sha256(_look(x), x.tobytes())
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(x))
    if not isinstance(x, Tensor):
        raise wrong_type("benchmark", "data sets of pictures, tensors or arrays", x)
    plain = x.detach().cpu().contiguous()
    return _sha256([str(x.dtype), list(x.shape)], plain.reshape(-1).view(torch.uint8).numpy().data)


def _look(picture: Image.Image) -> Any:
    """Return all that changes how a picture looks, besides its values."""
    picture.load()  # before the rest is asked for: some formats say it behind the pixels
    palette = [picture.palette.mode, picture.palette.tobytes()] if picture.palette is not None else None
    notes = sorted((str(key), repr(value)) for key, value in picture.info.items() if _is_plain(value))
    try:
        exif = sorted((tag, repr(value)) for tag, value in picture.getexif().items() if _is_plain(value))
    except Exception:  # broken notes of a camera, which are in the notes as bytes
        exif = []
    return ["image", picture.mode, picture.size, repr(palette), notes, exif]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bytes, Number, np.generic))


def _sha256(header: Any, content: Any) -> bytes:
    digest = hashlib.sha256(json.dumps(header).encode())
    digest.update(content)
    return digest.digest()


class _Stamp(NamedTuple):
    size: int
    inode: int
    written_ns: int
    changed_ns: int


@final
class FileIndex:
    """The digests of files that were read earlier, in a small data base beside the embeddings.

    A file counts as unchanged while its path, size, inode and two time stamps (nanoseconds) are:
    that of writing, which can be set back, and that of any change, which cannot. A file that was
    written within the last two seconds is read but not remembered. The data base is a convenience:
    where it cannot be read or written, every file is read.

    Args:
        path: of the data base.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def digests(self, paths: Sequence[str]) -> list[bytes]:
        """Return the SHA-256 of the content of each file."""
        paths = [os.path.abspath(path) for path in paths]
        stamps = {path: _stamp(path) for path in paths}
        known = self._known(stamps)
        new: dict[str, bytes] = {}
        for path in stamps:
            if path not in known:
                new[path] = hashlib.sha256(Path(path).read_bytes()).digest()
        now = time.time_ns()
        self._remember(
            (path, json.dumps(stamps[path]), digest)
            for path, digest in new.items()
            if now - stamps[path].written_ns > _SETTLED_NS and _stamp(path) == stamps[path]
        )
        return [known.get(path) or new[path] for path in paths]

    def _known(self, stamps: dict[str, _Stamp]) -> dict[str, bytes]:
        if not self.path.exists():
            return {}
        try:
            with closing(self._opened()) as base:
                if not base.execute("SELECT * FROM sqlite_master WHERE name = 'stamped'").fetchall():
                    return {}
                rows = base.execute("SELECT path, stamp, digest FROM stamped").fetchall()
        except sqlite3.Error as error:
            warnings.warn(
                f"The index of files {self.path} is unreadable ({error}); files are read.", stacklevel=2
            )
            return {}
        wanted = {path: json.dumps(stamp) for path, stamp in stamps.items()}
        return {
            path: digest
            for path, stamp, digest in rows
            if wanted.get(path) == stamp and isinstance(digest, bytes) and len(digest) == _DIGEST_BYTES
        }

    def _opened(self) -> sqlite3.Connection:
        """Return a connection to the data base, if it only holds tables.

        Raises:
            sqlite3.Error: it cannot be opened; or it is a link to somewhere else, or holds something that
                would be computed when it is read or written.
        """
        if self.path.is_symlink():
            raise sqlite3.OperationalError("it is a link")
        base = sqlite3.connect(self.path, timeout=60)
        try:
            kinds = "SELECT count(*) FROM sqlite_master WHERE type NOT IN ('table', 'index')"
            virtual = "SELECT count(*) FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL%'"
            if any(base.execute(query).fetchone()[0] for query in (kinds, virtual)):
                raise sqlite3.OperationalError("it holds more than tables")
        except BaseException:
            base.close()
            raise
        return base

    def _remember(self, rows: Iterable[tuple[str, str, bytes]]) -> None:
        rows = list(rows)
        if not rows:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(rows)
        except sqlite3.OperationalError:
            return  # read-only or busy
        except sqlite3.DatabaseError:
            self.path.unlink(missing_ok=True)
        except OSError:
            return  # the folder of the embeddings says so itself, when it must be written to

    def _write(self, rows: list[tuple[str, str, bytes]]) -> None:
        with closing(self._opened()) as base, base:
            base.execute(
                "CREATE TABLE IF NOT EXISTS stamped (path TEXT PRIMARY KEY, stamp TEXT, digest BLOB)"
            )
            base.executemany("INSERT OR REPLACE INTO stamped VALUES (?, ?, ?)", rows)


def _stamp(path: str) -> _Stamp:
    status = Path(path).stat()
    return _Stamp(status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
