"""The visual features of images, as a strategy's model is now."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.models.heads import VisualSpace
from avalanche_vlm.models.modes import in_eval_mode
from avalanche_vlm.plugins.regularizer import autocast_of


@torch.no_grad()
def visual_features(strategy: Any, x: Tensor, space: VisualSpace) -> Tensor:
    """Return features (B, D') of images or embeddings, in eval mode and in the strategy's precision.

    Args:
        strategy: its model encodes.
        x: images (B, 3, H, W), or embeddings (B, D) for the space of embeddings.
        space: ``"embedding"``, as the model's head sees them, or ``"raw"``, before the projection.

    Raises:
        ValueError: raw features of embeddings are asked for.
    """
    model, x = strategy.model, x.to(strategy.device)
    check_visual_space(space, x[0])
    with in_eval_mode(model), autocast_of(strategy):
        return model.visual_features(x, space).float()


def check_visual_space(space: VisualSpace, sample: Tensor) -> None:
    """Raise `ValueError` if the raw features of an embedding (D,) are asked for."""
    if space == "raw" and sample.ndim == 1:
        raise wrong_value(
            "visual_space", "'embedding' for a stream of embeddings", "'raw', the features before them"
        )
