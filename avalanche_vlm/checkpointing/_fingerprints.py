"""Fingerprints of the many tensors of a model, most of which never change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avalanche_vlm.models.fingerprint import fingerprint

_SAMPLED = 64


class Fingerprints:
    """Fingerprints of tensors, computed again only after a change.

    A change is seen by torch's count of edits, or by some of the numbers where an edit is not
    counted (through ``.data``).
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}

    def of(self, tensor: Tensor) -> str:
        """Return the fingerprint of a tensor."""
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLED)].cpu().contiguous().view(torch.uint8).numpy().tobytes()
        state = tensor.data_ptr(), tensor._version, tensor.shape, sample
        known = self._known.get(id(tensor))
        if known is None or known[0] != state:
            known = self._known[id(tensor)] = state, fingerprint({"": tensor})
        return known[1]

    def of_all(self, tensors: Mapping[str, Tensor]) -> str:
        """Return one fingerprint of tensors by name."""
        parts = [(name, self.of(tensor)) for name, tensor in sorted(tensors.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
