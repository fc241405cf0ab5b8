"""A Gaussian without correlations for each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from torch import Tensor

from avalanche_vlm.sources._moments import degrees_of_freedom, means_and_deviations, sums_of_squares
from avalanche_vlm.sources.latents import LatentGenerator


@final
class DiagonalGaussian(LatentGenerator):
    r"""A mean and a standard deviation for each class and dimension.

    .. math:: \hat x = \mu_c + \sigma_c \odot \epsilon, \quad \epsilon \sim N(0, I), \quad
        \sigma_{c,d}^2 = \frac{1}{n_c - 1} \sum_{i: y_i = c} (x_{i,d} - \mu_{c,d})^2

    A class with one sample, and a dimension that is constant in a class, have the deviation 0: what is
    drawn is their mean.

    Args:
        dtype: how means and deviations are kept, ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        seed: of what is drawn.

    Raises:
        TypeError: ``seed`` is no whole number.
        ValueError: an unknown ``dtype``, or a negative ``seed``.

    Attributes:
        means: (R, D) of the components.
        deviations: standard deviations (R, D); variances would underflow in half precision.

    References:
        Frascaroli et al., CLIP with Generative Latent Replay, BMVC 2024, the comparison of generators.

    Deviations:
        The variance is the unbiased one.

    >>> import torch
    >>> generator = DiagonalGaussian(seed=1)
    >>> generator.fit(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([0, 0]))
    >>> generator.deviations
    tensor([[1.4142, 0.0000]])
    >>> generator.sample([0], 5)[0][:, 1]
    tensor([2., 2., 2., 2., 2.])
    """

    per_component: ClassVar = ("means", "deviations")
    means: Tensor
    deviations: Tensor

    def _fit(self, features: Tensor, positions: Tensor, counts: Tensor) -> Mapping[str, Tensor]:
        means, deviations = means_and_deviations(features, positions, counts)
        squares = sums_of_squares(deviations, positions, counts)
        return {"means": means, "deviations": (squares / degrees_of_freedom(counts)[:, None]).sqrt()}

    def _sample(self, components: Tensor) -> Tensor:
        means = self.means[components].float()
        noise = self._normal(*means.shape)
        return noise.mul_(self.deviations[components]).add_(means)
