"""Neighbourhoods of classes against loops in float64, written from the equations."""

import math

import pytest
import torch

from avalanche_vlm.functional import nearest_classes, neighbour_cosines, text_geometry_divergence


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    lengths = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / lengths


def softmax(values):
    exponentials = [math.exp(value - max(values)) for value in values]
    return [each / sum(exponentials) for each in exponentials]


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_neighbours_are_those_of_a_loop(count):
    features, rows = 4 * numbers(9, 5), [7, 0, 3]
    found = nearest_classes(features, torch.tensor(rows), count).tolist()
    every = features.tolist()
    for row, own in zip(rows, found, strict=True):
        near = sorted(
            (other for other in range(9) if other != row), key=lambda o: -cosine(every[row], every[o])
        )
        assert own == near[:count]


def test_no_class_is_its_own_neighbour_not_even_among_equals():
    features = torch.ones(3, 4)
    for row, own in enumerate(nearest_classes(features, torch.arange(3), 5).tolist()):
        assert sorted(own) == [other for other in range(3) if other != row]
    assert nearest_classes(features[:1], torch.tensor([0]), 5).shape == (1, 0)


def test_neighbours_do_not_depend_on_lengths():
    features, rows = numbers(9, 5), torch.arange(9)
    lengths = torch.linspace(0.1, 30, 9, dtype=torch.float64)[:, None]
    assert torch.equal(nearest_classes(features, rows, 4), nearest_classes(lengths * features, rows, 4))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_value_and_gradient_are_those_of_the_equation(temperature):
    before, now, rows = numbers(8, 6), numbers(8, 6, seed=1).requires_grad_(), torch.tensor([2, 5, 6])
    neighbours = nearest_classes(before, rows, 3)
    taught = neighbour_cosines(before, rows, neighbours)
    found = text_geometry_divergence(
        neighbour_cosines(now, rows, neighbours), taught, temperature=temperature
    )

    def by_hand(features):
        total = 0.0
        for row, own in zip(rows.tolist(), neighbours.tolist(), strict=True):
            rho = [
                softmax([cosine(every[row], every[other]) / temperature for other in own])
                for every in (before.tolist(), features)
            ]
            total += sum(b * math.log(b / a) for b, a in zip(*rho, strict=True))
        return total / len(rows)

    assert found.item() == pytest.approx(by_hand(now.tolist()), rel=1e-10)
    assert found.item() > 1e-2
    (gradient,) = torch.autograd.grad(found, now)
    for place in ((2, 0), (5, 3), (int(neighbours[0, 0]), 1)):
        nudged = [[row[:] for row in now.tolist()] for _ in range(2)]
        for sign, features in zip((1, -1), nudged, strict=True):
            features[place[0]][place[1]] += sign * 1e-6
        slope = (by_hand(nudged[0]) - by_hand(nudged[1])) / 2e-6
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_value_and_gradient_vanish_at_equality():
    features, rows = numbers(8, 6).requires_grad_(), torch.arange(8)
    neighbours = nearest_classes(features.detach(), rows, 3)
    cosines = neighbour_cosines(features, rows, neighbours)
    loss = text_geometry_divergence(cosines, cosines.detach())
    loss.backward()
    assert abs(loss.item()) < 1e-14
    assert float(features.grad.abs().max()) < 1e-13


def test_a_rotation_of_all_texts_costs_nothing_and_a_move_of_one_does():
    features, rows = numbers(8, 6), torch.arange(8)
    neighbours = nearest_classes(features, rows, 3)
    taught = neighbour_cosines(features, rows, neighbours)
    turn = torch.linalg.qr(numbers(6, 6, seed=3)).Q
    turned = neighbour_cosines(features @ turn, rows, neighbours)
    assert float(text_geometry_divergence(turned, taught)) < 1e-12
    moved = features.clone()
    moved[4] += 0.3
    assert float(text_geometry_divergence(neighbour_cosines(moved, rows, neighbours), taught)) > 1e-3


def test_the_teacher_gets_no_gradient():
    student, teacher = numbers(3, 4).requires_grad_(), numbers(3, 4, seed=1).requires_grad_()
    text_geometry_divergence(student, teacher).backward()
    assert teacher.grad is None
    assert bool(student.grad.any())


def test_wrong_arguments_are_named():
    cosines = torch.zeros(2, 3)
    for count in (0, -1):
        with pytest.raises(ValueError, match="`count`"):
            nearest_classes(cosines, torch.tensor([0]), count)
    for temperature in (0, -1, math.nan):
        with pytest.raises(ValueError, match="`temperature`"):
            text_geometry_divergence(cosines, cosines, temperature=temperature)
    for student in (cosines, cosines[0]):
        with pytest.raises(ValueError, match="`teacher` must be cosines"):
            text_geometry_divergence(student, torch.zeros(3) if student.ndim == 1 else torch.zeros(2, 2))
