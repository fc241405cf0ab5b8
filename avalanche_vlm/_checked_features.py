"""What every part that takes in features of classes refuses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_type, wrong_value


def is_whole(tensor: Tensor) -> bool:
    """Return whether a tensor holds whole numbers."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_features(
    features: Any,
    labels: Any,
    width: int,
    *,
    argument: str = "features",
    class_count: int | None = None,
    at_least: int = 1,
) -> None:
    """Raise unless ``features`` are finite floats (N, D) and ``labels`` whole numbers (N,).

    Args:
        features: what should be features.
        labels: what should be their class ids.
        width: the D that is wanted; 0 if any will do.
        argument: how the caller names the features.
        class_count: ids are below it, and not negative; None if any will do.
        at_least: smallest N, 0 or 1.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise wrong_type(argument, "a float tensor (N, D)", features)
    if not isinstance(labels, Tensor) or not is_whole(labels):
        raise wrong_type("labels", "a tensor (N,) of whole numbers", labels)
    some = features.numel() > 0 or at_least == 0
    if features.ndim != 2 or not some or width not in (0, features.shape[1]):
        expected = f"of shape (N, {width or 'D'}){', at least one' if at_least else ''}"
        raise wrong_value(argument, expected, tuple(features.shape))
    if labels.shape != features.shape[:1]:
        expected = f"one for each of the {len(features)} {argument}"
        raise wrong_value("labels", expected, f"shape {tuple(labels.shape)}")
    if class_count is not None and len(labels) > 0:
        low, high = int(labels.min()), int(labels.max())
        if not 0 <= low <= high < class_count:
            raise wrong_value("labels", f"in 0..{class_count - 1}", f"from {low} to {high}")
    finite = features.detach().float().isfinite().all(dim=1)  # the largest float64 are infinite in float32
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()[:8]
        first = sorted(set(labels[~finite.to(labels.device)].tolist()))[:8]
        raise wrong_value(argument, "finite", f"rows {rows} that are not, of classes {first}")
