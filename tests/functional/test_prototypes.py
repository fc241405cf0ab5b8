"""Prototypes that follow probes, against a loop in float64, written from the equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_vlm.functional import transferred_prototypes


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    lengths = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / lengths if lengths else 0.0


def moved_by_the_loop(prototypes, before, after, stands_for, temperature):
    """One class, one probe, one dimension at a time; also returns η of each class."""
    moved, etas = [], []
    for place, prototype in enumerate(prototypes):
        probes = [a for a in range(len(before)) if stands_for is not None and stands_for[a] == place]
        probes = probes or list(range(len(before)))
        cosines = [cosine(before[a], prototype) for a in probes]
        eta = min(max(sum(cosines) / len(cosines), 0.0), 1.0)
        shares = [math.exp((value - max(cosines)) / temperature) for value in cosines]
        shares = [value / sum(shares) for value in shares]
        drift = [
            sum(w * (after[a][d] - before[a][d]) for a, w in zip(probes, shares, strict=True))
            for d in range(len(prototype))
        ]
        moved.append([p + eta * d for p, d in zip(prototype, drift, strict=True)])
        etas.append(eta)
    return torch.tensor(moved, dtype=torch.float64), etas


STANDS_FOR = {
    "for each class": [0, 1, 2, 0, 1, 2, 0],
    "for one class only": [1, 1, -1, 1, -1, 1, 1],
    "for none": [-1] * 7,
    "not said": None,
}


def near(prototypes, count=7, seed=1):
    """Probes near prototypes, so that η lies inside of its bounds."""
    rows = torch.arange(count) % len(prototypes)
    return prototypes[rows] + 0.5 * numbers(count, prototypes.shape[1], seed=seed) + 0.6


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("name", STANDS_FOR)
def test_prototypes_move_as_in_the_equation(name, temperature):
    prototypes = numbers(3, 5) + 0.5
    before = near(prototypes)
    after, places = before + 0.3 * numbers(7, 5, seed=2), STANDS_FOR[name]
    found = transferred_prototypes(
        prototypes,
        before,
        after,
        stands_for=None if places is None else torch.tensor(places),
        temperature=temperature,
    )
    expected, etas = moved_by_the_loop(
        *map(torch.Tensor.tolist, (prototypes, before, after)), places, temperature
    )
    torch.testing.assert_close(found, expected)
    assert any(0 < eta < 1 for eta in etas)
    assert bool((found != prototypes).any())


def test_without_drift_they_stay_exactly():
    prototypes = numbers(3, 5).float()
    before = near(prototypes.double()).float()
    places = torch.tensor(STANDS_FOR["for one class only"])
    assert torch.equal(
        transferred_prototypes(prototypes, before, before.clone(), stands_for=places), prototypes
    )


@pytest.mark.parametrize("name", STANDS_FOR)
def test_a_translation_of_all_features_moves_them_by_eta_times_it(name):
    prototypes, shift = numbers(3, 5) + 0.5, numbers(5, seed=4)
    before, places = near(prototypes), STANDS_FOR[name]
    found = transferred_prototypes(
        prototypes, before, before + shift, stands_for=None if places is None else torch.tensor(places)
    )
    _, etas = moved_by_the_loop(prototypes.tolist(), before.tolist(), before.tolist(), places, 0.1)
    for own, earlier, eta in zip(found, prototypes, etas, strict=True):
        torch.testing.assert_close(own, earlier + eta * shift)


def test_a_class_listens_to_the_probes_that_stand_for_it_and_most_to_the_nearest():
    prototypes = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    before = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 1.0, 0.0]])
    after = before + torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [9.0, 9.0, 9.0]])
    found = transferred_prototypes(prototypes, before, after, stands_for=torch.tensor([0, 0, 1]))
    weight = 1 / (1 + math.exp(-0.4 / 0.1))
    torch.testing.assert_close(found[0], torch.tensor([1.0, 0.0, 0.8 * (2 * weight - 1)]))
    torch.testing.assert_close(found[1], torch.tensor([9.0, 10.0, 9.0]))


def test_probes_that_point_away_move_nothing_and_equal_ones_move_it_whole():
    prototype, shift = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    for before, eta in ((-prototype, 0.0), (torch.tensor([[0.0, 3.0]]), 0.0), (4 * prototype, 1.0)):
        found = transferred_prototypes(prototype, before, before + shift)
        torch.testing.assert_close(found, prototype + eta * shift)


def test_vectors_of_zeros_have_no_direction_and_break_nothing():
    prototypes = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    before = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    found = transferred_prototypes(prototypes, before, before + 1)
    assert torch.equal(found[0], prototypes[0])
    weights = torch.tensor([0.0, 10.0]).softmax(dim=0)  # both probes drift alike, whatever their weights
    torch.testing.assert_close(found[1], prototypes[1] + 0.5 * weights.sum())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    classes=st.integers(1, 4),
    probes=st.integers(1, 6),
    kind=st.sampled_from(["random", "opposite", "zero", "huge", "equal"]),
    temperature=st.sampled_from([1e-3, 0.1, 10.0]),
)
def test_no_prototype_moves_farther_than_the_probe_that_moved_most(seed, classes, probes, kind, temperature):
    prototypes = numbers(classes, 4, seed=seed)
    before = {
        "random": numbers(probes, 4, seed=seed + 1),
        "opposite": -prototypes[torch.arange(probes) % classes],
        "zero": torch.zeros(probes, 4, dtype=torch.float64),
        "huge": 1e6 * numbers(probes, 4, seed=seed + 1),
        "equal": prototypes[:1].expand(probes, 4),
    }[kind]
    drift = numbers(probes, 4, seed=seed + 2)
    places = torch.randint(-1, classes, (probes,), generator=torch.Generator().manual_seed(seed))
    found = transferred_prototypes(
        prototypes, before, before + drift, stands_for=places, temperature=temperature
    )
    assert bool(found.isfinite().all())
    farthest = (found - prototypes).norm(dim=1).max()
    assert farthest <= drift.norm(dim=1).max() + 1e-6


def test_wrong_arguments_are_named():
    prototypes, probes = torch.zeros(2, 3), torch.zeros(4, 3)
    for before, after in (
        (probes, torch.zeros(5, 3)),
        (probes[:, :2], probes[:, :2]),
        (probes[0], probes[0]),
        (probes[:0], probes[:0]),
    ):
        with pytest.raises(ValueError, match="`before` must be"):
            transferred_prototypes(prototypes, before, after)
    for temperature in (0, -1, math.inf):
        with pytest.raises(ValueError, match="`temperature`"):
            transferred_prototypes(prototypes, probes, probes, temperature=temperature)
