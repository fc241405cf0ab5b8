"""A mixture of Gaussians for each class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_count
from avalanche_vlm.sources.latents import LatentGenerator

_FLOOR = 1e-6  # of variances while fitting, as a share of the mean variance


@final
class GaussianMixture(LatentGenerator):
    r"""M Gaussians without correlations for each class, found by expectation maximisation.

    .. math:: \hat x = \mu_{c,m} + \sigma_{c,m} \odot \epsilon, \quad m \sim \pi_c, \;
        \epsilon \sim N(0, I)

    scikit-learn fits class after class. A Gaussian that stands for one sample would be that sample,
    kept: it is joined with the nearest other one, so that their common mean and variance stay. So a
    class has at most half as many Gaussians as (distinct) samples, and at least one; those that it
    does not have get the weight 0. A class with one sample has the deviation 0: what is drawn is its
    mean. So has a dimension that is constant in a class, with ``covariance="diag"``.

    Args:
        n_components: M.
        covariance: ``"diag"``, a deviation for each dimension, or ``"spherical"``, one for all.
        max_iterations: of expectation maximisation; that it ends there is no error.
        dtype: how weights, means and deviations are kept, ``"float32"``, ``"float16"`` or
            ``"bfloat16"``.
        seed: of fitting and of what is drawn.

    Raises:
        TypeError: ``n_components``, ``max_iterations`` or ``seed`` is no whole number.
        ValueError: a number below its bound, an unknown ``covariance`` or ``dtype``.

    Attributes:
        weights: π, (R, M).
        means: (R, M, D).
        deviations: standard deviations (R, M, D), or (R, M, 1) if spherical.

    References:
        Frascaroli et al., CLIP with Generative Latent Replay, BMVC 2024, whose code has 5
        components and 500 iterations.

    Deviations:
        The joining of small components. Variances are those of maximum likelihood, not unbiased.

    >>> import torch
    >>> generator = GaussianMixture(n_components=2)
    >>> features = torch.tensor([[0.0, 1.0], [0.0, 3.0], [50.0, 1.0], [50.0, 3.0]])
    >>> generator.fit(features, torch.zeros(4, dtype=torch.int64))
    >>> generator.means[0].sort(dim=0).values.round(decimals=3)
    tensor([[ 0.,  2.],
            [50.,  2.]])
    """

    per_component: ClassVar = ("weights", "means", "deviations")
    weights: Tensor
    means: Tensor
    deviations: Tensor

    def __init__(
        self,
        *,
        n_components: int = 5,
        covariance: Literal["diag", "spherical"] = "diag",
        max_iterations: int = 500,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__(dtype=dtype, seed=seed)
        check_count("n_components", n_components)
        check_choice("covariance", covariance, ("diag", "spherical"))
        check_count("max_iterations", max_iterations)
        self.n_components = n_components
        self.covariance = covariance
        self.max_iterations = max_iterations

    def _fit(self, features: Tensor, positions: Tensor, counts: Tensor) -> Mapping[str, Tensor]:
        seeds = torch.randint(2**31, (len(counts),), generator=self._generator, device=self.device)
        by_class = features[positions.argsort(stable=True)].double().cpu().split(counts.tolist())
        width = 1 if self.covariance == "spherical" else features.shape[1]
        weights = np.zeros((len(counts), self.n_components))
        means = np.zeros((len(counts), self.n_components, features.shape[1]))
        variances = np.zeros((len(counts), self.n_components, width))
        for index, (rows, seed) in enumerate(zip(by_class, seeds.tolist(), strict=True)):
            parts = self._mixture(rows.numpy(), seed)
            for kept, part in zip((weights, means, variances), parts, strict=True):
                kept[index, : len(part)] = part
        kept = {"weights": weights, "means": means, "deviations": np.sqrt(variances)}
        return {name: torch.from_numpy(each).to(self.device) for name, each in kept.items()}

    def _mixture(self, rows: Any, seed: int) -> tuple[Any, Any, Any]:
        """Return weights (m,), means (m, D) and variances (m, D or 1) of the samples (n, D) of a class."""
        from sklearn import mixture
        from sklearn.exceptions import ConvergenceWarning

        centre = rows.mean(axis=0)
        # The floor of variances is a number of its own in scikit-learn: features of any size fit it.
        size = np.sqrt(np.square(rows - centre).mean()) or 1.0
        rows = (rows - centre) / size
        n_components = min(self.n_components, len(np.unique(rows, axis=0)) // 2)
        if n_components > 1:
            fitted = mixture.GaussianMixture(
                n_components,
                covariance_type=self.covariance,
                reg_covar=_FLOOR,
                max_iter=self.max_iterations,
                random_state=seed,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                fitted.fit(rows)
            variances = np.maximum(np.asarray(fitted.covariances_) - _FLOOR, 0).reshape(n_components, -1)
            parts = _without_single(fitted.weights_, fitted.means_, variances, len(rows))
        else:
            variance = _per_dimension(np.square(rows).mean(axis=0), self.covariance == "spherical")
            parts = (np.ones(1), np.zeros_like(rows[:1]), variance[None])
        weights, means, variances = parts
        return weights, means * size + centre, variances * size**2

    def _sample(self, components: Tensor) -> Tensor:
        weights = self.weights[components].float()
        chosen = torch.multinomial(weights, 1, generator=self._generator)[:, 0]
        means = self.means[components, chosen].float()
        noise = self._normal(*means.shape)
        return noise.mul_(self.deviations[components, chosen]).add_(means)


def _without_single(weights: Any, means: Any, variances: Any, count: int) -> tuple[Any, Any, Any]:
    """Join each Gaussian that stands for less than one sample and a half with the nearest other one."""
    spherical = variances.shape[1] == 1
    while len(weights) > 1 and weights.min() * count < 1.5:
        single = int(weights.argmin())
        distances = np.square(means - means[single]).sum(axis=1)
        distances[single] = np.inf
        pair = [single, int(distances.argmin())]
        shares = (weights[pair] / weights[pair].sum())[:, None]
        mean = (shares * means[pair]).sum(axis=0)
        between = (shares * np.square(means[pair] - mean)).sum(axis=0)
        variance = (shares * variances[pair]).sum(axis=0) + _per_dimension(between, spherical)
        weights = np.append(np.delete(weights, pair), weights[pair].sum())
        means = np.vstack([np.delete(means, pair, axis=0), mean])
        variances = np.vstack([np.delete(variances, pair, axis=0), variance])
    return weights, means, variances


def _per_dimension(variances: Any, spherical: bool) -> Any:
    return variances.mean(keepdims=True) if spherical else variances
