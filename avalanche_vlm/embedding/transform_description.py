"""What a transform does, told so that two processes tell it alike."""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Mapping
from pathlib import PurePath
from types import MethodType
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.transforms import MultiParamTransform, TupleTransform
from torch import Tensor, nn

from avalanche_vlm._checks import wrong_type
from avalanche_vlm.models.fingerprint import fingerprint

# Their code does not change under its name between two runs, as a user's own may.
_KNOWN_PACKAGES = {"PIL", "avalanche", "avalanche_vlm", "numpy", "open_clip", "timm", "torch", "torchvision"}
_NAME = "transform_name"


def describe_transform(transform: Any) -> Any:
    """Return what identifies a transform of x, as plain values that fit into JSON.

    A transform of torchvision, open_clip or this package is told by its class and its attributes,
    whatever it is composed of. The code of any other callable may change while its name stays, so
    it must say who it is by an attribute ``transform_name``, a text that its author changes
    whenever it does something else.

    Args:
        transform: a callable, a composition of them, or None.

    Raises:
        TypeError: a callable, or a value that it holds, that cannot be told.

    >>> from torchvision.transforms import CenterCrop, Compose
    >>> describe_transform(Compose([CenterCrop(4)]))["transforms"][0]["size"]
    [4, 4]
    """
    return _described(transform, top=transform)


def _described(value: Any, top: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(name := getattr(value, _NAME, None), str):
        return {_NAME: name}
    if isinstance(value, enum.Enum):
        return [type(value).__name__, value.name]
    if isinstance(value, (Tensor, np.ndarray)):
        return fingerprint({"": torch.as_tensor(value)})
    if isinstance(value, Mapping):
        return {str(key): _described(each, top) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(each, top) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_described(each, top) for each in value), key=json.dumps)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (torch.dtype, torch.device, range, slice, bytes, PurePath)):
        return repr(value)
    if isinstance(value, MethodType):
        return {"method": [_described(each, top) for each in (value.__func__, value.__self__)]}
    if isinstance(value, functools.partial):
        return {"partial": [_described(each, top) for each in (value.func, value.args, value.keywords)]}
    if isinstance(value, TupleTransform):  # of (x, y), of which only x is embedded
        return _described(value.transforms[0] if value.transforms else None, top)
    if not hasattr(value, "__dict__") or not _is_known(value):
        raise _untold(value, top)
    name = getattr(value, "__qualname__", None)  # a function or a class, told by its place
    if name is not None:
        if "<" in name:
            raise _untold(value, top)
        return f"{value.__module__}.{name}"
    return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **_attributes(value, top)}


def _attributes(value: Any, top: Any) -> dict[str, Any]:
    found = {key: each for key, each in vars(value).items() if not key.startswith("__")}
    if isinstance(value, nn.Module):
        own = nn.Module().__dict__.keys()
        found = {key: each for key, each in found.items() if key not in own}
        found |= {"modules": dict(value.named_children()), "state": value.state_dict()}
    if isinstance(value, MultiParamTransform):
        # How many arguments each takes is read from its signature, which is part of what it is.
        found.pop("param_def", None)
    return {key: _described(each, top) for key, each in found.items()}


def _is_known(value: Any) -> bool:
    place = getattr(value, "__module__", None) or type(value).__module__
    return place.split(".")[0] in _KNOWN_PACKAGES


def _untold(value: Any, top: Any) -> TypeError:
    inside = "" if value is top else f" (inside {type(top).__name__})"
    return wrong_type(
        f"transform{inside}",
        "of torchvision, open_clip or this package, or to have a name",
        value,
        "Embeddings are kept under what the transforms do, and of this one that cannot be told. Set "
        "`transform.transform_name = 'some text'`, and another text whenever you change what it does.",
    )
