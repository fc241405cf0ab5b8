"""Sentences about the classes that a model has learned so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import close_names, wrong_value
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.sources.prompt_pools import Prompt, PromptPool, checked_template, distinct
from avalanche_vlm.text import DEFAULT_TEMPLATE, PromptTemplate


@final
class LearnedClassPrompts(PromptPool):
    """A sentence about each class of the experiences that have ended; none before the first has.

    Of classes with the same text (a lotus of two data sets, in one template) the first counts.

    Args:
        templates: a sentence with one ``{}`` for the class name; for streams over several data sets a
            mapping from the name of each, as in ``class_names.datasets``, to its own. None for the first
            template that the model's head has for the class, or "a photo of a {}." where it has none.

    Raises:
        TypeError: ``templates`` is neither text nor a mapping.
        ValueError: an empty mapping, or a template without or with two fields; in `prompts`, a data set
            without a template, or a model that was not trained on the classes that were learned.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025
        (arXiv 2503.04229), on synthetic data-based distillation.

    Deviations:
        Templates are those of the model, unless they are given.

    >>> from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
    >>> model, pool = tiny_classifier(), LearnedClassPrompts()
    >>> model.adaptation(tiny_benchmark().train_stream[0])
    >>> pool.prompts(model)
    []
    >>> pool.learn(model)
    >>> len(pool.prompts(model))
    2
    """

    def __init__(
        self, templates: str | PromptTemplate | Mapping[str, str | PromptTemplate] | None = None
    ) -> None:
        self.templates: PromptTemplate | dict[str, PromptTemplate] | None
        if isinstance(templates, Mapping):
            self.templates = {name: checked_template("templates", own) for name, own in templates.items()}
            if not self.templates:
                raise wrong_value("templates", "a template of at least one data set", "an empty mapping")
        else:
            self.templates = None if templates is None else checked_template("templates", templates)
        self._learned = torch.zeros(0, dtype=torch.bool)

    @property
    def class_ids(self) -> list[int]:
        """The classes of the experiences that have ended, in ascending order."""
        return self._learned.nonzero().flatten().tolist()

    def describe(self) -> dict[str, Any]:
        """Return the templates; None for those of the model's head."""
        own = self.templates
        if isinstance(own, dict):
            return {"templates": {dataset: template.text for dataset, template in own.items()}}
        return {"templates": None if own is None else own.text}

    def learn(self, model: CLIPClassifier) -> None:
        """Take note of the classes that the model has seen."""
        self._learned = model.classes_seen.detach().cpu().clone()

    def prompts(self, model: CLIPClassifier) -> list[Prompt]:
        """Return a prompt for each class learned, by class id."""
        names, ids = model.class_names, self.class_ids
        if ids and ids[-1] >= len(names):
            got = f"one with {len(names)}, where class {ids[-1]} was learned"
            raise wrong_value("model", "one with the classes that were learned", got)
        strange = [each for each in ids if not model.classes_seen[each]]
        if strange:
            raise wrong_value(
                "prompts",
                "a pool of this run",
                f"one that learned {names[strange[0]]!r}, which this model has never been trained on",
                "Give each run a fresh LearnedClassPrompts.",
            )
        return distinct(class_prompts(model, ids, self.templates))

    @property
    def nbytes(self) -> int:
        """Number of bytes of the note which classes were learned."""
        return self._learned.numel()

    def state_dict(self) -> dict[str, Any]:
        """Return which classes were learned."""
        return {"learned": self._learned.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over which classes were learned.

        Raises:
            ValueError: the state of another kind of pool.
        """
        learned = state.get("learned")
        if set(state) != {"learned"} or not isinstance(learned, Tensor):
            raise wrong_value("state", "that of LearnedClassPrompts", f"one with {sorted(state)}")
        self._learned = learned.cpu().clone()


Templates = PromptTemplate | Mapping[str, PromptTemplate] | None


def class_prompts(model: CLIPClassifier, class_ids: Iterable[int], templates: Templates) -> list[Prompt]:
    """Return a sentence about each of some classes of a model.

    Args:
        model: has their names.
        class_ids: K classes.
        templates: one for all, or one for each data set; None for the first that the model's head has.

    Raises:
        ValueError: a data set without a template.
    """
    names = model.class_names
    datasets = names.datasets or ("",) * len(names)
    return [Prompt(_template_of(model, templates, datasets[each])(names[each]), each) for each in class_ids]


def _template_of(model: CLIPClassifier, templates: Templates, dataset: str) -> PromptTemplate:
    if isinstance(templates, PromptTemplate):
        return templates
    if templates is None:
        own = model.head.templates_of(dataset)
        return own[0] if own else DEFAULT_TEMPLATE
    if dataset not in templates:
        got = f"none for {dataset!r}" if dataset else "a mapping, where no class belongs to a data set"
        expected = "a template for every data set of the class names"
        raise wrong_value("templates", expected, got, close_names(dataset, templates))
    return templates[dataset]
