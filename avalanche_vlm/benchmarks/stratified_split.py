"""A split into train and test that keeps the share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from avalanche_vlm._checks import check_count, check_number, wrong_value


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
    check_number("test_fraction", test_fraction, above=0)
    if test_fraction >= 1:
        raise wrong_value("test_fraction", "a number below 1", test_fraction)
    check_count("split_seed", split_seed, at_least=0)
    generator = torch.Generator().manual_seed(int(split_seed))
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(targets):
        by_class.setdefault(int(label), []).append(index)
    single = [class_labels[label] for label, members in sorted(by_class.items()) if len(members) < 2]
    if single:
        raise wrong_value(
            "test_fraction",
            "given for classes with at least two samples, one for each part",
            f"one sample of {', '.join(map(repr, single[:5]))}{', ...' if len(single) > 5 else ''}",
            "Add samples, or pass a test set.",
        )
    train: list[int] = []
    test: list[int] = []
    for _, members in sorted(by_class.items()):
        shuffled = [members[position] for position in torch.randperm(len(members), generator=generator)]
        count = min(max(round(test_fraction * len(members)), 1), len(members) - 1)
        test += shuffled[:count]
        train += shuffled[count:]
    return sorted(train), sorted(test)
