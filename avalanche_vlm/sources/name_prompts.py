"""Sentences about a fixed list of names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, final

from avalanche_vlm._checks import check_type, wrong_value
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.sources.prompt_pools import Prompt, PromptPool, checked_template, distinct
from avalanche_vlm.text import DEFAULT_TEMPLATE, PromptTemplate, dataset_text
from avalanche_vlm.text.class_names import ordered

_TOLD = 16


class NamePrompts(PromptPool):
    """A sentence about each name of a list, whatever the model's classes are.

    Args:
        names: what the sentences are about, in a fixed order; or whole sentences, with the template "{}".
        template: a sentence with one ``{}`` for the name.

    Raises:
        TypeError: ``names`` is no ordered list of text, or ``template`` no text.
        ValueError: no name, an empty one, or a template without or with two fields.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025
        (arXiv 2503.04229), on synthetic data-based distillation, with the names of ImageNet.

    Deviations:
        Any names.

    >>> from avalanche_vlm.testing import tiny_classifier
    >>> NamePrompts(["tench", "goldfish"]).prompts(tiny_classifier())[1].text
    'a photo of a goldfish.'
    """

    def __init__(self, names: Iterable[str], *, template: str | PromptTemplate = DEFAULT_TEMPLATE) -> None:
        self.template = checked_template("template", template)
        self._names = ordered("names", names, "an ordered list of names")
        for index, name in enumerate(self._names):
            check_type(f"names[{index}]", name, str)
            if not name.strip():
                raise wrong_value(f"names[{index}]", "a name", repr(name))
        if not self._names:
            raise wrong_value("names", "at least one name", "none")

    @property
    def names(self) -> tuple[str, ...]:
        """What the sentences are about."""
        return self._names

    def describe(self) -> dict[str, Any]:
        """Return the names, or their number and a hash where there are many, and the template."""
        names: Any = list(self.names)
        if len(names) > _TOLD:
            names = {"count": len(names), "sha256": hashlib.sha256(json.dumps(names).encode()).hexdigest()}
        return {"names": names, "template": self.template.text}

    @final
    def prompts(self, model: CLIPClassifier) -> list[Prompt]:
        """Return a prompt for each name, without a class id."""
        return distinct(Prompt(self.template(name), None) for name in self.names)


@final
class ImageNetPrompts(NamePrompts):
    """A sentence about each of the 1,000 classes of ImageNet.

    Args:
        template: a sentence with one ``{}`` for the name.

    Raises:
        TypeError: ``template`` is no text.
        ValueError: a template without or with two fields.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025
        (arXiv 2503.04229), on synthetic data-based distillation.

    Deviations:
        None.

    >>> from avalanche_vlm.testing import tiny_classifier
    >>> len(ImageNetPrompts().prompts(tiny_classifier()))
    1000
    """

    def __init__(self, *, template: str | PromptTemplate = DEFAULT_TEMPLATE) -> None:
        self.template = checked_template("template", template)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes of ImageNet, in the order of their ids."""
        return dataset_text("imagenet").class_names.names
