"""What the strategies share that fine-tune on one domain after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies.template import VLMTemplate
from avalanche_vlm.strategies.template_arguments import TemplateArguments


class DomainFineTuning(VLMTemplate):
    """Batches of 64, a loss over the classes of the experience, and a fresh optimizer in each.

    Args:
        model: the classifier.
        optimizer: made of ``model.parameters()``.
        label_smoothing: of the loss, unless ``criterion`` is given.
        plugins: what the strategy is made of.
        **template: the host's arguments.
    """

    _fresh_optimizer_state = True

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        optimizer: Optimizer,
        label_smoothing: float,
        plugins: Sequence[Any],
        **template: Unpack[TemplateArguments],
    ) -> None:
        if "criterion" not in template:
            template["criterion"] = LabelSpaceCrossEntropy("experience", label_smoothing=label_smoothing)
            template.setdefault("text_space", "experience")
        template.setdefault("train_mb_size", 64)
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **template)
