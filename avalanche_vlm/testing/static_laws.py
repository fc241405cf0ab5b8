"""Laws of components that nothing is trained for."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from avalanche_vlm.testing.running import LawBroken, differing, require, snapshot


def check_callbacks(plugin: Any) -> None:
    """Law: own ``before_*``/``after_*`` names are the host's, and each takes ``**kwargs``.

    The host only warns of a misspelt callback, and then never calls it.
    """
    known = {name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))}
    for name, method in inspect.getmembers(type(plugin), inspect.isfunction):
        if not name.startswith(("before_", "after_")):
            continue
        require(
            name in known,
            f"{type(plugin).__name__}.{name} is no callback of the host; known: {sorted(known)}",
        )
        kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}
        require(
            inspect.Parameter.VAR_KEYWORD in kinds,
            f"{type(plugin).__name__}.{name} must take **kwargs, which strategy.train passes on",
        )


def check_documented(component: type) -> None:
    """Law: the docstring names its source and its deviations from it."""
    text = inspect.getdoc(component) or ""
    for section in ("References:", "Deviations:"):
        require(section in text, f"the docstring of {component.__name__} has no section {section!r}")


def check_arguments(
    component: Callable[..., Any],
    wrong: Mapping[str, Any],
    *,
    valid: Mapping[str, Any] | None = None,
    exempt: Collection[str] = (),
) -> None:
    """Law: each constructor argument, given one wrong value, is named in the error.

    Where the wrong value is a number, or a list of one, so are NaN and infinity.

    Args:
        component: the class or function.
        wrong: a wrong value for every argument.
        valid: values for the arguments that have no default.
        exempt: arguments for which every value is right (``**kwargs`` that are passed on).
    """
    parameters = inspect.signature(component).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = {parameter.name for parameter in parameters if parameter.kind not in kinds}
    missing = names - set(wrong) - set(exempt)
    require(not missing, f"{component.__name__}: no wrong value is given for {sorted(missing)}")
    for name, value in [(name, each) for name, given in wrong.items() for each in _wrong_values(given)]:
        try:
            component(**{**(valid or {}), name: value})
        except (TypeError, ValueError) as error:
            named = re.search(rf"\b{re.escape(name)}\b", str(error))
            require(
                named is not None,
                f"{component.__name__}({name}={value!r}): the error does not name it: {error}",
            )
        else:
            raise LawBroken(f"{component.__name__} accepts {name}={value!r}")


def _wrong_values(value: Any) -> list[Any]:
    """Return a wrong value and, beside a number, the numbers that are no finite ones."""
    if isinstance(value, list) and len(cast("list[Any]", value)) == 1:
        return [[each] for each in _wrong_values(value[0])]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return [value, *([math.nan, math.inf, -math.inf] if is_number else [])]


def check_seeded(make: Callable[[], Any]) -> None:
    """Law: constructing draws nothing from the global generator, and gives the same twice over.

    Args:
        make: makes the component, afresh at every call.
    """
    before = torch.get_rng_state()
    first = make()
    require(
        torch.equal(before, torch.get_rng_state()),
        f"{type(first).__name__} draws from the global generator; give it one of its own",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(987654321)
        second = make()
    if isinstance(first, nn.Module):
        changed = differing(snapshot(first), snapshot(second))
        require(not changed, f"two {type(first).__name__} of the same seed differ in {changed[:5]}")
