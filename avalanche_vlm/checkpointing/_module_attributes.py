"""Plain attributes of modules: a counter, a list of prototypes, the names of classes.

Those of the model are stored where the run has changed them; all others come from building it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._content import content_key
from avalanche_vlm.checkpointing._graph import CannotBeSaved, Path, is_fixed, is_state, shown_path

if TYPE_CHECKING:
    from avalanche_vlm.checkpointing._decode import Decoder
    from avalanche_vlm.checkpointing._encode import Encoder

_OF_BACKBONES = ("torch.", "open_clip.", "timm.")
# By the name of a module: attribute -> key of its content.
Attributes = Mapping[str, Mapping[str, Any]]


def attributes_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return a key of each plain attribute of each part of a model.

    Random generators are left out: their states are stored anyway.
    """
    return {name: _keys(module) for name, module in model.named_modules()}


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds beside its tensors, parts and random generators."""
    return {
        name: value
        for name, value in vars(module).items()
        if name != "training" and is_state(module, name) and not isinstance(value, torch.Generator)
    }


def _keys(module: nn.Module) -> dict[str, Any]:
    return {name: content_key(value) for name, value in plain_attributes(module).items()}


def changed_attributes(
    encoder: Encoder,
    model: nn.Module,
    path: Path,
    built: Attributes,
    *,
    prefix: str = "",
    also: nn.Module | None = None,
) -> list[tuple[str, list[Any], list[str]]]:
    """Return what has changed since modules were built: name, attributes as pairs, attributes gone.

    Args:
        encoder: encodes the values.
        model: the modules.
        path: where they are.
        built: what `attributes_of` returned of the model when it was built.
        prefix: the name that ``model`` has there.
        also: a model of which another restoration starts; what it has changed counts too.
    """
    found: list[tuple[str, list[Any], list[str]]] = []
    others = {} if also is None else attributes_of(also)
    for name, module in model.named_modules():
        before = built.get(".".join(part for part in (prefix, name) if part), {})
        now, other = _keys(module), others.get(name, before)
        changed = [
            own
            for own, key in now.items()
            if ((own, key) not in before.items() or other.get(own) != key)
            # Of a model that had trained already it is not known what it was.
            and (own in before or not is_fixed(module, own))
        ]
        gone = [own for own in {**before, **other} if own not in now]
        if changed or gone:
            where = (*path, *([(name,)] if name else []))
            for own in (*changed, *gone):
                if is_fixed(module, own):
                    raise CannotBeSaved(
                        f"{shown_path((*where, own))} was changed in the run, and a checkpoint does not hold "
                        "it: it says how the model is built. Build the model with it."
                    )
            pairs = [(own, encoder.encode(vars(module)[own], (*where, own))) for own in changed]
            found.append((name, pairs, gone))
    return found


Changes = list[tuple[nn.Module, dict[str, Any], list[str]]]


def read_changes(decoder: Decoder, model: nn.Module, path: Path, changes: Iterable[Any]) -> Changes:
    """Return what `changed_attributes` had found: modules of a model, new attributes, and those gone.

    Raises:
        ValueError: a module is not there, or an attribute is none that may be changed.
    """
    modules = dict(model.named_modules())
    found: Changes = []
    for name, pairs, gone in changes:
        if name not in modules:
            raise wrong_value("strategy.model", f"one with the part {name!r}, as in the run", "one without")
        where = (*path, *([(name,)] if name else []))
        decoder.check_attributes(modules[name], gone)
        found.append((modules[name], decoder.pairs(modules[name], pairs, where), list(gone)))
    return found


def set_changes(changes: Changes) -> None:
    """Set what was changed, and delete what was gone."""
    for module, values, gone in changes:
        own = vars(module)
        own.update(values)
        for attribute in gone:
            own.pop(attribute, None)


def model_settings(model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """Return the public attributes of a model's parts, by class; parts that are alike count once."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, module in model.named_modules():
        if path.startswith("backbone.") and type(module).__module__.startswith(_OF_BACKBONES):
            continue  # the settings of the backbone are compared by themselves
        own: dict[str, Any] = {}
        for name, key in sorted(_keys(module).items()):
            value = vars(module)[name]
            if name.startswith("_") or name == "class_names" or callable(value):
                continue  # the names of classes may grow, and are compared by themselves
            if is_dataclass(value):
                own |= {
                    f"{name}.{field.name}": content_key(getattr(value, field.name)) for field in fields(value)
                }
            else:
                own[name] = key
        entries = found.setdefault(type(module).__name__, [])
        if own and own not in entries:
            entries.append(own)
    return {kind: entries for kind, entries in sorted(found.items()) if entries}
