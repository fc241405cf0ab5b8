"""Prompt templates: sentences with one field for a class name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from avalanche_vlm._checks import wrong_type, wrong_value


@dataclass(frozen=True)
class PromptTemplate:
    """A sentence with exactly one ``{}``, into which a class name is put.

    Args:
        text: the sentence, e.g. ``"a photo of a {}."``.

    Raises:
        ValueError: there is no field, or more than one.

    >>> PromptTemplate("a photo of a {}.")("cat")
    'a photo of a cat.'
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise wrong_type("template", "text with one {}", self.text)
        fields = self.text.count("{}")
        stray = self.text.replace("{}", "")
        if fields != 1 or "{" in stray or "}" in stray:
            raise wrong_value(
                "template",
                "a sentence with exactly one {} for the class name",
                f"{self.text!r} with {fields} of them",
                'Write it like "a photo of a {}.".',
            )

    def __call__(self, name: str) -> str:
        """Return the sentence about ``name``."""
        return self.text.replace("{}", name)


#: What heads put class names into where no template is given.
DEFAULT_TEMPLATE = PromptTemplate("a photo of a {}.")


def as_templates(
    templates: str | PromptTemplate | Iterable[str | PromptTemplate],
) -> tuple[PromptTemplate, ...]:
    """Return one or several templates as a tuple of `PromptTemplate`."""
    if isinstance(templates, (str, PromptTemplate)):
        templates = [templates]
    if not isinstance(templates, Iterable):
        raise wrong_type("templates", "a sentence with one {} or a list of them", templates)
    result = tuple(t if isinstance(t, PromptTemplate) else PromptTemplate(t) for t in templates)
    if not result:
        raise wrong_value("templates", "at least one template", "an empty list")
    return result
