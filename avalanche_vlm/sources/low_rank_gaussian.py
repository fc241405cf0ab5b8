"""A Gaussian along the principal directions of each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_count, check_number
from avalanche_vlm.sources._moments import (
    degrees_of_freedom,
    means_and_deviations,
    multiplied,
    padded_deviations,
)
from avalanche_vlm.sources.latents import LatentGenerator


@final
class LowRankGaussian(LatentGenerator):
    r"""A mean and k principal directions for each class.

    .. math:: \hat x = \mu_c + \sum_{j=1}^{k} \epsilon_j \sqrt{\lambda_{c,j}} \, v_{c,j}
        + \sqrt{\frac{\gamma}{D} \sum_{j>k} \lambda_{c,j}} \; \eta,
        \quad \epsilon \sim N(0, I_k), \; \eta \sim N(0, I_D)

    with the eigenvalues λ, largest first, and eigenvectors v of the unbiased covariance of the class.
    With γ = 1 the mean variance of a class is kept whole, with γ = 0 only that along its directions.

    A class with n samples has n - 1 directions at most; the rest of the k are 0. With one sample what
    is drawn is its mean. A dimension that is constant in a class varies by the last term alone.

    Args:
        rank: k.
        residual: γ, the share of the remaining variance that is drawn, equally in all dimensions.
        dtype: how means and directions are kept, ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        seed: of what is drawn.

    Raises:
        TypeError: ``residual`` is no number, or ``rank`` or ``seed`` no whole number.
        ValueError: a number outside its bounds, or an unknown ``dtype``.

    Attributes:
        means: (R, D) of the components.
        directions: (R, k, D), each as long as the standard deviation along it.
        spreads: standard deviation (R,) of the last term.

    References:
        Tipping and Bishop, Probabilistic Principal Component Analysis, JRSS B 1999, section 3.2.

    Deviations:
        The isotropic term is added in all dimensions, and the directions are not shortened for it;
        with γ = 1 that leaves the trace of the covariance as it is, and raises the k eigenvalues.

    >>> import torch
    >>> generator = LowRankGaussian(rank=2)
    >>> generator.fit(torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, 5.0]]), torch.tensor([4, 4]))
    >>> generator.directions.abs()
    tensor([[[0.0000, 0.0000, 1.4142],
             [0.0000, 0.0000, 0.0000]]])
    """

    per_component: ClassVar = ("means", "directions", "spreads")
    means: Tensor
    directions: Tensor
    spreads: Tensor

    def __init__(
        self, *, rank: int = 8, residual: float = 0.0, dtype: str = "float32", seed: int = 0
    ) -> None:
        super().__init__(dtype=dtype, seed=seed)
        check_count("rank", rank)
        check_number("residual", residual, at_least=0, at_most=1)
        self.rank = rank
        self.residual = residual

    def _fit(self, features: Tensor, positions: Tensor, counts: Tensor) -> Mapping[str, Tensor]:
        means, deviations = means_and_deviations(features, positions, counts)
        divisors = degrees_of_freedom(counts)
        directions = means.new_zeros(len(counts), self.rank, features.shape[1])
        spreads = means.new_zeros(len(counts))
        for group, padded in padded_deviations(deviations, positions, counts):
            divisor = divisors[group][:, None, None]
            found = _principal(padded, self.rank) / divisor.sqrt()
            # Rounding would leave tiny directions where there are none.
            steps = torch.arange(found.shape[1], device=found.device)
            found = found.masked_fill(steps[:, None] >= counts[group][:, None, None] - 1, 0)
            directions[group, : found.shape[1]] = found
            variance = (padded.square() / divisor).sum(dim=(1, 2))
            rest = (variance - found.square().sum(dim=(1, 2))).clamp(min=0)
            spreads[group] = (self.residual * rest / features.shape[1]).sqrt()
        return {"means": means, "directions": directions, "spreads": spreads}

    def _sample(self, components: Tensor) -> Tensor:
        means = self.means[components].float()
        noise = self._normal(len(means), self.rank)
        drawn = multiplied(noise, components, lambda used: self.directions[used].float(), self.embed_dim)
        if self.residual > 0:
            rest = self._normal(*means.shape)
            drawn.add_(rest.mul_(self.spreads[components][:, None]))
        return drawn.add_(means)


def _principal(rows: Tensor, rank: int) -> Tensor:
    """Return the first right singular vectors (K, k, D) of matrices (K, m, D) times singular values.

    They come from the smaller one of the two products of a matrix with itself.
    """
    if rows.shape[1] <= rows.shape[2]:
        vectors = torch.linalg.eigh(rows @ rows.mT).eigenvectors
        return vectors.flip(-1)[..., :rank].mT @ rows
    values, vectors = torch.linalg.eigh(rows.mT @ rows)
    sizes = values.flip(-1)[..., :rank].clamp(min=0).sqrt()
    return vectors.flip(-1)[..., :rank].mT * sizes[..., None]
