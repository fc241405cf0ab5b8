"""Images that are moved towards two targets, against a loop over single images with slopes by differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_vlm.functional import PixelSpace, dual_targeted_pgd, nearest_images

SPACES = {"pixels": PixelSpace(), "normalised": PixelSpace((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))}
STEP = 1.5e-3


class Network(nn.Module):
    """Two layers: the first one ends in visual features, the second one in embeddings."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        self.first = nn.Parameter(torch.randn(48, 9, dtype=dtype, generator=draw) / 5)
        self.second = nn.Parameter(torch.randn(9, 6, dtype=dtype, generator=draw))

    def forward(self, x):
        features = torch.tanh(x.flatten(1) @ self.first)
        return features @ self.second, features


def pixels(count, seed=0, dtype=torch.float64):
    """Random pixel values, a fifth of them at the border of what there is."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.rand(count, 3, 4, 4, dtype=dtype, generator=draw)
    border = torch.rand(count, 3, 4, 4, generator=draw) < 0.2
    return torch.where(border, values.round(), values)


def targets(count, seed=1, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, width, dtype=dtype, generator=draw) for width in (6, 9))


def in_space(values, space):
    mean, std = (values.new_tensor(part)[:, None, None] for part in space)
    return (values - mean) / std


def distance(a, b):
    """1 - cos of a vector or of rows with a vector, which may be zero."""
    return 1 - (a @ b) / (a.norm(dim=-1) * b.norm()).clamp(min=1e-12)


def moved_by_the_loop(network, start, text, visual, space, weight, epsilon, step, steps):
    """One image, one step at a time; the slope in each pixel is a quotient of differences."""

    def distances(delta):
        embeddings, features = network(in_space(start + delta, space))
        return distance(embeddings, text), distance(features, visual)

    nudges = 1e-6 * torch.eye(48, dtype=start.dtype).view(48, 3, 4, 4)
    delta, history = torch.zeros_like(start), []
    for _ in range(steps):
        history.append([float(part) for part in distances(delta[None])])
        sums = [first + weight * second for first, second in (distances(delta + s * nudges) for s in (1, -1))]
        slope = (sums[0] - sums[1]).view_as(start)
        for place in range(48):
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), start.shape))
            value = float(delta[index]) - step * ((slope[index] > 0).item() - (slope[index] < 0).item())
            value = min(max(value, -epsilon), epsilon)
            delta[index] = min(max(float(start[index]) + value, 0.0), 1.0) - float(start[index])
    history.append([float(part) for part in distances(delta[None])])
    return start + delta, torch.tensor(history, dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.004, 0.5], ids=["epsilon binds", "epsilon is far"])
@pytest.mark.parametrize("name", SPACES)
@torch.no_grad()
def test_each_image_moves_as_in_the_equation(name, epsilon):
    network, space, start, (text, visual) = Network(), SPACES[name], pixels(4), targets(4)
    weights = torch.tensor([1.0, 0.0, 0.3, 2.0], dtype=torch.float64)
    found = dual_targeted_pgd(
        network,
        in_space(start, space),
        text,
        visual,
        space=space,
        visual_weight=weights,
        epsilon=epsilon,
        step_size=STEP,
        steps=5,
    )
    assert found.text_distances.shape == found.visual_distances.shape == (6, 4)
    for row in range(4):
        expected, history = moved_by_the_loop(
            network, start[row], text[row], visual[row], space, float(weights[row]), epsilon, STEP, 5
        )
        torch.testing.assert_close(space.pixels(found.images[row]), expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(found.text_distances[:, row], history[:, 0], atol=1e-12, rtol=0)
        torch.testing.assert_close(found.visual_distances[:, row], history[:, 1], atol=1e-12, rtol=0)
    torch.testing.assert_close(found.embeddings, network(found.images)[0])
    moved = (space.pixels(found.images) - start).abs()
    assert float(moved.max()) == pytest.approx(min(epsilon, 5 * STEP))
    assert bool(((start == 0) | (start == 1)).any())


def test_both_distances_fall_on_average():
    text, visual = targets(16)
    found = dual_targeted_pgd(Network(), pixels(16), text, visual, space=PixelSpace(), steps=10)
    for distances in (found.text_distances, found.visual_distances):
        means = distances.mean(dim=1)
        assert bool((means.diff() < 0).all())
        assert means[-1] < means[0] - 0.01


def test_the_objective_weighs_the_two_targets():
    text, visual = targets(16)

    def final(weight):
        found = dual_targeted_pgd(
            Network(), pixels(16), text, visual, space=PixelSpace(), visual_weight=weight
        )
        return found.text_distances[-1].mean(), found.visual_distances[-1].mean()

    (text_alone, far), (between, nearer), (least, nearest) = (final(weight) for weight in (0.0, 1.0, 9.0))
    assert text_alone < between < least
    assert far > nearer > nearest


@settings(max_examples=60, deadline=None)
@given(
    epsilon=st.floats(0, 0.05),
    step=st.floats(1e-4, 0.02),
    steps=st.integers(0, 6),
    name=st.sampled_from(list(SPACES)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_no_pixel_moves_farther_than_it_may_or_out_of_what_there_is(epsilon, step, steps, name, dtype, seed):
    space, start = SPACES[name], pixels(3, seed, dtype)
    text, visual = targets(3, seed + 1, dtype)
    images = in_space(start, space)
    found = dual_targeted_pgd(
        Network(dtype), images, text, visual, space=space, epsilon=epsilon, step_size=step, steps=steps
    )
    values = space.pixels(found.images)
    slack = 1e-6 if dtype == torch.float32 else 1e-12
    farthest = (values - start).abs().flatten(1).amax(dim=1)
    assert bool((farthest <= min(epsilon, steps * step) + slack).all())
    assert float(values.min()) >= -slack
    assert float(values.max()) <= 1 + slack
    assert found.images.dtype == dtype


def test_a_pixel_from_outside_stays_or_comes_nearer():
    text, visual = targets(6)
    start = 3 * pixels(6) - 1  # from -1 to 2
    found = dual_targeted_pgd(Network(), start, text, visual, space=PixelSpace(), steps=10).images
    below, above = start < 0, start > 1
    assert bool((found[below] >= start[below]).all())
    assert bool((found[above] <= start[above]).all())
    assert bool((found[below] > start[below]).any())
    assert float((found - start).abs().max()) <= 10 * STEP + 1e-12
    inside = ~below & ~above
    assert float(found[inside].min()) >= 0
    assert float(found[inside].max()) <= 1


@pytest.mark.parametrize("grad", [True, False])
def test_only_inputs_have_gradients_and_no_graph_is_left(grad):
    network, images, (text, visual) = Network(), pixels(4), targets(4)
    before = images.clone()
    with torch.set_grad_enabled(grad):
        found = dual_targeted_pgd(network, images, text, visual, space=PixelSpace(), steps=3)
        assert torch.is_grad_enabled() == grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not any(each.requires_grad for each in (*found, images))
    assert images.grad is None
    assert torch.equal(images, before)


def test_nothing_is_random():
    text, visual = targets(5)
    state = torch.get_rng_state()
    both = [
        dual_targeted_pgd(Network(), pixels(5), text, visual, space=SPACES["normalised"]) for _ in range(2)
    ]
    assert all(torch.equal(*pair) for pair in zip(*both, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_is_each_image_alone():
    network, images, (text, visual) = Network(), pixels(5), targets(5)
    whole = dual_targeted_pgd(network, images, text, visual, space=PixelSpace())
    for row in range(5):
        part = slice(row, row + 1)
        alone = dual_targeted_pgd(network, images[part], text[part], visual[part], space=PixelSpace())
        torch.testing.assert_close(alone.images, whole.images[part], atol=1e-12, rtol=0)
        torch.testing.assert_close(alone.embeddings, whole.embeddings[part])
        torch.testing.assert_close(alone.text_distances, whole.text_distances[:, part])
        torch.testing.assert_close(alone.visual_distances, whole.visual_distances[:, part])


def test_the_length_of_a_target_does_not_count():
    network, images, (text, visual) = Network(), pixels(5), targets(5)
    found = dual_targeted_pgd(network, images, text, visual, space=PixelSpace())
    longer = dual_targeted_pgd(network, images, 7 * text, 0.1 * visual, space=PixelSpace())
    torch.testing.assert_close(found.images, longer.images, atol=1e-12, rtol=0)


def test_rows_of_zeros_have_no_effect():
    network, images, (text, visual) = Network(), pixels(4), targets(4)
    visual = torch.where(torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None] > 0, visual, 0)
    found = dual_targeted_pgd(network, images, text, visual, space=PixelSpace())
    none = dual_targeted_pgd(network, images, text, visual, space=PixelSpace(), visual_weight=0.0)
    assert torch.equal(found.images[[1, 3]], none.images[[1, 3]])
    assert not torch.equal(found.images[[0, 2]], none.images[[0, 2]])
    assert bool((found.visual_distances[:, [1, 3]] == 1).all())
    assert bool(found.images.isfinite().all())


def test_without_a_step_images_stay_and_are_measured():
    network, images, (text, visual) = Network(), pixels(3), targets(3)
    found = dual_targeted_pgd(network, images, text, visual, space=PixelSpace(), steps=0)
    assert torch.equal(found.images, images)
    assert found.text_distances.shape == (1, 3)
    expected = torch.stack([distance(v, u) for v, u in zip(network(images)[0], text, strict=True)])
    torch.testing.assert_close(found.text_distances[0], expected.detach())


def test_half_precision_of_the_network_is_compared_in_full():
    network, images, (text, visual) = Network(torch.float32), pixels(3, dtype=torch.float32), targets(3)

    def half(x):
        return tuple(each.bfloat16() for each in network(x))

    found = dual_targeted_pgd(half, images, text.float(), visual.float(), space=PixelSpace(), steps=2)
    assert found.images.dtype == found.text_distances.dtype == torch.float32
    assert not torch.equal(found.images, images)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"images": torch.zeros(4, 1, 4, 4)}, ValueError),
        ({"images": torch.zeros(3, 4, 4)}, ValueError),
        ({"text_targets": torch.zeros(3, 6)}, ValueError),
        ({"text_targets": torch.zeros(6)}, ValueError),
        ({"visual_targets": torch.zeros(1, 9)}, ValueError),
        ({"space": ((0, 0, 0), (1, 1, 1))}, TypeError),
        ({"epsilon": -0.1}, ValueError),
        ({"epsilon": float("nan")}, ValueError),
        ({"step_size": 0}, ValueError),
        ({"steps": -1}, ValueError),
        ({"steps": 1.5}, TypeError),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(wrong, error):
    text, visual = targets(4)
    arguments = {"images": pixels(4), "text_targets": text, "visual_targets": visual, "space": PixelSpace()}
    (name,) = wrong
    with pytest.raises(error, match=f"`{name}` must be"):
        dual_targeted_pgd(Network(), **{**arguments, **wrong})


def test_pixel_values_come_back_from_a_space():
    values = pixels(2)
    for space in SPACES.values():
        torch.testing.assert_close(space.pixels(in_space(values, space)), values)


@pytest.mark.parametrize(("images", "count"), [(9, 1), (9, 4), (3, 3), (3, 8), (1, 5)])
def test_the_nearest_images_are_those_of_a_loop(images, count):
    similarities = torch.randn(images, 5, generator=torch.Generator().manual_seed(images))
    found = nearest_images(similarities, count)
    assert found.shape == (5, min(count, images))
    for column, rows in enumerate(found.tolist()):
        values = similarities[:, column].tolist()
        assert rows == sorted(range(images), key=lambda row: -values[row])[:count]
