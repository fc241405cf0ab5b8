"""What new seeds stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_vlm.memory._seed_store import SeedNumbers


def seed_description(
    seeds: Tensor, labels: Tensor, features: Tensor, feature_labels: Tensor, lengths: Tensor
) -> SeedNumbers:
    """Return what is known of seeds (M, D) from the features of their classes.

    Args:
        seeds: of unit length.
        labels: int64 (M,).
        features: (N, D), of unit length.
        feature_labels: int64 (N,).
        lengths: (N,), those that the features had.
    """
    counts, spreads, means = torch.ones(len(seeds)), torch.zeros(len(seeds)), torch.ones(len(seeds))
    alone: list[Tensor] = []
    for label in labels.unique().tolist():
        rows, own = (labels == label).nonzero().flatten(), features[feature_labels == label]
        nearest = (own @ seeds[rows].T).argmax(dim=1)
        counts[rows] = nearest.bincount(minlength=len(rows)).clamp(min=1).float()
        distance = (own - seeds[rows][nearest]).square().sum(dim=1)
        spreads[rows] = (distance.mean() / features.shape[1]).sqrt()
        means[rows] = lengths[feature_labels == label].mean()
        if len(own) == 1:
            alone.append(rows)
    if alone:  # a single feature does not tell how far others would be: take the mean of other classes
        single = torch.cat(alone)
        others = torch.ones(len(seeds), dtype=torch.bool)
        others[single] = False
        spreads[single] = spreads[others].mean() if others.any() else 0.0
    return SeedNumbers(labels, counts, spreads, means)
