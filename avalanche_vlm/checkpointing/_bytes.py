"""Plain values and tensors as bytes, and back; nothing else comes out of them, and nothing is called.

Layout: the length of the packed structure and its length unpacked (8 bytes each), the packed structure,
then the tensors in the format of safetensors. The structure is JSON, in which lists are lists, and what
JSON lacks is an object of one entry: a tuple, a dictionary, bytes, a large number, a tensor by its number.
"""

from __future__ import annotations

import base64
import json
import lzma
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from safetensors.torch import load, save
from torch import Tensor

from avalanche_vlm.checkpointing._file import DamagedCheckpoint

_FEW = 1 << 20
_LENGTHS = 16
_MANY = 1000
# What a structure may grow to when it is unpacked. One that would grow more is written as it is.
_MOST_GROWTH, _ALLOWANCE = 16, 1 << 18
# Larger whole numbers are written with the base 16, which Python reads at any length.
_PLAIN_BITS = 128


def to_bytes(value: Any) -> bytes:
    """Return lists, tuples, dictionaries, atoms and tensors as bytes.

    The tensors lie in a part of their own: the rest is many small things that compress well.
    """
    tensors: list[Tensor] = []
    text = json.dumps(_written(value, tensors), separators=(",", ":"))
    structure = text.encode("ascii")
    contents: dict[str, Tensor] = {}
    storages: set[tuple[torch.device, int]] = set()
    for index, tensor in enumerate(tensors):
        # A format without views: what lies in the same memory is written as often as it occurs.
        storage = tensor.device, tensor.untyped_storage().data_ptr()
        plain = tensor.detach().cpu().contiguous()
        plain = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain.resolve_neg()
        contents[str(index)] = plain.clone() if storage in storages else plain
        storages.add(storage)
    compressed = packed(structure)
    lengths = len(compressed).to_bytes(8, "big") + len(structure).to_bytes(8, "big")
    return lengths + compressed + save(contents)


def packed(structure: bytes) -> bytes:
    """Return the bytes of the structure compressed: well if there are few, fast if there are many."""
    preset = 6 if len(structure) < _FEW else 0
    kind = {"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": _FEW}
    made = lzma.compress(structure, check=lzma.CHECK_NONE, filters=[kind])  # the file has a checksum
    # One that is almost the same all over is left as it is: what grows more is refused when it is read.
    return made if len(structure) <= _most(len(made)) else structure


def from_bytes(content: bytes) -> Any:
    """Return what `to_bytes` was given, with all tensors on the CPU.

    Raises:
        DamagedCheckpoint: the bytes hold something else, or would take much more memory than they have.
    """
    try:
        stored, whole = int.from_bytes(content[:8], "big"), int.from_bytes(content[8:_LENGTHS], "big")
        end = _LENGTHS + stored
        if len(content) < _LENGTHS or end > len(content):
            raise ValueError("its parts are longer than it is")
        structure = unpacked(content[_LENGTHS:end], whole)
        tensors = load(content[end:])
        value = _read(json.loads(structure), tensors)
        if tensors:
            raise ValueError("it has tensors that nothing names")
        return value
    except (Exception, RecursionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise DamagedCheckpoint(f"the content of the checkpoint was refused: {reason}") from error


def unpacked(structure: bytes, length: int) -> bytes:
    """Return what `packed` was given.

    Args:
        structure: what it returned.
        length: of what it was given. No more is unpacked.

    Raises:
        ValueError: it has another length, or one that no structure of that size has.
    """
    if length == len(structure):
        return structure
    if length > _most(len(structure)):
        raise ValueError(f"{len(structure)} bytes would become {length}")
    unpacker = lzma.LZMADecompressor(memlimit=64 << 20)
    found = unpacker.decompress(structure, max_length=length + 1)
    if len(found) != length or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"it does not have the {length} bytes that it says")
    return found


def _most(length: int) -> int:
    return _MOST_GROWTH * length + _ALLOWANCE


def _written(value: Any, tensors: list[Tensor]) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if value.bit_length() <= _PLAIN_BITS else {"i": hex(value)}
    if kind is list:
        return [_written(item, tensors) for item in value]
    if kind is tuple:
        return {"t": [_written(item, tensors) for item in value]}
    if kind is dict:
        return {"d": [[_written(key, tensors), _written(item, tensors)] for key, item in value.items()]}
    if kind is bytes:
        return {"b": base64.b64encode(value).decode()}
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"x": [len(tensors) - 1, value.is_complex()]}
    raise TypeError(f"a {kind.__name__} is neither plain nor a tensor")


def _read(value: Any, tensors: dict[str, Tensor]) -> Any:
    if type(value) is list:
        return [_read(item, tensors) for item in value]
    if type(value) is not dict:
        return value
    ((mark, content),) = value.items()
    return _MARKS.get(mark, _unknown)(content, tensors)


def _read_tensor(content: Any, tensors: dict[str, Tensor]) -> Tensor:
    number, is_complex = content
    # Each is named once: a file of many names for one large tensor would become many tensors.
    tensor = tensors.pop(str(int(number)))
    return torch.view_as_complex(tensor) if is_complex else tensor


def _read_dict(content: Any, tensors: dict[str, Tensor]) -> dict[Any, Any]:
    keys = check_keys([_read(key, tensors) for key, _ in content])
    found = {key: _read(item, tensors) for key, (_, item) in zip(keys, content, strict=True)}
    if len(found) != len(content):
        raise ValueError("a dictionary has one key twice")
    return found


def check_keys(keys: list[Any]) -> list[Any]:
    """Return keys; raise `ValueError` if so many have one hash that a dictionary would take minutes."""
    if len(keys) > _MANY and len({hash(key) for key in keys}) < len(keys) // 2:
        raise ValueError("its keys are chosen to take long")
    return keys


def _unknown(content: Any, tensors: dict[str, Tensor]) -> NoReturn:
    raise ValueError("it has values of an unknown kind")


_MARKS: Mapping[str, Callable[[Any, dict[str, Tensor]], Any]] = {
    "t": lambda content, tensors: tuple(_read(item, tensors) for item in content),
    "d": _read_dict,
    "b": lambda content, tensors: base64.b64decode(content, validate=True),
    "i": lambda content, tensors: int(content, 16),
    "x": _read_tensor,
}
