"""Whose weights a teacher has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor

from avalanche_vlm._checks import check_number
from avalanche_vlm._stateful import Stateful
from avalanche_vlm.models import WeightSnapshot


class Teacher(Stateful, ABC):
    """A policy that says, before each experience, which weights the teacher has in it."""

    @abstractmethod
    def weights(self, strategy: Any) -> WeightSnapshot:
        """Return the teacher's weights for the experience that a strategy is about to train on."""


@final
class LastTeacher(Teacher):
    """The model as it was before the experience.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025;
        Li and Hoiem, Learning without Forgetting, ECCV 2016.

    Deviations:
        None.
    """

    def weights(self, strategy: Any) -> WeightSnapshot:
        """Return the weights as they are now."""
        return WeightSnapshot.shared(strategy)


class InitialTeacher(Teacher):
    """The model as it was before its first experience.

    It belongs to one run: a second would be taught by the first one's weights.

    References:
        Zheng et al., Preventing Zero-Shot Transfer Degradation in Continual Learning of
        Vision-Language Models (ZSCL), ICCV 2023.

    Deviations:
        None.
    """

    def __init__(self) -> None:
        self._initial: dict[str, Tensor] | None = None

    def _initial_weights(self, strategy: Any) -> WeightSnapshot:
        if self._initial is None:
            self._initial = WeightSnapshot.shared(strategy).tensors
        device = strategy.model.backbone.logit_scale.device  # a state may have been read on another
        self._initial = {name: tensor.to(device) for name, tensor in self._initial.items()}
        # A tensor that has come since (the layer of a growing head) is taught by itself.
        return WeightSnapshot(self._initial)

    def weights(self, strategy: Any) -> WeightSnapshot:
        """Return the first weights."""
        return self._initial_weights(strategy)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the first weights."""
        return 0 if self._initial is None else WeightSnapshot(self._initial).nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return the first weights."""
        return {"initial": self._initial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over first weights."""
        self._initial = state["initial"]


@final
class InterpolatedTeacher(InitialTeacher):
    r"""Weights between those before the experience and those before the first one.

    .. math:: \theta' = (1 - a) \, \theta^{t-1} + a \, \theta^0

    Args:
        initial_share: a in [0, 1]; 0 is `LastTeacher`, 1 `InitialTeacher`.

    Raises:
        ValueError: a share outside [0, 1].

    References:
        Wu et al., CVPR 2025 (GIFT), the ablation of teachers, "WiSE(a)"; Wortsman et al., Robust
        fine-tuning of zero-shot models, CVPR 2022.

    Deviations:
        The ablation does not say which of the two has the share a. Its numbers (more Transfer and less
        Last with a larger a) tell that it is the initial one.
    """

    def __init__(self, initial_share: float = 0.2) -> None:
        super().__init__()
        check_number("initial_share", initial_share, at_least=0, at_most=1)
        self.initial_share = initial_share

    def weights(self, strategy: Any) -> WeightSnapshot:
        """Return the weights in between."""
        return WeightSnapshot.shared(strategy).mixed(self._initial_weights(strategy), self.initial_share)
