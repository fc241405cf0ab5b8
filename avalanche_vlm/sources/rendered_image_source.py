"""The small world as a text-to-image model that needs no weights and no network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_number, wrong_value
from avalanche_vlm.sources.image_source import GeneratedImages, ImageSource
from avalanche_vlm.world import (
    COLORS,
    DIGIT_WORDS,
    SHAPES,
    STYLES,
    TEXTURES,
    WorldObject,
    render,
    render_digits,
)

_ATTRIBUTES = (COLORS, TEXTURES, SHAPES)
_DIGIT = re.compile(rf"\bdigit ({'|'.join(DIGIT_WORDS)})\b")
_SHOWN = 5


@final
class RenderedImageSource(ImageSource):
    """Draws the objects of the small world, and typeset digits, from what a prompt says.

    A prompt names one object by a colour, a texture and a shape, in any order and with any words around
    them ("a photo of a circle that is red and striped."), or one digit ("digit zero" to "digit nine").
    Images are 32×32.

    Args:
        style: one of `avalanche_vlm.world.STYLES`: how everything is drawn, whatever a prompt says of it.
        wrong_attribute_rate: probability, for each of colour, texture and shape (or the digit), that
            another one is drawn than asked for. The caption is the prompt all the same: text-to-image
            models are imperfect. Where nothing is wrong, the image is the one of rate 0.

    Raises:
        TypeError: ``wrong_attribute_rate`` is no number.
        ValueError: an unknown ``style``, or a rate outside of 0 to 1; in `sample`, prompts that it cannot
            draw.

    References:
        `avalanche_vlm.world`; it takes the place of the Stable Diffusion of Wu et al., Synthetic Data is
        an Elegant GIFT for Continual Vision-Language Models, CVPR 2025 (arXiv 2503.04229).

    Deviations:
        A renderer and no learned model: it draws 384 objects and ten digits, and refuses the rest.

    >>> source = RenderedImageSource(style="night")
    >>> images, captions = source.sample(["a photo of a red striped circle.", "digit seven"], [0, 1])
    >>> tuple(images.shape), captions[1]
    ((2, 3, 32, 32), 'digit seven')
    """

    def __init__(self, *, style: str = "photo", wrong_attribute_rate: float = 0.0) -> None:
        check_choice("style", style, STYLES)
        check_number("wrong_attribute_rate", wrong_attribute_rate, at_least=0, at_most=1)
        self.style = style
        self.wrong_attribute_rate = wrong_attribute_rate

    def describe(self) -> dict[str, Any]:
        """Return the style and the rate."""
        return {
            "kind": "RenderedImageSource",
            "style": self.style,
            "wrong_attribute_rate": float(self.wrong_attribute_rate),
        }

    def _sample(self, prompts: list[str], seeds: list[int]) -> GeneratedImages:
        asked = [_asked_for(prompt) for prompt in prompts]
        unknown = [prompt for prompt, each in zip(prompts, asked, strict=True) if each is None]
        if unknown:
            distinct = list(dict.fromkeys(unknown))
            more = f", ... ({len(distinct)} in all)" if len(distinct) > _SHOWN else ""
            raise wrong_value(
                "prompts",
                "sentences with one colour, one texture and one shape of the small world, or with one of "
                "'digit zero' to 'digit nine'",
                ", ".join(map(repr, distinct[:_SHOWN])) + more,
                "Take them out of the pool of prompts.",
            )
        # One call each: an image must not depend on its neighbours, and a call has one generator.
        drawn = [self._draw(each, seed) for each, seed in zip(asked, seeds, strict=True) if each is not None]
        return GeneratedImages(torch.cat(drawn), prompts)

    def _draw(self, asked: WorldObject | int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        # Drawn at every rate, so that the rate changes nothing else in an image.
        chances = torch.rand(2, len(_ATTRIBUTES), generator=generator).tolist()
        wrong = [chance < self.wrong_attribute_rate for chance in chances[0]]
        if isinstance(asked, int):
            digit = int(_another(range(len(DIGIT_WORDS)), asked, chances[1][0])) if wrong[0] else asked
            return render_digits([digit], style=self.style, generator=generator)
        words = [asked.color, asked.texture, asked.shape]
        for index, known in enumerate(_ATTRIBUTES):
            if wrong[index]:
                words[index] = _another(known, words[index], chances[1][index])
        color, texture, shape = words
        return render([WorldObject(shape, color, texture)], style=self.style, generator=generator)


def _asked_for(prompt: str) -> WorldObject | int | None:
    """Return the one object or the one digit that a prompt names, or None."""
    text = " ".join(prompt.lower().split())
    words = set(re.findall(r"[a-z]+", text))
    named = [words.intersection(known) for known in _ATTRIBUTES]
    digits = set(_DIGIT.findall(text))
    if [len(each) for each in named] == [1, 1, 1] and not digits:
        (color,), (texture,), (shape,) = named
        return WorldObject(shape, color, texture)
    if len(digits) == 1 and not any(named):
        return DIGIT_WORDS.index(digits.pop())
    return None


def _another(known: Sequence[Any], asked: Any, chance: float) -> Any:
    """Return one of the others, uniformly, for a number from [0, 1)."""
    others = [each for each in known if each != asked]
    return others[int(chance * len(others))]
