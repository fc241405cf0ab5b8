"""A text-to-image model in three lines, and a strategy of which regularizers ask no more than they may."""

import zlib

import torch

from avalanche_vlm.sources import GeneratedImages, ImageSource, LearnedClassPrompts, NamePrompts, PromptUnion

NAMES = ("tench", "goldfish", "cock", "ostrich", "robin")


class TinyImageSource(ImageSource):
    """Noise around a pattern for each prompt; it counts what it is asked for."""

    def __init__(self):
        self.drawn = []

    def _sample(self, prompts, seeds):
        self.drawn += list(zip(prompts, seeds, strict=True))
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            pattern = torch.rand(
                3, 8, 8, generator=torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
            )
            noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))
            images.append((255 * (0.7 * pattern + 0.3 * noise)).to(torch.uint8))
        return GeneratedImages(torch.stack(images), list(prompts))

    def describe(self):
        return {"kind": "TinyImageSource"}


class Agent:
    """A strategy that has a model, and does not train."""

    def __init__(self, model):
        self.model = model


def union():
    return PromptUnion([NamePrompts(NAMES), LearnedClassPrompts()])


def moved(model, amount=0.05):
    """Move all that trains, always in the same way."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return model
