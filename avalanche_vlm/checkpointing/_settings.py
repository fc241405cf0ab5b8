"""Differences between how the run was set up and how it is set up now, told or refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from avalanche.logging import BaseLogger

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._graph import Path, is_state, shown_path

_ATOMS = (bool, int, float, str)


def settings_of(strategy: Any, objects: Mapping[Path, Any]) -> dict[str, dict[str, Any]]:
    """Return the public numbers and texts of objects, by path, and those of the optimizer's groups."""
    owners = {path: value for path, value in objects.items() if not isinstance(value, BaseLogger)}
    found = {shown_path(path): _plain(value) for path, value in {**owners, ("strategy",): strategy}.items()}
    for index, group in enumerate(strategy.optimizer.param_groups):
        own = {str(name): value for name, value in group.items() if type(value) in _ATOMS}
        found[f"strategy.optimizer.param_groups[{index}]"] = own
    return {path: own for path, own in found.items() if own}


def _plain(owner: Any) -> dict[str, Any]:
    own: dict[str, Any] = getattr(owner, "__dict__", {})
    return {
        name: value
        for name, value in own.items()
        if type(value) in _ATOMS and not name.startswith("_") and name != "training" and is_state(owner, name)
    }


def warn_of_settings(present: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Tell which settings of the strategy, its plugins and optimizer are others; those of the run stay."""
    for path in sorted(saved.keys() & present.keys()):
        for name, value in saved[path].items():
            if name in present[path] and present[path][name] != value:
                warnings.warn(
                    f"{path}.{name} was {value!r} in the run that is resumed and is {present[path][name]!r} "
                    "now: the run goes on as it was begun.",
                    stacklevel=4,
                )


def check_model_settings(present: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise if a part of the model has other settings: with the same weights it is another function.

    Raises:
        ValueError: names the setting.
    """
    for kind, entries in saved.items():
        for own, expected in zip(present.get(kind, ()), entries, strict=False):
            for name, value in expected.items():
                if own.get(name) != value:
                    raise wrong_value(
                        "strategy.model",
                        f"the one of the run: {name} of its {kind} was {_shown(value)} there",
                        f"{_shown(own.get(name, 'none'))}",
                        "Build the model with the settings of the run.",
                    )


def _shown(value: Any) -> str:
    return f"content {value}" if isinstance(value, str) and value.startswith("#") else repr(value)
