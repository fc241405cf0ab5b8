"""A Gaussian with all correlations for each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_number
from avalanche_vlm.sources._moments import (
    degrees_of_freedom,
    means_and_deviations,
    multiplied,
    padded_deviations,
)
from avalanche_vlm.sources.latents import LatentGenerator


@final
class FullGaussian(LatentGenerator):
    r"""A mean and a covariance for each class.

    .. math:: \hat x = \mu_c + L_c \epsilon, \quad \epsilon \sim N(0, I), \quad
        L_c L_c^\top = \Sigma_c + \rho \frac{\operatorname{tr} \Sigma_c}{D} I

    with the unbiased covariance Σ_c. Only the lower triangle of L_c is kept, D (D + 1) / 2 numbers.
    They are unpacked at each draw: draw much at once, and not batch by batch.

    With n samples Σ_c has at most n - 1 directions; the others, and dimensions that are constant in
    the class, vary by the ridge alone. A class with one sample has L = 0: what is drawn is its mean.

    Args:
        ridge: ρ, the share of the mean variance that is added to every variance; at least 1e-6, for
            triangular factors to exist.
        dtype: how means and factors are kept, ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        seed: of what is drawn.

    Raises:
        TypeError: ``ridge`` is no number, or ``seed`` no whole number.
        ValueError: a number below its bound, or an unknown ``dtype``.

    Attributes:
        means: (R, D) of the components.
        factors: lower triangles (R, D (D + 1) / 2) of L, row by row.

    References:
        Frascaroli et al., CLIP with Generative Latent Replay, BMVC 2024, the comparison of generators.

    Deviations:
        The ridge is relative to the variance, so that it means the same for features of any size.

    >>> import torch
    >>> generator = FullGaussian()
    >>> generator.fit(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 0]))
    >>> generator.factors  # the second dimension follows the first, but for the ridge
    tensor([[1.4143, 1.4141, 0.0200]])
    """

    per_component: ClassVar = ("means", "factors")
    means: Tensor
    factors: Tensor

    def __init__(self, *, ridge: float = 1e-4, dtype: str = "float32", seed: int = 0) -> None:
        super().__init__(dtype=dtype, seed=seed)
        check_number("ridge", ridge, at_least=1e-6)
        self.ridge = ridge

    def _fit(self, features: Tensor, positions: Tensor, counts: Tensor) -> Mapping[str, Tensor]:
        means, deviations = means_and_deviations(features, positions, counts)
        width = features.shape[1]
        rows, columns = torch.tril_indices(width, width, device=features.device)
        factors = features.new_empty(len(counts), len(rows))
        divisors = degrees_of_freedom(counts)
        for group, padded in padded_deviations(deviations, positions, counts):
            covariances = padded.mT @ padded / divisors[group][:, None, None]
            factors[group] = _factors(covariances, self.ridge)[:, rows, columns].float()
        return {"means": means, "factors": factors}

    def _sample(self, components: Tensor) -> Tensor:
        means = self.means[components].float()
        noise = self._normal(*means.shape)
        width = self.embed_dim
        rows, columns = torch.tril_indices(width, width, device=self.device)

        def transposed_factors(used: Tensor) -> Tensor:
            factors = noise.new_zeros(len(used), width, width)
            factors[:, columns, rows] = self.factors[used].float()
            return factors

        return multiplied(noise, components, transposed_factors, width).add_(means)


def _factors(covariances: Tensor, ridge: float) -> Tensor:
    """Return the Cholesky factors (K, D, D) of covariances with a ridge; that of 0 is 0."""
    sizes = covariances.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None, None]
    relative = covariances / torch.where(sizes > 0, sizes, 1)
    relative.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return torch.linalg.cholesky(relative) * sizes.sqrt()
