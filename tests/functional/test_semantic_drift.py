"""How far a distribution has drifted: against scipy, and where boundary and core are known."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from avalanche_vlm.functional import jensen_shannon_divergence, semantic_drift


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_the_divergence_is_that_of_scipy(scale):
    first, second = logits(12, 5, scale=scale), logits(12, 5, seed=1, scale=scale)
    found = jensen_shannon_divergence(first, second)
    p, q = (each.softmax(dim=1).numpy() for each in (first, second))
    expected = jensenshannon(p, q, axis=1, base=2) ** 2
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert found.dtype == torch.float64


def test_the_divergence_is_symmetric_and_between_0_and_1():
    first, second = logits(200, 4, scale=50).float(), logits(200, 4, seed=1, scale=50).float()
    found = jensen_shannon_divergence(first, second)
    torch.testing.assert_close(found, jensen_shannon_divergence(second, first))
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert found.dtype == torch.float32
    assert not jensen_shannon_divergence(first, first + 7).gt(1e-6).any()
    apart = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert jensen_shannon_divergence(apart, apart.flip(1)).tolist() == [1.0, 1.0]


def test_the_boundary_is_what_was_nearest_to_the_new_classes():
    # Columns: 0 and 3 are old, 2 is new, and 1 counts for nothing.
    before = torch.tensor(
        [
            [9.0, 50.0, 0.0, 0.0],
            [4.0, 50.0, 3.0, 0.0],
            [0.0, -9.0, 2.0, 6.0],
            [1.0, 0.0, 5.0, 2.0],
        ]
    )
    after = before.clone()
    after[3, [0, 3]] = torch.tensor([3.0, 0.0])
    after[1, 0] = 2.0
    after[:, 2] += torch.tensor([300.0, 100.0, 200.0, 0.0])  # how near they are afterwards does not count
    after[:, 1] -= 100
    old, new = torch.tensor([3, 0]), torch.tensor([2])
    each = jensen_shannon_divergence(before[:, [0, 3]], after[:, [0, 3]]).tolist()
    assert [value > 0.005 for value in each] == [False, True, False, True]
    # From the core to the boundary: sample 0 (-9), 2 (-4), 1 (-1), 3 (+3).
    quarter = semantic_drift(before, after, old, new)
    assert quarter == pytest.approx((sum(each) / 4, each[3], each[0]), abs=1e-6)
    half = semantic_drift(before, after, old, new, fraction=0.5)
    assert half == pytest.approx((sum(each) / 4, (each[1] + each[3]) / 2, 0.0), abs=1e-6)
    smallest = semantic_drift(before, after, old, new, fraction=0.01)
    assert smallest == quarter


def test_without_drift_all_is_zero_and_one_sample_is_both():
    before = logits(7, 5)
    old, new = torch.tensor([0, 1, 2]), torch.tensor([3, 4])
    assert semantic_drift(before, before, old, new) == pytest.approx((0, 0, 0), abs=1e-12)
    drift = semantic_drift(before[:1], logits(1, 5, seed=2), old, new)
    assert drift.everywhere == drift.boundary == drift.core > 0


def test_more_of_the_drift_lies_where_it_was_made():
    """Old classes are confused the more the likelier a new class was."""
    before, old, new = logits(400, 6), torch.arange(4), torch.tensor([4, 5])
    nearness = before[:, 4:].amax(1) - before[:, :4].amax(1)
    after = before + nearness.sigmoid()[:, None] * logits(400, 6, seed=1)
    drift = semantic_drift(before, after, old, new)
    assert drift.boundary > 2 * drift.core
    assert drift.core < drift.everywhere < drift.boundary


def test_wrong_arguments_are_named():
    both, none = torch.zeros(3, 4), torch.zeros(0, dtype=torch.int64)
    old, new = torch.tensor([0, 1]), torch.tensor([2])
    for fraction in (0, 0.6, -1):
        with pytest.raises(ValueError, match="`fraction`"):
            semantic_drift(both, both, old, new, fraction=fraction)
    with pytest.raises(ValueError, match="`old` must be at least one class"):
        semantic_drift(both, both, none, new)
    with pytest.raises(ValueError, match="`new` must be at least one class"):
        semantic_drift(both, both, old, none)
    with pytest.raises(ValueError, match="`before` must be logits of at least one sample"):
        semantic_drift(both[:0], both[:0], old, new)
    for second in (torch.zeros(3, 5), torch.zeros(2, 4)):
        with pytest.raises(ValueError, match="`second` must be logits"):
            jensen_shannon_divergence(both, second)
