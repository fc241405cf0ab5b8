"""Sentences about objects: one plain caption a style, and paraphrases to train on."""

from __future__ import annotations

import torch

from avalanche_vlm._checks import check_choice, check_type
from avalanche_vlm.world.objects import WorldObject
from avalanche_vlm.world.styles import STYLES

#: The sentence about a picture of each style.
STYLE_TEMPLATES: dict[str, str] = {
    "photo": "a photo of a {}.",
    "sketch": "a sketch of a {}.",
    "night": "a photo of a {} at night.",
    "blur": "a blurry photo of a {}.",
    "negative": "a negative of a {}.",
    "mosaic": "a mosaic of a {}.",
    "rain": "a photo of a {} in the rain.",
    "fog": "a photo of a {} in the fog.",
}
"""For each style, the template that says it."""

# None of these says anything about a style: the words for the styles that the small CLIP has never
# seen stay words that it has never read.
_PHOTO_TEMPLATES = (
    "{}",
    "{}.",
    "a {}",
    "a {}.",
    "the {}.",
    "this is a {}.",
    "there is a {}.",
    "there is a {} in the scene.",
    "a photo of {}.",
    "a photo of a {}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of my {}.",
    "photo of a {}",
    "a picture of a {}.",
    "a picture of the {}.",
    "an image of a {}.",
    "an image of one {}.",
    "itap of a {}.",
    "i love my {}!",
    "a good photo of a {}.",
    "a good photo of the {}.",
    "a bad photo of a {}.",
    "a bad photo of the {}.",
    "a nice {}.",
    "a clean photo of a {}.",
    "a close-up photo of a {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "a photo of the small {}.",
    "a photo of the large {}.",
    "a photo of many {}.",
)
_DESCRIPTIONS = (
    "{color} {texture} {shape}",
    "{color} {texture} {shape}",
    "{texture} {color} {shape}",
    "{color} {shape} that is {texture}",
    "{texture} {shape} that is {color}",
    "{shape} that is {color} and {texture}",
    "{shape} that is {texture} and {color}",
    "{shape}, {color} and {texture}",
    "{color}, {texture} {shape}",
    "{texture} {shape} in {color}",
    "{shape} in {color}, {texture}",
)


def _choose(options: tuple[str, ...], generator: torch.Generator) -> str:
    index = torch.randint(len(options), (), generator=generator, device=generator.device)
    return options[int(index)]


def caption(
    world_object: WorldObject, *, style: str = "photo", generator: torch.Generator | None = None
) -> str:
    """Return a sentence about an object.

    Args:
        world_object: what the sentence is about.
        style: one of `STYLES`; it chooses the words around the name.
        generator: if given, the name's words are put in an order drawn from it and, for the style
            ``"photo"``, the sentence around them is drawn too: a paraphrase. Without it the
            caption is plain, and the same at every call.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: ``style`` is unknown.

    >>> caption(WorldObject("circle", "red", "striped"))
    'a photo of a red striped circle.'
    """
    check_type("world_object", world_object, WorldObject)
    check_choice("style", style, STYLES)
    template, description = STYLE_TEMPLATES[style], _DESCRIPTIONS[0]
    if generator is not None:
        check_type("generator", generator, torch.Generator)
        description = _choose(_DESCRIPTIONS, generator)
        if style == "photo":
            template = _choose(_PHOTO_TEMPLATES, generator)
    words = description.format(
        color=world_object.color, texture=world_object.texture, shape=world_object.shape
    )
    return template.replace("{}", words)
