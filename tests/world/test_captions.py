from __future__ import annotations

import re

import pytest
import torch

from avalanche_vlm.text import DEFAULT_TEMPLATE, PromptTemplate
from avalanche_vlm.world import STYLE_TEMPLATES, STYLES, TRAINING_STYLES, WorldObject, all_objects, caption

OBJECT = WorldObject("heart", "pink", "dotted")


def test_the_plain_caption_is_the_default_template_with_the_name():
    assert all(caption(each) == DEFAULT_TEMPLATE(each.name) for each in all_objects())


def test_each_style_has_a_template_that_says_it():
    assert set(STYLE_TEMPLATES) == set(STYLES)
    assert len({PromptTemplate(text).text for text in STYLE_TEMPLATES.values()}) == len(STYLES)
    assert caption(OBJECT, style="sketch") == "a sketch of a pink dotted heart."


def test_paraphrases_name_all_attributes():
    generator = torch.Generator().manual_seed(0)
    sentences = {caption(OBJECT, generator=generator) for _ in range(300)}

    assert len(sentences) > 100
    words = [set(re.findall(r"\w+", sentence)) for sentence in sentences]
    assert all({"pink", "dotted", "heart"} <= each for each in words)


def test_paraphrases_of_training_never_name_an_unseen_style():
    generator = torch.Generator().manual_seed(0)
    words = {word.strip(".,!") for _ in range(500) for word in caption(OBJECT, generator=generator).split()}

    assert words.isdisjoint(set(STYLES) - set(TRAINING_STYLES))
    assert "blurry" not in words


def test_paraphrases_of_another_style_keep_its_template():
    generator = torch.Generator().manual_seed(0)
    sentences = {caption(OBJECT, style="sketch", generator=generator) for _ in range(50)}

    assert len(sentences) > 5
    assert all(sentence.startswith("a sketch of a ") for sentence in sentences)


def test_the_generator_decides():
    drawn = [[caption(OBJECT, generator=torch.Generator().manual_seed(seed))] for seed in range(20)]
    again = [[caption(OBJECT, generator=torch.Generator().manual_seed(seed))] for seed in range(20)]

    assert drawn == again


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`style` must be one of"):
        caption(OBJECT, style="oil")
    with pytest.raises(TypeError, match="`world_object` must be WorldObject"):
        caption("pink dotted heart")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`generator` must be Generator"):
        caption(OBJECT, generator=0)  # type: ignore[arg-type]
