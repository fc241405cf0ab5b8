"""How methods train on MTIL: what those that fine-tune both towers share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, final

from avalanche.core import SupervisedPlugin
from torch.optim import AdamW

from avalanche_vlm.functional import WarmupCosine
from avalanche_vlm.models import CLIPClassifier, VisionLanguageBackbone
from avalanche_vlm.plugins import LearningRatesPlugin
from avalanche_vlm.presets.mtil import MTILSetting

_LEARNING_RATE = 1e-5
_OTHER_LEARNING_RATES = {"aircraft": 5e-5, "mnist": 5e-5}


@dataclass(frozen=True)
class MTILTraining:
    """What all methods share that fine-tune both towers on MTIL.

    Attributes:
        stream: data sets, weights, templates.
        learning_rates: of AdamW, which has no weight decay, for each experience.
        iterations: of each experience.
        warmup_iterations: of them, those in which the learning rate rises; it then falls along a cosine.
        batch_size: training samples of a batch.
        label_smoothing: of the task's loss.
        reference: where the setting was published.
    """

    stream: MTILSetting
    learning_rates: tuple[float, ...]
    iterations: int = 1000
    warmup_iterations: int = 100
    batch_size: int = 64
    label_smoothing: float = 0.2
    reference: str = ""

    def model(self, backbone: VisionLanguageBackbone | None = None) -> CLIPClassifier:
        """Return the classifier, whose towers both train; the scale of its logits does not.

        Args:
            backbone: in place of that of the published weights, which open_clip downloads.
        """
        return CLIPClassifier(
            self.stream.backbone() if backbone is None else backbone,
            self.stream.head(),
            class_names=self.stream.class_names(),
            trainable="both",
        )

    def optimizer(self, model: CLIPClassifier) -> AdamW:
        """Return the published optimizer; its learning rates are set by `plugins`.

        Args:
            model: what trains in it is trained.
        """
        return AdamW(model.parameters(), lr=self.learning_rates[0], betas=(0.9, 0.999), weight_decay=0.0)

    def plugins(self) -> list[SupervisedPlugin[Any]]:
        """Return what gives each iteration its learning rate, for a strategy with `strategy_arguments`."""
        schedule = WarmupCosine(self.warmup_iterations, self.iterations)
        return [LearningRatesPlugin(self.learning_rates, schedule)]

    def strategy_arguments(self) -> dict[str, Any]:
        """Return the numbers that the strategy takes."""
        return {
            "train_mb_size": self.batch_size,
            "train_iterations": self.iterations,
            "label_smoothing": self.label_smoothing,
        }

    @final
    def describe(self) -> dict[str, Any]:
        """Return all attributes as a dictionary that JSON can hold, to be kept beside results."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return told | {"stream": self.stream.describe(), "learning_rates": list(self.learning_rates)}


def mtil_learning_rates(stream: MTILSetting) -> tuple[float, ...]:
    """Return the published learning rate of each experience: 1e-5, and 5e-5 for Aircraft and MNIST."""
    return tuple(_OTHER_LEARNING_RATES.get(dataset, _LEARNING_RATE) for dataset in stream.datasets)
