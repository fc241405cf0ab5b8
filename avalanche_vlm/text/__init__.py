"""Names and sentences: class names, the templates that they are put into, and both for known data sets."""

from avalanche_vlm.text.class_names import ClassNames, normalize_text
from avalanche_vlm.text.dataset_text import DATASET_TEXTS, DatasetText, dataset_text
from avalanche_vlm.text.template import DEFAULT_TEMPLATE, PromptTemplate, as_templates

__all__ = [
    "DATASET_TEXTS",
    "DEFAULT_TEMPLATE",
    "ClassNames",
    "DatasetText",
    "PromptTemplate",
    "as_templates",
    "dataset_text",
    "normalize_text",
]
