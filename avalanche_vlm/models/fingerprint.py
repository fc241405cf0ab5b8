"""A short name for weights or features, to tell runs apart and to key caches by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avalanche_vlm._checks import wrong_type, wrong_value


def fingerprint(module_or_tensors: nn.Module | Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, of the names, dtypes, shapes and bytes of tensors.

    It is the same on every device and for every order of the tensors, and another as soon as any
    bit, dtype, shape or name is. Tensors are read where they lie: a copy is made only of one that
    is on another device or not contiguous, one at a time.

    Args:
        module_or_tensors: a module, whose ``state_dict()`` counts (non-persistent buffers do not),
            or tensors by name.

    Raises:
        TypeError: something else, or an entry that is no tensor.
        ValueError: a tensor without plain bytes (sparse, quantised, or on the meta device).

    >>> fingerprint({"weight": torch.zeros(2)})[:12]
    '054346e315c4'
    """
    if isinstance(module_or_tensors, nn.Module):
        module_or_tensors = module_or_tensors.state_dict()
    if not isinstance(module_or_tensors, Mapping):
        raise wrong_type("module_or_tensors", "a module or tensors by name", module_or_tensors)
    digest = hashlib.sha256()
    for name in sorted(module_or_tensors):
        tensor = module_or_tensors[name]
        if not isinstance(tensor, Tensor):
            raise wrong_type(f"module_or_tensors[{name!r}]", "a tensor", tensor)
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = f"a tensor on {tensor.device}, layout {tensor.layout}, {tensor.dtype}"
            raise wrong_value(f"module_or_tensors[{name!r}]", "a dense tensor with data", kind)
        # As JSON, so that no name can run into the dtype or shape after it.
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(plain_bytes(tensor))
    return digest.hexdigest()


def plain_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in the order of its indices, without a copy where there is one."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # numpy does not know bfloat16, but any dtype can be seen as bytes.
    return plain.reshape(-1).view(torch.uint8).numpy().data
