"""What two objects have in common that are built alike: a short key of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import PurePath
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_vlm.checkpointing._allowed import class_name
from avalanche_vlm.checkpointing._graph import ATOMS, is_state, registered
from avalanche_vlm.models.fingerprint import fingerprint

# Of larger containers (the vocabulary of a tokenizer) only the length counts, and of nests the upper part.
_MOST_ENTRIES = 10_000
_DEEPEST = 8


def content_key(value: Any) -> Any:
    """Return an atom as it is, and of anything else a short text that says what is in it.

    It is the same in every process. Random generators and functions count by their kind and name.
    """
    if type(value) in ATOMS:
        return value
    return "#" + hashlib.sha256(json.dumps(_outline(value, 0)).encode()).hexdigest()[:12]


def state_key(value: Any) -> Any:
    """Return the same with the states of random generators, which changes as soon as one is used."""
    return content_key((value, _generator_states(value, 0)))


def _outline(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in ATOMS:
        return repr(value)
    if depth > _DEEPEST:
        return kind.__name__
    if isinstance(value, (list, tuple)) or kind.__name__ == "deque":
        return [kind.__name__, *(_outline(item, depth + 1) for item in _entries(value))]
    if isinstance(value, Mapping):
        items = value.items() if len(value) <= _MOST_ENTRIES else ()
        pairs = [[_outline(key, depth + 1), _outline(item, depth + 1)] for key, item in items]
        return [kind.__name__, len(value), *pairs]
    if isinstance(value, (set, frozenset)):
        return [kind.__name__, *sorted(json.dumps(_outline(item, depth + 1)) for item in _entries(value))]
    if isinstance(value, Tensor):
        plain = value.layout == torch.strided and not value.is_meta and not value.is_quantized
        return ["tensor", fingerprint({"": value}) if plain else str(value.layout)]
    if isinstance(value, np.ndarray):
        return ["array", str(value.dtype), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, (FunctionType, MethodType, type)) or not hasattr(value, "__dict__"):
        return str(getattr(value, "__qualname__", kind.__qualname__))
    if isinstance(value, partial):
        return ["partial", *(_outline(part, depth + 1) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, PurePath):
        return ["path", value.name]  # a folder has another place on another machine
    own = _attributes(value)
    return [class_name(kind), *([name, _outline(item, depth + 1)] for name, item in sorted(own.items()))]


def _entries(value: Any) -> list[Any]:
    return list(value) if len(value) <= _MOST_ENTRIES else [len(value)]


def _attributes(value: Any) -> dict[str, Any]:
    own = {name: v for name, v in vars(value).items() if is_state(value, name) and name != "training"}
    if isinstance(value, nn.Module):
        own = {**own, **{name: part for parts in registered(value) for name, part in parts.items()}}
    return own


def _generator_states(value: Any, depth: int) -> list[Any]:
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    if isinstance(value, np.random.Generator):
        return [repr(value.bit_generator.state)]
    if type(value).__name__ == "Random":
        return [repr(value.getstate())]
    if depth > _DEEPEST or type(value) in ATOMS or isinstance(value, (Tensor, np.ndarray, type)):
        return []
    parts: Any = ()
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = _entries(value)
    elif isinstance(value, Mapping):
        parts = value.values() if len(value) <= _MOST_ENTRIES else ()
    elif hasattr(value, "__dict__"):
        parts = _attributes(value).values()
    return [state for part in parts for state in _generator_states(part, depth + 1)]
