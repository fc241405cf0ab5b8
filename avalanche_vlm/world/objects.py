"""What the world can draw: 12 shapes in 8 colours and 4 textures, 384 objects in all."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from avalanche_vlm._checks import check_choice, close_names, wrong_type, wrong_value

#: The shapes of objects.
SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "star",
    "heart",
    "cross",
    "ring",
    "crescent",
    "arrow",
    "hourglass",
    "bolt",
)
#: The colours of objects.
COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
#: The textures of objects.
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")


@dataclass(frozen=True)
class WorldObject:
    """One thing that can be drawn and named.

    Args:
        shape: one of `SHAPES`.
        color: one of `COLORS`.
        texture: one of `TEXTURES`.

    Raises:
        ValueError: an attribute is none of those.

    >>> WorldObject("circle", "red", "striped").name
    'red striped circle'
    """

    shape: str
    color: str
    texture: str

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, SHAPES)
        check_choice("color", self.color, COLORS)
        check_choice("texture", self.texture, TEXTURES)

    @property
    def name(self) -> str:
        """Colour, texture and shape, in this order."""
        return f"{self.color} {self.texture} {self.shape}"

    @classmethod
    def parse(cls, name: str) -> WorldObject:
        """Return the object that is called ``name``, up to case and white space.

        Raises:
            TypeError: ``name`` is not text.
            ValueError: the world has no such object; the error names close ones.

        >>> WorldObject.parse("Red striped  circle").shape
        'circle'
        """
        if not isinstance(name, str):
            raise wrong_type("name", "text", name)
        words = name.lower().split()
        if len(words) == 3:
            color, texture, shape = words
            if color in COLORS and texture in TEXTURES and shape in SHAPES:
                return cls(shape, color, texture)
        known = [known_object.name for known_object in all_objects()]
        expected = "a colour, a texture and a shape that the world can draw"
        raise wrong_value("name", expected, repr(name), close_names(" ".join(words), known))


def all_objects() -> tuple[WorldObject, ...]:
    """Return the 384 objects, ordered by shape, then colour, then texture."""
    return tuple(WorldObject(*attributes) for attributes in product(SHAPES, COLORS, TEXTURES))


def _is_held_out(world_object: WorldObject) -> bool:
    # One diagonal in six: every pair of a shape with a colour, a shape with a texture and a colour
    # with a texture stays in the training set, so that only the combination of three is new.
    indices = (
        SHAPES.index(world_object.shape),
        COLORS.index(world_object.color),
        TEXTURES.index(world_object.texture),
    )
    return sum(indices) % 6 == 0


#: The objects that the small CLIP never saw.
HELD_OUT: tuple[WorldObject, ...] = tuple(each for each in all_objects() if _is_held_out(each))
"""The 64 objects that the small CLIP never saw in training."""

#: The objects that the small CLIP was trained on.
TRAINED: tuple[WorldObject, ...] = tuple(each for each in all_objects() if not _is_held_out(each))
"""The 320 objects that the small CLIP was trained on."""
