"""Seeds that know nothing, against which others are measured."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm.memory.seed_source import CountedSeedSource, NewSeeds


@final
class RandomSeeds(CountedSeedSource):
    """Directions drawn uniformly from the sphere: the ablation "random seeds".

    Args:
        seeds_per_class: how many.
        seed: of the random numbers.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: a number out of its range.

    References:
        Auto-Seed VL2, a design brief without code or verifiable results: its ablation without
        gradient-conditioned generation.

    Deviations:
        The brief does not say what random seeds are.

    >>> RandomSeeds(2).make(None, torch.eye(3), torch.tensor([0, 1, 1])).labels.tolist()
    [0, 0, 1, 1]
    """

    def make(
        self, model: Any, features: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
    ) -> NewSeeds:
        """Return the same number of seeds for each class."""
        classes = labels.unique().repeat_interleave(self.seeds_per_class)
        drawn = torch.randn(len(classes), features.shape[1], generator=self._generator)
        return NewSeeds(F.normalize(drawn, dim=1).to(features), classes)
