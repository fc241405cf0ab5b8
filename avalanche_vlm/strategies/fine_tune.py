"""Naive fine-tuning of whatever in the model trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.strategies.template import VLMTemplate
from avalanche_vlm.strategies.template_arguments import TemplateArguments


@final
class FineTune(VLMTemplate):
    """Train on each experience as it comes: the naive line of every table.

    What trains is the model's business: full towers, LoRA, or the learned context of a
    `LearnedContextHead` (prompt tuning).

    Args:
        model: the classifier, e.g. ``CLIPClassifier(backbone, trainable=LoRA(rank=8))``.
        optimizer: made of ``model.parameters()``.
        plugins: further plugins of ours or the host's.
        **template: the host's arguments (``train_mb_size``, ``train_epochs``, ``evaluator``, ...).

    Raises:
        TypeError: ``model`` is not a `CLIPClassifier`.
        ValueError: nothing in the model trains.

    References:
        The baseline "continual fine-tuning" of Zheng et al., Preventing Zero-Shot Transfer
        Degradation in Continual Learning of Vision-Language Models (ZSCL), ICCV 2023.

    Deviations:
        None.
    """

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        optimizer: Optimizer,
        plugins: Sequence[Any] = (),
        **template: Unpack[TemplateArguments],
    ) -> None:
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **template)
