"""Keeping both halves of stored pairs together."""

from __future__ import annotations

from typing import final

from torch import Tensor

from avalanche_vlm._checks import check_number
from avalanche_vlm.functional import multi_positive_contrast
from avalanche_vlm.memory import SeedBuffer
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.regularizers.seed_regularizer import SeedRegularizer


@final
class SeedConsistency(SeedRegularizer):
    r"""Contrast between the visual and textual seeds of a memory, as the model's adapters see them.

    .. math:: L = \tfrac12 \bigl[ N(z_I(v), z_T(w)) + N(z_T(w), z_I(v)) \bigr]

    with N of `functional.multi_positive_contrast`, draws around visual seeds, and textual seeds; where the
    memory has none of these, the frozen text of the class.

    Args:
        buffer: the memory.
        batch_size: how many pairs a step.
        temperature: of the contrast.
        seed: of the random numbers.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number out of its range; in training, no adapter that trains.

    References:
        Auto-Seed VL2, a design brief: a contrastive consistency loss between seeds and both modalities.
        Khosla et al., NeurIPS 2020, for the loss.

    Deviations:
        The brief gives no equation: this one, and its share between learner and generator, are ours.
    """

    advice = "Give CLIPClassifier image_adapter=ResidualAdapter(), or an AdaptedTextHead."

    def __init__(
        self, buffer: SeedBuffer, *, batch_size: int = 128, temperature: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(buffer, batch_size=batch_size, seed=seed)
        check_number("temperature", temperature, above=0)
        self.temperature = temperature

    def __call__(self, model: CLIPClassifier, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the contrast."""
        draw, head = self.buffer.sample(self.batch_size, self._generator), model.head.text_part
        dtype, labels = model.backbone.logit_scale.dtype, draw.labels.to(x.device)
        text = self.buffer.textual_rows(draw.rows)
        if text is None:
            text = head.frozen_text(model.backbone, labels)
        visual = model.adapted(draw.visual.to(x.device, dtype))
        textual = head.adapted_text(text.to(x.device, dtype))
        forward = multi_positive_contrast(visual, textual, labels, labels, temperature=self.temperature)
        return 0.5 * (
            forward + multi_positive_contrast(textual, visual, labels, labels, temperature=self.temperature)
        )
