"""Single changes, drawn from a generator: of bytes, and of a value in lists, dictionaries and tensors."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# What an attacker would write where a text stands.
TEXTS = ("", "x", "__class__", "os.system", "builtins.eval", "../outside", "/etc/passwd", "\x00", "ü" * 300)
NUMBERS = (0, 1, -1, 2, 7, 2**31, 2**63, 10**40, -(2**70))
FLOATS = (0.0, -1.0, 1e30, 1e-30, float("nan"), float("inf"), float("-inf"))


@dataclass(frozen=True)
class Change:
    """What was changed.

    Attributes:
        where: a place, as text.
        what: the change, as text.
        of_data: whether it is another value of the same kind: number for number, text for text. Else it
            is another structure.
    """

    where: str
    what: str
    of_data: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def changed_bytes(data: bytes, draw: random.Random) -> tuple[bytes, Change]:
    """Return bytes with one change that is one: a flip, a cut, something put in, or two pieces exchanged."""
    while True:
        kind = draw.choice(("flip", "flip", "delete", "insert", "truncate", "swap", "byte"))
        place, length = draw.randrange(len(data)), draw.choice((1, 1, 2, 8, 64))
        if kind == "flip":
            new = data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]
        elif kind == "byte":
            new = data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]
        elif kind == "delete":
            new = data[:place] + data[place + length :]
        elif kind == "insert":
            new = data[:place] + draw.randbytes(length) + data[place:]
        elif kind == "truncate":
            new = data[:place]
        else:
            second = draw.randrange(len(data))
            first, last = sorted((place, second))
            new = data[:first] + data[last:] + data[first:last]
        if new != data:
            return new, Change(f"byte {place} of {len(data)}", kind)


def changed_value(tree: Any, draw: random.Random) -> tuple[Any, Change]:
    """Return a copy of a tree with one change, in a place of a kind of value that is drawn first."""
    places: dict[str, list[tuple[Any, ...]]] = {}
    texts: list[str] = []
    _collect(tree, (), places, texts)
    while True:
        # Numbers are everywhere; without this the rare kinds would hardly be met.
        kind = draw.choice(sorted(places))
        path = draw.choice(places[kind])
        old = _at(tree, path)
        made = _CHANGES[kind](old, draw, texts)
        if made is None:
            continue
        new, what, of_data = made
        return _replaced(tree, path, new), Change("/".join(map(str, path))[-70:] or "all", what, of_data)


def _collect(value: Any, path: tuple[Any, ...], places: dict[str, Any], texts: list[str]) -> None:
    kind = "tensor" if isinstance(value, torch.Tensor) else type(value).__name__
    if kind not in _CHANGES:
        raise TypeError(f"a {kind} at {path}")
    places.setdefault(kind, []).append(path)
    if isinstance(value, str):
        texts.append(value)
    if isinstance(value, dict):
        for key, item in value.items():
            _collect(item, (*path, key), places, texts)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _collect(item, (*path, index), places, texts)


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _replaced(tree: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    first, rest = path[0], path[1:]
    if isinstance(tree, dict):
        return {key: _replaced(item, rest, new) if key == first else item for key, item in tree.items()}
    items = [_replaced(item, rest, new) if i == first else item for i, item in enumerate(tree)]
    return tuple(items) if isinstance(tree, tuple) else items


# Each returns the new value, what it is, and whether it is of the same kind; None if there is no change.

_Made = tuple[Any, str, bool] | None


def _another_type(old: Any, draw: random.Random) -> _Made:
    others = [
        None,
        True,
        3,
        -1.5,
        "text",
        [],
        [0],
        {},
        {"a": 1},
        (),
        (1, 2),
        str(old)[:50],
        [old],
        {"x": old},
    ]
    new = draw.choice([other for other in others if type(other) is not type(old)])
    return new, f"{_short(old)} becomes {_short(new)}", False


def _int(old: int, draw: random.Random, texts: list[str]) -> _Made:
    if draw.random() < 0.3:
        return _another_type(old, draw)
    new = draw.choice((*NUMBERS, old + 1, old - 1, -old, old * 1000, old ^ 1))
    return None if new == old else (new, f"{old} becomes {_short(new)}", True)


def _float(old: float, draw: random.Random, texts: list[str]) -> _Made:
    if draw.random() < 0.3:
        return _another_type(old, draw)
    new = draw.choice((*FLOATS, old + 1, -old, old * 1.001))
    return None if new == old else (new, f"{old} becomes {new}", True)


def _bool(old: bool, draw: random.Random, texts: list[str]) -> _Made:
    return (not old, f"becomes {not old}", True) if draw.random() < 0.5 else _another_type(old, draw)


def _none(old: None, draw: random.Random, texts: list[str]) -> _Made:
    return _another_type(old, draw)


def _str(old: str, draw: random.Random, texts: list[str]) -> _Made:
    if draw.random() < 0.2:
        return _another_type(old, draw)
    cut = old[: draw.randrange(len(old) + 1)] + draw.choice(("", "z")) + old[draw.randrange(len(old) + 1) :]
    new = draw.choice((*TEXTS, cut, cut, old.upper(), draw.choice(texts), draw.choice(texts)))
    return None if new == old else (new, f"{_short(old)} becomes {_short(new)}", True)


def _bytes(old: bytes, draw: random.Random, texts: list[str]) -> _Made:
    if not old or draw.random() < 0.2:
        return _another_type(old, draw)
    new, change = changed_bytes(old, draw)
    return new, str(change), len(new) == len(old)


def _list(old: Any, draw: random.Random, texts: list[str]) -> _Made:
    kind = draw.choice(("type", "drop", "twice", "swap", "add", "empty", "nest"))
    items = list(old)
    if kind == "type" or (not items and kind in ("drop", "twice", "swap", "empty")):
        return _another_type(old, draw)
    place = draw.randrange(len(items)) if items else 0
    if kind == "drop":
        del items[place]
    elif kind == "twice":
        items.insert(place, items[place])
    elif kind == "swap":
        second = draw.randrange(len(items))
        items[place], items[second] = items[second], items[place]
    elif kind == "add":
        items.insert(place, draw.choice([None, 0, -1, 10**6, "x", [], [0], 1.5]))
    elif kind == "empty":
        items = []
    else:
        deep: Any = items
        for _ in range(draw.choice((1, 50, 3000))):
            deep = [deep]
        items = deep
    new = tuple(items) if isinstance(old, tuple) else items
    if _short(new, 10**6) == _short(old, 10**6):
        return None
    return new, f"{type(old).__name__} of {len(old)}: {kind} {place}", False


def _dict(old: dict[Any, Any], draw: random.Random, texts: list[str]) -> _Made:
    kind = draw.choice(("type", "drop", "rename", "add", "swap", "none"))
    if kind == "type" or not old:
        return _another_type(old, draw)
    keys = list(old)
    key, second = draw.choice(keys), draw.choice(keys)
    new = dict(old)
    if kind == "drop":
        del new[key]
    elif kind == "rename":
        new = {("z" if each == key else each): item for each, item in old.items()}
    elif kind == "add":
        new[draw.choice(("z", 99, -1, "__class__"))] = draw.choice([None, 0, [], "x"])
    elif kind == "swap":
        new[key], new[second] = old[second], old[key]
    else:
        new[key] = None
    if new is old or _short(new, 10**6) == _short(old, 10**6):
        return None
    return new, f"dictionary: {kind} {_short(key)}", False


def _tensor(old: torch.Tensor, draw: random.Random, texts: list[str]) -> _Made:
    kind = draw.choice(
        ("value", "value", "nan", "huge", "flat", "rows", "more", "type", "empty", "axis", "no")
    )
    if kind == "no":
        return _another_type(None, draw)
    if not old.numel() and kind != "axis":
        return None
    new = old.clone()
    if kind in ("value", "nan", "huge"):
        flat = new.reshape(-1)
        place = draw.randrange(len(flat))
        if new.dtype == torch.bool:
            flat[place] = ~flat[place]
        elif not new.is_floating_point():
            flat[place] = flat[place] + 1 if kind == "value" else -1
        else:
            flat[place] = {"value": flat[place] * 1.5 + 1, "nan": float("nan"), "huge": 1e30}[kind]
        new = flat.reshape(old.shape)
        same = torch.equal(new.nan_to_num() if new.is_floating_point() else new, old)
        return None if same else (new, f"tensor {tuple(old.shape)}: {kind} at {place}", True)
    if kind == "flat":
        new = new.reshape(-1)
    elif kind == "rows":
        new = new[:-1] if new.ndim else new.reshape(1)
    elif kind == "more":
        new = torch.cat([new, new]) if new.ndim else new.repeat(2)
    elif kind == "type":
        new = new.to(draw.choice([torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16]))
    elif kind == "empty":
        new = new.reshape(-1)[:0]
    else:
        new = new[None]
    if new.shape == old.shape and new.dtype == old.dtype:
        return None
    shapes = f"{tuple(old.shape)} {old.dtype} becomes {tuple(new.shape)} {new.dtype}"
    return new.contiguous(), f"tensor: {kind}, {shapes}".replace("torch.", ""), False


def _short(value: Any, most: int = 40) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = "something deep"
    return text if len(text) <= most else text[: most - 3] + "..."


_CHANGES: dict[str, Callable[[Any, random.Random, list[str]], _Made]] = {
    **{"int": _int, "float": _float, "bool": _bool, "NoneType": _none, "str": _str, "bytes": _bytes},
    **{"list": _list, "tuple": _list, "dict": _dict, "tensor": _tensor},
}
