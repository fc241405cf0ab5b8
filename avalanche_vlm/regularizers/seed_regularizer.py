"""Terms on draws from a memory of seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from avalanche_vlm._checks import check_count, check_type, wrong_value
from avalanche_vlm.memory import SeedBuffer
from avalanche_vlm.models.required_classifier import required_classifier
from avalanche_vlm.regularizers.regularizer import Regularizer


class SeedRegularizer(Regularizer):
    """What terms on draws from a memory have in common.

    Args:
        buffer: the memory.
        batch_size: how many draws a step.
        seed: of the random numbers.
    """

    def __init__(self, buffer: SeedBuffer, *, batch_size: int = 128, seed: int = 0) -> None:
        check_type("buffer", buffer, SeedBuffer)
        check_count("batch_size", batch_size)
        check_count("seed", seed, at_least=0)
        self.buffer = buffer
        self.batch_size = batch_size
        self._generator = torch.Generator().manual_seed(int(seed))

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Refuse a memory of classes that the model has not seen; arguments are those of the host."""
        model = required_classifier(agent.model, "which knows the classes that it was trained on")
        seen = model.classes_seen.cpu()
        known = [each for each in self.buffer.classes if each < len(seen) and bool(seen[each])]
        if len(known) < len(self.buffer.classes):
            odd = sorted(set(self.buffer.classes) - set(known))[:8]
            expected = "a memory of classes that the model has been trained on"
            raise wrong_value("buffer", expected, f"seeds of the classes {odd}", "Give each run a fresh one.")

    @property
    def is_active(self) -> bool:
        """Whether the memory has seeds."""
        return len(self.buffer) > 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random numbers; the memory's belongs to the plugin that updates it."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._generator.set_state(state["generator"].cpu())
