"""Kinds of values that are no plain Python: how each is written as plain values, and read again."""

from __future__ import annotations

import enum
import logging
import random
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from avalanche.benchmarks import CLExperience
from torch import Tensor, nn

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._allowed import class_name
from avalanche_vlm.checkpointing._bound import is_listed
from avalanche_vlm.checkpointing._graph import Path
from avalanche_vlm.checkpointing._random import PHILOX_NUMBERS, TWISTER_NUMBERS, check_position

if TYPE_CHECKING:
    from avalanche_vlm.checkpointing._decode import Decoder
    from avalanche_vlm.checkpointing._encode import Encoder

_NUMPY_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
# Python keeps each logger for good, and one for each dot in its name.
_MOST_LETTERS, _MOST_DOTS = 200, 20
_NUMPY_DTYPE = re.compile(r"[<>=|]?(bool|(u?int|float|complex)\d{1,3}|[biufc]\d{1,2})")
_DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)
}
_LOCKS: dict[str, Callable[[], Any]] = {"lock": threading.Lock, "RLock": threading.RLock}


class Kind(NamedTuple):
    """A kind of values.

    Attributes:
        name: how nodes name it.
        types: the types whose instances it covers.
        encode: encoder, value, path -> the content of its node: plain or encoded values.
        decode: decoder, the object that constructors built in its place or None, content -> value.
    """

    name: str
    types: tuple[type, ...]
    encode: Callable[[Any, Any, Path], tuple[Any, ...]]
    decode: Callable[..., Any]


# Tensors and arrays.


def _encode_tensor(encoder: Encoder, value: Tensor, path: Path) -> tuple[Any, ...]:
    plain = value.detach()
    if plain.layout != torch.strided or plain.is_meta or plain.is_quantized:
        raise encoder.refusal(value, path)
    stride: Any = None
    if plain.numel() > 0 and _is_dense(plain):
        encoder.note_view(value, path)
        stride = plain.stride()
    if plain.untyped_storage().nbytes() > plain.nbytes:
        plain = plain.clone()  # a few rows of a large tensor, of which the rest is not wanted
    on_cpu = value.device.type == "cpu"
    # The last is where it lies, once all that lies beside it is known.
    return (plain, value.requires_grad and value.is_leaf, on_cpu, isinstance(value, nn.Parameter), stride)


def _decode_tensor(
    decoder: Decoder,
    live: Any,
    path: Path,
    tensor: Tensor,
    requires_grad: bool,
    on_cpu: bool,
    is_parameter: bool,
    place: Any,
) -> Any:
    if not isinstance(tensor, Tensor):
        raise wrong_value("path", "a checkpoint with a tensor there", f"one with a {type(tensor).__name__}")
    if requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
        raise wrong_value("path", "a checkpoint whose gradients are of numbers", f"one of {tensor.dtype}")
    if live is not None and live.shape == tensor.shape and live.dtype == tensor.dtype and _is_dense(live):
        decoder.memories.take(live, place)
        decoder.fill(live, tensor, requires_grad)
        return live
    # A copy: training would change what a second restoration of the same state reads.
    device = torch.device("cpu") if on_cpu else decoder.device
    made = tensor.clone() if place is None else decoder.memories.make(tensor, place, device, decoder.later)
    made = made.to(device)
    return nn.Parameter(made, requires_grad) if is_parameter else made.requires_grad_(requires_grad)


def _is_dense(tensor: Tensor) -> bool:
    return all(step > 0 or size < 2 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _encode_array(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    if value.dtype.kind not in "biufc":
        raise encoder.refusal(value, path)
    return (str(value.dtype), tuple(value.shape), np.ascontiguousarray(value).tobytes())


def _decode_array(decoder: Decoder, live: Any, path: Path, dtype: str, shape: Any, data: bytes) -> Any:
    _check_dtype(dtype)
    made = np.frombuffer(data, dtype=dtype).reshape(shape)
    if live is not None and live.shape == made.shape and live.dtype == made.dtype and live.flags.writeable:
        decoder.later(lambda: np.copyto(live, made))
        return live
    return made.copy()


def _check_dtype(name: Any) -> None:
    if not _NUMPY_DTYPE.fullmatch(str(name)):
        raise wrong_value("path", "a checkpoint with numbers of NumPy", f"one with {name!r}")


# Random generators.


def _decode_generator(decoder: Decoder, live: Any, path: Path, device: str, state: Tensor) -> Any:
    generator = torch.Generator("cpu" if device == "cpu" else decoder.device)
    generator.set_state(state)  # a state that is none is refused here, before anything is changed
    if live is None:
        return generator
    decoder.later(lambda: live.set_state(state))
    return live


def _decode_numpy_generator(decoder: Decoder, live: Any, path: Path, name: str, state: Any) -> Any:
    if name not in _NUMPY_GENERATORS or (live and type(live.bit_generator).__name__ != name):
        raise wrong_value("path", f"a checkpoint with one of NumPy's {_NUMPY_GENERATORS}", name)
    bits = getattr(np.random, name)()
    found = decoder.decode(state)
    if name == "MT19937":
        check_position(found["state"]["pos"], TWISTER_NUMBERS)
    elif name == "Philox":
        check_position(found["buffer_pos"], PHILOX_NUMBERS)
    bits.state = found
    if live is None:
        return np.random.Generator(bits)
    decoder.later(lambda: setattr(live.bit_generator, "state", bits.state))
    return live


def _decode_random(decoder: Decoder, live: Any, path: Path, state: Any) -> Any:
    generator = random.Random()
    generator.setstate(decoder.decode(state))
    if live is None:
        return generator
    decoder.later(lambda: live.setstate(generator.getstate()))
    return live


# Things with a name.


def _encode_enum(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    if encoder.value_kind(class_name(type(value))) is None or value.name not in type(value).__members__:
        raise encoder.refusal(value, path)
    return (class_name(type(value)), value.name)


def _decode_enum(decoder: Decoder, live: Any, path: Path, kind: str, name: str) -> Any:
    members: dict[str, Any] = getattr(decoder.value_kind(kind), "__members__", {})
    if name not in members:
        raise wrong_value("strategy", f"one whose {kind} has a member {name!r}, as in the run", "one without")
    return members[name]


def _decode_lock(decoder: Decoder, live: Any, path: Path, name: str) -> Any:
    return _LOCKS[name]() if live is None else live


def _decode_logger(decoder: Decoder, live: Any, path: Path, name: str) -> logging.Logger:
    if not isinstance(name, str) or len(name) > _MOST_LETTERS or name.count(".") > _MOST_DOTS:
        raise wrong_value("path", "a checkpoint with the name of a logger", f"{name!r:.60}")
    return live if live is not None and live.name == name else logging.getLogger(name)


def _decode_number(decoder: Decoder, live: Any, path: Path, dtype: str, value: Any) -> Any:
    _check_dtype(dtype)
    return np.dtype(dtype).type(value)


def _decode_dtype(decoder: Decoder, live: Any, path: Path, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise wrong_value("path", "a checkpoint with dtypes of torch", name)
    return _DTYPES[name]


def _decode_device(decoder: Decoder, live: Any, path: Path, name: str) -> torch.device:
    return torch.device(name) if name == "cpu" else decoder.device


def _encode_partial(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    parts = (value.func, value.args, tuple(value.keywords.items()))
    return tuple(encoder.encode(part, (*path, "func")) for part in parts)


def _decode_partial(decoder: Decoder, live: Any, path: Path, *parts: Any) -> Any:
    function, arguments, keywords = (decoder.decode(part, (*path, "func")) for part in parts)
    if live is not None:
        return live  # what it holds has been filled in place
    made = partial(function, *arguments, **dict(keywords))
    if not is_listed(made):
        raise wrong_value("path", "a checkpoint with known functions", f"one that calls {function!r:.60}")
    return made


def _attributes(*names: str) -> Callable[[Any, Any, Path], tuple[Any, ...]]:
    """Return an encoder of values that a few of their attributes say all about."""

    def encode(encoder: Any, value: Any, path: Path) -> tuple[Any, ...]:
        return tuple(getattr(value, name) for name in names)

    return encode


def _text(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    return (str(value).removeprefix("torch."),)


def _made_by(make: Callable[..., Any]) -> Callable[..., Any]:
    def decode(decoder: Decoder, live: Any, path: Path, *content: Any) -> Any:
        return make(*content)

    return decode


def _encode_number(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    return (str(value.dtype), value.item())


def _encode_size(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    return (tuple(value),)


def _encode_lock(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    return (type(value).__name__,)


def _encode_generator(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    return (str(value.device), value.get_state())


def _encode_numpy_generator(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    return (type(value.bit_generator).__name__, encoder.encode(value.bit_generator.state, path))


def _encode_random(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    return (encoder.encode(value.getstate(), path),)


def _encode_experience(encoder: Encoder, value: Any, path: Path) -> tuple[Any, ...]:
    return encoder.experience(value, path)


def _decode_experience(decoder: Decoder, live: Any, path: Path, stream: str, position: int) -> Any:
    return decoder.experience(stream, position)


_PLACES = ("start", "stop", "step")
KINDS: tuple[Kind, ...] = (
    Kind("tensor", (Tensor,), _encode_tensor, _decode_tensor),
    Kind("array", (np.ndarray,), _encode_array, _decode_array),
    Kind("number", (np.generic,), _encode_number, _decode_number),
    Kind("enum", (enum.Enum,), _encode_enum, _decode_enum),
    Kind("size", (torch.Size,), _encode_size, _made_by(torch.Size)),
    Kind("device", (torch.device,), _text, _decode_device),
    Kind("dtype", (torch.dtype,), _text, _decode_dtype),
    Kind("range", (range,), _attributes(*_PLACES), _made_by(range)),
    Kind("slice", (slice,), _attributes(*_PLACES), _made_by(slice)),
    Kind("complex", (complex,), _attributes("real", "imag"), _made_by(complex)),
    Kind("logger", (logging.Logger,), _attributes("name"), _decode_logger),
    Kind("lock", (type(threading.Lock()), type(threading.RLock())), _encode_lock, _decode_lock),
    Kind("partial", (partial,), _encode_partial, _decode_partial),
    Kind("generator", (torch.Generator,), _encode_generator, _decode_generator),
    Kind("numpy generator", (np.random.Generator,), _encode_numpy_generator, _decode_numpy_generator),
    Kind("random", (random.Random,), _encode_random, _decode_random),
    Kind("experience", (CLExperience,), _encode_experience, _decode_experience),
)
