"""What a strategy's model brings along and what a checkpoint stores of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._allowed import class_name
from avalanche_vlm.models.fingerprint import fingerprint


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


class FrozenFingerprints:
    """Fingerprints of the tensors that are not stored, computed again only after a change."""

    def __init__(self) -> None:
        self._state: Any = None
        self._fingerprint = ""

    def of(self, tensors: Mapping[str, Tensor]) -> str:
        """Return the fingerprint of tensors by name."""
        state = [(name, id(t), t.data_ptr(), t._version) for name, t in tensors.items()]
        if state != self._state:
            # The names go along, not in the key: a tensor may be moved, and its address used again.
            self._fingerprint = fingerprint(dict(tensors))
            self._state = state
        return self._fingerprint


def model_state(
    model: nn.Module, optimized: Iterable[nn.Parameter], built: Mapping[str, str], frozen: FrozenFingerprints
) -> dict[str, Any]:
    """Return what trains and what has changed, and the fingerprint of the rest.

    Args:
        model: the model.
        optimized: the parameters that the optimizer holds.
        built: fingerprints of buffers as they were built, by name; those not among them are stored.
        frozen: remembers the fingerprint of the rest.
    """
    held = {id(parameter) for parameter in optimized}
    parameters = model_parameters(model)
    stored: dict[str, Tensor] = {
        name: p.detach() for name, p in parameters.items() if p.requires_grad or id(p) in held
    }
    buffers = lasting_buffers(model)
    changed = {n: b.detach() for n, b in buffers.items() if built.get(n) != fingerprint({n: b})}
    rest = {n: t for n, t in (*parameters.items(), *buffers.items()) if n not in stored and n not in changed}
    return {
        "class": class_name(type(model)),
        "description": describe(model),
        "class_names": _names(model),
        "parameters": stored,
        "buffers": changed,
        "frozen": frozen.of(rest),
        "generators": {key: g.get_state() for key, g in _generators(model)},
    }


def check_model(model: nn.Module, saved: Mapping[str, Any]) -> None:
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
    parameters, buffers = model_parameters(model), lasting_buffers(model)
    trains = {name for name, parameter in parameters.items() if parameter.requires_grad}
    for name in sorted(trains ^ saved["parameters"].keys()):
        if name not in saved["parameters"]:
            raise wrong_value(
                "strategy.model", f"one in which {name!r} is frozen, as in the run", "one that trains it"
            )
        if name not in parameters:
            raise wrong_value("strategy.model", f"one with the parameter {name!r}", "one without")
    for name, tensor in saved["parameters"].items():
        if parameters[name].shape != tensor.shape or parameters[name].dtype != tensor.dtype:
            expected = f"one whose {name!r} is {tuple(tensor.shape)} of {tensor.dtype}"
            got = f"{tuple(parameters[name].shape)} of {parameters[name].dtype}"
            raise wrong_value("strategy.model", expected, got)
    missing = sorted(saved["buffers"].keys() - buffers.keys())
    if missing:
        raise wrong_value("strategy.model", f"one with the buffer {missing[0]!r}", "one without")
    stored = saved["parameters"].keys() | saved["buffers"].keys()
    rest = {name: t for name, t in (*parameters.items(), *buffers.items()) if name not in stored}
    if fingerprint(rest) != saved["frozen"]:
        raise wrong_value(
            "strategy.model",
            f"{described}, with the frozen weights {saved['frozen'][:12]}",
            f"the frozen weights {fingerprint(rest)[:12]}",
            "Load the same pretrained weights, and train nothing before resuming.",
        )
    if saved["generators"].keys() != dict(_generators(model)).keys():
        raise wrong_value("strategy.model", f"one with generators at {sorted(saved['generators'])}", "others")


@torch.no_grad()
def load_model(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Put the stored tensors into a model that `check_model` has passed, in place."""
    parameters = model_parameters(model)
    for name, tensor in saved["parameters"].items():
        parameters[name].copy_(tensor)
    for name, tensor in saved["buffers"].items():
        set_buffer(model, name, tensor)
    for key, generator in _generators(model):
        generator.set_state(saved["generators"][key])


@torch.no_grad()
def set_buffer(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a buffer, in place if its shape allows."""
    prefix, _, own = name.rpartition(".")
    module = model.get_submodule(prefix)
    buffer = getattr(module, own)
    if buffer.shape == tensor.shape and buffer.dtype == tensor.dtype:
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
