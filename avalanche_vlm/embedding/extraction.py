"""Encoding of images, by as many processes as there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._precision import AUTOCAST_TYPES, Precision
from avalanche_vlm._processes import make_together, own_share_first, progress_line
from avalanche_vlm.embedding.cache import CachedFile
from avalanche_vlm.models import VisionLanguageBackbone
from avalanche_vlm.models.modes import in_eval_mode

Features = Literal["projected", "raw"]
Encoder = Callable[[Tensor], Tensor]
_ROUNDS = 5  # after which a file that is still damaged will stay so


@contextmanager
def image_encoder(
    backbone: VisionLanguageBackbone, features: Features, precision: Precision, device: torch.device | None
) -> Generator[Encoder, None, None]:
    """Give a function from images (B, 3, H, W) to float32 features (B, D) on the CPU.

    The backbone is in eval mode and on ``device`` meanwhile; its mode and device are then put back.
    """
    home = backbone.logit_scale.device
    device = home if device is None else device
    encode = backbone.encode_image if features == "projected" else backbone.encode_image_raw
    autocast = torch.autocast(device.type, AUTOCAST_TYPES.get(precision), enabled=precision in AUTOCAST_TYPES)

    def encoder(images: Tensor) -> Tensor:
        with torch.inference_mode(), autocast:
            encoded = encode(images.to(device, backbone.logit_scale.dtype)).float().cpu()
        if encoded.ndim != 2 or not bool(torch.isfinite(encoded).all()):
            got = "NaN or infinity" if encoded.ndim == 2 else f"shape {tuple(encoded.shape)}"
            advice = "Try precision='bf16' or 'fp32'." if precision == "fp16" else ""
            raise wrong_value("backbone", "one whose features (B, D) are finite", got, advice)
        return encoded

    try:
        if device != home:
            backbone.to(device)
        with in_eval_mode(backbone):
            yield encoder
    finally:
        if device != home:
            backbone.to(home)


def cached_embeddings(
    file: CachedFile, samples: Dataset[Any], encoder: Encoder, *, num_workers: int, title: str
) -> Tensor:
    """Return the embeddings of all samples from their file, which is made where it is missing.

    Under ``torchrun`` or ``accelerate launch`` each process begins with its own share of the shards,
    contiguous ones, and helps with what is left at the end.

    Args:
        file: where they are, or will be.
        samples: float images (3, H, W), in the order of the file.
        encoder: images (B, 3, H, W) -> features (B, D).
        num_workers: of the data loader.
        title: what the line of progress says.
    """
    tensor = file.read()
    if tensor is not None:
        return tensor
    order = own_share_first(range(file.shard_count))
    with progress_line(title, file.count, "images") as line:

        def make(missing: Sequence[int]) -> bool:
            line.set_done(file.count - sum(len(file.rows(shard)) for shard in missing))
            wanted = set(missing)
            claimed = _Claims(file, [shard for shard in order if shard in wanted])
            try:
                return claimed.run(samples, encoder, num_workers, line.advance)
            finally:
                claimed.release()

        for _ in range(_ROUNDS):
            make_together(file.missing, make, place=file.shard_folder)
            file.join()
            tensor = file.read()
            if tensor is not None:
                return tensor
    raise RuntimeError(
        f"The file of embeddings {file.path} was made {_ROUNDS} times, and is damaged or gone each time. "
        "See whether another program changes the folder and whether the disk is sound, or give another "
        "`cache_dir`."
    )


class _Claims:
    """The shards that this process makes in one go through the data.

    Args:
        file: the file that they belong to.
        shards: the shards to try for, in this order.
    """

    def __init__(self, file: CachedFile, shards: list[int]) -> None:
        self.file = file
        self.shards = shards
        self.held: deque[tuple[int, FileLock]] = deque()

    def run(
        self, samples: Dataset[Any], encoder: Encoder, num_workers: int, advance: Callable[[int], None]
    ) -> bool:
        """Make every shard that no other process makes; return whether there was one."""
        batches = self._batches()
        head = next(batches, None)
        if head is None:
            return False
        # A generator of its own, or the loader would draw from the global one.
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=chain([head], batches),  # pyright: ignore[reportArgumentType]  (an iterable will do)
            num_workers=num_workers,
            generator=torch.Generator(),
        )
        parts: list[Tensor] = []
        for images in loader:
            parts.append(encoder(images))
            advance(len(images))
            shard, lock = self.held[0]
            if sum(map(len, parts)) == len(self.file.rows(shard)):
                self.file.write_shard(shard, torch.cat(parts))
                parts = []
                lock.release()
                self.held.popleft()
        return True

    def _batches(self) -> Iterator[list[int]]:
        """Yield the rows of each batch, taking the lock of a shard before its first."""
        size = self.file.batch_size
        for shard in self.shards:
            lock = self.file.claim(shard)
            if lock is None:
                continue
            self.held.append((shard, lock))
            rows = self.file.rows(shard)
            for start in range(0, len(rows), size):
                yield list(rows[start : start + size])

    def release(self) -> None:
        """Give back what is held, after an error too."""
        for _, lock in self.held:
            lock.release()
