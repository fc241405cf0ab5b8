"""From the attributes of a strategy and its plugins to plain values and tensors.

The objects that hold a run's state form a graph with shared parts and cycles. It becomes a list of
*nodes* that name each other by number, made of plain types and tensors only, which
``torch.load(weights_only=True)`` reads. What the user builds again (the model, the optimizer, the
benchmark) is named and not stored.

An encoded value is an atom (None, a number, text, bytes) as it is, a tuple of encoded values, or
``[number]`` of a node. A *path* says where an object was first met, from the strategy or a plugin:
text for an attribute, a tuple of one for an entry of a list or dictionary.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path as FilePath
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLExperience
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.evaluation import PluginMetric
from avalanche.logging import BaseLogger
from avalanche.training.plugins import AGEMPlugin, EvaluationPlugin
from torch import Tensor, nn

from avalanche_vlm.checkpointing._allowed import allowed_class, class_name, known_functions

Encoded = Any
Path = tuple[Any, ...]
ATOMS = frozenset((type(None), bool, int, float, str, bytes))
STRATEGY_TRANSIENTS = frozenset(
    (
        *("experience", "adapted_dataset", "dataloader", "mbatch", "mb_output", "loss", "device", "plugins"),
        *("current_eval_stream", "_eval_streams", "is_training", "_distributed_check", "_resume_point"),
        # Of the host's DER and ER_ACE.
        *("replay_loader", "batch_logits", "mb_buffer_x", "mb_buffer_y", "mb_buffer_tid", "mb_buffer_out"),
    )
)
_CACHES = {DataAttribute: {"_uniques", "_val_to_idx", "_count"}}
# AGEM's endless loader is made again from its buffers.
_SKIPPED = {AGEMPlugin: {"buffer_dataloader", "buffer_dliter"}}
_MODULE_OWN = frozenset(vars(nn.Module())) - {"training"}


class CannotBeSaved(TypeError):
    """A plugin holds something that a checkpoint cannot hold; the message says where."""


def shown_path(path: Path) -> str:
    """Return a path as one would write it."""
    text = "".join(f".{step}" if isinstance(step, str) else f"[{step[0]!r}]" for step in path)
    return text.removeprefix(".")


class Encoder:
    """Encodes values, each object once.

    Args:
        references: by ``id``, the names of what the user builds again.
        aliases: by address, shape and strides, the parameter whose memory a tensor shares.
        data_name: object -> its name in the benchmark, or None.
        model: the live model.
        built: the paths of objects that constructors had built, whose class need not be allowed;
            None if that is not known.
    """

    def __init__(
        self,
        references: Mapping[int, tuple[Any, ...]],
        aliases: Mapping[Any, str],
        data_name: Callable[[Any], Any],
        model: nn.Module,
        built: Collection[Path] | None,
    ) -> None:
        self.nodes: list[Any] = []
        self.objects: dict[Path, Any] = {}
        self._references = dict(references)
        self._aliases = aliases
        self._data_name = data_name
        self._model = model
        self._built = built
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # an id names an object only as long as it lives

    def encode(self, value: Any, path: Path) -> Encoded:
        """Return the encoded value.

        Raises:
            CannotBeSaved: the value, or something in it, has no place in a checkpoint.
        """
        kind = type(value)
        if kind in ATOMS:
            return value
        if kind is tuple:
            return tuple(self.encode(item, (*path, (index,))) for index, item in enumerate(value))
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self.nodes)
            self._alive.append(value)
            self.nodes.append(None)
            self.nodes[number] = self._node(value, path)
        return [number]

    def attributes(self, owner: Any, path: Path, skipped: Collection[str] = ()) -> Encoded:
        """Return the attributes of an object, encoded, as pairs."""
        is_logger = isinstance(owner, BaseLogger)
        pairs: list[Any] = []
        for name, value in vars(owner).items():
            if name in skipped or (is_logger and isinstance(value, PurePath)):
                continue
            before = len(self.nodes)
            try:
                pairs.append((name, self.encode(value, (*path, name))))
            except CannotBeSaved as error:
                # Files and screens of a logger belong to the process. Metrics may measure by handles on
                # the process, and publish pictures, which nobody needs to go on.
                if not is_logger and not isinstance(owner, (PluginMetric, EvaluationPlugin)):
                    raise
                self._forget(before)
                if not is_logger:
                    warnings.warn(f"Left out of the checkpoint: {error}", stacklevel=2)
        return pairs

    def _forget(self, count: int) -> None:
        del self.nodes[count:], self._alive[count:]
        self._numbers = {key: number for key, number in self._numbers.items() if number < count}
        self.objects = {path: each for path, each in self.objects.items() if id(each) in self._numbers}

    def _node(self, value: Any, path: Path) -> tuple[Any, ...]:
        reference = self._references.get(id(value))
        if reference is not None:
            return ("reference", *reference)
        data_name = self._data_name(value)
        if data_name is not None:
            return ("data", *data_name)
        for kinds, encode in self._kinds():
            if isinstance(value, kinds):
                return encode(value, path)
        return self._object(value, path)

    def _kinds(self) -> Iterable[tuple[Any, Callable[[Any, Path], tuple[Any, ...]]]]:
        return (
            (Tensor, self._tensor),
            (np.ndarray, self._array),
            (np.generic, lambda value, _: ("number", str(value.dtype), value.item())),
            ((list, deque, dict, set, frozenset), self._container),
            (torch.Size, lambda value, _: ("size", tuple(value))),
            (torch.device, lambda value, _: ("device", str(value))),
            (torch.dtype, lambda value, _: ("dtype", str(value).removeprefix("torch."))),
            (FilePath, lambda value, _: ("path", str(value))),
            (range, lambda value, _: ("range", value.start, value.stop, value.step)),
            (partial, self._partial),
            (torch.Generator, lambda value, _: ("generator", str(value.device), value.get_state())),
            (np.random.Generator, self._numpy_generator),
            (random.Random, lambda value, path: ("random", self.encode(value.getstate(), path))),
            (
                CLExperience,
                lambda value, _: ("experience", value.origin_stream.name, value.current_experience),
            ),
            (nn.Module, self._module),
        )

    def _tensor(self, value: Tensor, path: Path) -> tuple[Any, ...]:
        alias = self._aliases.get(memory(value))
        if alias is not None:
            return ("alias", alias)
        plain = value.detach()
        if plain.layout != torch.strided or plain.is_meta:
            raise self._refusal(value, path)
        if plain.untyped_storage().nbytes() > plain.nbytes:
            plain = plain.clone()  # a few rows of a large tensor, of which the rest is not wanted
        kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
        return (kind, plain, value.requires_grad and value.is_leaf, value.device.type == "cpu")

    def _array(self, value: Any, path: Path) -> tuple[Any, ...]:
        if value.dtype.kind not in "biuf":
            raise self._refusal(value, path)
        contents = np.ascontiguousarray(value)
        return ("array", str(value.dtype), tuple(value.shape), contents.tobytes())

    def _container(self, value: Any, path: Path) -> tuple[Any, ...]:
        kind = type(value)
        if kind in (set, frozenset):
            items = in_order_of_insertion(value) if kind is set else list(value)
            return (kind.__name__, [self.encode(item, (*path, (i,))) for i, item in enumerate(items)])
        if kind is list or kind is deque:
            items = [self.encode(item, (*path, (i,))) for i, item in enumerate(value)]
            return ("list", items) if kind is list else ("deque", items, value.maxlen)
        if kind not in (dict, OrderedDict, Counter, defaultdict):
            raise self._refusal(value, path)
        pairs = [
            (
                self.encode(key, path),
                self.encode(item, (*path, (key if type(key) in ATOMS else type(key).__name__,))),
            )
            for key, item in value.items()
        ]
        if kind is defaultdict:
            return ("defaultdict", self.encode(value.default_factory, (*path, "default_factory")), pairs)
        return (kind.__name__, pairs)

    def _partial(self, value: Any, path: Path) -> tuple[Any, ...]:
        parts = (value.func, value.args, tuple(value.keywords.items()))
        return ("partial", *(self.encode(part, (*path, "func")) for part in parts))

    def _numpy_generator(self, value: Any, path: Path) -> tuple[Any, ...]:
        state = value.bit_generator.state
        return ("numpy generator", type(value.bit_generator).__name__, self.encode(state, path))

    def _module(self, value: nn.Module, path: Path) -> tuple[Any, ...]:
        if type(value) is type(self._model) and _tensors(value).keys() == _tensors(self._model).keys():
            return self._teacher(value)
        number = self._numbers[id(value)]
        self.objects[path] = value
        parts: list[Any] = []
        for prefix, module in self._own_modules(value):
            if prefix:
                self._references[id(module)] = ("inside", number, prefix)
            tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            stored = {name: tensor.detach() for name, tensor in tensors if id(tensor) not in self._references}
            for name, tensor in tensors:
                self._references.setdefault(
                    id(tensor), ("inside", number, f"{prefix}.{name}" if prefix else name)
                )
            parts.append((prefix, stored, module))
        return (
            "module",
            path,
            class_name(type(value)),
            [(p, t, self.attributes(m, _inside(path, p), _MODULE_OWN)) for p, t, m in parts],
        )

    def _own_modules(self, module: nn.Module, prefix: str = "") -> Iterable[tuple[str, nn.Module]]:
        yield prefix, module
        for name, child in module.named_children():
            if id(child) not in self._references:  # a part of the live model may be inside
                yield from self._own_modules(child, f"{prefix}.{name}" if prefix else name)

    def _teacher(self, value: nn.Module) -> tuple[Any, ...]:
        """Store a module of the model's own kind as that in which it differs from the live model."""
        live, own = _tensors(self._model), _tensors(value)
        shared = [name for name, tensor in own.items() if tensor is live[name]]
        differing = {
            name: tensor.detach()
            for name, tensor in own.items()
            if tensor is not live[name]
            and (tensor.shape != live[name].shape or not same_bits(tensor, live[name]))
        }
        modules, others = dict(value.named_modules()), dict(self._model.named_modules())
        modes = {name: m.training for name, m in modules.items() if m.training != others[name].training}
        grads = {
            name: t.requires_grad for name, t in own.items() if t.requires_grad != live[name].requires_grad
        }
        return ("teacher", shared, differing, modes, grads, named_classes(value))

    def _object(self, value: Any, path: Path) -> tuple[Any, ...]:
        if isinstance(value, type):
            if allowed_class(class_name(value)) is value:
                return ("class", class_name(value))
            return self._callable(value, path)
        if callable(value) and not hasattr(value, "__dict__"):
            return self._callable(value, path)
        if type(value).__name__ in ("function", "method"):
            return self._callable(value, path)
        name = class_name(type(value))
        self.objects[path] = value
        has_state_dict = hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
        if has_state_dict and type(value).__module__.startswith("torch."):
            return ("stateful", path, name, self.encode(_own_state(value), (*path, "state_dict()")))
        is_built = isinstance(value, BaseLogger) or self._built is None or path in self._built
        if not hasattr(value, "__dict__") or not (is_built or allowed_class(name)):
            raise self._refusal(value, path)
        skipped = next((names for kind, names in _SKIPPED.items() if isinstance(value, kind)), set[str]())
        caches = next((names for kind, names in _CACHES.items() if isinstance(value, kind)), set[str]())
        before = len(self.nodes)
        try:
            state = self.attributes(value, path, skipped | caches)
        except CannotBeSaved:
            if not has_state_dict:
                raise
            self._forget(before)
            return ("stateful", path, name, self.encode(_own_state(value), (*path, "state_dict()")))
        return ("object", path, name, [*state, *((cache, None) for cache in sorted(caches))])

    def _callable(self, value: Any, path: Path) -> tuple[Any, ...]:
        """Name a function; one that is not known stays what it is at the same place of the new objects."""
        for name, function in known_functions().items():
            if function is value:
                return ("function", name)
        self.objects[path] = value
        return ("live", path, str(getattr(value, "__qualname__", type(value).__qualname__)))

    def _refusal(self, value: Any, path: Path) -> CannotBeSaved:
        advice = "If it is a class of yours, allow it with allow_in_checkpoints(...)."
        if hasattr(value, "__getitem__") and hasattr(value, "__len__"):
            advice += " If it is data of the benchmark, call `resume` with the benchmark before training."
        return CannotBeSaved(
            f"{shown_path(path)} holds a {class_name(type(value))}, which a checkpoint cannot hold. {advice}"
        )


def _own_state(thing: Any) -> Any:
    return thing.state_dict()


def _inside(path: Path, prefix: str) -> Path:
    """Return the path of a module inside of a module, by the dotted name that it has there."""
    steps = [step for name in prefix.split(".") for step in ("_modules", (name,))] if prefix else []
    return (*path, *steps)


def memory(tensor: Tensor) -> Any:
    """Return what two tensors have in common that are views of the same numbers, in the same order."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.numel() == 0:
        return None
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors of one shape are equal, NaN included."""
    first, second = first.detach(), second.detach()
    same_kind = first.dtype == second.dtype
    return same_kind and bool(((first == second) | ((first != first) & (second != second))).all())


def in_order_of_insertion(values: set[Any]) -> list[Any]:
    """Return the elements so that a set made of this list is iterated in the same order.

    The order of a set depends on the order in which colliding elements came; plans that go through
    the classes of a buffer depend on it.
    """
    order = list(values)
    candidate, shuffler = order, random.Random(0)
    for _ in range(2000):
        if list(set(candidate)) == order:
            return candidate
        candidate = shuffler.sample(order, len(order))
    return order


def named_classes(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the class names of a classifier and their data sets, None if it has none."""
    names: Any = getattr(getattr(model, "head", None), "class_names", None)
    return None if names is None else (tuple(names.names), tuple(names.datasets))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(nn.Module.named_parameters(model)), **dict(model.named_buffers())}
