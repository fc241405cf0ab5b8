"""Backbones, heads, prompt contexts, adapters and LoRA as plain values, and back."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

from avalanche_vlm._checks import wrong_value

Part = TypeVar("Part")


def part_config(part: Any) -> dict[str, Any]:
    """Return a JSON-serialisable description of a part: the name of its class, and its arguments."""
    return {"kind": type(part).__name__, **part.config()}


def part_from_config(config: dict[str, Any], base: type[Part], argument: str) -> Part:
    """Rebuild a part of this package from its description.

    Args:
        config: what `part_config` returned.
        base: the class that the part is an instance of.
        argument: the argument with which a part of another package can be given instead.

    Raises:
        ValueError: the part is not of this package; it must then be given.
    """
    # By name at the time of asking: parts contain parts, and modules that know each other's classes
    # could not import each other.
    kind = getattr(importlib.import_module("avalanche_vlm.models"), config["kind"], None)
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise wrong_value(
            argument, "given, because the saved one is not part of this package", config["kind"]
        )
    build: Any = getattr(kind, "from_config", kind)
    arguments = {key: value for key, value in config.items() if key != "kind"}
    return build(arguments) if build is not kind else build(**arguments)
