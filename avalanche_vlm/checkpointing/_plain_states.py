"""States that objects load by themselves: data alone, and only what they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._graph import is_bound, is_state


def check_state_dict(owner: Any, state: Any) -> None:
    """Raise unless a state is such as the owner's ``state_dict`` gives.

    Schedules of torch set every entry as an attribute, so that one called ``step`` would be called in
    place of the method, and one called ``optimizer`` be what they change.

    Raises:
        ValueError: it holds something that acts and that the owner does not have there, or sets what
            is no state.
    """
    present: Any = owner.state_dict()
    if isinstance(present, Mapping) != isinstance(state, Mapping):
        raise _odd(owner, f"a {type(state).__name__}")
    if isinstance(state, Mapping):
        for name, value in state.items():
            _check(owner, value, present.get(name), str(name))
    if isinstance(owner, LRScheduler):
        _check_schedule(owner, state)


def _check_schedule(owner: Any, state: Any) -> None:
    if not isinstance(state, Mapping):
        raise _odd(owner, f"a {type(state).__name__}")
    for name in state:
        if not isinstance(name, str) or name == "optimizer" or not is_state(owner, name):
            raise _odd(owner, f"the entry {name!r}")
    inner: list[Any] = list(getattr(owner, "_schedulers", ()))
    states: Any = state.get("_schedulers", ())
    if len(states) != len(inner):
        raise _odd(owner, f"{len(states)} schedules")
    for schedule, its_state in zip(inner, states, strict=True):
        _check_schedule(schedule, its_state)
    functions: list[Any] = list(getattr(owner, "lr_lambdas", ()))
    for function, its_state in zip(functions, _functions_of(state), strict=False):
        for name in its_state or ():
            if (
                not isinstance(name, str)
                or not is_state(function, name)
                or is_bound(vars(function).get(name))
            ):
                raise _odd(owner, f"the entry {name!r} of a function")


def _functions_of(state: Any) -> list[Any]:
    found: Any = state.get("lr_lambdas")
    return found if isinstance(found, list) else []


def _check(owner: Any, value: Any, present: Any, name: str) -> None:
    if isinstance(value, Mapping):
        items: Any = present if isinstance(present, Mapping) else {}
        for key, item in value.items():
            _check(owner, key, None, name)
            _check(owner, item, items.get(key), name)
    elif isinstance(value, (list, tuple, set, frozenset)) or type(value).__name__ == "deque":
        same = list(present) if isinstance(present, type(value)) else []
        for index, item in enumerate(value):
            _check(owner, item, same[index] if index < len(same) else None, name)
    elif is_bound(value) and value is not present:
        raise _odd(owner, f"{getattr(value, '__qualname__', value)!r:.60} at {name}")


def _odd(owner: Any, what: str) -> ValueError:
    return wrong_value("path", f"a checkpoint with a state of {type(owner).__name__}", f"one with {what}")
