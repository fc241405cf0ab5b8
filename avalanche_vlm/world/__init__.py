"""A small rendered world: pictures and captions that compose, made offline by this package."""

from avalanche_vlm.world.captions import STYLE_TEMPLATES, caption
from avalanche_vlm.world.digits import DIGIT_WORDS, render_digits
from avalanche_vlm.world.objects import (
    COLORS,
    HELD_OUT,
    SHAPES,
    TEXTURES,
    TRAINED,
    WorldObject,
    all_objects,
)
from avalanche_vlm.world.render import IMAGE_SIZE, render
from avalanche_vlm.world.styles import STYLES, TRAINING_STYLES

__all__ = [
    "COLORS",
    "DIGIT_WORDS",
    "HELD_OUT",
    "IMAGE_SIZE",
    "SHAPES",
    "STYLES",
    "STYLE_TEMPLATES",
    "TEXTURES",
    "TRAINED",
    "TRAINING_STYLES",
    "WorldObject",
    "all_objects",
    "caption",
    "render",
    "render_digits",
]
