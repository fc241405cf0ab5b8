"""Random draws that depend on the sample alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Seed the generators that transforms draw from (torch, Python, numpy) and put them back after.

    Args:
        seed: any whole number; 64 bits of it count.
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        # Not torch.manual_seed, which would seed accelerators too.
        torch.default_generator.manual_seed(seed % 2**63)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def view_seed(digest: bytes, view: int) -> int:
    """Return the seed of a view of a sample, from what the sample is and not from where it lies."""
    return int.from_bytes(hashlib.sha256(digest + view.to_bytes(8, "little")).digest()[:8], "little")
