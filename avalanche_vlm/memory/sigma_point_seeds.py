"""Seeds with the mean and the leading covariance of their class."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_count
from avalanche_vlm.memory.seed_source import NewSeeds, SeedSource


@final
class SigmaPointSeeds(SeedSource):
    r"""Two seeds for each of the k leading directions of a class, which have its mean and rank-k covariance.

    .. math:: v = \overline{\mu \pm \sqrt{k \lambda_j} \, u_j}, \qquad j = 1 \dots k

    with the eigenvalues λ and eigenvectors u of the covariance of the class. Before they are put on the
    sphere, the mean of the seeds is μ, and their covariance :math:`\sum_j \lambda_j u_j u_j^\top`.

    Args:
        rank: k; a class with n features has at most n - 1 directions, and one of a single feature has one
            seed.
        seed: of no effect; every source has one.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: a number out of its range.

    References:
        Julier and Uhlmann, Unscented Filtering and Nonlinear Estimation, Proceedings of the IEEE, 2004.

    Deviations:
        Only k directions of D have points, and points are normalised.

    >>> SigmaPointSeeds(1).make(None, torch.eye(3), torch.tensor([0, 0, 1])).labels.tolist()
    [0, 0, 1]
    """

    def __init__(self, rank: int = 2, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        check_count("rank", rank)
        self.rank = rank

    def make(
        self, model: Any, features: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
    ) -> NewSeeds:
        """Return the points."""
        seeds: list[Tensor] = []
        for label in labels.unique():
            own = features[labels == label].double()
            mean = own.mean(dim=0, keepdim=True)
            _, values, directions = torch.linalg.svd(own - mean, full_matrices=False)
            values, directions = values[: self.rank], directions[: self.rank]
            kept = values > 1e-6
            # The singular value is the root of n λ.
            steps = (int(kept.sum()) / len(own)) ** 0.5 * values[kept, None] * directions[kept]
            seeds.append(torch.cat([mean + steps, mean - steps]) if len(steps) else mean)
        counts = torch.tensor([len(each) for each in seeds], device=labels.device)
        visual = F.normalize(torch.cat(seeds), dim=1).to(features)
        return NewSeeds(visual, labels.unique().repeat_interleave(counts))
