"""What synthetic images are asked for: lists of sentences, and draws from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, final

import torch

from avalanche_vlm._checks import check_count, check_type, wrong_type, wrong_value
from avalanche_vlm._stateful import Stateful
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.text import PromptTemplate


class Prompt(NamedTuple):
    """A sentence to draw an image of.

    Attributes:
        text: the sentence.
        class_id: the class of the model that it is about; None for a name that is none of them.
    """

    text: str
    class_id: int | None


class PromptPool(Stateful, ABC):
    """A list of sentences that may grow with the classes that a model has learned."""

    @abstractmethod
    def prompts(self, model: CLIPClassifier) -> list[Prompt]:
        """Return the prompts, each text once, in a fixed order; there may be none.

        Args:
            model: whose class names and templates the sentences may be made of.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the settings as plain values, for the provenance of runs."""

    def learn(self, model: CLIPClassifier) -> None:
        """Take note of the classes that the model has seen; to be called after an experience."""


@final
class PromptUnion(PromptPool):
    """The prompts of several pools, one after the other, each text once.

    A text of several pools stands where it came first, with the first class id that is none of None.

    Args:
        pools: the pools.

    Raises:
        TypeError: something is no pool.
        ValueError: no pool.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025
        (arXiv 2503.04229), on synthetic data-based distillation:
        the classes of ImageNet together with those of earlier tasks.

    Deviations:
        None.

    >>> from avalanche_vlm.sources import LearnedClassPrompts, NamePrompts
    >>> from avalanche_vlm.testing import tiny_classifier
    >>> pool = PromptUnion([NamePrompts(["cat", "eel"]), LearnedClassPrompts()])
    >>> [prompt.text for prompt in pool.prompts(tiny_classifier())]
    ['a photo of a cat.', 'a photo of a eel.']
    """

    def __init__(self, pools: Iterable[PromptPool]) -> None:
        if not isinstance(pools, Iterable) or isinstance(pools, (str, set, frozenset)):
            raise wrong_type("pools", "an ordered list of pools", pools)
        self.pools = tuple(pools)
        for index, pool in enumerate(self.pools):
            check_type(f"pools[{index}]", pool, PromptPool)
        if not self.pools:
            raise wrong_value("pools", "at least one pool", "none")

    def prompts(self, model: CLIPClassifier) -> list[Prompt]:
        """Return the prompts of all pools."""
        return distinct(prompt for pool in self.pools for prompt in pool.prompts(model))

    def describe(self) -> dict[str, Any]:
        """Return what the pools are."""
        return {"pools": [{"kind": type(pool).__name__, **pool.describe()} for pool in self.pools]}

    def learn(self, model: CLIPClassifier) -> None:
        """Let every pool take note."""
        for pool in self.pools:
            pool.learn(model)

    @property
    def nbytes(self) -> int:
        """Number of bytes of what the pools have learned."""
        return sum(pool.nbytes for pool in self.pools)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the pools."""
        return {"pools": [pool.state_dict() for pool in self.pools]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the states of the pools.

        Raises:
            ValueError: the state of another kind of pool, or of another number of them.
        """
        states = state.get("pools")
        if set(state) != {"pools"} or not isinstance(states, Sequence) or len(states) != len(self.pools):
            raise wrong_value("state", f"that of {len(self.pools)} pools", f"one with {sorted(state)}")
        for pool, own in zip(self.pools, states, strict=True):
            pool.load_state_dict(own)


def draw_prompts(
    prompts: Sequence[Prompt], count: int, *, generator: torch.Generator, replacement: bool = True
) -> list[Prompt]:
    """Draw prompts uniformly.

    Args:
        prompts: what to draw from.
        count: how many to draw.
        generator: where the choice comes from.
        replacement: whether a prompt may come more than once.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: no prompt, or, without replacement, fewer than ``count``.

    References:
        Wu et al., CVPR 2025 (arXiv 2503.04229): 1,000 draws a task, in the authors' code with replacement.

    Deviations:
        None.

    >>> cats = [Prompt("a cat", 0), Prompt("a dog", 1)]
    >>> len(draw_prompts(cats, 5, generator=torch.Generator().manual_seed(0)))
    5
    """
    check_count("count", count)
    check_type("generator", generator, torch.Generator)
    check_type("replacement", replacement, bool)
    if not prompts:
        raise wrong_value("prompts", "at least one prompt", "none")
    device = generator.device
    if replacement:
        chosen = torch.randint(len(prompts), (count,), generator=generator, device=device)
    elif count <= len(prompts):
        chosen = torch.randperm(len(prompts), generator=generator, device=device)[:count]
    else:
        advice = "Draw fewer, or with replacement=True."
        raise wrong_value("count", f"at most {len(prompts)}, the number of prompts", count, advice)
    return [prompts[index] for index in chosen.tolist()]


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return each text once, where it comes first, with the first class id that it has."""
    found: dict[str, int | None] = {}
    for text, class_id in prompts:
        found[text] = class_id if found.get(text) is None else found[text]
    return [Prompt(text, class_id) for text, class_id in found.items()]


def checked_template(argument: str, template: Any) -> PromptTemplate:
    """Return a sentence with one field, text or not, or raise with the name of the argument."""
    check_type(argument, template, (str, PromptTemplate), 'Write it like "a photo of a {}.".')
    return PromptTemplate(template) if isinstance(template, str) else template
