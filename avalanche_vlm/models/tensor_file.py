"""Tensors in a file of the safetensors format, of which nothing is believed before it is compared.

The format: eight bytes with the length of a header, the header as JSON, and the bytes of all tensors one
after the other. It is written and read here and not by its library, which reports a full disk without its
error number, and says of a damaged file less than a reader wants to know.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_vlm._files import parsed_json, replacing
from avalanche_vlm.models.fingerprint import plain_bytes

MOST_HEADER_BYTES = 2**25
_MOST_SIDE = 2**48
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class StoredTensor(NamedTuple):
    """What a header says of a tensor: its type, its sides, and where its bytes begin."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


class TensorHeader(NamedTuple):
    """What stands before the tensors of a file."""

    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and texts as a safetensors file that is there whole or not at all.

    Args:
        path: of the file; its folder must exist.
        tensors: what to write, on any device.
        metadata: texts that go with them.

    Raises:
        ValueError: a tensor of a type that the format does not have, or a header beyond its bound.
        OSError: the file could not be written; the error names it.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # In the order of the library, which keeps each type aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided:
            raise ValueError(
                f"{name!r} is a {tensor.layout} tensor of {tensor.dtype}, which cannot be written"
            )
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER_BYTES:
        raise ValueError(f"names and settings take {len(text)} bytes, more than {MOST_HEADER_BYTES}")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(plain_bytes(tensors[name]))


def read_header(file: BufferedReader) -> TensorHeader:
    """Return what an open file holds, after comparing it with the size of the file.

    Raises:
        ValueError: the file is not one of tensors, is cut or too long, or says what cannot be.
    """
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file")
    file.seek(0)
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > status.st_size - 8:
        raise ValueError("it is cut, or not a file of tensors")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"its header takes {length} bytes, more than {MOST_HEADER_BYTES}")
    try:
        header = parsed_json(file.read(length).decode())
    except ValueError as error:
        raise ValueError(f"its header is damaged ({error})") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its header has settings that are not text")
    return TensorHeader(metadata, _located(header, 8 + length, status.st_size))


def _located(header: dict[str, Any], begin: int, size: int) -> dict[str, StoredTensor]:
    """Return the tensors of a header, which must lie one behind the other and fill the file."""
    tensors: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int]] = []
    for name, told in header.items():
        tensor, span = _told(name, told, begin)
        tensors[name] = tensor
        spans.append(span)
    at = 0
    for start, end in sorted(spans):
        if start != at:
            raise ValueError("its tensors overlap, or leave a gap")
        at = end
    if begin + at != size:
        raise ValueError(f"its tensors take {at} bytes, and {size - begin} are there")
    return tensors


def _told(name: str, told: Any, begin: int) -> tuple[StoredTensor, tuple[int, int]]:
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its header says of {name[:80]!r} something else than type, shape and place")
    dtype = _DTYPES.get(told["dtype"]) if isinstance(told["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"{name[:80]!r} has an unknown type {told['dtype']!r:.40}")
    shape, offsets = told["shape"], told["data_offsets"]
    for listed in (shape, offsets):
        whole = isinstance(listed, list) and all(
            type(each) is int and 0 <= each < _MOST_SIDE for each in listed
        )
        if not whole or len(listed) > 16:
            raise ValueError(f"{name[:80]!r} has a shape or place that cannot be")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name[:80]!r} has a shape and a place that do not fit each other")
    return StoredTensor(dtype, tuple(shape), begin + offsets[0]), (offsets[0], offsets[1])


def read_tensor(file: BufferedReader, stored: StoredTensor) -> Tensor:
    """Return a tensor of an open file whose header was read.

    Raises:
        ValueError: the file ends before it, or it is one of truth values and holds others.
    """
    tensor = torch.empty(stored.shape, dtype=stored.dtype)
    if tensor.numel():
        seen = tensor.reshape(-1).view(torch.uint8).numpy()
        file.seek(stored.start)
        if file.readinto(seen.data) != seen.nbytes:  # pyright: ignore[reportArgumentType]
            raise ValueError("it ends before its tensors do")
        if stored.dtype == torch.bool and int(seen.max()) > 1:
            raise ValueError("it has truth values that are neither true nor false")
    return tensor
