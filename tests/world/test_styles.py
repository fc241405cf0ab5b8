from __future__ import annotations

import pytest
import torch

from avalanche_vlm.world import STYLES, TRAINING_STYLES, all_objects, render

UNSEEN = [style for style in STYLES if style not in TRAINING_STYLES]


def draw(style: str, seed: int = 0) -> torch.Tensor:
    return render(all_objects()[::6], style=style, generator=torch.Generator().manual_seed(seed))


def test_at_least_five_styles_are_kept_from_training():
    assert set(TRAINING_STYLES) < set(STYLES)
    assert len(UNSEEN) >= 5


@pytest.mark.parametrize("style", UNSEEN)
def test_a_style_changes_every_picture(style: str):
    difference = (draw(style).float() - draw("photo").float()).abs().mean(dim=(1, 2, 3))

    assert difference.min() > 2.0


@pytest.mark.parametrize("style", UNSEEN)
def test_a_style_leaves_different_pictures_different(style: str):
    pictures = draw(style).float()

    assert pictures.std(dim=0).mean() > 5.0


@pytest.mark.parametrize("style", STYLES)
def test_the_generator_decides_in_every_style(style: str):
    assert torch.equal(draw(style), draw(style))
    assert not torch.equal(draw(style), draw(style, seed=1))


def test_styles_differ_from_each_other():
    means = torch.stack([draw(style).float() for style in STYLES]).flatten(1)
    distances = torch.cdist(means, means, p=1) / means.shape[1]

    assert distances[~torch.eye(len(STYLES), dtype=torch.bool)].min() > 2.0
