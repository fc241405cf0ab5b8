"""Rows of unit length in few bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STORED_DTYPES = ("float32", "float16", "bfloat16", "int8")
_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class StoredRows:
    r"""Rows (M, D) as floats, or in eight bits with a scale a row.

    .. math:: x \approx s\, q, \qquad s = \max_d |x_d| / 127

    Args:
        dtype: one of `STORED_DTYPES`.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.values = torch.zeros(0, 0, dtype=_FLOATS.get(dtype, torch.int8))
        self.scales = torch.zeros(0, 1)

    def __len__(self) -> int:
        return len(self.values)

    def append(self, rows: Tensor) -> None:
        """Add rows (K, D)."""
        if self.dtype == "int8":
            scales = (rows.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
            values = (rows / scales).round().to(torch.int8)
        else:
            scales, values = rows.new_zeros(0, 1), rows.to(_FLOATS[self.dtype])
        self.values = torch.cat([self.values, values]) if len(self.values) else values
        self.scales = torch.cat([self.scales, scales])

    def keep(self, index: Tensor) -> None:
        """Keep some rows, int64 (K,)."""
        self.values = self.values[index]
        self.scales = self.scales[index] if self.dtype == "int8" else self.scales

    def rows(self, index: Tensor | None = None) -> Tensor:
        """Return some rows float32 (K, D), or all."""
        index = slice(None) if index is None else index  # pyright: ignore[reportAssignmentType]
        values = self.values[index].float()
        return values * self.scales[index] if self.dtype == "int8" else values

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.values.nbytes + self.scales.nbytes

    def state(self) -> dict[str, Any]:
        """Return the tensors."""
        return {"values": self.values, "scales": self.scales}

    def load(self, state: Any) -> None:
        """Take over such tensors."""
        self.values, self.scales = state["values"].cpu(), state["scales"].cpu()
