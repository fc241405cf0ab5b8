"""Pictures of objects: position, size, angle, light and background vary, the object is seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_choice, check_type
from avalanche_vlm.world.objects import WorldObject
from avalanche_vlm.world.shapes import SHAPE_FUNCTIONS, TEXTURE_FUNCTIONS, PlaneFunction
from avalanche_vlm.world.styles import STYLE_FUNCTIONS, STYLES

#: Height and width of a picture, in pixels.
IMAGE_SIZE = 32

_RGB = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.97, 0.50, 0.05),
    "yellow": (0.96, 0.88, 0.15),
    "green": (0.15, 0.62, 0.18),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.12, 0.22, 0.85),
    "purple": (0.50, 0.14, 0.66),
    "pink": (0.98, 0.55, 0.76),
}


class _Draws:
    """Uniform numbers for N images, drawn in a fixed order from one generator."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator

    def __call__(self, low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(self.count, *shape, generator=self.generator, device=self.generator.device)
        return low + (high - low) * unit


def _by_kind(names: Sequence[str], functions: dict[str, PlaneFunction], x: Tensor, y: Tensor) -> Tensor:
    """Evaluate for each image the function of its kind, all images of a kind at once."""
    result = torch.empty_like(x)
    for kind, function in functions.items():
        rows = [row for row, name in enumerate(names) if name == kind]
        if rows:
            index = torch.tensor(rows, device=x.device)
            result[index] = function(x[index], y[index])
    return result


def _background(draw: _Draws) -> Tensor:
    """Return greyish backgrounds (N, 3, 32, 32): the strong colours are the objects' own."""
    device = draw.generator.device
    grey = draw(0.15, 0.85, 1, 1, 1) + draw(-0.06, 0.06, 3, 1, 1)
    ramp = torch.linspace(-1.0, 1.0, IMAGE_SIZE, device=device)
    light = draw(-0.12, 0.12, 1, 1, 1) * ramp[None, None, None, :]
    light = light + draw(-0.12, 0.12, 1, 1, 1) * ramp[None, None, :, None]
    clouds = F.interpolate(draw(-0.08, 0.08, 1, 5, 5), size=IMAGE_SIZE, mode="bilinear")
    return grey + light + clouds


@torch.no_grad()
def render(objects: Sequence[WorldObject], *, style: str = "photo", generator: torch.Generator) -> Tensor:
    """Draw one picture of each object.

    Args:
        objects: N objects; naming one twice gives two different pictures of it.
        style: one of `STYLES`.
        generator: where position, size, angle, colours and noise are drawn from, and on whose
            device the pictures are made. The same state gives the same pictures.

    Returns:
        uint8 (N, 3, 32, 32), red, green and blue.

    Raises:
        TypeError: ``generator`` is no `torch.Generator`, or one of ``objects`` no `WorldObject`.
        ValueError: ``style`` is unknown.

    >>> generator = torch.Generator().manual_seed(0)
    >>> render([WorldObject("circle", "red", "striped")] * 2, generator=generator).shape
    torch.Size([2, 3, 32, 32])
    """
    check_type("generator", generator, torch.Generator)
    check_choice("style", style, STYLES)
    for index, each in enumerate(objects):
        check_type(f"objects[{index}]", each, WorldObject)
    if not objects:
        return torch.empty(0, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8, device=generator.device)
    pictures = STYLE_FUNCTIONS[style](_photo(objects, generator), generator)
    return (pictures.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def _photo(objects: Sequence[WorldObject], generator: torch.Generator) -> Tensor:
    """Return pictures (N, 3, 32, 32) with values about [0, 1], before any style."""
    draw = _Draws(len(objects), generator)
    device = generator.device
    # Where the object is, in a frame that spans [-1, 1] with y up.
    axis = (torch.arange(IMAGE_SIZE, device=device) + 0.5) * (2.0 / IMAGE_SIZE) - 1.0
    radius = draw(0.6, 0.85, 1, 1)
    room = 1.0 - radius
    dx = axis[None, None, :] - room * draw(-1.0, 1.0, 1, 1)
    dy = -axis[None, :, None] - room * draw(-1.0, 1.0, 1, 1)
    angle = draw(-0.3, 0.3, 1, 1)
    cosine, sine = angle.cos() / radius, angle.sin() / radius
    x = cosine * dx + sine * dy
    y = cosine * dy - sine * dx
    distance = _by_kind([each.shape for each in objects], SHAPE_FUNCTIONS, x, y)
    coverage = (0.5 - distance * radius * (IMAGE_SIZE / 2)).clamp(0.0, 1.0).unsqueeze(1)
    # The pattern is laid on the object with an offset of its own, so that no pixel of it is fixed.
    offset_x, offset_y = draw(-0.4, 0.4, 1, 1), draw(-0.4, 0.4, 1, 1)
    textures = [each.texture for each in objects]
    pattern = _by_kind(textures, TEXTURE_FUNCTIONS, x + offset_x, y + offset_y).unsqueeze(1)
    palette = torch.tensor([_RGB[each.color] for each in objects], device=device)
    tone = palette[:, :, None, None] * draw(0.85, 1.1, 1, 1, 1) + draw(-0.05, 0.05, 3, 1, 1)
    # The second tone is a darker or a paler one of the same hue.
    paler = (draw(0.0, 1.0, 1, 1, 1) < 0.5).to(tone.dtype)
    second = paler * (0.25 * tone + 0.72) + (1.0 - paler) * (0.25 * tone)
    thing = pattern * tone + (1.0 - pattern) * second
    picture = coverage * thing + (1.0 - coverage) * _background(draw)
    noise = torch.randn(picture.shape, generator=generator, device=device)
    return picture * draw(0.85, 1.1, 1, 1, 1) + 0.02 * noise
