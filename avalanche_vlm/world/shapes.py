"""Shapes and textures as functions of the plane, evaluated for many objects at once.

A shape is a function (x, y) -> distance: negative inside, positive outside, growing at a rate of
about one across the outline, which is what makes a one-pixel ramp there an anti-aliased edge. A
texture is a function (x, y) -> [0, 1]: one where the first tone shows, zero where the second does.
Both live in the frame of the object: x to the right, y up, the unit disc about filled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

PlaneFunction = Callable[[Tensor, Tensor], Tensor]


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.hypot(x, y) - radius


def _half_plane(x: Tensor, y: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
    """Return the distance to the line from ``start`` to ``end``; its left side is inside."""
    run, rise = end[0] - start[0], end[1] - start[1]
    length = math.hypot(run, rise)
    return (rise * (x - start[0]) - run * (y - start[1])) / length


def _convex(x: Tensor, y: Tensor, *corners: tuple[float, float]) -> Tensor:
    """Return the distance to a convex polygon, given counter-clockwise."""
    distance = _half_plane(x, y, corners[-1], corners[0])
    for start, end in pairwise(corners):
        distance = torch.maximum(distance, _half_plane(x, y, start, end))
    return distance


def circle(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to a disc."""
    return _disc(x, y, 0.95)


def square(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to an upright square."""
    return _box(x, y, 0.82, 0.82)


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to a triangle that points up."""
    return _convex(x, y, (-1.0, -0.75), (1.0, -0.75), (0.0, 1.0))


def diamond(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to a rhombus that is taller than wide."""
    return _convex(x, y, (0.0, -1.1), (0.75, 0.0), (0.0, 1.1), (-0.75, 0.0))


def star(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to a star with five tips, one of them up."""
    tips, outer, inner = 5, 1.1, 0.45
    half = math.pi / tips
    angle = torch.atan2(x, y)  # from straight up
    folded = (torch.remainder(angle + half, 2 * half) - half).abs()
    radius = torch.hypot(x, y)
    corner = (inner * math.cos(half), inner * math.sin(half))
    return _half_plane(radius * folded.cos(), radius * folded.sin(), (outer, 0.0), corner)


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to a heart: a square on its corner and a disc on either upper edge."""
    side = x.abs()
    lower = _convex(
        side, y, (-1.0, 0.0), (0.0, -1.0), (0.95, -0.05), (0.475, 0.425), (0.0, 0.45), (-1.0, 0.4)
    )
    return torch.minimum(lower, torch.hypot(side - 0.48, y - 0.35) - 0.55)


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to an upright cross with four equal arms."""
    return torch.minimum(_box(x, y, 0.98, 0.34), _box(x, y, 0.34, 0.98))


def ring(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to a ring."""
    return (torch.hypot(x, y) - 0.72).abs() - 0.27


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to a crescent that opens to the right."""
    return torch.maximum(_disc(x + 0.15, y, 1.0), -_disc(x - 0.4, y, 0.8))


def arrow(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to an arrow that points right."""
    head = _convex(x, y, (0.05, -0.95), (1.05, 0.0), (0.05, 0.95))
    return torch.minimum(head, _box(x + 0.45, y, 0.55, 0.36))


def hourglass(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to two triangles that meet at their tips."""
    slope, waist = 0.8, 0.1
    flank = (x.abs() - slope * y.abs() - waist) / math.hypot(1.0, slope)
    return torch.maximum(flank, y.abs() - 0.98)


def bolt(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to a lightning bolt."""
    upper = _convex(x, y, (-0.65, -0.2), (0.25, -0.2), (0.6, 1.0), (-0.1, 1.0))
    lower = _convex(x, y, (-0.45, -1.1), (0.75, 0.25), (-0.25, 0.25))
    return torch.minimum(upper, lower)


SHAPE_FUNCTIONS: dict[str, PlaneFunction] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "diamond": diamond,
    "star": star,
    "heart": heart,
    "cross": cross,
    "ring": ring,
    "crescent": crescent,
    "arrow": arrow,
    "hourglass": hourglass,
    "bolt": bolt,
}


def _ramp(wave: Tensor, *, steepness: float) -> Tensor:
    """Return a wave around zero as a soft-edged mask."""
    return (0.5 + steepness * wave).clamp(0.0, 1.0)


def plain(x: Tensor, y: Tensor) -> Tensor:
    """Return a mask that shows the first tone everywhere."""
    return torch.ones_like(x + y)


def striped(x: Tensor, y: Tensor) -> Tensor:
    """Return a mask of stripes that run to the upper right."""
    return _ramp(torch.sin((x - y) * (2 * math.pi / 0.85)), steepness=1.2)


def dotted(x: Tensor, y: Tensor) -> Tensor:
    """Return a mask of round dots of the second tone on a square grid."""
    frequency = 2 * math.pi / 0.58
    return _ramp(1.0 - torch.cos(x * frequency) - torch.cos(y * frequency), steepness=0.9)


def checkered(x: Tensor, y: Tensor) -> Tensor:
    """Return a mask of a checkerboard."""
    frequency = math.pi / 0.42
    return _ramp(torch.sin(x * frequency) * torch.sin(y * frequency), steepness=2.0)


TEXTURE_FUNCTIONS: dict[str, PlaneFunction] = {
    "plain": plain,
    "striped": striped,
    "dotted": dotted,
    "checkered": checkered,
}
