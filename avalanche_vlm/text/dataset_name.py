"""The spellings of a data set's name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from avalanche_vlm._checks import wrong_value


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
    spelling = _spelling(str(name))
    if isinstance(name, str) and spelling in by_spelling:
        return by_spelling[spelling]
    close = difflib.get_close_matches(spelling, by_spelling, n=4, cutoff=0.4)
    raise wrong_value(
        argument,
        f"one of {', '.join(map(repr, by_spelling.values()))}",
        repr(name),
        f"Did you mean {', '.join(repr(by_spelling[each]) for each in close)}?" if close else "",
    )


def _spelling(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()
