"""Styles: ways to see the same thing, most of them never shown to the small CLIP in training.

A style takes pictures (N, 3, H, W) with values in about [0, 1] and a generator, and returns
pictures of that size. How strong each unseen style is was set against the shipped weights, so that
zero-shot recognition suffers and does not vanish: there is something to learn, and to forget.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

StyleFunction = Callable[[Tensor, torch.Generator], Tensor]


def _luminance(pictures: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=pictures.device, dtype=pictures.dtype)
    return (pictures * weights[None, :, None, None]).sum(dim=1, keepdim=True)


def _noise(pictures: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(pictures.shape, generator=generator, device=pictures.device)


def _gaussian_blur(pictures: Tensor, sigma: float) -> Tensor:
    def along(size: int) -> Tensor:
        # Each row sums to one, at the border too. A product of small matrices is several times
        # faster than a depthwise convolution with a wide kernel.
        place = torch.arange(size, device=pictures.device, dtype=pictures.dtype)
        weights = torch.exp(-0.5 * ((place[:, None] - place[None, :]) / sigma) ** 2)
        return weights / weights.sum(dim=1, keepdim=True)

    height, width = pictures.shape[-2:]
    return along(height) @ pictures @ along(width).T


def photo(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return the pictures as they are: the style of the training set."""
    return pictures


def sketch(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Draw dark outlines on white paper, with a thin wash of the colours."""
    grey = _luminance(pictures)
    down = F.pad(grey, (0, 0, 0, 1), mode="replicate")[:, :, 1:] - grey
    right = F.pad(grey, (0, 1, 0, 0), mode="replicate")[:, :, :, 1:] - grey
    outline = (3.0 * torch.hypot(down, right) - 0.2).clamp(0.0, 1.0)
    wash = 0.9 + 0.85 * (pictures - grey)
    return wash * (1.0 - 0.85 * outline)


def night(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Take most of the light away, leave a blue cast and the grain of a slow film."""
    cast = torch.tensor([0.31, 0.39, 0.60], device=pictures.device, dtype=pictures.dtype)
    return cast[None, :, None, None] * pictures + 0.03 * _noise(pictures, generator)


def blur(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Take the pictures out of focus."""
    return _gaussian_blur(pictures, sigma=2.0)


def negative(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Turn light into dark and every hue into its opposite."""
    return 1.0 - pictures


def mosaic(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Lay the pictures in square tiles of one colour each."""
    tiles = F.adaptive_avg_pool2d(pictures, 10)
    return F.interpolate(tiles, size=pictures.shape[-2:], mode="nearest")


def rain(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Let bright slanted streaks fall in front of the scene."""
    count, _, height, width = pictures.shape
    seeds = torch.rand(count, 1, height, width, generator=generator, device=pictures.device)
    drops = (seeds < 0.04).to(pictures.dtype)
    streak = torch.zeros(1, 1, 7, 7, device=pictures.device, dtype=pictures.dtype)
    for step in range(7):
        streak[0, 0, step, 4 - step // 3] = 1.0
    streaks = F.conv2d(drops, streak, padding=3).clamp(max=1.0)
    return pictures + 0.7 * streaks * (0.9 - pictures)


def fog(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Let the scene fade into a pale haze of uneven thickness."""
    count = pictures.shape[0]
    coarse = torch.rand(count, 1, 4, 4, generator=generator, device=pictures.device)
    haze = 0.52 + 0.2 * F.interpolate(coarse, size=pictures.shape[-2:], mode="bilinear")
    return (1.0 - haze) * pictures + haze * 0.85


STYLE_FUNCTIONS: dict[str, StyleFunction] = {
    "photo": photo,
    "sketch": sketch,
    "night": night,
    "blur": blur,
    "negative": negative,
    "mosaic": mosaic,
    "rain": rain,
    "fog": fog,
}
#: The styles that pictures can be drawn in.
STYLES: tuple[str, ...] = tuple(STYLE_FUNCTIONS)
#: The styles that the small CLIP was trained on.
TRAINING_STYLES: tuple[str, ...] = ("photo",)
