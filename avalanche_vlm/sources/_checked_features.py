"""What `LatentGenerator.fit` refuses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_type, wrong_value


def is_whole(tensor: Tensor) -> bool:
    """Return whether a tensor holds whole numbers."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_features(features: Any, labels: Any, width: int) -> None:
    """Raise unless ``features`` are finite floats (N, D) and ``labels`` whole numbers (N,).

    Args:
        features: what should be features.
        labels: what should be their class ids.
        width: the D that is wanted; 0 if any will do.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise wrong_type("features", "a float tensor (N, D)", features)
    if not isinstance(labels, Tensor) or not is_whole(labels):
        raise wrong_type("labels", "a tensor (N,) of whole numbers", labels)
    if features.ndim != 2 or features.numel() == 0:
        raise wrong_value("features", "of shape (N, D), at least one", tuple(features.shape))
    if labels.shape != features.shape[:1]:
        expected = f"one for each of the {len(features)} features"
        raise wrong_value("labels", expected, f"shape {tuple(labels.shape)}")
    finite = features.detach().float().isfinite().all(dim=1)  # the largest float64 are infinite in float32
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()[:8]
        first = sorted(set(labels[~finite.to(labels.device)].tolist()))[:8]
        raise wrong_value("features", "finite", f"rows {rows} that are not, of classes {first}")
    if width not in (0, features.shape[1]):
        expected = f"of width {width}, as those fitted before"
        raise wrong_value("features", expected, tuple(features.shape))
