"""Typeset digits: seen, told apart, and like handwriting from afar."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from avalanche_vlm.world import DIGIT_WORDS, STYLES, render_digits


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def in_eight_by_eight(pictures):
    return F.adaptive_avg_pool2d(pictures[:, :1].float() / 255, 8).flatten(1).numpy()


def test_pictures_are_grey_and_light_on_dark():
    pictures = render_digits(list(range(10)) * 4, generator=seeded())
    assert pictures.dtype == torch.uint8
    assert pictures.shape == (40, 3, 32, 32)
    assert torch.equal(pictures[:, 0], pictures[:, 1])
    assert torch.equal(pictures[:, 0], pictures[:, 2])
    grey = pictures[:, 0].float()
    assert grey.flatten(1).max(dim=1).values.min() > 150
    share = (grey > 100).float().mean(dim=(1, 2))
    assert 0.02 < share.min() < share.max() < 0.5
    # A digit stands in its picture, and is not cut off at the border.
    border = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], dim=1)
    assert (border > 100).float().mean() < 0.03


def test_digits_can_be_told_apart_and_say_something_about_handwriting():
    labels = np.array(list(range(10)) * 60)
    drawn = in_eight_by_eight(render_digits(labels.tolist(), generator=seeded()))
    neighbours = KNeighborsClassifier(3).fit(drawn[:400], labels[:400])
    assert neighbours.score(drawn[400:], labels[400:]) > 0.65
    pixels, written = load_digits(return_X_y=True)
    assert neighbours.score(pixels / 16, written) > 0.4  # 0.1 by chance


def test_a_digit_looks_different_each_time():
    pictures = render_digits([5] * 20, generator=seeded()).float().flatten(1)
    distances = torch.cdist(pictures, pictures) + 1e9 * torch.eye(20)
    noise = 0.02 * 255 * (2 * pictures.shape[1]) ** 0.5
    assert distances.min() > 2 * noise


def test_the_generator_decides():
    state = torch.get_rng_state()
    first = render_digits([1, 2], generator=seeded(3))
    assert torch.equal(first, render_digits((1, 2), generator=seeded(3)))
    assert not torch.equal(first, render_digits([1, 2], generator=seeded(4)))
    assert torch.equal(state, torch.get_rng_state())
    generator = seeded(3)
    render_digits([1, 2], generator=generator)
    assert not torch.equal(first, render_digits([1, 2], generator=generator))


@pytest.mark.parametrize("style", STYLES)
def test_styles_change_digits_too(style):
    plain = render_digits([4], generator=seeded()).int()
    styled = render_digits([4], style=style, generator=seeded()).int()
    if style == "negative":
        assert (styled + plain - 255).abs().max() <= 1
    assert torch.equal(styled, plain) == (style == "photo")


def test_no_digits_no_pictures():
    assert render_digits([], generator=seeded()).shape == (0, 3, 32, 32)


def test_there_is_a_word_for_each_digit():
    assert len(set(DIGIT_WORDS)) == 10


@pytest.mark.parametrize(
    ("arguments", "kind", "named"),
    [
        ({"digits": [0, 10]}, ValueError, r"digits\[1\]"),
        ({"digits": [-1]}, ValueError, r"digits\[0\]"),
        ({"digits": ["3"]}, TypeError, r"digits\[0\]"),
        ({"style": "baroque"}, ValueError, "style"),
        ({"generator": None}, TypeError, "generator"),
    ],
)
def test_faults_are_named(arguments, kind, named):
    with pytest.raises(kind, match=f"`{named}`"):
        render_digits(**{"digits": [0], "generator": seeded(), **arguments})
