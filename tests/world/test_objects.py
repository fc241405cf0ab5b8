from __future__ import annotations

from itertools import product

import pytest

from avalanche_vlm.world import COLORS, HELD_OUT, SHAPES, TEXTURES, TRAINED, WorldObject, all_objects


def test_there_are_384_objects_with_different_names():
    objects = all_objects()

    assert len(objects) == len(SHAPES) * len(COLORS) * len(TEXTURES) == 384
    assert len({each.name for each in objects}) == 384


def test_held_out_and_trained_objects_partition_the_world():
    assert len(HELD_OUT) == 64
    assert set(HELD_OUT).isdisjoint(TRAINED)
    assert set(HELD_OUT) | set(TRAINED) == set(all_objects())


def test_every_attribute_is_held_out_somewhere():
    assert {each.shape for each in HELD_OUT} == set(SHAPES)
    assert {each.color for each in HELD_OUT} == set(COLORS)
    assert {each.texture for each in HELD_OUT} == set(TEXTURES)


def test_every_pair_of_attributes_is_trained_on():
    assert {(each.shape, each.color) for each in TRAINED} == set(product(SHAPES, COLORS))
    assert {(each.shape, each.texture) for each in TRAINED} == set(product(SHAPES, TEXTURES))
    assert {(each.color, each.texture) for each in TRAINED} == set(product(COLORS, TEXTURES))


def test_parse_inverts_name():
    for each in all_objects():
        assert WorldObject.parse(each.name) == each


def test_parse_ignores_case_and_white_space():
    assert WorldObject.parse(" Red  STRIPED\ncircle ") == WorldObject("circle", "red", "striped")


@pytest.mark.parametrize(
    "name", ["red stripped circle", "red circle", "", "circle striped red", "red striped circle."]
)
def test_parse_refuses_what_cannot_be_drawn(name: str):
    with pytest.raises(ValueError, match="`name` must be a colour, a texture and a shape"):
        WorldObject.parse(name)


def test_parse_names_close_objects():
    with pytest.raises(ValueError, match="Did you mean 'red striped circle'"):
        WorldObject.parse("red stripped circle")


def test_parse_refuses_what_is_not_text():
    with pytest.raises(TypeError, match="`name` must be text"):
        WorldObject.parse(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "attributes"),
    [
        ("shape", ("circel", "red", "plain")),
        ("color", ("circle", "rod", "plain")),
        ("texture", ("circle", "red", "plane")),
    ],
)
def test_a_wrong_attribute_is_named(argument: str, attributes: tuple[str, str, str]):
    with pytest.raises(ValueError, match=f"`{argument}` must be one of .* Did you mean"):
        WorldObject(*attributes)
