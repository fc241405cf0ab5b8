"""Making the images that a folder lacks, by as many processes as there are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image

from avalanche_vlm._files import replacing
from avalanche_vlm.sources._image_manifest import StoredImage, append_images
from avalanche_vlm.sources.fitting import fit_progress
from avalanche_vlm.sources.image_source import ImageSource

Pair = tuple[str, int]  # a prompt and a seed
Missing = Callable[[Sequence[Pair]], list[Pair]]

_POLL_SECONDS = 0.1


def make_images(
    folder: Path, source: ImageSource, wanted: Sequence[Pair], missing: Missing, *, batch_size: int
) -> None:
    """Make what a folder lacks of the images that are wanted.

    Under ``torchrun`` or ``accelerate launch`` each process begins with its own share of the batches,
    contiguous ones, and helps with what is left at the end. The lock of a batch is gone with its process:
    nobody waits for the dead.

    Args:
        folder: where they belong; made if it does not exist.
        source: what makes them.
        wanted: prompts and seeds, each pair once.
        missing: some of these -> those that the folder does not have now.
        batch_size: most images that the source is asked for at once.
    """
    left = len(missing(wanted))
    if not left:
        return
    folder.mkdir(parents=True, exist_ok=True)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    batches = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
    first = rank * len(batches) // world_size
    with _progress(left, hidden=rank != 0) as show:
        while left:
            made = 0
            for batch in (*batches[first:], *batches[:first]):
                made += _make_batch(folder, source, rank, batch, missing)
                show(left - made)
            left = len(missing(wanted))
            show(left)
            if left and not made:
                time.sleep(_POLL_SECONDS)  # all that is missing is being made by others


def _make_batch(folder: Path, source: ImageSource, rank: int, batch: Sequence[Pair], missing: Missing) -> int:
    """Make what is missing of a batch, unless another process does; return how many that were."""
    if not missing(batch):
        return 0
    name = hashlib.sha256(json.dumps(batch).encode()).hexdigest()[:16]
    lock = FileLock(folder / f".batch-{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return 0
    try:
        todo = missing(batch)  # another process may have made it just now
        if todo:
            _write(folder, source, rank, todo)
        return len(todo)
    finally:
        lock.release()
        # Whoever gets hold of it in this moment finds nothing to do.
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


def _write(folder: Path, source: ImageSource, rank: int, batch: Sequence[Pair]) -> None:
    images, captions = source.sample([prompt for prompt, _ in batch], [seed for _, seed in batch])
    stored: list[StoredImage] = []
    for (prompt, seed), image, caption in zip(batch, images, captions, strict=True):
        stored.append(StoredImage(_file_name(prompt, seed), prompt, seed, caption))
        with replacing(folder / stored[-1].file) as temporary:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
    # After the files, so that what is listed is there; in turns with runs that have the same rank.
    with FileLock(folder / f".manifest-{rank}.lock"):
        append_images(folder, rank, source.describe(), stored)


def _file_name(prompt: str, seed: int) -> str:
    """Return a name that people can read, and that no other prompt or seed has."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40]
    return f"{words}-{seed}-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}.png"


@contextlib.contextmanager
def _progress(total: int, *, hidden: bool) -> Generator[Callable[[int], None], None, None]:
    """Give a function that is told how many images are left."""
    if hidden:
        yield lambda left: None
        return
    shown = 0
    with fit_progress("Making images", total) as advance:

        def show(left: int) -> None:
            nonlocal shown
            while shown < total - left:
                advance()
                shown += 1

        yield show
