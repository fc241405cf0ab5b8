"""What a value from a file may be: checks that are put together, and name the field that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from avalanche_vlm._checks import close_names, wrong_value

Check = Callable[[str, Any], None]  # name of the field, its value -> raises ValueError unless it may be so

_LARGEST = 2**63 - 1
_SHOWN = 60


def wrong_field(name: str, expected: str, value: Any) -> ValueError:
    """Return (not raise) the error for a field of a file."""
    shown = "nothing" if value is None else f"{type(value).__name__} {value!r:.{_SHOWN}}"
    return wrong_value(name, expected, shown.replace("\n", " "))


def count(at_least: int = 1, at_most: int = _LARGEST) -> Check:
    """Return the check for a whole number."""

    def check(name: str, value: Any) -> None:
        if type(value) is not int or not at_least <= value <= at_most:
            raise wrong_field(name, f"a whole number from {at_least} to {at_most}", _short(value))

    return check


def number(*, above: float = float("-inf"), at_least: float = -1e30, at_most: float = 1e30) -> Check:
    """Return the check for a real number."""

    def check(name: str, value: Any) -> None:
        if type(value) not in (int, float) or not at_least <= value <= at_most or not value > above:
            bound = f" above {above:g}" if above > float("-inf") else ""
            raise wrong_field(name, f"a number{bound} from {at_least:g} to {at_most:g}", _short(value))

    return check


def _short(value: Any) -> Any:
    # Python refuses to write the digits of numbers that are too large.
    return float("inf") if type(value) is int and value.bit_length() > 1000 else value


def flag(name: str, value: Any) -> None:
    """Check a truth value."""
    if type(value) is not bool:
        raise wrong_field(name, "true or false", value)


def text(at_most: int = 10_000) -> Check:
    """Return the check for a text."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or len(value) > at_most:
            raise wrong_field(name, f"text of at most {at_most} characters", value)

    return check


def choice(*values: Any) -> Check:
    """Return the check for one of a few values."""

    def check(name: str, value: Any) -> None:
        if not any(type(value) is type(each) and value == each for each in values):
            raise wrong_field(name, f"one of {', '.join(map(repr, values))}", value)

    return check


def optional(check: Check) -> Check:
    """Return the check for a value that may be missing."""
    return lambda name, value: None if value is None else check(name, value)


def listed(check: Check, at_least: int = 0, at_most: int = _LARGEST) -> Check:
    """Return the check for a list of values."""

    def check_all(name: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)) or not at_least <= len(value) <= at_most:
            length = f"{at_least}" if at_least == at_most else f"{at_least} to {at_most}"
            raise wrong_field(name, f"a list of {length} entries", value)
        for index, each in enumerate(value):
            check(f"{name}[{index}]", each)

    return check_all


def either(expected: str, *checks: Check) -> Check:
    """Return the check for a value that passes one of several."""

    def check(name: str, value: Any) -> None:
        for each in checks:
            try:
                each(name, value)
            except ValueError:
                continue
            return
        raise wrong_field(name, expected, _short(value))

    return check


def check_fields(
    name: str, value: Any, fields: Mapping[str, Check], *, required: Collection[str] | None = None
) -> None:
    """Check an object of named values: none unknown, none missing, each as it may be.

    Args:
        name: of the object, empty for the outermost.
        value: what the file says.
        fields: the checks by the names that are known.
        required: those that must be there; None for all.
    """
    if not isinstance(value, Mapping):
        raise wrong_field(name or "configuration", "an object of named values", value)
    inside = f"{name}." if name else ""
    for key in value:
        if not isinstance(key, str) or key not in fields:
            known = close_names(str(key)[:_SHOWN], fields)
            raise wrong_value(
                f"{inside}{str(key)[:_SHOWN]}", "left out, because nobody knows it", "it", known
            )
    for key in fields if required is None else required:
        if key not in value:
            raise wrong_value(f"{inside}{key}", "there", "nothing")
    for key, each in value.items():
        fields[key](f"{inside}{key}", each)
