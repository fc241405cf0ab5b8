"""Plain values and tensors as bytes, and back; nothing else comes out of them."""

from __future__ import annotations

import io
import lzma
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from avalanche_vlm.checkpointing._file import DamagedCheckpoint

_FEW = 1 << 20


def to_bytes(value: Any) -> bytes:
    """Return lists, tuples, dictionaries, atoms and tensors as bytes.

    The tensors lie in a part of their own: the rest is many small things that compress well.
    """
    tensors: list[Tensor] = []
    file = io.BytesIO()
    torch.save(_without_tensors(value, tensors), file)
    structure = packed(file.getvalue())
    contents: dict[str, Tensor] = {}
    storages: set[tuple[torch.device, int]] = set()
    for index, tensor in enumerate(tensors):
        # A format without views: what lies in the same memory is written as often as it occurs.
        storage = tensor.device, tensor.untyped_storage().data_ptr()
        plain = tensor.detach().cpu().contiguous()
        plain = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain.resolve_neg()
        contents[str(index)] = plain.clone() if storage in storages else plain
        storages.add(storage)
    return len(structure).to_bytes(8, "big") + structure + save(contents)


def packed(structure: bytes) -> bytes:
    """Return the bytes of the structure compressed: well if there are few, fast if there are many."""
    preset = 6 if len(structure) < _FEW else 0
    kind = {"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": _FEW}
    return lzma.compress(structure, check=lzma.CHECK_NONE, filters=[kind])  # the file has a checksum


def from_bytes(content: bytes) -> Any:
    """Return what `to_bytes` was given, with all tensors on the CPU.

    Raises:
        DamagedCheckpoint: the bytes hold something else, such as a pickle that would run code.
    """
    try:
        end = 8 + int.from_bytes(content[:8], "big")
        structure = io.BytesIO(lzma.decompress(content[8:end]))
        return _with_tensors(
            torch.load(structure, weights_only=True, map_location="cpu"), load(content[end:])
        )
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise DamagedCheckpoint(f"the content of the checkpoint was refused: {reason}") from error


# In place of a tensor stands a torch.Size, a type that occurs nowhere else: its number, and whether it is
# complex.


def _without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return torch.Size([len(tensors) - 1, int(value.is_complex())])
    if type(value) is dict:
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if type(value) is list:
        return [_without_tensors(item, tensors) for item in value]
    if type(value) is tuple:
        return tuple(_without_tensors(item, tensors) for item in value)
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if type(value) is torch.Size:
        tensor = tensors[str(value[0])]
        return torch.view_as_complex(tensor) if value[1] else tensor
    if type(value) is dict:
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if type(value) is list:
        return [_with_tensors(item, tensors) for item in value]
    if type(value) is tuple:
        return tuple(_with_tensors(item, tensors) for item in value)
    return value
