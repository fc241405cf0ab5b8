"""Gaussians of all classes with one covariance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_number, wrong_value
from avalanche_vlm.sources._moments import means_and_deviations
from avalanche_vlm.sources.latents import LatentGenerator


@final
class SharedCovarianceGaussian(LatentGenerator):
    r"""A mean for each class, and one covariance, pooled over all classes so far.

    .. math:: \hat x = \mu_c + F \epsilon, \quad \epsilon \sim N(0, I), \quad
        F F^\top = \Sigma + \rho \frac{\operatorname{tr} \Sigma}{D} I, \quad
        \Sigma = \frac{\sum_c \sum_{i: y_i = c} (x_i - \mu_c)(x_i - \mu_c)^\top}{\sum_c (n_c - 1)}

    The two sums are kept, not their ratio: after any number of experiences, and after `merge`, Σ is
    the covariance that all data at once would give, in whatever order the classes come. A class that
    comes again counts there as another class, with a mean of its own.

    While no class has two samples, Σ = 0 and what is drawn are the means. Dimensions that are constant
    in every class vary by the ridge alone.

    Args:
        ridge: ρ, the share of the mean variance that is added to every variance.
        dtype: how the means are kept, ``"float32"``, ``"float16"`` or ``"bfloat16"``; the one scatter
            matrix stays in float32, since sums go on in it.
        seed: of what is drawn.

    Raises:
        TypeError: ``ridge`` is no number, or ``seed`` no whole number.
        ValueError: a negative number, or an unknown ``dtype``.

    Attributes:
        means: (R, D) of the components.
        scatter: the sum (D, D) of products above the fraction line; None before the first `fit`.
        degrees_of_freedom: int64 (), the number below it.

    References:
        Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 2009, section 4.3
        (linear discriminant analysis).

    Deviations:
        F comes from eigenvalues; it is worked out at the first draw after a change, held from then
        on beside what is kept, and not counted in `nbytes`.

    >>> import torch
    >>> generator = SharedCovarianceGaussian()
    >>> generator.fit(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 0]))
    >>> generator.fit(torch.tensor([[5.0, 3.0], [5.0, 7.0]]), torch.tensor([1, 1]))
    >>> generator.covariance
    tensor([[1., 0.],
            [0., 4.]])
    """

    per_component: ClassVar = ("means",)
    shared: ClassVar = ("scatter", "degrees_of_freedom")
    means: Tensor

    def __init__(self, *, ridge: float = 1e-4, dtype: str = "float32", seed: int = 0) -> None:
        super().__init__(dtype=dtype, seed=seed)
        check_number("ridge", ridge, at_least=0)
        self.ridge = ridge
        self.scatter: Tensor | None = None
        self.degrees_of_freedom = torch.zeros((), dtype=torch.int64)
        self._factored: tuple[Tensor | None, Tensor] | None = None

    @property
    def covariance(self) -> Tensor:
        """Σ, float32 (D, D), without the ridge.

        Raises:
            ValueError: nothing was fitted.
        """
        if self.scatter is None:
            raise wrong_value("covariance", "asked for after fit", "no class that was fitted")
        return self.scatter / self.degrees_of_freedom.clamp(min=1)

    def _fit(self, features: Tensor, positions: Tensor, counts: Tensor) -> Mapping[str, Tensor]:
        means, deviations = means_and_deviations(features, positions, counts)
        scatter = deviations.T @ deviations
        self.scatter = (scatter if self.scatter is None else self.scatter + scatter).float()
        self.degrees_of_freedom = self.degrees_of_freedom + (counts - 1).sum()
        return {"means": means}

    def _merged_shared(self, other: Any) -> Mapping[str, Tensor]:
        scatters = [each.scatter.to(self.device) for each in (self, other) if each.scatter is not None]
        freedom = self.degrees_of_freedom + other.degrees_of_freedom.to(self.device)
        return {"scatter": torch.stack(scatters).sum(dim=0), "degrees_of_freedom": freedom}

    def _sample(self, components: Tensor) -> Tensor:
        means = self.means[components].float()
        noise = self._normal(*means.shape)
        return (noise @ self._transposed_factor()).add_(means)

    def _transposed_factor(self) -> Tensor:
        if self._factored is None or self._factored[0] is not self.scatter:
            # Rounding in float32 leaves eigenvalues slightly below 0, for which there is no Cholesky.
            values, vectors = torch.linalg.eigh(self.covariance.double())
            values = values.clamp(min=0)
            sizes = (values + self.ridge * values.mean()).sqrt()
            self._factored = (self.scatter, (vectors * sizes).T.float())
        return self._factored[1]
