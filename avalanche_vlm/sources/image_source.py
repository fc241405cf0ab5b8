"""What one can draw images of a sentence from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import Self

from avalanche_vlm._checks import check_type, wrong_type, wrong_value
from avalanche_vlm._stateful import Stateful

_SEEDS = 2**63


class GeneratedImages(NamedTuple):
    """Images and what they show; row i of the one belongs to entry i of the other.

    Attributes:
        images: uint8 (N, 3, H, W), on the CPU.
        captions: N sentences: the prompt, unless the source knows better.
    """

    images: Tensor
    captions: list[str]


class ImageSource(Stateful, ABC):
    """A text-to-image model: images of sentences, each from a seed of its own.

    A source keeps no random state: image i depends on its prompt and its seed alone, whatever else is
    asked for in the same call or was before. So there is nothing in it to resume.

    Subclasses implement `_sample` and `describe`.
    """

    @abstractmethod
    def _sample(self, prompts: list[str], seeds: list[int]) -> GeneratedImages:
        """Return one image for each pair of a prompt and a seed, at least one pair, in their order."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what decides the pixels as plain JSON values, for manifests and the provenance of runs."""

    @final
    @torch.no_grad()
    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> GeneratedImages:
        """Draw an image of each prompt.

        Args:
            prompts: N sentences, at least one.
            seeds: N whole numbers from 0 to 2⁶³ - 1.

        Returns:
            Images uint8 (N, 3, H, W) on the CPU, and their captions.

        Raises:
            TypeError: prompts that are no text, seeds that are no whole numbers.
            ValueError: no prompt, lengths that differ, a seed out of range, or a prompt that the source
                cannot draw.
        """
        texts, numbers = checked_pairs(prompts, seeds)
        drawn: Any = self._sample(texts, numbers)
        told = f"uint8 tensors ({len(texts)}, 3, H, W) with as many captions, as GeneratedImages"
        expected = f"a method of {type(self).__name__} that returns {told}"
        if not isinstance(drawn, GeneratedImages) or not isinstance(drawn.images, Tensor):
            raise wrong_type("_sample", expected, drawn)
        images, captions = drawn.images, list(drawn.captions)
        wrong = images.dtype != torch.uint8 or images.ndim != 4 or images.shape[:2] != (len(texts), 3)
        if wrong or len(captions) != len(texts) or not all(isinstance(each, str) for each in captions):
            got = f"{images.dtype} {tuple(images.shape)} and {len(captions)} captions like {captions[:1]}"
            raise wrong_value("_sample", expected, got)
        return GeneratedImages(images.cpu(), captions)

    def prepare(self, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        """Get ready to be asked for these images, in parts: a source that stores them makes them here."""

    def to(self, device: torch.device | str) -> Self:
        """Choose where images are made, if the source can; they come back on the CPU all the same."""
        return self


def checked_pairs(prompts: Any, seeds: Any) -> tuple[list[str], list[int]]:
    """Return prompts and seeds as lists, or raise as `ImageSource.sample` says."""
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise wrong_type("prompts", "a list of sentences", prompts, "Wrap a single one in a list.")
    if not isinstance(seeds, Iterable):
        raise wrong_type("seeds", "a list of whole numbers, one for each prompt", seeds)
    texts, numbers = list(prompts), list(seeds)
    for index, text in enumerate(texts):
        check_type(f"prompts[{index}]", text, str)
    if not texts:
        raise wrong_value("prompts", "at least one sentence", "none")
    if len(numbers) != len(texts):
        raise wrong_value("seeds", f"one for each of the {len(texts)} prompts", f"{len(numbers)} of them")
    for index, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise wrong_type(f"seeds[{index}]", "a whole number", number)
        if not 0 <= int(number) < _SEEDS:
            raise wrong_value(f"seeds[{index}]", "a whole number from 0 to 2**63 - 1", number)
    return texts, [int(number) for number in numbers]
