"""Pictures of typeset digits: light on dark, in many sizes, places, slants and strokes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_count, check_type, wrong_value
from avalanche_vlm.world.render import IMAGE_SIZE
from avalanche_vlm.world.styles import STYLE_FUNCTIONS, STYLES

#: The class names of digits.
DIGIT_WORDS: tuple[str, ...] = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)

# Glyphs are drawn this many times larger than the picture, and averaged down: smooth edges.
_SCALE = 4
_CANVAS = IMAGE_SIZE * _SCALE
_DRAWS = 8


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_CANVAS)


@cache
def _glyph(digit: int, stroke: int) -> Image.Image:
    """Return a digit in the middle of a canvas, as high as the canvas with a stroke of 0."""
    canvas = Image.new("L", (2 * _CANVAS, 2 * _CANVAS))
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = draw.textbbox((0, 0), str(digit), font=_font())
    place = (_CANVAS - (left + right) / 2, _CANVAS - (top + bottom) / 2)
    draw.text(place, str(digit), fill=255, font=_font(), stroke_width=stroke)
    zoom = (bottom - top) / _CANVAS
    shift = _CANVAS - zoom * _CANVAS
    return canvas.transform(
        canvas.size, Image.Transform.AFFINE, (zoom, 0, shift, 0, zoom, shift), Image.Resampling.BICUBIC
    )


def _cover(digit: int, draws: Sequence[float]) -> Image.Image:
    """Return where the light of a digit falls, (32, 32): how it stands is taken from numbers in [0, 1)."""
    stroke = int(draws[0] * 7)
    height = 0.7 + 0.25 * draws[1]  # of the picture
    width = height * (0.7 + 0.4 * draws[2])
    slant, turn = 0.6 * (draws[3] - 0.5), 0.3 * (draws[4] - 0.5)
    room = (1 - height) / 2 * _CANVAS
    x, y = (_CANVAS / 2 + room * (2 * draw - 1) for draw in draws[5:7])
    # From a pixel of the picture back to one of the glyph: turned, leaned over, stretched.
    cosine, sine = math.cos(turn), math.sin(turn)
    down = (-sine / height, cosine / height)
    along = ((cosine + slant * -sine) / width, (sine + slant * cosine) / width)
    matrix: list[float] = []
    for a, b in (along, down):
        matrix += [a, b, _CANVAS - a * x - b * y]
    large = _glyph(digit, stroke).transform(
        (_CANVAS, _CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return large.reduce(_SCALE)


@torch.no_grad()
def render_digits(digits: Sequence[int], *, style: str = "photo", generator: torch.Generator) -> Tensor:
    """Draw one picture of each digit, typeset: a rough drawing, and no handwriting.

    Args:
        digits: N whole numbers from 0 to 9.
        style: one of `STYLES`.
        generator: where size, place, slant, stroke, brightness and noise are drawn from, and on whose
            device the pictures are returned. The same state gives the same pictures.

    Returns:
        uint8 (N, 3, 32, 32), the same grey in red, green and blue.

    Raises:
        TypeError: ``generator`` is no `torch.Generator`, or one of ``digits`` no whole number.
        ValueError: ``style`` is unknown, or a number is no digit.

    >>> render_digits([3, 3, 8], generator=torch.Generator().manual_seed(0)).shape
    torch.Size([3, 3, 32, 32])
    """
    check_type("generator", generator, torch.Generator)
    check_choice("style", style, STYLES)
    for index, digit in enumerate(digits):
        check_count(f"digits[{index}]", digit, at_least=0)
        if digit > 9:
            raise wrong_value(f"digits[{index}]", "a digit from 0 to 9", digit)
    device = generator.device
    if not digits:
        return torch.empty(0, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8, device=device)
    draws = torch.rand(len(digits), _DRAWS, generator=generator, device=device)
    rows = zip(digits, draws.tolist(), strict=True)
    cover = np.stack([np.asarray(_cover(int(digit), row)) for digit, row in rows])
    light = (0.7 + 0.3 * draws[:, 7])[:, None, None]
    grey = light * torch.from_numpy(cover).to(device) / 255.0
    grey = grey + 0.02 * torch.randn(grey.shape, generator=generator, device=device)
    pictures = STYLE_FUNCTIONS[style](grey.clamp(0.0, 1.0)[:, None].expand(-1, 3, -1, -1), generator)
    return (pictures.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
