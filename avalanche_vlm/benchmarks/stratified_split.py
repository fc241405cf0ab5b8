"""A split into train and test that keeps the share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avalanche_vlm._checks import check_count, check_number, wrong_value
from avalanche_vlm.functional.splits import held_out_positions


def stratified_split(
    targets: Sequence[int], *, test_fraction: float, split_seed: int, class_labels: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Return the indices of a train and a test part, both sorted.

    Of a class with n samples the test part gets round(test_fraction · n) of them at random, and
    each part at least one. The draw depends on the seed and the order of the samples alone.

    Args:
        targets: class ids (N,).
        test_fraction: share of the test part, between 0 and 1, both excluded.
        split_seed: seed of the draw.
        class_labels: what to call each class in an error, by class id.

    Raises:
        ValueError: a class has fewer than two samples, or an argument is out of its range.

    >>> stratified_split([0, 0, 0, 0, 1, 1], test_fraction=0.5, split_seed=0, class_labels=["cat", "dog"])
    ([2, 3, 5], [0, 1, 4])
    """
    check_number("test_fraction", test_fraction, above=0, below=1)
    check_count("split_seed", split_seed, at_least=0)
    labels = torch.tensor([int(label) for label in targets], dtype=torch.int64)
    found, counts = labels.unique(return_counts=True)
    single = [class_labels[label] for label in found[counts < 2].tolist()]
    if single:
        raise wrong_value(
            "test_fraction",
            "given for classes with at least two samples, one for each part",
            f"one sample of {', '.join(map(repr, single[:5]))}{', ...' if len(single) > 5 else ''}",
            "Add samples, or pass a test set.",
        )
    return held_out_split(labels, float(test_fraction), int(split_seed))


def held_out_split(targets: Tensor, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the positions of what is kept and of what is held out of each class, both sorted.

    Args:
        targets: int64 (N,), class ids; a class with one sample keeps it.
        fraction: of each class that is held out; see `held_out_positions`.
        seed: of the draw.
    """
    held_out = held_out_positions(targets, fraction, torch.Generator().manual_seed(seed))
    kept = torch.ones(len(targets), dtype=torch.bool)
    kept[held_out] = False
    return kept.nonzero().flatten().tolist(), held_out.tolist()
