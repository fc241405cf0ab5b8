"""From plain values and tensors back to a strategy's attributes; the opposite of `_encode`.

Nothing of the live objects is changed while decoding: what is to change is collected, and done by
`Decoder.apply` when all of it has been read.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from torch import Tensor, nn

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._allowed import allowed_class, class_name, known_functions
from avalanche_vlm.checkpointing._encode import Encoded, Path, named_classes, shown_path
from avalanche_vlm.checkpointing._model import model_parameters
from avalanche_vlm.text import ClassNames

# Always made anew: a data set that is there may be in use elsewhere.
_DATA = (AvalancheDataset, FlatData, DataAttribute)
_NUMPY_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_MISSING = object()


class Decoder:
    """Decodes the nodes of one state.

    Args:
        nodes: what `Encoder` collected.
        roots: where paths begin: the live strategy and plugins, by name.
        reference: name -> what the user has built again.
        model: the live model.
        parameters: the parameters of the saved model, by name.
        data: finds the objects and experiences of the benchmark by name.
        device: where tensors go that did not lie in the memory of the CPU.
    """

    def __init__(
        self,
        nodes: Sequence[Any],
        *,
        roots: Mapping[str, Any],
        reference: Callable[[Sequence[Any]], Any],
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        data: Any,
        device: torch.device,
    ) -> None:
        self._nodes = nodes
        self._roots = roots
        self._reference = reference
        self._model = model
        self._parameters = parameters
        self._data = data
        self._device = device
        self._made: dict[int, Any] = {}
        self._claimed: set[int] = set()
        self._attributes: list[tuple[Any, dict[str, Any]]] = []
        self._states: list[tuple[Any, Any, str]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []

    def decode(self, encoded: Encoded) -> Any:
        """Return the value that was encoded."""
        if isinstance(encoded, tuple):
            return tuple(self.decode(item) for item in encoded)
        if not isinstance(encoded, list):
            return encoded
        number = encoded[0]
        if number not in self._made:
            kind, *content = self._nodes[number]
            self._made[number] = self._make(kind, content, number)
        return self._made[number]

    def change(self, owner: Any, pairs: Sequence[Any]) -> None:
        """Plan to set the attributes of a live object."""
        self._attributes.append((owner, {name: self.decode(value) for name, value in pairs}))

    def load_states(self) -> None:
        """Let objects take their states that do it by ``load_state_dict``; to be called before `apply`.

        Raises:
            ValueError: a ``load_state_dict`` refuses its state; what was loaded before is put back.
        """
        done: list[tuple[Any, Any]] = []
        for owner, state, path in self._states:
            done.append((owner, copy.deepcopy(owner.state_dict())))
            try:
                owner.load_state_dict(state)
            except Exception as error:
                for earlier, before in reversed(done):
                    with contextlib.suppress(Exception):  # the one that refuses may refuse that too
                        earlier.load_state_dict(before)
                raise wrong_value(
                    f"strategy: {path}", "one that takes the saved state", f"{type(owner).__name__}: {error}"
                ) from error

    def apply(self) -> None:
        """Set attributes and tensors of live objects."""
        for owner, attributes in self._attributes:
            vars(owner).update(attributes)
        with torch.no_grad():
            for target, source in self._tensors:
                target.copy_(source)

    def _make(self, kind: str, content: list[Any], number: int) -> Any:
        make = getattr(self, f"_make_{kind.replace(' ', '_')}", None)
        if make is not None:
            return make(content, number)
        simple: dict[str, Callable[..., Any]] = {
            "reference": lambda *name: self._reference(name),
            "data": lambda *name: self._data.find(name),
            "experience": self._data.experience,
            "alias": self._alias,
            "number": _number,
            "array": _array,
            "size": torch.Size,
            "device": self._placed_device,
            "dtype": _dtype,
            "path": FilePath,
            "range": range,
            "function": known_functions().__getitem__,
            "class": self._allowed,
        }
        if kind not in simple:
            raise wrong_value("path", "a checkpoint of this version", f"one with a {kind!r}")
        return simple[kind](*content)

    def _alias(self, name: str) -> Tensor:
        return model_parameters(self._model)[name].detach()

    def _placed_device(self, name: str) -> torch.device:
        return torch.device(name) if name == "cpu" else self._device

    # Containers are made empty first: what is in them may name them.

    def _make_list(self, content: list[Any], number: int) -> Any:
        made: list[Any] = []
        self._made[number] = made
        made.extend(map(self.decode, content[0]))
        return made

    def _make_set(self, content: list[Any], number: int) -> Any:
        return set(map(self.decode, content[0]))

    def _make_frozenset(self, content: list[Any], number: int) -> Any:
        return frozenset(map(self.decode, content[0]))

    def _make_deque(self, content: list[Any], number: int) -> Any:
        made: deque[Any] = deque(maxlen=content[1])
        self._made[number] = made
        made.extend(map(self.decode, content[0]))
        return made

    def _fill(self, made: Any, pairs: Sequence[Any], number: int) -> Any:
        self._made[number] = made
        for key, value in pairs:
            made[self.decode(key)] = self.decode(value)
        return made

    def _make_dict(self, content: list[Any], number: int) -> Any:
        return self._fill({}, content[0], number)

    def _make_OrderedDict(self, content: list[Any], number: int) -> Any:
        return self._fill(OrderedDict[Any, Any](), content[0], number)

    def _make_Counter(self, content: list[Any], number: int) -> Any:
        return self._fill(Counter[Any](), content[0], number)

    def _make_defaultdict(self, content: list[Any], number: int) -> Any:
        return self._fill(defaultdict(self.decode(content[0])), content[1], number)

    def _make_partial(self, content: list[Any], number: int) -> Any:
        function, arguments, keywords = map(self.decode, content)
        return partial(function, *arguments, **dict(keywords))

    # Tensors and generators.

    def _make_tensor(self, content: list[Any], number: int) -> Any:
        tensor, requires_grad, on_cpu = content
        return self._placed(tensor, on_cpu=on_cpu).requires_grad_(requires_grad)

    def _make_parameter(self, content: list[Any], number: int) -> Any:
        tensor, requires_grad, on_cpu = content
        return nn.Parameter(self._placed(tensor, on_cpu=on_cpu), requires_grad=requires_grad)

    def _placed(self, tensor: Tensor, *, on_cpu: bool) -> Tensor:
        # A copy: training would change what a second restoration of the same state reads.
        return tensor.clone() if on_cpu else tensor.to(self._device)

    def _make_generator(self, content: list[Any], number: int) -> Any:
        device, state = content
        generator = torch.Generator("cpu" if device == "cpu" else self._device)
        generator.set_state(state)
        return generator

    def _make_numpy_generator(self, content: list[Any], number: int) -> Any:
        name, state = content
        if name not in _NUMPY_GENERATORS:
            raise wrong_value("path", f"a checkpoint with one of NumPy's {_NUMPY_GENERATORS}", name)
        bits = getattr(np.random, name)()
        bits.state = self.decode(state)
        return np.random.Generator(bits)

    def _make_random(self, content: list[Any], number: int) -> Any:
        generator = random.Random()
        generator.setstate(self.decode(content[0]))
        return generator

    # Objects: live ones where there are, so that what the user holds stays what the strategy holds.

    def _make_object(self, content: list[Any], number: int) -> Any:
        path, name, pairs = content
        live = self._live(path, name)
        if live is not None and not isinstance(live, _DATA):
            self._made[number] = live
            self.change(live, pairs)
            return live
        kind: Any = self._allowed(name, path)
        made = kind.__new__(kind)
        self._made[number] = made
        vars(made).update({attribute: self.decode(value) for attribute, value in pairs})
        return made

    def _make_stateful(self, content: list[Any], number: int) -> Any:
        path, name, state = content
        live = self._expected(path, name)
        self._made[number] = live
        self._states.append((live, self.decode(state), shown_path(path)))
        return live

    def _make_live(self, content: list[Any], number: int) -> Any:
        path, name = content
        value = self._at(path)
        if value is _MISSING or getattr(value, "__qualname__", type(value).__qualname__) != name:
            raise wrong_value(
                "strategy", f"one with {name} at {shown_path(path)}, as in the run", "one without"
            )
        return value

    def _make_module(self, content: list[Any], number: int) -> Any:
        path, name, parts = content
        live = self._expected(path, name)
        self._made[number] = live
        modules = dict(live.named_modules())
        for prefix, stored, pairs in parts:
            module = modules.get(prefix)
            for own, tensor in stored.items():
                target = getattr(module, own, None)
                if not isinstance(target, Tensor) or target.shape != tensor.shape:
                    where = shown_path((*path, prefix, own))
                    got = tuple(target.shape) if isinstance(target, Tensor) else "none"
                    raise wrong_value("strategy", f"one whose {where} is {tuple(tensor.shape)}", got)
                self._tensors.append((target, tensor))
            if module is not None:
                self.change(module, pairs)
        return live

    def _make_teacher(self, content: list[Any], number: int) -> Any:
        shared, differing, modes, grads, classes = content
        own = _tensors(self._model)
        teacher: Any = copy.deepcopy(self._model, {id(own[name]): own[name] for name in shared})
        # Its tensors are those of the saved model, unless they differ from these, or are frozen.
        values = {**{n: t for n, t in self._parameters.items() if n not in shared}, **differing}
        for name, tensor in values.items():
            prefix, _, attribute = name.rpartition(".")
            module = teacher.get_submodule(prefix)
            current = getattr(module, attribute)
            placed = tensor.to(current.device)
            if isinstance(current, nn.Parameter):
                setattr(module, attribute, nn.Parameter(placed.clone(), requires_grad=current.requires_grad))
            else:
                setattr(module, attribute, placed.clone())
        modules = dict(teacher.named_modules())
        for name, mode in modes.items():
            modules[name].training = mode
        for name, requires_grad in grads.items():
            _tensors(teacher)[name].requires_grad_(requires_grad)
        if classes is not None and classes != named_classes(teacher):
            teacher.head.class_names = ClassNames(*classes)
        return teacher

    # Where things are.

    def _at(self, path: Path) -> Any:
        """Return what is at a path of the live objects."""
        value: Any = self._roots
        for index, step in enumerate(path):
            try:
                if isinstance(step, str) and index > 0:
                    value = vars(value)[step]
                else:
                    value = value[step if isinstance(step, str) else step[0]]
            except (KeyError, IndexError, TypeError, AttributeError):
                return _MISSING
        return value

    def _live(self, path: Path, name: str) -> Any:
        value = self._at(path)
        if value is _MISSING or class_name(type(value)) != name or id(value) in self._claimed:
            return None
        self._claimed.add(id(value))
        return value

    def _expected(self, path: Path, name: str) -> Any:
        live = self._live(path, name)
        if live is None:
            got = self._at(path)
            raise wrong_value(
                "strategy",
                f"one with a {name} at {shown_path(path)}, as in the run",
                "nothing there" if got is _MISSING else f"a {class_name(type(got))}",
                "Build the strategy and its plugins as for the run.",
            )
        return live

    def _allowed(self, name: str, path: Path = ()) -> type:
        kind = allowed_class(name)
        if kind is None:
            where = f" at {shown_path(path)}" if path else ""
            raise wrong_value(
                "path",
                "a checkpoint with objects of known classes",
                f"one with a {name}{where}",
                "If that class is yours, call allow_in_checkpoints with it before resuming.",
            )
        return kind


def _number(dtype: str, value: Any) -> Any:
    return np.dtype(dtype).type(value)


def _array(dtype: str, shape: Sequence[int], data: bytes) -> Any:
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise wrong_value("path", "a checkpoint with dtypes of torch", name)
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(nn.Module.named_parameters(model)), **dict(model.named_buffers())}
