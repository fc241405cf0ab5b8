"""The small world as a text-to-image model."""

import json
from collections import Counter

import pytest
import torch

from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone
from avalanche_vlm.sources import GeneratedImages, ImageSource, RenderedImageSource, rendered_image_source
from avalanche_vlm.world import (
    COLORS,
    DIGIT_WORDS,
    SHAPES,
    STYLES,
    TEXTURES,
    TRAINED,
    WorldObject,
    all_objects,
    caption,
    render,
)


def drawn(prompts, seeds=None, **settings):
    seeds = range(len(prompts)) if seeds is None else seeds
    return RenderedImageSource(**settings).sample(prompts, list(seeds)).images


@pytest.fixture
def asked(monkeypatch):
    """The objects and digits that the renderers are asked for."""
    calls = []

    def spy(name):
        original = getattr(rendered_image_source, name)

        def call(things, **arguments):
            calls.extend(things)
            return original(things, **arguments)

        monkeypatch.setattr(rendered_image_source, name, call)

    spy("render")
    spy("render_digits")
    return calls


def test_every_object_is_read_out_of_every_caption(asked):
    generator = torch.Generator().manual_seed(0)
    objects = list(all_objects())
    plain = [caption(each, style=STYLES[index % len(STYLES)]) for index, each in enumerate(objects)]
    others = [caption(each, generator=generator) for each in objects]
    drawn(plain + others + [text.upper() for text in others[:20]])
    assert asked == objects + objects + objects[:20]


def test_every_digit_is_read(asked):
    drawn([f"a photo of one digit {word}." for word in DIGIT_WORDS])
    assert asked == list(range(10))


def test_a_model_of_the_small_world_recognises_what_is_drawn():
    names = [each.name for each in TRAINED[::4]]
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    model = CLIPClassifier(backbone, class_names=names)
    found = model.predict(list(drawn([f"a photo of a {name}." for name in names]))).class_ids[:, 0]
    assert (found == torch.arange(len(names))).float().mean() > 0.9


def test_an_image_depends_on_its_prompt_and_seed_alone():
    prompts = ["red plain ring", "digit four", "blue dotted star", "digit four", "red plain ring"]
    images = drawn(prompts, [5, 5, 2**63 - 1, 6, 5])
    for index, seed in enumerate([5, 5, 2**63 - 1, 6, 5]):
        assert torch.equal(images[index : index + 1], drawn([prompts[index]], [seed]))
    assert torch.equal(images[0], images[4])
    assert not torch.equal(images[1], images[3])


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    drawn(["red plain ring", "digit four"], wrong_attribute_rate=0.5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("style", STYLES)
def test_the_style_is_the_sources_and_not_the_prompts(style):
    images = drawn(["a sketch of a red plain ring."], [3], style=style)
    generator = torch.Generator().manual_seed(3)
    torch.rand(6, generator=generator)  # the chances of going wrong
    expected = render([WorldObject("ring", "red", "plain")], style=style, generator=generator)
    assert torch.equal(images, expected)


def test_each_attribute_goes_wrong_at_the_rate(asked):
    count, rate = 3000, 0.3
    prompts = ["a photo of a red striped circle."] * count
    source = RenderedImageSource(wrong_attribute_rate=rate)
    _, captions = source.sample(prompts, range(count))
    assert captions == prompts
    right = WorldObject("circle", "red", "striped")
    for attribute, known in (("color", COLORS), ("texture", TEXTURES), ("shape", SHAPES)):
        counts = Counter(getattr(each, attribute) for each in asked)
        kept = counts.pop(getattr(right, attribute))
        assert kept / count == pytest.approx(1 - rate, abs=0.03)
        assert len(counts) == len(known) - 1
        share = rate / len(counts)
        assert all(n / count == pytest.approx(share, abs=0.03) for n in counts.values())
    # Independently of each other.
    assert sum(each == right for each in asked) / count == pytest.approx((1 - rate) ** 3, abs=0.03)


def test_digits_go_wrong_at_the_rate(asked):
    drawn(["digit six"] * 2000, wrong_attribute_rate=0.4)
    counts = Counter(asked)
    assert counts.pop(6) / 2000 == pytest.approx(0.6, abs=0.04)
    assert set(counts) == set(range(10)) - {6}


def test_where_nothing_goes_wrong_the_rate_changes_nothing(asked):
    prompts = ["a photo of a red striped circle."] * 60
    right = drawn(prompts)
    asked.clear()
    images = drawn(prompts, wrong_attribute_rate=0.2)
    kept = torch.tensor([each == WorldObject("circle", "red", "striped") for each in asked])
    assert 0 < kept.sum() < 60
    assert torch.equal((images == right).all(dim=(1, 2, 3)), kept)
    assert all(each.color != "red" for each in (drawn(prompts, wrong_attribute_rate=1.0), asked)[1][60:])


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a cat.",
        "a photo of a red circle.",
        "a photo of a striped circle.",
        "a photo of a red striped thing.",
        "a red striped circle and a square",
        "a red, blue and striped circle",
        "a red striped circle with digit two",
        "red digit two",
        "digit ten",
        "two",
        "digit one or digit two",
        "a reddish striped circle",
        "",
    ],
)
def test_what_cannot_be_drawn_is_refused(prompt):
    with pytest.raises(ValueError, match="`prompts`") as error:
        drawn(["digit one", prompt])
    assert repr(prompt) in str(error.value)
    assert "'digit one'" not in str(error.value)
    assert "out of the pool" in str(error.value)


def test_at_most_five_are_named():
    with pytest.raises(ValueError, match="7 in all") as error:
        drawn([f"cat {number}" for number in (0, 0, 1, 2, 3, 4, 5, 6)])
    assert [f"'cat {number}'" in str(error.value) for number in range(7)] == [True] * 5 + [False] * 2


def test_the_description_is_plain():
    told = RenderedImageSource(style="fog", wrong_attribute_rate=1).describe()
    assert json.loads(json.dumps(told)) == told
    assert told == {"kind": "RenderedImageSource", "style": "fog", "wrong_attribute_rate": 1.0}


def test_nothing_is_to_be_resumed():
    source = RenderedImageSource()
    assert source.to("cpu") is source
    assert source.state_dict() == {}
    source.load_state_dict({})
    with pytest.raises(ValueError, match="`state`"):
        source.load_state_dict({"generator": 3})


@pytest.mark.parametrize(
    ("prompts", "seeds", "kind", "named"),
    [
        ("digit one", [0], TypeError, "prompts"),
        (3, [0], TypeError, "prompts"),
        (["digit one", 3], [0, 1], TypeError, r"prompts\[1\]"),
        ([], [], ValueError, "prompts"),
        (["digit one"], [0, 1], ValueError, "seeds"),
        (["digit one"], 0, TypeError, "seeds"),
        (["digit one"], [0.0], TypeError, r"seeds\[0\]"),
        (["digit one"], [True], TypeError, r"seeds\[0\]"),
        (["digit one"], [-1], ValueError, r"seeds\[0\]"),
        (["digit one"], [2**63], ValueError, r"seeds\[0\]"),
    ],
)
def test_every_source_checks_what_it_is_asked(prompts, seeds, kind, named):
    with pytest.raises(kind, match=f"`{named}`"):
        RenderedImageSource().sample(prompts, seeds)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4).byte(), torch.zeros(1, 1, 4, 4).byte()],
)
def test_a_source_that_returns_something_else_is_refused(images):
    class Odd(ImageSource):
        def _sample(self, prompts, seeds):
            return GeneratedImages(images, prompts)

        def describe(self):
            return {}

    with pytest.raises(ValueError, match="method of Odd"):
        Odd().sample(["digit one"], [0])
