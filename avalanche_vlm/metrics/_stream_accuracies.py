"""What was measured on one stream, by row and position, and how it becomes a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class StreamAccuracies:
    """Accuracies of one stream: ``rows[t][i]`` of the experience at position i of the stream.

    Args:
        length: experiences in the stream, as far as is known.
        rows: accuracies by number of trained experiences and position.
        counts: samples by position.
    """

    length: int = 0
    rows: dict[int, dict[int, float]] = field(default_factory=dict[int, dict[int, float]])
    counts: dict[int, int] = field(default_factory=dict[int, int])

    def _columns(self, trained: Sequence[int]) -> list[int]:
        """Return the positions in the order of the columns: as trained, then as in the stream."""
        size = max([self.length, *(position + 1 for position in trained), *(i + 1 for i in self.counts)])
        learned = set(trained)
        return [*trained, *(position for position in range(size) if position not in learned)]

    def matrix(self, trained: Sequence[int]) -> Tensor:
        """Return the accuracies (T+1, T), NaN where not measured."""
        columns = self._columns(trained)
        blank: dict[int, float] = {}
        return torch.tensor(
            [
                [self.rows.get(row, blank).get(position, float("nan")) for position in columns]
                for row in range(len(columns) + 1)
            ],
            dtype=torch.float64,
        ).reshape(len(columns) + 1, len(columns))

    def sample_counts(self, trained: Sequence[int]) -> Tensor:
        """Return the number of samples (T,) by column, 0 where not evaluated."""
        columns = self._columns(trained)
        return torch.tensor([self.counts.get(position, 0) for position in columns], dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state, in plain types."""
        rows = {row: dict(values) for row, values in self.rows.items()}
        return {"length": self.length, "rows": rows, "counts": dict(self.counts)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> StreamAccuracies:
        """Return what `state_dict` described."""
        rows = {int(row): dict(values) for row, values in state["rows"].items()}
        return cls(length=int(state["length"]), rows=rows, counts=dict(state["counts"]))
