"""The published settings of ZSCL on MTIL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from avalanche_vlm.presets.mtil import mtil
from avalanche_vlm.presets.mtil_training import MTILTraining, mtil_learning_rates


@final
@dataclass(frozen=True)
class ZSCLSetting(MTILTraining):
    """What ZSCL was run with on MTIL: numbers, and the parts that they make.

    Attributes:
        distillation_weight: of the distillation.
        penalty_weight: of the squared distance to the weights before the experience.
        ensemble_every: number of steps between the weights that are averaged.
        ensemble_first: after how many steps the first of them are taken, as in the authors' code.
        temperature: of the distillation.

    The other attributes are those of `MTILTraining`.

    >>> zscl_setting("II").learning_rates[:3], zscl_setting().strategy_arguments()["ensemble_every"]
    ((1e-05, 1e-05, 5e-05), 100)
    """

    distillation_weight: float = 1.0
    penalty_weight: float = 1.0
    ensemble_every: int = 100
    ensemble_first: int = 1
    temperature: float = 2.0

    def strategy_arguments(self) -> dict[str, Any]:
        """Return the numbers that `strategies.ZSCL` takes: ``ZSCL(**setting.strategy_arguments(), ...)``."""
        return super().strategy_arguments() | {
            "distillation_weight": self.distillation_weight,
            "penalty_weight": self.penalty_weight,
            "ensemble_every": self.ensemble_every,
            "ensemble_first": self.ensemble_first,
            "temperature": self.temperature,
        }


def zscl_setting(order: Literal["I", "II"] = "I", datasets: Sequence[str] | None = None) -> ZSCLSetting:
    """Return what ZSCL was run with on MTIL: OpenAI's ViT-B-16, both towers, 1,000 iterations a data set.

    Reference images and texts are yours to give: the authors take images of ImageNet, and the validation
    captions of Conceptual Captions.

    Args:
        order: of the data sets: see `mtil`.
        datasets: some of the eleven: see `mtil`.

    Raises:
        TypeError: ``datasets`` is no list.
        ValueError: an unknown order or data set, none, or one twice.

    References:
        Zheng et al., Preventing Zero-Shot Transfer Degradation in Continual Learning of
        Vision-Language Models, ICCV 2023 (ZSCL), and its code, github.com/Thunderbeee/ZSCL.

    Deviations:
        None in the numbers; those of the reference batches are the defaults of `strategies.ZSCL`.
    """
    stream = mtil(order, datasets)
    return ZSCLSetting(
        stream,
        mtil_learning_rates(stream),
        reference="Zheng et al., ICCV 2023; code: github.com/Thunderbeee/ZSCL",
    )
