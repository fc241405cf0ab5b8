"""Which classes were learned before the experience at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import experience_classes
from avalanche_vlm._stateful import Stateful
from avalanche_vlm.models import CLIPClassifier


@final
class LearnedClasses(Stateful):
    """Keeps account of the classes of experiences that have ended.

    The model says which classes it has seen, and counts those of the experience at hand among them. So
    the classes learned before it are those that are not in it, and those that were noted when an earlier
    one ended: a class may come again. The note belongs to one run.
    """

    def __init__(self) -> None:
        self._noted = torch.zeros(0, dtype=torch.bool)

    def before(self, model: CLIPClassifier, *experiences: Any) -> Tensor:
        """Return the ids int64 (K,), in order, of the classes learned before what is trained on now.

        Raises:
            ValueError: classes were noted that the model has never seen: the note of another run.
        """
        learned = model.classes_seen.detach().cpu().clone()
        noted = self._noted.nonzero().flatten()
        strange = noted[noted >= len(learned)].tolist() or noted[~learned[noted]].tolist()
        if strange:
            raise wrong_value(
                "plugins",
                "plugins and regularizers of this run",
                f"one that has learned class {strange[0]}, which this model has never been trained on",
                "Give each run fresh ones: they keep account of the classes learned so far.",
            )
        current = torch.cat([experience_classes(each) for each in experiences]).unique()
        again = current[current < len(self._noted)]
        again = again[self._noted[again]]
        learned[current] = False
        learned[again] = True
        return learned.nonzero().flatten()

    def note(self, model: CLIPClassifier) -> None:
        """Take note of the classes that the model has seen, when an experience ends."""
        self._noted = model.classes_seen.detach().cpu().clone()

    @property
    def nbytes(self) -> int:
        """Number of bytes of the note."""
        return self._noted.numel()

    def state_dict(self) -> dict[str, Any]:
        """Return the note."""
        return {"noted": self._noted.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a note."""
        self._noted = state["noted"].cpu().clone()
