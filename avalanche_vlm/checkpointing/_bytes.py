"""Plain values and tensors as bytes, and back; nothing else comes out of them."""

from __future__ import annotations

import io
import zlib
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from avalanche_vlm.checkpointing._file import DamagedCheckpoint


def to_bytes(value: Any) -> bytes:
    """Return lists, tuples, dictionaries, atoms and tensors as bytes.

    The tensors lie in a part of their own: the rest is many small things that compress well.
    """
    tensors: list[Tensor] = []
    file = io.BytesIO()
    torch.save(_without_tensors(value, tensors), file)
    structure = zlib.compress(file.getvalue(), level=9)
    contents: dict[str, Tensor] = {}
    storages: set[tuple[torch.device, int]] = set()
    for index, tensor in enumerate(tensors):
        # A format without views: what lies in the same memory is written as often as it occurs.
        storage = tensor.device, tensor.untyped_storage().data_ptr()
        plain = tensor.detach().cpu().contiguous()
        contents[str(index)] = plain.clone() if storage in storages else plain
        storages.add(storage)
    return len(structure).to_bytes(8, "big") + structure + save(contents)


def from_bytes(content: bytes) -> Any:
    """Return what `to_bytes` was given, with all tensors on the CPU.

    Raises:
        DamagedCheckpoint: the bytes hold something else, such as a pickle that would run code.
    """
    try:
        end = 8 + int.from_bytes(content[:8], "big")
        structure = io.BytesIO(zlib.decompress(content[8:end]))
        return _with_tensors(
            torch.load(structure, weights_only=True, map_location="cpu"), load(content[end:])
        )
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise DamagedCheckpoint(f"the content of the checkpoint was refused: {reason}") from error


# In place of a tensor stands a torch.Size with its number: a type that occurs nowhere else.


def _without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return torch.Size([len(tensors) - 1])
    if type(value) is dict:
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if type(value) is list:
        return [_without_tensors(item, tensors) for item in value]
    if type(value) is tuple:
        return tuple(_without_tensors(item, tensors) for item in value)
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if type(value) is torch.Size:
        return tensors[str(value[0])]
    if type(value) is dict:
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if type(value) is list:
        return [_with_tensors(item, tensors) for item in value]
    if type(value) is tuple:
        return tuple(_with_tensors(item, tensors) for item in value)
    return value
