"""Class names: an ordered list without duplicates, one name per class id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from avalanche_vlm._checks import wrong_type, wrong_value


def normalize_text(text: str) -> str:
    """Return ``text`` in lower case with runs of white space folded, as CLIP tokenizers read it.

    >>> normalize_text("  Siamese   Cat ")
    'siamese cat'
    """
    return " ".join(text.lower().split())


@dataclass(frozen=True)
class ClassNames(Sequence[str]):
    """The names of all classes of a benchmark, by class id.

    Args:
        names: one name per class id, in the order of the ids; no set, which has none. Two names that
            differ only in case or white space count as duplicates, because a tokenizer cannot tell
            them apart.
        datasets: the data set that each class belongs to, for streams over several data sets
            (the label space ``"dataset"``); empty if all classes belong to one. A name may come back
            in another data set (a lotus among objects and among flowers), never within one.

    Raises:
        TypeError: ``names`` or ``datasets`` is no ordered list, or an entry of them is not text.
        ValueError: no name, an empty name, a duplicate, or ``datasets`` of another length.

    >>> names = ClassNames(["cat", "dog"])
    >>> names[1], len(names)
    ('dog', 2)
    >>> len(ClassNames(["lotus", "chair", "lotus"], ["objects", "objects", "flowers"]))
    3
    """

    names: tuple[str, ...]
    datasets: tuple[str, ...] = ()

    def __init__(self, names: Iterable[str], datasets: Iterable[str] = ()) -> None:
        object.__setattr__(self, "names", ordered("class_names", names, "an ordered list of names"))
        object.__setattr__(
            self, "datasets", ordered("datasets", datasets, "an ordered list, one entry per class")
        )
        if not self.names:
            raise wrong_value("class_names", "at least one name", "an empty list")
        if self.datasets and len(self.datasets) != len(self.names):
            raise wrong_value(
                "datasets",
                f"one entry per class ({len(self.names)})",
                f"{len(self.datasets)} entries",
            )
        for index, dataset in enumerate(self.datasets):
            if not isinstance(dataset, str):
                raise wrong_type(f"datasets[{index}]", "text", dataset)
        seen: dict[tuple[str, str], int] = {}
        for index, name in enumerate(self.names):
            if not isinstance(name, str):
                raise wrong_type(f"class_names[{index}]", "text", name)
            text = normalize_text(name)
            if not text:
                raise wrong_value(f"class_names[{index}]", "a name", repr(name))
            dataset = self.datasets[index] if self.datasets else ""
            first = seen.setdefault((dataset, text), index)
            if first != index:
                within = f" within data set {dataset!r}" if self.datasets else ""
                raise wrong_value(
                    "class_names",
                    f"names without duplicates{within} (up to case and white space)",
                    f"{name!r} for class {index} and {self.names[first]!r} for class {first}",
                    "Give one of them a name that tells it apart.",
                )

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, ClassNames):
            return self.names == other.names and self.datasets == other.datasets
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.names, self.datasets))

    def check_count(self, expected: int, what: str) -> None:
        """Raise `ValueError` unless there are ``expected`` names for ``what``."""
        if len(self) != expected:
            raise wrong_value(
                "class_names",
                f"{expected} names, one for each class of {what}",
                f"{len(self)} names",
                "Name every class once, in the order of the class ids.",
            )


def ordered(argument: str, values: Iterable[str], expected: str) -> tuple[str, ...]:
    """Return ``values`` as a tuple, or raise `TypeError` if they have no order."""
    if isinstance(values, str):
        raise wrong_type(argument, expected, values, "Wrap a single name in a list.")
    # The order of a set of text changes from run to run, and the class ids with it.
    if isinstance(values, (set, frozenset)):
        advice = "A set has no order: write a list, or sort it."
        raise wrong_type(argument, expected, values, advice)
    # The keys of a mapping may be the names as well as the ids.
    if isinstance(values, Mapping):
        raise wrong_type(argument, expected, values, "Write a list in the order of the class ids.")
    if not isinstance(values, Iterable):
        raise wrong_type(argument, expected, values)
    return tuple(values)
