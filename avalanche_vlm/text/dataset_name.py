"""The spellings of a data set's name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from avalanche_vlm._checks import check_choice


def dataset_name(argument: str, name: Any, known: Iterable[str]) -> str:
    """Return the known name that ``name`` spells; case, white space, "-" and "_" do not count.

    Args:
        argument: what the caller calls ``name``, for the error.
        name: a name as people write it, ``"CIFAR-100"`` for instance.
        known: the names to choose from; no two of them may differ in spelling only.

    Raises:
        ValueError: ``name`` spells none of them.

    >>> dataset_name("name", "CIFAR-100", ["cifar10", "cifar100"])
    'cifar100'
    """
    by_spelling = {_spelling(each): each for each in known}
    if isinstance(name, str):
        name = by_spelling.get(_spelling(name), name)
    check_choice(argument, name, tuple(by_spelling.values()))
    return name


def _spelling(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()
