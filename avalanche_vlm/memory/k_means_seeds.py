"""Seeds that are the centres of the clusters of a class."""

from __future__ import annotations

import warnings
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm.memory.seed_source import CountedSeedSource, NewSeeds


@final
class KMeansSeeds(CountedSeedSource):
    """The centres of k-means in each class, put on the sphere.

    Args:
        seeds_per_class: k; a class with fewer different features has fewer seeds.
        seed: of the random numbers.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: a number out of its range.

    References:
        Lloyd, Least squares quantization in PCM, 1982; scikit-learn's ``KMeans``.

    Deviations:
        Centres are normalised.

    >>> KMeansSeeds(2).make(None, torch.eye(4), torch.tensor([0, 0, 1, 1])).labels.tolist()
    [0, 0, 1, 1]
    """

    def make(
        self, model: Any, features: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
    ) -> NewSeeds:
        """Return the centres."""
        groups, labels_of = class_groups(features, labels, self.seeds_per_class, self._generator)
        sums = features.new_zeros(len(labels_of), features.shape[1]).index_add_(0, groups, features)
        return NewSeeds(F.normalize(sums, dim=1), labels_of)


def class_groups(
    features: Tensor, labels: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Divide the features of each class into groups by k-means.

    Args:
        features: (N, D).
        labels: int64 (N,).
        count: most groups of a class.
        generator: of the random numbers.

    Returns:
        The group int64 (N,) of each feature, and the class int64 (G,) of each group; no group is empty.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    groups, classes, found = torch.zeros_like(labels), labels.unique(), 0
    labels_of: list[int] = []
    for label in classes.tolist():
        rows = (labels == label).nonzero().flatten()
        own = torch.zeros(len(rows), dtype=torch.int64)
        if count > 1 and len(rows) > 1:
            state = int(torch.randint(2**31 - 1, (), generator=generator))
            means = KMeans(min(count, len(rows)), n_init=cast(Any, 1), random_state=state)
            with warnings.catch_warnings():
                # Fewer different features than groups, which then stay empty.
                warnings.simplefilter("ignore", ConvergenceWarning)
                own = torch.from_numpy(means.fit_predict(features[rows].cpu().numpy())).long()
            own = own.unique(return_inverse=True)[1]
        groups[rows] = own.to(groups.device) + found
        size = int(own.max()) + 1
        labels_of += [label] * size
        found += size
    return groups, torch.tensor(labels_of, device=labels.device)
