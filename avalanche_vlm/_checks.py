"""The one place that words argument errors.

Every sentence names the argument, says what was expected and what came, and, where there is
something to do about it, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any


def _sentence(argument: str, expected: str, got: Any, advice: str) -> str:
    text = f"`{argument}` must be {expected}; got {got}."
    return f"{text} {advice}" if advice else text


def wrong_value(argument: str, expected: str, got: Any, advice: str = "") -> ValueError:
    """Return (not raise) the error for an argument of the right type and a wrong value."""
    return ValueError(_sentence(argument, expected, got, advice))


def wrong_type(argument: str, expected: str, got: Any, advice: str = "") -> TypeError:
    """Return (not raise) the error for an argument of a wrong type."""
    if hasattr(got, "shape") and hasattr(got, "dtype"):
        shown = f"{tuple(got.shape)} of {got.dtype}"  # the values would fill the screen and say nothing
    else:
        shown = f"{got!r:.80}".replace("\n", " ")
    return TypeError(_sentence(argument, expected, f"{type(got).__name__} ({shown})", advice))


def check_type(argument: str, value: Any, types: type | tuple[type, ...], advice: str = "") -> None:
    """Raise `TypeError` unless ``value`` is an instance of ``types``."""
    if not isinstance(value, types):
        names = types if isinstance(types, tuple) else (types,)
        raise wrong_type(
            argument,
            " or ".join("None" if kind is type(None) else kind.__name__ for kind in names),
            value,
            advice,
        )


def check_number(
    argument: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Raise unless ``value`` is a finite real number within the bounds that are given."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong_type(argument, "a number", value)
    bounds: list[str] = []
    inside = value == value and abs(float(value)) != float("inf")
    if above is not None:
        bounds.append(f"above {above}")
        inside = inside and float(value) > above
    if at_least is not None:
        bounds.append(f"at least {at_least}")
        inside = inside and float(value) >= at_least
    if at_most is not None:
        bounds.append(f"at most {at_most}")
        inside = inside and float(value) <= at_most
    if below is not None:
        bounds.append(f"below {below}")
        inside = inside and float(value) < below
    if not inside:
        raise wrong_value(argument, " and ".join(["a finite number", *bounds]), value)


def check_sequence(argument: str, value: Any, kind: type, what: str) -> None:
    """Raise `TypeError` unless ``value`` is a list, or another sequence, of instances of ``kind``."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise wrong_type(argument, f"a list of {what}", value)
    for each in value:
        if not isinstance(each, kind):
            raise wrong_type(argument, f"a list of {what}", each)


def check_function(argument: str, value: Any, what: str = "a function") -> None:
    """Raise `TypeError` unless ``value`` can be called and is not a class, most often one not yet built."""
    if isinstance(value, type):
        raise wrong_type(argument, what, value, f"Build one: {argument}={value.__name__}(...).")
    if not callable(value):
        raise wrong_type(argument, what, value)


def check_count(argument: str, value: Any, *, at_least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise wrong_type(argument, "a whole number", value)
    if value < at_least:
        raise wrong_value(argument, f"a whole number of at least {at_least}", value)


def close_names(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names the known names nearest to ``name``."""
    ordered = sorted(known)
    by_lower = {known_name.lower(): known_name for known_name in ordered}
    close = difflib.get_close_matches(name.lower(), by_lower, n=4, cutoff=0.4)
    if close:
        return f"Did you mean {', '.join(repr(by_lower[match]) for match in close)}?"
    shown = ", ".join(map(repr, ordered[:8]))
    return f"Known: {shown}{', ...' if len(ordered) > 8 else ''}."


def check_choice(argument: str, value: Any, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``choices``, naming the close ones."""
    if value not in choices:
        expected = "one of " + ", ".join(map(repr, choices))
        advice = close_names(str(value), choices)
        raise wrong_value(argument, expected, repr(value), "" if advice.startswith("Known") else advice)


def check_no_state(component: Any, state: Mapping[str, Any]) -> None:
    """Raise unless the state that a component without any is to take over is empty."""
    if state:
        raise wrong_value("state", f"empty for a {type(component).__name__}", f"one with {sorted(state)}")
