"""What every part of a method answers about what it keeps from one experience to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche_vlm._checks import check_no_state


class Stateful:
    """A part that keeps nothing, unless its class says otherwise."""

    @property
    def nbytes(self) -> int:
        """Number of bytes that are kept from one experience to the next."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept from one experience to the next."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state.

        Raises:
            ValueError: the state of another kind of part.
        """
        check_no_state(self, state)
