"""Modules, copies of the model and optimizers, as plain values and tensors."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._allowed import class_name
from avalanche_vlm.checkpointing._graph import CannotBeSaved, Path, registered, shown_path
from avalanche_vlm.checkpointing._kinds import Kind
from avalanche_vlm.checkpointing._module_attributes import changed_attributes, read_changes, set_changes

if TYPE_CHECKING:
    from avalanche_vlm.checkpointing._decode import Decoder
    from avalanche_vlm.checkpointing._encode import Encoder


# Modules: what a constructor has made is filled, part by part; others are made of their parts.


def _encode_module(encoder: Encoder, value: nn.Module, path: Path) -> tuple[Any, ...]:
    template = _template(encoder.model, value)
    if template is not None:
        return _encode_copy(encoder, value, path, template)
    if encoder.built is not None and encoder.built.path(value) is None:
        if encoder.built.kind(class_name(type(value))) is None:
            raise encoder.refusal(value, path)
        if any(vars(value)[hooks] for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")):
            raise CannotBeSaved(
                f"{shown_path(path)} is a module that the run made, with hooks, which a checkpoint cannot "
                "hold. Build it in a constructor."
            )
    parts = [
        [(name, encoder.encode(part, (*path, name))) for name, part in own.items()]
        for own in registered(value)
    ]
    derived = sorted(vars(value)["_non_persistent_buffers_set"])
    return ("module", class_name(type(value)), *parts, derived, *encoder.attributes(value, path))


def _decode_module(decoder: Decoder, live: Any, path: Path, form: str, *content: Any) -> Any:
    if form == "copy":
        return _decode_copy(decoder, path, *content)
    name, parameters, buffers, modules, derived, pairs, left = content
    module = live
    if live is None:
        kind: Any = decoder.kind(name)
        if not issubclass(kind, nn.Module):
            raise wrong_value("path", "a checkpoint with a module there", f"one with a {name}")
        module = decoder.empty(kind)
        nn.Module.__init__(module)
    elif class_name(type(live)) != name:
        raise wrong_value("strategy", f"one with a {name}, as in the run", f"a {class_name(type(live))}")
    decoder.put(module)
    found = [
        {str(key): decoder.decode(part, (*path, str(key))) for key, part in pairs}
        for pairs in (parameters, buffers, modules)
    ]
    kinds = (nn.Parameter, Tensor, nn.Module)
    for own, expected in zip(found, kinds, strict=True):
        for key, part in own.items():
            if part is not None and not isinstance(part, expected):
                raise wrong_value(
                    "path", f"a checkpoint whose {name}.{key} is a {expected.__name__}", "another"
                )

    def put_parts() -> None:
        for own, parts in zip(found, registered(module), strict=True):
            parts.clear()
            parts.update(own)
        vars(module)["_non_persistent_buffers_set"] = set(derived)

    decoder.later(put_parts)
    decoder.change(module, pairs, left, path)
    return module


# Copies of the model, or of a part of it, as that in which they differ.


def _template(model: nn.Module, value: nn.Module) -> str | None:
    """Return the name of the first part of the model that a module may be a copy of."""
    names: Any = None
    for prefix, part in model.named_modules():
        if type(part) is type(value) and not type(part).__module__.startswith("torch."):
            names = tensors_of(value).keys() if names is None else names
            if tensors_of(part).keys() == names:
                return prefix
    return None


def _most_copied(model: nn.Module) -> int:
    """Return how many bytes of copies of a model a file may ask for: it has what differs in them alone."""
    return 64 * sum(tensor.nbytes for tensor in tensors_of(model).values()) + (16 << 20)


def _encode_copy(encoder: Encoder, value: nn.Module, path: Path, template: str) -> tuple[Any, ...]:
    if encoder.built is None:
        return ("copy", template)
    original = encoder.model.get_submodule(template)
    live, own = tensors_of(original), tensors_of(value)
    shared = [name for name, tensor in own.items() if tensor is live[name]]
    encoder.copied += sum(tensor.nbytes for name, tensor in own.items() if name not in shared)
    if encoder.copied > _most_copied(encoder.model):
        raise CannotBeSaved(
            f"{shown_path(path)} is one of so many copies of the model that a checkpoint does not hold them "
            "all. Keep the tensors that you need, or fewer copies."
        )
    differing = {
        name: tensor.detach()
        for name, tensor in own.items()
        if tensor is not live[name]
        and (tensor.shape != live[name].shape or not same_bits(tensor, live[name]))
    }
    trains = [name for name, tensor in own.items() if tensor.requires_grad and name not in shared]
    attributes = changed_attributes(
        encoder, value, path, encoder.attributes_of_model, prefix=template, also=original
    )
    return ("copy", template, shared, differing, trains, modes_of(value), attributes)


def _decode_copy(decoder: Decoder, path: Path, *content: Any) -> Any:
    template, shared, differing, trains, modes, attributes = content
    modules = dict(decoder.model.named_modules())
    if template not in modules:
        raise wrong_value("strategy.model", f"one with the part {template!r}, as in the run", "one without")
    live = modules[template]
    own = tensors_of(live)
    decoder.copied += sum(tensor.nbytes for name, tensor in own.items() if name not in shared)
    if decoder.copied > _most_copied(decoder.model):
        raise wrong_value("path", "a checkpoint that takes memory like its run", "one with too many copies")
    made: Any = copy.deepcopy(live, {id(own[name]): own[name] for name in shared})
    decoder.put(made)
    # Its tensors are those of the saved model, unless they differ from these, or are frozen.
    saved = {name: decoder.tensors.get(f"{template}.{name}" if template else name) for name in own}
    values = {name: t for name, t in saved.items() if t is not None and name not in shared}
    check_modes(modes)
    for name in (*shared, *differing, *trains):
        if name not in own:
            raise wrong_value("strategy.model", f"one with {template}.{name}, as in the run", "one without")
    for name, tensor in {**values, **differing}.items():
        prefix, _, attribute = name.rpartition(".")
        module = made.get_submodule(prefix)
        current = getattr(module, attribute)
        placed = tensor.to(current.device).clone()
        setattr(module, attribute, nn.Parameter(placed) if isinstance(current, nn.Parameter) else placed)
    for name, tensor in tensors_of(made).items():
        if name not in shared and tensor.is_floating_point():
            tensor.requires_grad_(name in trains)
    set_modes(made, modes)
    changes = read_changes(decoder, made, path, attributes)
    decoder.later(lambda: set_changes(changes))
    return made


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, whatever ``parameters()`` of the model lists."""
    return {**dict(nn.Module.named_parameters(model)), **dict(model.named_buffers())}


def modes_of(model: nn.Module) -> bool | list[str]:
    """Return whether a model is in training mode; the names of those parts that are, if not all agree."""
    modes = {name: module.training for name, module in model.named_modules()}
    if len(set(modes.values())) == 1:
        return modes[""]
    return [name for name, training in modes.items() if training]


def check_modes(modes: Any) -> None:
    """Raise `ValueError` unless `modes_of` returns such a value."""
    names: list[Any] = modes if isinstance(modes, list) else []
    if not isinstance(modes, (bool, list)) or not all(isinstance(name, str) for name in names):
        raise wrong_value("path", "a checkpoint with the modes of modules", f"one with {modes!r:.60}")


def set_modes(model: nn.Module, modes: bool | Iterable[str]) -> None:
    """Go back to what `modes_of` returned."""
    names = modes if isinstance(modes, bool) else set(modes)
    for name, module in model.named_modules():
        module.training = names if isinstance(names, bool) else name in names


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors of one shape are equal, NaN included."""
    first, second = first.detach(), second.detach()
    same_kind = first.dtype == second.dtype
    return same_kind and bool(((first == second) | ((first != first) & (second != second))).all())


# Optimizers, whose state is kept by parameter.


def _encode_optimizer(encoder: Encoder, value: Optimizer, path: Path) -> tuple[Any, ...]:
    name = class_name(type(value))
    if encoder.built is not None and encoder.built.path(value) is None and encoder.kind(name) is None:
        raise encoder.refusal(value, path)
    parts: Mapping[str, Any] = {
        "param_groups": value.param_groups,
        "state": dict(value.state),
        "defaults": value.defaults,
    }
    return (name, *(encoder.encode(part, (*path, key)) for key, part in parts.items()))


def _decode_optimizer(decoder: Decoder, live: Any, path: Path, name: str, *parts: Any) -> Any:
    made = live
    if live is None:
        kind: Any = decoder.kind(name)
        if not issubclass(kind, Optimizer):
            raise wrong_value("path", "a checkpoint with an optimizer there", f"one with a {name}")
        made = decoder.empty(kind)
    elif class_name(type(live)) != name:
        raise wrong_value("strategy", f"one with a {name}, as in the run", f"a {class_name(type(live))}")
    decoder.put(made)
    names = ("param_groups", "state", "defaults")
    groups, state, defaults = (
        decoder.decode(part, (*path, key)) for key, part in zip(names, parts, strict=True)
    )
    if not isinstance(groups, list) or not isinstance(state, dict) or not isinstance(defaults, dict):
        raise wrong_value("path", "a checkpoint as CheckpointPlugin writes it", f"another {name}")
    decoder.groups[id(made)] = groups
    by_parameter: defaultdict[Any, Any] = defaultdict(dict, state)
    if live is None:
        made.__setstate__({"param_groups": groups, "state": by_parameter, "defaults": defaults})
        return made

    def fill() -> None:
        live.param_groups, live.state, live.defaults = groups, by_parameter, defaults

    decoder.later(fill)
    return made


TORCH_KINDS: tuple[Kind, ...] = (
    Kind("optimizer", (Optimizer,), _encode_optimizer, _decode_optimizer),
    Kind("module", (nn.Module,), _encode_module, _decode_module),
)
