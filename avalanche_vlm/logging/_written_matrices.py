"""What of the accuracy matrices of a run stands in its file already."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from torch import Tensor


class WrittenMatrices:
    """Remembers the entries of growing matrices, and finds those that a file does not have yet."""

    def __init__(self) -> None:
        self._written: dict[Hashable, dict[tuple[int, int], float]] = {}

    def changes(
        self, key: Hashable, matrix: Tensor, whole_row: int | None
    ) -> Iterator[tuple[int, int, float]]:
        """Yield the entries (row, column, value) that differ from what was yielded before.

        NaN where there was nothing is no difference, except in ``whole_row``, which gives a reader
        the number of columns.

        Args:
            key: which matrix.
            matrix: (T+1, T).
            whole_row: the row that is yielded whole; None for none.
        """
        written = self._written.setdefault(key, {})
        for row, values in enumerate(matrix.tolist()):
            for column, value in enumerate(values):
                place = (row, column)
                known = written.get(place)
                nothing_new = known is None and value != value and row != whole_row
                same = known is not None and (known == value or (known != known and value != value))
                if nothing_new or (same and row != whole_row):
                    continue
                written[place] = value
                yield row, column, value
