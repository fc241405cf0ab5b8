"""Embeddings on disk: files that say what they hold, and are believed only if they do."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import stat
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, final

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from avalanche_vlm._processes import free_lock, lock_of
from avalanche_vlm.models.fingerprint import fingerprint
from avalanche_vlm.models.tensor_file import StoredTensor, read_header, write_tensors

FORMAT = "avalanche_vlm embeddings, 1"
Verify = Literal["checksum", "header"]

_TENSOR = "embeddings"
_BATCHES_PER_SHARD = 8
_ROWS_AT_ONCE = 4096
_TELLING = ("torch", "torchvision", "open_clip_torch", "pillow")
_verified: set[tuple[Any, ...]] = set()  # files whose checksum this process has compared


class DamagedFileError(ValueError):
    """A file that is not what was written under its name."""


@contextmanager
def writing_to(folder: Path) -> Generator[None, None, None]:
    """Name the folder in an error of writing."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"Writing embeddings below the folder {str(folder)!r} failed ({error}). Give `cache_dir` a "
            "folder that may be written to, with free space; what is finished there is used again",
        ) from error


def write_embeddings(path: Path, embeddings: Tensor, metadata: Mapping[str, str]) -> None:
    """Write embeddings (N, D), float32, as a safetensors file that is there whole or not at all.

    Args:
        path: of the file; its folder is made.
        embeddings: what to write.
        metadata: texts that go with it; ``format`` and ``checksum`` are added.
    """
    tensors = {_TENSOR: embeddings.contiguous()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"format": FORMAT, "checksum": fingerprint(tensors), **metadata})


def _versions() -> dict[str, str]:
    """Return the libraries that made the file, for whoever wonders about its last bits."""
    return {name: version(name) for name in _TELLING}


def read_embeddings(path: Path, key: str, count: int, verify: Verify) -> Tensor:
    """Return the embeddings (N, D) of a file, mapped into memory: rows are read when they are asked for.

    Writing into the tensor changes the copy of this process and not the file.

    Args:
        path: of the file.
        key: what it must be filed under.
        count: how many rows it must have.
        verify: ``"checksum"`` reads everything once a process, ``"header"`` compares key, type and size.

    Raises:
        DamagedFileError: the file is not whole, or holds something else.
        OSError: it cannot be opened, or is no file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        message = "this is in the place of a file of embeddings; move it away, or give another `cache_dir`"
        raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, message, str(path))
    try:
        # Before the library maps it: a file that is shorter than it says would end the process.
        with path.open("rb") as file:
            metadata, stored = read_header(file)
        _check_header(metadata, stored, key, count)
        with safe_open(path, framework="pt") as mapped:
            tensor = mapped.get_tensor(_TENSOR)
    except (SafetensorError, ValueError) as error:
        raise DamagedFileError(str(error)) from error
    # The time of change too: the time of writing can be set back.
    state = (path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if verify == "checksum" and state not in _verified:
        if fingerprint({_TENSOR: tensor}) != metadata.get("checksum"):
            raise DamagedFileError("its checksum is another")
        if not all(bool(part.isfinite().all()) for part in tensor.split(_ROWS_AT_ONCE)):
            raise DamagedFileError("it holds NaN or infinity")
        _verified.add(state)
    return tensor


def _check_header(metadata: dict[str, str], stored: dict[str, StoredTensor], key: str, count: int) -> None:
    if metadata.get("format") != FORMAT or metadata.get("key") != key:
        raise ValueError("its header is not the one that was written")
    if set(stored) != {_TENSOR}:
        raise ValueError(f"it holds {sorted(stored)[:4]} and not only {_TENSOR!r}")
    dtype, shape, _ = stored[_TENSOR]
    if dtype != torch.float32 or len(shape) != 2 or shape[0] != count or shape[1] < 1:
        raise ValueError(f"it holds {shape} of {dtype} and not {count} embeddings")


@final
class CachedFile:
    """One file of embeddings: made piece by piece (shards), joined, and read.

    Processes that make the same file share the work: whoever gets the lock of a shard makes it, and
    a lock is gone with its process, so that nobody waits for the dead and a later run goes on with
    the shards that are there.

    Args:
        folder: the cache.
        facts: what the embeddings depend on, as plain values; their hash is the key of the file.
        count: number of embeddings.
        batch_size: number of samples that go through the model at once. A shard is a fixed number
            of batches, so that batches are the same for any number of processes.
        verify: see `read_embeddings`.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        count: int,
        *,
        batch_size: int,
        verify: Verify,
    ) -> None:
        told = json.dumps({"format": FORMAT, **facts}, sort_keys=True)
        key = hashlib.sha256(told.encode()).hexdigest()
        self.folder = folder
        self.key = key
        self.count = count
        self.metadata = {"key": key, "facts": told}
        self.batch_size = batch_size
        self.verify: Verify = verify
        self.path = folder / f"{key[:32]}.safetensors"
        # Shards of another batch size are other pieces, and their last bits differ.
        self.shard_folder = folder / f"{key[:32]}.batches-of-{batch_size}"
        self.shard_size = batch_size * _BATCHES_PER_SHARD
        self.shard_count = -(-count // self.shard_size)

    def rows(self, shard: int) -> range:
        """Return the rows of a shard."""
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def shard_path(self, shard: int) -> Path:
        """Return where a shard is."""
        return self.shard_folder / f"{shard:06d}.safetensors"

    def missing(self) -> list[int]:
        """Return the shards that are still to be made: none when the whole file is there."""
        if self.path.exists():
            return []
        return [shard for shard in range(self.shard_count) if not self.shard_path(shard).exists()]

    def claim(self, shard: int) -> FileLock | None:
        """Return the lock of a shard that is to be made, or None if it is made or being made already."""
        with writing_to(self.folder):
            self.shard_folder.mkdir(parents=True, exist_ok=True)
            lock = free_lock(self.shard_folder / f"{shard:06d}.lock")
        if lock is None:
            return None
        if self.path.exists() or self.shard_path(shard).exists():
            lock.release()
            return None
        return lock

    def write_shard(self, shard: int, embeddings: Tensor) -> None:
        """Write the embeddings of a shard."""
        with writing_to(self.folder):
            write_embeddings(self.shard_path(shard), embeddings, {"key": f"{self.key} {shard}"})

    def read(self) -> Tensor | None:
        """Return the embeddings, or None if they are still to be made; a damaged file is removed."""
        for _ in range(2):
            try:
                tensor = read_embeddings(self.path, self.key, self.count, self.verify)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except DamagedFileError:
                with self._writing():
                    self._remove_if_damaged(self.path, self.key, self.count)
                continue  # another process may have replaced it
            if self.shard_folder.exists():
                shutil.rmtree(self.shard_folder, ignore_errors=True)
            return tensor
        return None

    def join(self) -> None:
        """Make the file of its shards, unless another process has, or a damaged shard is to be made anew."""
        with self._writing():
            if self.path.exists():
                return
            shards: list[Tensor] = []
            for shard in range(self.shard_count):
                path, key, count = self.shard_path(shard), f"{self.key} {shard}", len(self.rows(shard))
                if not path.exists() or self._remove_if_damaged(path, key, count):
                    return
                shards.append(read_embeddings(path, key, count, "header"))
            if len({shard.shape[1] for shard in shards}) > 1:
                warnings.warn(
                    f"The files of embeddings in {self.shard_folder} differ in width and are made anew.",
                    stacklevel=2,
                )
                for shard in range(self.shard_count):
                    self.shard_path(shard).unlink(missing_ok=True)
                return
            write_embeddings(self.path, torch.cat(shards), self.metadata | _versions())

    @contextmanager
    def _writing(self) -> Generator[None, None, None]:
        """Hold the lock of the folder, in which whole files are put and removed."""
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with lock_of(self.folder / "cache.lock"):
                yield

    @staticmethod
    def _remove_if_damaged(path: Path, key: str, count: int) -> bool:
        try:
            read_embeddings(path, key, count, "checksum")
        except FileNotFoundError:
            return True
        except DamagedFileError as error:
            warnings.warn(
                f"The file of embeddings {path} is damaged ({error}) and is made anew.", stacklevel=2
            )
            path.unlink()
            return True
        return False
