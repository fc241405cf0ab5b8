"""Making the images that a folder lacks, by as many processes as there are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from avalanche_vlm._files import replacing
from avalanche_vlm._processes import free_lock, make_together, own_share_first, process_rank, progress_line
from avalanche_vlm.sources._image_manifest import StoredImage, append_images
from avalanche_vlm.sources.image_source import ImageSource

Pair = tuple[str, int]  # a prompt and a seed
Missing = Callable[[Sequence[Pair]], list[Pair]]


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
    total = len(missing(wanted))
    if not total:
        return
    folder.mkdir(parents=True, exist_ok=True)
    batches = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
    batches = own_share_first(batches)
    with progress_line("Making images", total, "images") as line:

        def make(left: Sequence[Pair]) -> bool:
            line.set_done(total - len(left))
            asked, made = set(left), 0
            for batch in batches:
                if not asked.isdisjoint(batch):
                    count = _make_batch(folder, source, batch, missing)
                    line.advance(count)
                    made += count
            return made > 0

        make_together(lambda: missing(wanted), make, place=folder)


def _make_batch(folder: Path, source: ImageSource, batch: Sequence[Pair], missing: Missing) -> int:
    """Make what is missing of a batch, unless another process does; return how many that were."""
    name = hashlib.sha256(json.dumps(batch).encode()).hexdigest()[:16]
    lock = free_lock(folder / f".batch-{name}.lock")
    if lock is None:
        return 0
    try:
        todo = missing(batch)  # another process may have made it just now
        if todo:
            _write(folder, source, todo)
        return len(todo)
    finally:
        lock.release()
        # Whoever gets hold of it in this moment finds nothing to do.
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


def _write(folder: Path, source: ImageSource, batch: Sequence[Pair]) -> None:
    images, captions = source.sample([prompt for prompt, _ in batch], [seed for _, seed in batch])
    stored: list[StoredImage] = []
    for (prompt, seed), image, caption in zip(batch, images, captions, strict=True):
        stored.append(StoredImage(file_name(prompt, seed), prompt, seed, caption))
        with replacing(folder / stored[-1].file) as temporary:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
    # After the files, so that what is listed is there.
    append_images(folder, process_rank(), source.describe(), stored)


def file_name(prompt: str, seed: int) -> str:
    """Return a name that people can read, and that no other prompt or seed has."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40]
    return f"{words}-{seed}-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}.png"
