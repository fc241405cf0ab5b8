"""Backbones, heads, prompt contexts, adapters and LoRA as plain values, and back."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

from avalanche_vlm.models.saved_parts import SAVED_PARTS, check_part

Part = TypeVar("Part")


def part_config(part: Any) -> dict[str, Any]:
    """Return a JSON-serialisable description of a part: the name of its class, and its arguments."""
    kind = type(part)
    name = kind.__name__
    if name in SAVED_PARTS and _class_of(name) is not kind:
        name = f"{kind.__module__}.{kind.__qualname__}"  # it only has the name of one of ours
    return {"kind": name, **part.config()}


def part_from_config(config: dict[str, Any], base: type[Part], argument: str) -> Part:
    """Rebuild a part of this package from its description, which may come from anywhere.

    Args:
        config: what `part_config` returned.
        base: the class that the part is an instance of.
        argument: the argument with which a part of another package can be given instead.

    Raises:
        ValueError: the part is not of this package, and must then be given; or the description has a
            field that is unknown, missing or out of its bounds.
    """
    check_part(config, base.__name__, argument, argument)
    kind = _class_of(config["kind"])
    build: Any = getattr(kind, "from_config", kind)
    arguments = {key: value for key, value in config.items() if key != "kind"}
    return build(arguments) if build is not kind else build(**arguments)


def _class_of(name: str) -> Any:
    # By name at the time of asking: parts contain parts, and modules that know each other's classes
    # could not import each other. Only names of the list come here.
    return getattr(importlib.import_module("avalanche_vlm.models"), name)
