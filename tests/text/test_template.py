import pytest

from avalanche_vlm.text import DEFAULT_TEMPLATE, PromptTemplate, as_templates


@pytest.mark.parametrize(
    ("text", "prefix", "suffix"),
    [("a photo of a {}.", "a photo of a ", "."), ("{}", "", ""), ("{}!", "", "!"), ("the {}", "the ", "")],
)
def test_a_name_takes_the_place_of_the_field(text, prefix, suffix):
    assert PromptTemplate(text)("barn owl") == f"{prefix}barn owl{suffix}"


@pytest.mark.parametrize("name", ["{}", "{0}", "%s", "a}b", "\\1"])
def test_names_are_put_in_as_they_are(name):
    assert DEFAULT_TEMPLATE(name) == "a photo of a " + name + "."


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a photo", 0),
        ("", 0),
        ("a {} and a {}", 2),
        ("a {name}", 0),
        ("a {0}", 0),
        ("{} and {name}", 1),
        ("{{}}", 1),
        ("{} {", 1),
        ("} {}", 1),
    ],
)
def test_other_fields_are_refused(text, count):
    with pytest.raises(ValueError, match=r"`template` must be .*exactly one \{\}.*") as error:
        PromptTemplate(text)
    assert f"{text!r} with {count} of them" in str(error.value)


def test_templates_are_text():
    for wrong in (None, 3, b"a {}"):
        with pytest.raises(TypeError, match=r"`template` must be text with one \{\}"):
            PromptTemplate(wrong)


def test_one_or_several_templates():
    one, other = PromptTemplate("a {}"), PromptTemplate("the {}")
    assert as_templates("a {}") == as_templates(one) == as_templates(["a {}"]) == (one,)
    assert as_templates(text for text in ("a {}", "the {}")) == as_templates([one, "the {}"]) == (one, other)
    with pytest.raises(ValueError, match="`templates` must be at least one template"):
        as_templates([])
    with pytest.raises(TypeError, match=r"`templates` must be a sentence with one \{\} or a list"):
        as_templates(None)
    with pytest.raises(TypeError, match="`template` must be text"):
        as_templates(["a {}", 3])
