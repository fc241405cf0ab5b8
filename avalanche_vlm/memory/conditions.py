"""What a generator of seeds is told of the classes that it makes seeds of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_count, check_number
from avalanche_vlm.functional import gradient_directions
from avalanche_vlm.memory.k_means_seeds import class_groups


class Conditions(NamedTuple):
    """Conditions of the seeds of K classes.

    Attributes:
        values: g (K, m, 2 D): for each seed two directions of unit length, the first of which the visual
            seed starts from.
        group_of: int64 (N,), which seed, 0 to m - 1, of its class stands for each feature; -1 where all of
            them do.
    """

    values: Tensor
    group_of: Tensor


class SeedCondition(ABC):
    """Says what a generator is told of each class."""

    @abstractmethod
    def __call__(
        self,
        features: Tensor,
        positions: Tensor,
        weights: Tensor,
        scale: float,
        seeds_per_class: int,
        generator: torch.Generator,
    ) -> Conditions:
        """Return the conditions of the seeds of K classes.

        Args:
            features: (N, D), of unit length.
            positions: int64 (N,), the class of each, 0 to K - 1; each class has one.
            weights: class weights (K, D), of unit length.
            scale: s of the model's logits.
            seeds_per_class: m.
            generator: of random numbers.
        """


@final
class GradientCondition(SeedCondition):
    r"""The direction in which a class's loss falls: `functional.gradient_directions`.

    Args:
        temperature: T; the softmax takes :math:`s / T` for the scale s of the logits. At T = 1 a few features
            that the model is wrong about make the direction; with the large T it is near a plain mean.
        groups: how many groups of features a class is divided into, by k-means, each with a gradient of its
            own, which its seed starts from; None for one a seed. With 1 all seeds of a class have one
            gradient.

    Raises:
        TypeError: an argument is no number.
        ValueError: a number out of its range.

    References:
        Auto-Seed VL2, a design brief without code or verifiable results; Zhao, Mopuri and Bilen, Dataset
        Condensation with Gradient Matching, ICLR 2021.

    Deviations:
        The realisation is ours. Gradients are taken at embeddings as they are stored, before an image
        adapter, and with the weights after the experience: a storage policy of the host is called then.
    """

    def __init__(self, *, temperature: float = 100.0, groups: int | None = None) -> None:
        check_number("temperature", temperature, above=0)
        if groups is not None:
            check_count("groups", groups)
        self.temperature = temperature
        self.groups = groups

    def __call__(
        self,
        features: Tensor,
        positions: Tensor,
        weights: Tensor,
        scale: float,
        seeds_per_class: int,
        generator: torch.Generator,
    ) -> Conditions:
        """Return gradients; where a class has fewer groups than seeds, seeds share them in turn."""
        count = min(self.groups or seeds_per_class, seeds_per_class)
        groups, class_of = class_groups(features, positions, count, generator)
        directions = gradient_directions(features, weights, positions, groups, scale=scale / self.temperature)
        sizes = class_of.bincount(minlength=len(weights))
        starts = sizes.cumsum(0) - sizes
        turns = torch.arange(seeds_per_class, device=features.device)[None, :] % sizes[:, None]
        values = directions[starts[:, None] + turns]
        inside = groups - starts[positions]
        return Conditions(values, torch.where(sizes[positions] > 1, inside, torch.full_like(inside, -1)))


@final
class NoiseCondition(SeedCondition):
    """Random directions: the ablation in which the generator is told nothing but the class's text.

    References:
        Auto-Seed VL2, a design brief; the ablation is ours.

    Deviations:
        None.
    """

    def __call__(
        self,
        features: Tensor,
        positions: Tensor,
        weights: Tensor,
        scale: float,
        seeds_per_class: int,
        generator: torch.Generator,
    ) -> Conditions:
        """Return noise."""
        shape = (len(weights), seeds_per_class, 2, features.shape[1])
        noise = F.normalize(torch.randn(shape, generator=generator), dim=3).flatten(2).to(features)
        return Conditions(noise, torch.full_like(positions, -1))
