from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from avalanche_vlm.world import COLORS, IMAGE_SIZE, SHAPES, TEXTURES, WorldObject, all_objects, render
from avalanche_vlm.world.shapes import SHAPE_FUNCTIONS, TEXTURE_FUNCTIONS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_uint8_picture_per_object():
    pictures = render(all_objects()[:5], generator=seeded())

    assert pictures.shape == (5, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert pictures.dtype == torch.uint8
    assert not pictures.requires_grad


def test_no_objects_no_pictures():
    assert render([], generator=seeded()).shape == (0, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_the_generator_decides():
    objects = all_objects()[:40]
    torch.manual_seed(1)
    first = render(objects, generator=seeded(3))
    torch.manual_seed(2)
    state = torch.get_rng_state()

    assert torch.equal(first, render(objects, generator=seeded(3)))
    assert not torch.equal(first, render(objects, generator=seeded(4)))
    assert torch.equal(state, torch.get_rng_state())


def test_the_generator_moves_on():
    generator = seeded()
    objects = all_objects()[:3]

    assert not torch.equal(render(objects, generator=generator), render(objects, generator=generator))


def test_every_object_is_seen_before_its_background():
    # The same draws with another object in the same place: what differs is the object itself, so
    # an object that drew nothing would leave the background of the other one untouched.
    objects = all_objects()
    pictures = render(objects, generator=seeded()).float()
    border = torch.cat(
        [pictures[:, :, 0], pictures[:, :, -1], pictures[:, :, :, 0], pictures[:, :, :, -1]], 2
    )
    backdrop = border.median(dim=2).values[:, :, None, None]
    differing = ((pictures - backdrop).abs().amax(dim=1) > 40).float().mean(dim=(1, 2))

    assert differing.min() > 0.05


def test_the_objects_own_color_is_in_the_picture():
    # Backgrounds are greyish: only an object makes a picture colourful.
    pictures = render(all_objects(), generator=seeded(1)).float()
    spread = pictures.amax(dim=1) - pictures.amin(dim=1)
    colorful = (spread > 60).float().mean(dim=(1, 2))

    assert colorful.min() > 0.03


def mean_picture(world_object: WorldObject) -> Tensor:
    return render([world_object] * 64, generator=seeded()).float().mean(dim=0)


@pytest.mark.parametrize(
    ("names", "make"),
    [
        (SHAPES, lambda name: WorldObject(name, "red", "plain")),
        (COLORS, lambda name: WorldObject("circle", name, "plain")),
    ],
    ids=["shapes", "colors"],
)
def test_attributes_differ_on_average(names: tuple[str, ...], make: Callable[[str], WorldObject]):
    means = torch.stack([mean_picture(make(name)) for name in names]).flatten(1)
    distances = torch.cdist(means, means, p=1) / means.shape[1]

    assert distances[~torch.eye(len(names), dtype=torch.bool)].min() > 1.5


@pytest.mark.parametrize("functions", [SHAPE_FUNCTIONS, TEXTURE_FUNCTIONS], ids=["shapes", "textures"])
def test_masks_differ_in_the_plane(functions: dict[str, Callable[[Tensor, Tensor], Tensor]]):
    axis = torch.linspace(-1.2, 1.2, 96)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    threshold = 0.0 if functions is SHAPE_FUNCTIONS else 0.5
    masks = torch.stack([(function(x, y) > threshold).flatten() for function in functions.values()]).float()
    apart = torch.cdist(masks, masks, p=1) / masks.shape[1]

    assert apart[~torch.eye(len(masks), dtype=torch.bool)].min() > 0.05


def test_shapes_fill_about_the_unit_disc_and_stay_in_the_picture():
    axis = torch.linspace(-2.0, 2.0, 201)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    for name, function in SHAPE_FUNCTIONS.items():
        inside = function(x, y) < 0
        area = float(inside.float().mean()) * 16.0
        reach = float(torch.hypot(x, y)[inside].max())
        assert 0.6 < area < 3.2, name
        assert 0.9 < reach < 1.3, name


def test_shape_distances_grow_at_a_rate_of_about_one_across_the_outline():
    # Otherwise the one-pixel ramp there would be a hard or a smeared edge.
    axis = torch.linspace(-1.4, 1.4, 281)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    for name, function in SHAPE_FUNCTIONS.items():
        distance = function(x, y)
        step_y, step_x = torch.gradient(distance, spacing=0.01)
        rate = torch.hypot(step_x, step_y)[distance.abs() < 0.05]
        assert 0.8 < float(rate.median()) < 1.2, name


def test_the_palette_and_the_functions_cover_the_vocabulary():
    assert tuple(SHAPE_FUNCTIONS) == SHAPES
    assert tuple(TEXTURE_FUNCTIONS) == TEXTURES


def test_errors_name_the_argument():
    objects = all_objects()[:1]
    with pytest.raises(ValueError, match=r"`style` must be one of .* Did you mean 'sketch'"):
        render(objects, style="sketchy", generator=seeded())
    with pytest.raises(TypeError, match="`generator` must be Generator"):
        render(objects, generator=0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`objects\[0\]` must be WorldObject"):
        render(["red plain circle"], generator=seeded())  # type: ignore[list-item]
