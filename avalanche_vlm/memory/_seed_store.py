"""Where the seeds of a memory lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.memory._stored_rows import StoredRows


class SeedNumbers(NamedTuple):
    """What is known of each seed beside its direction, (M,) each.

    Attributes:
        labels: int64, its class.
        counts: how many features it stands for.
        spreads: deviation of the features of its class from the nearest seed, in each dimension.
        lengths: mean length of the features of its class.
    """

    labels: Tensor
    counts: Tensor
    spreads: Tensor
    lengths: Tensor


class SeedStore:
    """Seeds in few bytes; tensors are replaced and never written into, so that a state holds on.

    Args:
        dtype: one of `STORED_DTYPES`.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.visual = StoredRows(dtype)
        self.textual: StoredRows | None = None
        none = torch.zeros(0)
        self._set(SeedNumbers(none.long(), none, none, none))

    def __len__(self) -> int:
        return len(self.numbers.labels)

    def _set(self, numbers: SeedNumbers) -> None:
        self.numbers = numbers
        # Of how many features of its class each seed stands for: asked for at every step of training.
        classes, positions = numbers.labels.unique(return_inverse=True)
        self.shares = (
            numbers.counts / torch.zeros(len(classes)).index_add_(0, positions, numbers.counts)[positions]
        )

    def append(self, visual: Tensor, textual: Tensor | None, numbers: SeedNumbers) -> None:
        """Add seeds (K, D), whose texts are given always or never."""
        self.visual.append(visual)
        if textual is not None:
            self.textual = StoredRows(self.dtype) if self.textual is None else self.textual
            self.textual.append(textual)
        self._set(SeedNumbers(*(torch.cat(pair) for pair in zip(self.numbers, numbers, strict=True))))

    def keep(self, index: Tensor, counts: Tensor) -> None:
        """Keep some seeds, int64 (K,), after each of all stands for another number (M,) of features."""
        self.visual.keep(index)
        if self.textual is not None:
            self.textual.keep(index)
        numbers = self.numbers._replace(counts=counts)
        self._set(SeedNumbers(*(each[index] for each in numbers)))

    def turn(self, visual: Tensor, lengths: Tensor) -> None:
        """Put other visual seeds (M, D) in the place of all, with other lengths (M,) of features."""
        self.visual = StoredRows(self.dtype)
        self.visual.append(visual)
        self._set(self.numbers._replace(lengths=lengths))

    @property
    def nbytes(self) -> int:
        """Number of bytes that are kept; shares are made of them."""
        text = 0 if self.textual is None else self.textual.nbytes
        return self.visual.nbytes + text + sum(each.nbytes for each in self.numbers)

    def state(self) -> dict[str, Any]:
        """Return the tensors."""
        textual = None if self.textual is None else self.textual.state()
        return {**self.numbers._asdict(), "visual": self.visual.state(), "textual": textual}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise unless seeds of such a state are kept as these are."""
        values = state["visual"]["values"]
        if values.dtype != StoredRows(self.dtype).values.dtype:
            raise wrong_value("state", f"one of seeds kept as {self.dtype}", f"seeds kept as {values.dtype}")

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over such tensors."""
        self.visual.load(state["visual"])
        self.textual = None if state["textual"] is None else StoredRows(self.dtype)
        if self.textual is not None:
            self.textual.load(state["textual"])
        self._set(SeedNumbers(*(state[name].cpu().clone() for name in SeedNumbers._fields)))
