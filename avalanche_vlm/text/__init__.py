"""Names and sentences: class names and the templates that they are put into."""

from avalanche_vlm.text.class_names import ClassNames, normalize_text
from avalanche_vlm.text.template import DEFAULT_TEMPLATE, PromptTemplate, as_templates

__all__ = ["DEFAULT_TEMPLATE", "ClassNames", "PromptTemplate", "as_templates", "normalize_text"]
