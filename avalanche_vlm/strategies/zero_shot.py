"""The floor of every table: the model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch.optim import SGD
from typing_extensions import Unpack

from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.strategies.template import VLMTemplate
from avalanche_vlm.strategies.template_arguments import TemplateArguments


class Untrained(VLMTemplate):
    """A strategy that takes no steps; plugins see every callback but those of batches."""

    def __init__(
        self, *, model: CLIPClassifier, plugins: Sequence[Any] = (), **template: Unpack[TemplateArguments]
    ) -> None:
        # The host wants an optimizer; this one holds a number that belongs to nobody.
        idle = SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
        super().__init__(model=model, optimizer=idle, plugins=plugins, **template)

    def make_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:
        """Leave the idle optimizer alone."""

    def training_epoch(self, **kwargs: Any) -> None:
        """Do nothing: no batch is drawn and no step taken."""


@final
class ZeroShot(Untrained):
    """Train nothing; an experience only tells which classes have been seen.

    Args:
        model: the classifier, whatever trains in it is left as it is.
        plugins: further plugins, e.g. ones that fill a memory from an experience.
        **template: the host's arguments; those about epochs have no effect.

    Raises:
        TypeError: ``model`` is not a `CLIPClassifier`.

    References:
        Thengane et al., CLIP model is an Efficient Continual Learner, 2022 (Continual-CLIP).

    Deviations:
        None.
    """

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        plugins: Sequence[Any] = (),
        **template: Unpack[TemplateArguments],
    ) -> None:
        super().__init__(model=model, plugins=plugins, **template)
