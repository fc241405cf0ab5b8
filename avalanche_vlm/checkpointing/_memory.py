"""Tensors that share memory, and share it again when they are read.

A file says how much memory is made for its tensors, and that is bounded by what is stored of them. Within
the bound memory is as large as it was; beyond it, only the parts are made in which tensors lie.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._graph import CannotBeSaved, Path, shown_path

# How many bytes of memory a file may ask for: so many times what is stored, and some more.
_MOST_GROWTH, _ALLOWANCE = 64, 64 << 20


class _View(NamedTuple):
    node: int
    path: Path
    start: int
    end: int
    stored: int


class Views:
    """Collects where tensors lie while a state is encoded."""

    def __init__(self) -> None:
        self._views: dict[Any, list[_View]] = defaultdict(list)

    def add(self, tensor: Tensor, node: int, path: Path) -> None:
        """Take note of a tensor without repetitions; its node ends with its stride."""
        start = int(tensor.storage_offset()) * tensor.element_size()
        end = start + _extent(tensor.shape, tensor.stride(), tensor.element_size())
        storage = tensor.untyped_storage()
        key = tensor.device, storage.data_ptr(), storage.nbytes()
        self._views[key].append(_View(node, path, start, end, tensor.nbytes))

    def forget(self, nodes: int) -> None:
        """Let go of the tensors of later nodes."""
        for key, views in self._views.items():
            self._views[key] = [view for view in views if view.node < nodes]

    def put_places(self, nodes: list[Any]) -> None:
        """Write into the nodes of tensors where they lie in which memory.

        Raises:
            CannotBeSaved: views leave so large gaps that they would take far more memory than the file.
        """
        left = _most(sum(view.stored for views in self._views.values() for view in views))
        number = 0
        for (*_, whole), views in self._views.items():
            for part in [views] if whole <= left else _parts(views):
                first, end = (0, whole) if part is views else (part[0].start, max(view.end for view in part))
                is_wide = end - first > left
                if is_wide and len(part) > 1:
                    raise CannotBeSaved(
                        f"{shown_path(part[0].path)} is a view of memory with large gaps ({end - first} "
                        "bytes), which a checkpoint does not hold. Keep a copy of it: tensor.clone()."
                    )
                for view in part:
                    *node, stride = nodes[view.node]
                    place = None if is_wide else (number, end - first, view.start - first, stride)
                    nodes[view.node] = (*node, place)
                left -= 0 if is_wide else end - first
                number += 1


def _parts(views: Sequence[_View]) -> list[list[_View]]:
    """Return views in groups that lie apart."""
    found: list[list[_View]] = []
    end = -1
    for view in sorted(views, key=lambda view: view.start):
        if view.start >= end:
            found.append([])
        found[-1].append(view)
        end = max(end, view.end)
    return found


class Memories:
    """Makes the memory of tensors again, while a state is decoded.

    Args:
        nodes: all nodes, of which those of tensors say what lies where.
    """

    def __init__(self, nodes: Sequence[Any]) -> None:
        self._sizes: dict[int, int] = {}
        self._made: dict[int, tuple[torch.UntypedStorage, int]] = {}
        self._live: set[int] = set()
        stored = 0
        for node in nodes:
            if node[0] == "tensor" and node[-1] is not None:
                number, size, _, _ = _numbers(node[-1])
                stored += node[2].nbytes
                if size < 0 or self._sizes.setdefault(number, size) != size:
                    raise wrong_value("path", "a checkpoint whose tensors lie in their memory", "another")
        if sum(self._sizes.values()) > _most(stored):
            expected = "a checkpoint that takes memory like its run"
            raise wrong_value("path", expected, f"{stored} bytes that lie in {sum(self._sizes.values())}")

    def take(self, live: Tensor, place: Any) -> None:
        """Take note that a tensor which is there already lies in some memory, and others with it."""
        if place is not None:
            number, _, offset, _ = _numbers(place)
            start = int(live.storage_offset()) * live.element_size()
            if number not in self._made:
                self._made[number] = live.untyped_storage(), start - offset
                self._live.add(number)

    def make(
        self, tensor: Tensor, place: Any, device: torch.device, later: Callable[[Callable[[], Any]], None]
    ) -> Tensor:
        """Return a tensor with the same content that lies where it lay.

        Args:
            tensor: the content.
            place: where it lay.
            device: where memory is made.
            later: takes what is to be done at the end: memory that is in use is not written to before.

        Raises:
            ValueError: it lies outside of its memory.
        """
        number, size, offset, stride = _numbers(place)
        end = offset + _extent(tensor.shape, stride, tensor.element_size())
        fits = 0 <= offset <= end <= size and offset % tensor.element_size() == 0
        if not fits or len(stride) != tensor.ndim or any(step < 0 for step in stride):
            raise wrong_value("path", "a checkpoint whose tensors lie in their memory", f"one with {place}")
        storage, start = self._made.get(number, (None, 0))
        at = start + offset
        if storage is None or at % tensor.element_size() or not 0 <= at <= start + end <= storage.nbytes():
            storage, at = torch.UntypedStorage(size, device=device), offset
            self._made[number] = storage, 0
            self._live.discard(number)
        made = torch.empty(0, dtype=tensor.dtype, device=storage.device)
        made.set_(storage, at // tensor.element_size(), tensor.shape, stride)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if number in self._live:
            later(lambda: made.copy_(tensor))
            return made
        return made.copy_(tensor)


def _numbers(place: Any) -> tuple[int, int, int, tuple[int, ...]]:
    number, size, offset, stride = place
    return int(number), int(size), int(offset), tuple(int(step) for step in stride)


def _extent(shape: Sequence[int], stride: Sequence[int], element: int) -> int:
    """Return over how many bytes a tensor is spread."""
    if 0 in shape:
        return 0
    return int(1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=False))) * element


def _most(stored: int) -> int:
    return _MOST_GROWTH * stored + _ALLOWANCE
