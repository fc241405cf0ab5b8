"""The words that encoding and decoding share.

The objects that hold a run's state form a graph with shared parts and cycles. It becomes a list of
*nodes* that name each other by number, made of plain types and tensors only, which
``torch.load(weights_only=True)`` reads. What the user builds again (the model, the benchmark) is
named and not stored.

An encoded value is an atom (None, a number, text, bytes) as it is, a tuple of encoded values, or
``[number]`` of a node. A node is the name of its kind, its *home* and its content. The home is the
path at which constructors had built the object, None if the run made it: decoded, an object with a
home is filled in place, so that whoever else holds it (a closure, a view, the user) still does.

A *path* says where an object was first met, from the strategy or a plugin: text for an attribute,
a tuple of one for an entry of a list or dictionary.
"""

from __future__ import annotations

import io
import os
import re
import weakref
from functools import lru_cache
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.logging import BaseLogger
from avalanche.training.plugins import AGEMPlugin, MIRPlugin
from avalanche.training.templates.base import BaseTemplate
from torch import nn

from avalanche_vlm.logging.results_logger import ResultsLogger
from avalanche_vlm.models import OpenCLIPBackbone
from avalanche_vlm.sources import DiffusionImageSource, StoredImageSource

Encoded = Any
Path = tuple[Any, ...]
# Where the model is.
MODEL: Path = ("strategy", "model")
ATOMS = frozenset((type(None), bool, int, float, str, bytes))

_STRATEGY_TRANSIENTS = frozenset(
    (
        *("experience", "adapted_dataset", "dataloader", "mbatch", "mb_output", "loss", "device", "plugins"),
        *(
            "current_eval_stream",
            "_eval_streams",
            "is_training",
            "_distributed_check",
            "_resume_point",
            "_resting_text",
        ),
        *("model", "optimizer"),
        # Of the host's DER and ER_ACE.
        *("replay_loader", "batch_logits", "mb_buffer_x", "mb_buffer_y", "mb_buffer_tid", "mb_buffer_out"),
    )
)
# How far loggers of the host are; all else that they have says where and how they write.
_LOGGER_STATE = frozenset(
    (
        *("metric_vals", "training_exp_id", "in_train_phase", "val_acc", "val_loss", "step", "exp_count"),
        *("train_acc", "train_loss"),
    )
)
_texts_of_loggers: weakref.WeakKeyDictionary[BaseLogger, frozenset[str]] = weakref.WeakKeyDictionary()
# With what its class has: torch calls `_compiled_call_impl` of a module where there is one.
MODULE_OWN = frozenset((*vars(nn.Module()), *dir(nn.Module))) - {"training"}
# What our modules derive from what they have, and keep until it changes.
_DERIVED = frozenset(("_kept", "_resting", "_solved", "_tokenizer", "_start_length"))
_NOT_STORED: dict[type, frozenset[str]] = {
    # Endless loaders: one is made again from its buffers, the other by the next experience.
    MIRPlugin: frozenset(("replay_loader",)),
    AGEMPlugin: frozenset(("buffer_dataloader", "buffer_dliter")),
    BaseTemplate: _STRATEGY_TRANSIENTS,
    nn.Module: MODULE_OWN | _DERIVED,
    DiffusionImageSource: frozenset(("_loaded",)),
}
# What says where something is read from or loaded: it is how the run was set up, and no file says it.
_FIXED: dict[type, frozenset[str] | None] = {
    OpenCLIPBackbone: None,  # all of it: names of weights and tokenizers among them
    DiffusionImageSource: frozenset(("pipeline", "revision", "scheduler", "dtype")),
    StoredImageSource: frozenset(("folder",)),
}
CACHES = {DataAttribute: ("_count", "_uniques", "_val_to_idx")}


_PLACE = re.compile(r"^(/|~|\.|[A-Za-z]:)|\\|://|\.\./")


class CannotBeSaved(TypeError):
    """A plugin holds something that a checkpoint cannot hold; the message says where."""


def shown_path(path: Path) -> str:
    """Return a path as one would write it."""
    text = "".join(f".{step}" if isinstance(step, str) else f"[{step[0]!r}]" for step in path)
    return text.removeprefix(".")


def is_state(owner: Any, name: str) -> bool:
    """Return whether an attribute of an object may stand in a checkpoint.

    The encoder writes no other and the decoder accepts no other: a file cannot say where a logger
    writes, what a method does, or which model is trained.
    """
    kind = type(owner)
    if name.startswith("__") or callable(getattr(kind, name, None)) or name in _not_stored(kind):
        return False
    if not issubclass(kind, BaseLogger):
        return True
    if issubclass(kind, ResultsLogger):
        return name == "run" or name.startswith("_")
    if kind.__module__.startswith("avalanche.logging."):
        return name in _LOGGER_STATE
    return name not in _built_texts(owner) and not isinstance(vars(owner).get(name), PurePath)


@lru_cache(maxsize=1024)
def _not_stored(kind: type) -> frozenset[str]:
    """Return the attributes that no object of a class stores; asked for every attribute of every object."""
    return frozenset[str]().union(*(names for base, names in _NOT_STORED.items() if issubclass(kind, base)))


def is_fixed(owner: Any, name: str) -> bool:
    """Return whether an attribute stays as constructors set it, whatever a file says."""
    names = (names for kind, names in _FIXED.items() if isinstance(owner, kind))
    return any(own is None or name in own for own in names)


def is_bound(value: Any) -> bool:
    """Return whether a value acts or names a place: a function, a class, an object to call, a path, a file.

    A file may not say where such a value is put; see `Built.is_at`.
    """
    if isinstance(value, (PurePath, re.Pattern, ModuleType, io.IOBase)):
        return True
    return callable(value) and not isinstance(value, nn.Module)


def is_place(own: Any, other: str | bytes) -> bool:
    """Return whether a text, or what it would take the place of, says where something is.

    Args:
        own: what is there in this process; a text counts too if it has parts, or if there is such a file.
        other: a text of a checkpoint, by which nothing is looked up.
    """
    if isinstance(other, bytes):
        # Bytes are numbers most often, and by chance begin as a path does.
        if not isinstance(own, bytes) or not (own + other).decode(errors="replace").isprintable():
            return False
        own, other = own.decode(), other.decode()
    if _PLACE.search(other) is not None:
        return True
    return isinstance(own, str) and (_PLACE.search(own) is not None or "/" in own or os.path.exists(own))


def anchor(path: Path) -> Path:
    """Return the attribute that a path ends in, or in a container of it."""
    last = max((index for index, step in enumerate(path) if isinstance(step, str)), default=-1)
    return path[: last + 1]


def _built_texts(logger: BaseLogger) -> frozenset[str]:
    """Return which attributes of a logger were text or paths when it was first met, as it was built.

    They may say where it writes. Text that a logger is told later is part of how far it is.
    """
    found = _texts_of_loggers.get(logger)
    if found is None:
        own: dict[str, Any] = vars(logger)
        found = frozenset(name for name, value in own.items() if value and isinstance(value, (str, PurePath)))
        _texts_of_loggers[logger] = found
    return found


def registered(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the parameters, buffers and modules that a module itself has, as it keeps them."""
    own = vars(module)
    return own["_parameters"], own["_buffers"], own["_modules"]


def function_key(value: Any) -> Any:
    """Return what two functions have in common that do the same, whenever they were made."""
    if isinstance(value, MethodType):
        return function_key(value.__func__), id(value.__self__)
    if isinstance(value, FunctionType):
        cells = tuple(id(cell.cell_contents) for cell in value.__closure__ or () if _is_filled(cell))
        defaults = tuple(map(id, value.__defaults__ or ()))
        return _code_key(value.__code__), id(value.__globals__), cells, defaults
    return id(value)


def _code_key(code: CodeType) -> Any:
    constants = tuple(
        _code_key(part) if isinstance(part, CodeType) else (type(part).__name__, repr(part))
        for part in code.co_consts
    )
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
