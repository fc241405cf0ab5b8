"""Draws of a share of each class."""

import torch

from avalanche_vlm.functional.splits import held_out_positions, shuffled_by_class


def test_positions_to_hold_out_are_a_share_of_each_class():
    targets = torch.tensor([4] * 10 + [1] + [7, 7])
    generator = torch.Generator().manual_seed(0)
    for fraction, counts in ((0.25, (2, 1)), (0.01, (1, 1)), (0.99, (9, 1))):
        positions = held_out_positions(targets, fraction, generator)
        assert positions.tolist() == sorted(set(positions.tolist()))
        found = targets[positions]
        assert ((found == 4).sum(), (found == 7).sum(), (found == 1).sum()) == (*counts, 0)


def test_nothing_is_held_out_where_no_class_has_two_samples():
    for targets in (torch.tensor([2, 1]), torch.tensor([], dtype=torch.int64)):
        positions = held_out_positions(targets, 0.5, torch.Generator())
        assert positions.dtype == torch.int64
        assert len(positions) == 0


def test_each_class_is_shuffled_by_a_loop_over_ids():
    targets = torch.tensor([3, 0, 3, 3, 9, 0])
    generator, again = (torch.Generator().manual_seed(5) for _ in range(2))
    expected = []
    for label in (0, 3, 9):
        own = [position for position, each in enumerate(targets.tolist()) if each == label]
        # A class with one sample draws nothing, so that leaving it out changes no other.
        order = torch.randperm(len(own), generator=again).tolist() if len(own) > 1 else [0]
        expected.append([own[place] for place in order])
    assert [own.tolist() for own in shuffled_by_class(targets, generator)] == expected
    assert torch.equal(generator.get_state(), again.get_state())
