"""Which seeds of a class stay where there are too many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor


class SeedPruning(ABC):
    """Chooses the seeds of one class that stay."""

    @abstractmethod
    def kept(self, seeds: Tensor, counts: Tensor, keep: int) -> Tensor:
        """Return the rows, int64 (keep,) in ascending order, that stay.

        Args:
            seeds: v (M, D), of unit length, of one class.
            counts: how many features each stands for, (M,).
            keep: how many stay, from 1 to M - 1.
        """


@final
class RedundancyPruning(SeedPruning):
    """Lets go, one by one, of the seed with the highest cosine to another one; the later of the two goes.

    References:
        Auto-Seed VL2, a design brief, which names seed pruning and does not say how.

    Deviations:
        The rule is ours.

    >>> seeds = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0.1]]), dim=1)
    >>> RedundancyPruning().kept(seeds, torch.ones(3), 2).tolist()
    [0, 1]
    """

    def kept(self, seeds: Tensor, counts: Tensor, keep: int) -> Tensor:
        """Return the rows that stay."""
        cosines = seeds @ seeds.T
        cosines.fill_diagonal_(-2)
        alive = torch.ones(len(seeds), dtype=torch.bool, device=seeds.device)
        for _ in range(len(seeds) - keep):
            place = int(cosines.argmax())
            gone = max(divmod(place, len(seeds)))
            alive[gone] = False
            cosines[gone, :] = cosines[:, gone] = -2
        return alive.nonzero().flatten()


@final
class KCentrePruning(SeedPruning):
    """Keeps the seed nearest to the class's mean, and then always the one farthest from those kept.

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018,
        algorithm 1.

    Deviations:
        It starts at the seed nearest to the mean.

    >>> seeds = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0.1]]), dim=1)
    >>> KCentrePruning().kept(seeds, torch.ones(3), 2).tolist()
    [1, 2]
    """

    def kept(self, seeds: Tensor, counts: Tensor, keep: int) -> Tensor:
        """Return the rows that stay."""
        chosen = [int((seeds @ _mean(seeds, counts)).argmax())]
        nearest = seeds @ seeds[chosen[0]]
        for _ in range(keep - 1):
            nearest[chosen[-1]] = 2  # never again
            chosen.append(int(nearest.argmin()))
            nearest = torch.maximum(nearest, seeds @ seeds[chosen[-1]])
        return torch.tensor(sorted(chosen), device=seeds.device)


@final
class HerdingPruning(SeedPruning):
    """Keeps the seeds whose running mean stays nearest to the mean of the class.

    References:
        Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017, algorithm 4.

    Deviations:
        The mean of the class is that of its seeds, by the number of features that each stands for.

    >>> seeds = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0.1]]), dim=1)
    >>> HerdingPruning().kept(seeds, torch.ones(3), 1).tolist()
    [2]
    """

    def kept(self, seeds: Tensor, counts: Tensor, keep: int) -> Tensor:
        """Return the rows that stay."""
        mean, total = _mean(seeds, counts), torch.zeros_like(seeds[0])
        chosen: list[int] = []
        for number in range(1, keep + 1):
            distance = (mean - (total + seeds) / number).square().sum(dim=1)
            distance[chosen] = torch.inf
            chosen.append(int(distance.argmin()))
            total = total + seeds[chosen[-1]]
        return torch.tensor(sorted(chosen), device=seeds.device)


def _mean(seeds: Tensor, counts: Tensor) -> Tensor:
    weights = counts.to(seeds) / counts.sum()
    return weights @ seeds
