"""Pairs that are made before an experience and shown in batches while it lasts."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.regularizers.pairs import ImageTextPairs, PairBatch, next_rows


class PooledPairs(ImageTextPairs):
    """A pool of pairs for each experience; a subclass fills it in `_prepare`, and empties it in `_release`.

    Args:
        batch_size: pairs of a batch; all of them where there are fewer. Batches go through all pairs in a
            random order, and then again in another.
        seed: of these orders, and of what the subclass draws.
    """

    __slots__ = ("_pool",)
    _pool: PairBatch | None

    def __init__(self, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.zeros(0, dtype=torch.int64)
        self._pool = None

    @property
    def is_active(self) -> bool:
        """Whether there are pairs in this experience."""
        return self._pool is not None

    @property
    def fixed_images(self) -> Tensor | None:
        """All images of the experience, or their embeddings."""
        return None if self._pool is None else self._pool.images

    @property
    def fixed_texts(self) -> Tensor | None:
        """All different texts of the experience."""
        return None if self._pool is None else self._pool.texts

    def batch(self, model: CLIPClassifier, x: Tensor, y: Tensor) -> PairBatch:
        """Return the next pairs."""
        assert self._pool is not None
        assert self._pool.text_of is not None
        rows, self._order = next_rows(self._order, len(self._pool.images), self.batch_size, self._generator)
        rows = rows.to(self._pool.images.device)
        text_rows, text_of = self._pool.text_of[rows].unique(return_inverse=True)
        return PairBatch(self._pool.images[rows], self._pool.texts[text_rows], text_of, rows, text_rows)
