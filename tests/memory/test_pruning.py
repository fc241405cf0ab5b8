"""Which seeds stay, against plain loops."""

import pytest
import torch
from torch.nn import functional as F

from avalanche_vlm.memory import HerdingPruning, KCentrePruning, RedundancyPruning


def seeds_of(count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(count, 5, generator=generator, dtype=torch.float64) + 0.5, dim=1)
    return rows, torch.randint(1, 9, (count,), generator=generator).double()


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def mean_of(rows, counts):
    return [
        sum(n * row[d] for row, n in zip(rows, counts, strict=True)) / sum(counts)
        for d in range(len(rows[0]))
    ]


def by_redundancy(rows, counts, keep):
    alive = list(range(len(rows)))
    while len(alive) > keep:
        pairs = [(cosine(rows[i], rows[j]), j) for i in alive for j in alive if i < j]
        alive.remove(max(pairs)[1])
    return alive


def by_k_centre(rows, counts, keep):
    mean = mean_of(rows, counts)
    chosen = [max(range(len(rows)), key=lambda i: cosine(rows[i], mean))]
    while len(chosen) < keep:
        left = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(min(left, key=lambda i: max(cosine(rows[i], rows[j]) for j in chosen)))
    return sorted(chosen)


def by_herding(rows, counts, keep):
    mean, chosen = mean_of(rows, counts), []

    def distance(i):
        own = [rows[j] for j in [*chosen, i]]
        middle = [sum(row[d] for row in own) / len(own) for d in range(len(mean))]
        return sum((a - b) ** 2 for a, b in zip(mean, middle, strict=True))

    while len(chosen) < keep:
        chosen.append(min((i for i in range(len(rows)) if i not in chosen), key=distance))
    return sorted(chosen)


RULES = {
    "redundancy": (RedundancyPruning(), by_redundancy),
    "k-centre": (KCentrePruning(), by_k_centre),
    "herding": (HerdingPruning(), by_herding),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", RULES)
def test_the_rows_that_stay_are_those_of_the_loop(name, seed):
    pruning, loop = RULES[name]
    seeds, counts = seeds_of(7, seed)
    for keep in range(1, 7):
        before = seeds.clone()
        found = pruning.kept(seeds, counts, keep)
        assert found.dtype == torch.int64
        assert found.tolist() == loop(seeds.tolist(), counts.tolist(), keep)
        assert torch.equal(seeds, before)


@pytest.mark.parametrize("name", RULES)
def test_copies_are_chosen_among_without_choosing_one_twice(name):
    pruning, _ = RULES[name]
    seeds = F.normalize(torch.ones(5, 3), dim=1)
    for keep in range(1, 5):
        assert len(set(pruning.kept(seeds, torch.ones(5), keep).tolist())) == keep


def test_the_later_of_the_two_nearest_goes():
    seeds = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]), dim=1)
    assert RedundancyPruning().kept(seeds, torch.ones(3), 2).tolist() == [0, 1]
