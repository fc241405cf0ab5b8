"""What a strategy's model brings along and what a checkpoint stores of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._allowed import class_name
from avalanche_vlm.checkpointing._fingerprints import Fingerprints
from avalanche_vlm.checkpointing._graph import CannotBeSaved, registered
from avalanche_vlm.checkpointing._module_attributes import attributes_of, model_settings
from avalanche_vlm.checkpointing._torch_kinds import check_modes, modes_of, set_modes


def model_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by name, whatever the model's own ``parameters()`` lists."""
    return dict(nn.Module.named_parameters(model))


def lasting_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that belong to the model's state; the others are derived."""
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        derived: set[str] = getattr(module, "_non_persistent_buffers_set", set())
        for name, buffer in module.named_buffers(recurse=False):
            if name not in derived:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


@dataclass(frozen=True)
class BuiltModel:
    """What a model was like before it trained.

    Attributes:
        attributes: keys of the plain attributes of its parts.
        fingerprints: of frozen parameters and lasting buffers, by name; None if it may have been
            trained already.
        forms: shape and dtype of each parameter and lasting buffer.
        trains: names of the parameters that train.
        settings: what `model_settings` returns.
    """

    attributes: Mapping[str, Mapping[str, Any]]
    fingerprints: Mapping[str, str] | None
    forms: Mapping[str, Any]
    trains: Collection[str]
    settings: Mapping[str, Any]


def built_model(model: nn.Module, fingerprints: Fingerprints) -> BuiltModel:
    """Return what a model is like that has not been trained."""
    parameters, buffers = model_parameters(model), lasting_buffers(model)
    kept = {n: t for n, t in (*parameters.items(), *buffers.items()) if not t.requires_grad}
    return BuiltModel(
        attributes=attributes_of(model),
        fingerprints={name: fingerprints.of(tensor) for name, tensor in kept.items()},
        forms={name: _form(tensor) for name, tensor in (*parameters.items(), *buffers.items())},
        trains=frozenset(name for name, parameter in parameters.items() if parameter.requires_grad),
        settings=model_settings(model),
    )


def trained_model(model: nn.Module) -> BuiltModel:
    """Return the same of a model that may have been trained: its numbers and text may have changed."""
    parameters, buffers = model_parameters(model), lasting_buffers(model)
    attributes = attributes_of(model)
    for name, module in model.named_modules():
        if not type(module).__module__.startswith(("torch.", "open_clip.", "timm.")):
            own = attributes[name].items()
            attributes[name] = {key: value for key, value in own if str(value).startswith("#")}
    return BuiltModel(
        attributes=attributes,
        fingerprints=None,
        forms={name: _form(tensor) for name, tensor in (*parameters.items(), *buffers.items())},
        trains=frozenset(name for name, parameter in parameters.items() if parameter.requires_grad),
        settings={},
    )


def _form(tensor: Tensor) -> Any:
    return tuple(tensor.shape), str(tensor.dtype)


def model_state(
    model: nn.Module, optimized: Iterable[nn.Parameter], built: BuiltModel, fingerprints: Fingerprints
) -> dict[str, Any]:
    """Return what trains and what has changed, and the fingerprint of the rest.

    Args:
        model: the model.
        optimized: the parameters that the optimizer holds.
        built: what the model was like.
        fingerprints: remembers the fingerprints of the rest.

    Raises:
        CannotBeSaved: the run has added parts to the model, or taken some out.
    """
    parts = dict(model.named_modules())
    changed = sorted(parts.keys() ^ built.attributes.keys())
    if changed:
        raise CannotBeSaved(
            f"strategy.model.{changed[0]} was {'added' if changed[0] in parts else 'taken out'} in the run, "
            "and a checkpoint cannot hold that. Build all parts of the model before training."
        )
    held = {id(parameter) for parameter in optimized}
    parameters, buffers = model_parameters(model), lasting_buffers(model)
    before = built.fingerprints
    stored = {
        name: p.detach()
        for name, p in parameters.items()
        if p.requires_grad or id(p) in held or (before is not None and before.get(name) != fingerprints.of(p))
    }
    own = {n: b.detach() for n, b in buffers.items() if before is None or before.get(n) != fingerprints.of(b)}
    both = {**parameters, **buffers}
    trains = {name for name, parameter in parameters.items() if parameter.requires_grad}
    return {
        "class": class_name(type(model)),
        "description": describe(model),
        "class_names": _names(model),
        "parameters": stored,
        "buffers": own,
        "frozen": fingerprints.of_all({n: t for n, t in both.items() if n not in stored and n not in own}),
        "generators": {key: g.get_state() for key, g in _generators(model)},
        # Mostly empty: what the run has changed of how the model was built.
        "stopped": sorted(stored.keys() - trains),
        "turned": sorted(trains ^ (set(built.trains) & parameters.keys())),
        "grown": sorted(n for n, t in both.items() if built.forms.get(n) != _form(t)),
        "gone": sorted(built.forms.keys() - both.keys()),
        "modes": modes_of(model),
    }


def check_model(model: nn.Module, saved: Mapping[str, Any], fingerprints: Fingerprints) -> None:
    """Raise unless a model is the one whose state was saved, up to what is stored.

    Raises:
        ValueError: names the difference.
    """
    described = f"{saved['description']}, on which the run was begun"
    if class_name(type(model)) != saved["class"] or describe(model) != saved["description"]:
        raise wrong_value("strategy.model", described, describe(model))
    if _names(model) != saved["class_names"]:
        raise wrong_value(
            "strategy.model",
            f"one with the {len(saved['class_names'])} class names of the run",
            f"{len(_names(model))} others",
            "Call model.set_classes with the names that the run had when the checkpoint was written.",
        )
    _check_form(saved)
    parameters, buffers = model_parameters(model), lasting_buffers(model)
    both: dict[str, Tensor] = {**parameters, **buffers}
    _check_apart(saved, parameters, buffers)
    _check_new_names(model, saved, both)
    trains = {name for name, parameter in parameters.items() if parameter.requires_grad}
    turned, stopped, grown = set(saved["turned"]), set(saved["stopped"]), set(saved["grown"])
    trained = ((saved["parameters"].keys() - stopped) ^ turned) - (grown - both.keys())
    for name in sorted(trains ^ trained):
        if name in saved["gone"]:
            continue
        if name not in trained:
            raise wrong_value(
                "strategy.model", f"one in which {name!r} is frozen, as in the run", "one that trains it"
            )
        if name not in parameters:
            raise wrong_value("strategy.model", f"one with the parameter {name!r}", "one without")
        raise wrong_value(
            "strategy.model", f"one that trains {name!r}, as in the run", "one in which it is frozen"
        )
    for name, tensor in {**saved["parameters"], **saved["buffers"]}.items():
        if name not in both and name not in grown:
            kind = "parameter" if name in saved["parameters"] else "buffer"
            raise wrong_value("strategy.model", f"one with the {kind} {name!r}", "one without")
        if name in saved["parameters"] and name not in grown and _form(both[name]) != _form(tensor):
            expected = f"one whose {name!r} is {tuple(tensor.shape)} of {tensor.dtype}"
            raise wrong_value("strategy.model", expected, f"{tuple(both[name].shape)} of {both[name].dtype}")
    stored = saved["parameters"].keys() | saved["buffers"].keys() | set(saved["gone"])
    frozen = fingerprints.of_all({name: t for name, t in both.items() if name not in stored})
    if frozen != saved["frozen"]:
        raise wrong_value(
            "strategy.model",
            f"{described}, with the frozen weights {saved['frozen'][:12]}",
            f"the frozen weights {frozen[:12]}",
            "Load the same pretrained weights, and train nothing before resuming.",
        )
    if saved["generators"].keys() != dict(_generators(model)).keys():
        raise wrong_value("strategy.model", f"one with generators at {sorted(saved['generators'])}", "others")
    for state in saved["generators"].values():
        torch.Generator().set_state(state)  # one that is none is refused here


def _check_form(saved: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the state of a model has the kinds of values that `model_state` gives."""
    for key in ("stopped", "turned", "grown", "gone"):
        if not all(isinstance(name, str) for name in saved[key]):
            raise wrong_value("path", f"a checkpoint with names of what was {key}", "one with others")
    for key in ("parameters", "buffers"):
        for name, tensor in saved[key].items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise wrong_value(
                    "path", f"a checkpoint whose {key} are tensors", f"one with another {name!r}"
                )
    check_modes(saved["modes"])


def _check_apart(saved: Mapping[str, Any], parameters: Mapping[str, Any], buffers: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a tensor is stored as what it is not, or both stored and gone."""
    stored = {*saved["parameters"], *saved["buffers"]}
    odd = [*(stored & set(saved["gone"])), *(set(saved["parameters"]) & set(saved["buffers"]))]
    odd += [name for name in saved["parameters"] if name in buffers and name not in parameters]
    odd += [name for name in saved["buffers"] if name in parameters and name not in buffers]
    if odd:
        raise wrong_value("path", "a checkpoint with each tensor in one place", f"{odd[0]!r} in another")


def _check_new_names(model: nn.Module, saved: Mapping[str, Any], both: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` where a tensor is new to the model and a part has another thing of that name."""
    modules = dict(model.named_modules())
    for name in {*saved["grown"], *saved["gone"]} - both.keys():
        prefix, _, own = name.rpartition(".")
        module = modules.get(prefix)
        tensors = () if module is None else (*registered(module)[0], *registered(module)[1])
        if module is None or not own or (hasattr(module, own) and own not in tensors):
            raise wrong_value(
                "strategy.model", f"one that can have a tensor {name!r}, as in the run", "another"
            )


def grown_parameters(model: nn.Module, saved: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """Return new parameters for those that the run has made, or made of another shape."""
    device = next((p.device for p in model_parameters(model).values()), torch.device("cpu"))
    names = [name for name in saved["grown"] if name in saved["parameters"]]
    return {name: nn.Parameter(saved["parameters"][name].to(device).clone()) for name in names}


@torch.no_grad()
def load_model(model: nn.Module, saved: Mapping[str, Any], grown: Mapping[str, nn.Parameter]) -> None:
    """Put the stored tensors into a model that `check_model` has passed, in place."""
    for name in saved["gone"]:
        module, own = _place(model, name)
        for parts in registered(module)[:2]:
            if own in parts:
                parts[own] = None
    for name, parameter in grown.items():
        module, own = _place(model, name)
        registered(module)[0].pop(own, None)
        module.register_parameter(own, parameter)
    parameters = model_parameters(model)
    for name, tensor in saved["parameters"].items():
        parameters[name].copy_(tensor)
        parameters[name].requires_grad_(name not in saved["stopped"])
    for name in saved["turned"]:
        if name in parameters and name not in saved["parameters"]:
            parameters[name].requires_grad_(False)
    for name, tensor in saved["buffers"].items():
        set_buffer(model, name, tensor)
    for key, generator in _generators(model):
        generator.set_state(saved["generators"][key])
    set_modes(model, saved["modes"])


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    prefix, _, own = name.rpartition(".")
    return dict(model.named_modules())[prefix], own


@torch.no_grad()
def set_buffer(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a buffer, in place if its shape allows."""
    module, own = _place(model, name)
    buffer = registered(module)[1].get(own)
    if buffer is None:
        device = next((p.device for p in model_parameters(model).values()), torch.device("cpu"))
        module.register_buffer(own, tensor.clone().to(device))
    elif buffer.shape == tensor.shape and buffer.dtype == tensor.dtype:
        buffer.copy_(tensor)
    else:
        setattr(module, own, tensor.clone().to(buffer.device))


def describe(model: nn.Module) -> str:
    """Return a model in words: the class, and that and the settings of its backbone."""
    backbone: Any = getattr(model, "backbone", None)
    if not hasattr(backbone, "config"):
        return f"a {type(model).__name__}"
    settings = ", ".join(f"{name}={value!r}" for name, value in backbone.config().items() if _is_short(value))
    return f"a {type(model).__name__} over {type(backbone).__name__}({settings})"


def _is_short(value: Any) -> bool:
    # A file of weights has another path on another machine, and its fingerprint is checked.
    return isinstance(value, (bool, int, float, str, type(None))) and not (
        isinstance(value, str) and "/" in value
    )


def _names(model: Any) -> tuple[str, ...]:
    names: Any = getattr(getattr(model, "head", None), "class_names", None)
    return () if names is None else tuple(str(name) for name in names)


def _generators(model: nn.Module) -> list[tuple[str, torch.Generator]]:
    """Return the random generators that modules own, by name."""
    return [
        (f"{prefix}.{name}", value)
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Generator)
    ]
