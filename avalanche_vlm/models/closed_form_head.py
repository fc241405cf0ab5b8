"""What heads share that learn by sums of features, without any gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from avalanche_vlm._checked_features import check_features
from avalanche_vlm._checks import check_type, wrong_value
from avalanche_vlm.functional.exact_sums import MOST_ROWS, rounded_unit_rows
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.fused_head import FusedHead
from avalanche_vlm.models.heads import KeptBytes, TextHead, adds_names, bytes_of_classes
from avalanche_vlm.text import ClassNames


class ClosedFormHead(FusedHead):
    """A head whose second scorer is solved from sums over the rows that it has been given.

    A subclass registers buffers of sums for each class (`_BY_CLASS`) or for all (`_SHARED`), adds rows to
    them in `_add_rows`, and solves in `_solved_anew`. The sums are the same to the last bit for any order of
    rows, any split into experiences, and any split over processes (`merge`).

    Args:
        zero_shot: the head that scores classes by their text; None for `ZeroShotHead`.

    Raises:
        TypeError: ``zero_shot`` is not a head.
    """

    _BY_CLASS: ClassVar[Mapping[str, int]] = {}
    """Buffers of sums with an axis of classes, and which."""
    _SHARED: tuple[str, ...] = ()
    """Other buffers of sums."""
    _STATE: tuple[str, ...] = ()
    """Further buffers that are no sums and hold nothing of data, such as text features."""
    _FIXED: ClassVar[tuple[str, ...]] = ()
    """Arguments that say what is summed: they cannot be changed, and heads that are merged share them."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; refuse another value of what says what is summed."""
        if name in self._FIXED and name in self.__dict__ and value != getattr(self, name):
            raise wrong_value(
                name,
                f"{getattr(self, name)!r}, as when the head was built, because rows were summed by it",
                repr(value),
                "Build another head.",
            )
        super().__setattr__(name, value)

    def __init__(self, zero_shot: TextHead | None) -> None:
        super().__init__(zero_shot)
        self._solved: tuple[Any, Any] | None = None

    @property
    @abstractmethod
    def counts(self) -> Tensor:
        """int64 (C,), number of rows of each class."""

    @abstractmethod
    def _empty(self, class_count: int, width: int) -> dict[str, Tensor]:
        """Return the buffers of sums without any row, by name."""

    @abstractmethod
    def _add_rows(self, unit: Tensor, labels: Tensor) -> None:
        """Add rows (N, D) of `_rounded`, with labels (N,)."""

    @abstractmethod
    def _solved_anew(self, backbone: VisionLanguageBackbone) -> Any:
        """Return what `second_scores` needs, from the sums."""

    @torch.inference_mode(False)
    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Take the names; what was summed for earlier classes is kept if new names come after them."""
        width = backbone.embed_dim
        self.first.set_classes(class_names, backbone)
        kept = adds_names(self.class_names, class_names)
        for name, empty in self._empty(len(class_names), width).items():
            old = getattr(self, name)
            empty = empty.to(old.device)
            if kept and name in self._BY_CLASS:
                axis = self._BY_CLASS[name]
                empty.narrow(axis, 0, old.shape[axis]).copy_(old)
            elif kept:
                empty = old
            setattr(self, name, empty)
        TextHead.set_classes(self, class_names, backbone)

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add rows.

        Args:
            embeddings: floats (N, D), un-normalised.
            labels: int64 (N,), ids of named classes.

        Raises:
            TypeError: not tensors of floats and of whole numbers.
            ValueError: a wrong shape, a label without a name, a feature that is not finite, or more rows in
                all than can be summed exactly (2³¹ - 1).
        """
        count = len(self.names_or_error())
        check_features(embeddings, labels, self.width, argument="embeddings", class_count=count, at_least=0)
        self._check_room(len(embeddings))
        device = self.counts.device
        self._add_rows(self._rounded(embeddings.to(device)), labels.to(device, torch.int64))

    def _rounded(self, embeddings: Tensor) -> Tensor:
        """Return the rows that are summed, in float64."""
        return rounded_unit_rows(embeddings)

    def _check_room(self, more: int) -> None:
        total = int(self.counts.sum()) + more
        if total > MOST_ROWS:
            raise wrong_value("embeddings", f"at most {MOST_ROWS} rows in all", f"{total}")

    @torch.no_grad()
    def merge(self, other: Self) -> None:
        """Add the rows of another head, which saw others of the same classes.

        Raises:
            TypeError: ``other`` is no such head.
            ValueError: it has other names, or sums of another kind.
        """
        check_type("other", other, type(self))
        if other.names_or_error().names != self.names_or_error().names:
            got = f"one with {len(other.counts)} other names"
            raise wrong_value("other", "a head with the same class names", got)
        names = (*self._BY_CLASS, *self._SHARED)
        for name in self._FIXED:
            if getattr(other, name) != getattr(self, name):
                got = f"{name}={getattr(other, name)!r} in place of {getattr(self, name)!r}"
                raise wrong_value("other", "a head with the same arguments", got)
        for name in names:
            if getattr(other, name).shape != getattr(self, name).shape:
                raise wrong_value("other", "a head with the same arguments", "one with sums of another shape")
        self._check_room(int(other.counts.sum()))
        for name in names:
            getattr(self, name).add_(getattr(other, name).to(getattr(self, name).device))
        self._take_over(other)

    def _take_over(self, other: Any) -> None:
        """Take from another head what is no sum; most have nothing."""

    def settle(self, backbone: VisionLanguageBackbone) -> None:
        """Take note that all rows of an experience are there; most heads need not know."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width D of the rows."""

    def own_kept_bytes(self) -> KeptBytes:
        """Return the bytes of the sums; none as long as no class has rows."""
        counts = self.counts
        if not bool((counts > 0).any()):
            return KeptBytes()
        by_class = bytes_of_classes((getattr(self, name) for name in self._BY_CLASS), counts)
        return KeptBytes(by_class, sum(getattr(self, name).nbytes for name in self._SHARED))

    def solved(self, backbone: VisionLanguageBackbone) -> Any:
        """Return what is solved from the sums, solved again when something has changed."""
        own = [getattr(self, name) for name in (*self._BY_CLASS, *self._SHARED, *self._STATE)]
        state = [self._settings(), *((t.data_ptr(), t._version, t.device) for t in own)]
        if self._solved is None or self._solved[0] != state:
            with torch.no_grad():
                self._solved = state, self._solved_anew(backbone)
        return self._solved[1]

    def _settings(self) -> Any:
        """Return the settings that `_solved_anew` reads."""
        return self.own_config()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Another device is followed; `half()` and the like are not, for the sums would lose all meaning.
        names = (*self._BY_CLASS, *self._SHARED, *self._STATE)
        kept = [getattr(self, name) for name in names]
        super()._apply(fn, recurse)
        for name, tensor in zip(names, kept, strict=True):
            setattr(self, name, tensor.to(getattr(self, name).device))
        self._solved = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_solved": None}
