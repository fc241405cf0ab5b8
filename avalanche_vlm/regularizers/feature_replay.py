"""Replay of stored embeddings as a term of the loss."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from avalanche_vlm.functional import label_space_cross_entropy
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.regularizers.seed_regularizer import SeedRegularizer


@final
class FeatureReplay(SeedRegularizer):
    r"""The cross-entropy of embeddings drawn from a memory, over the classes seen so far.

    .. math:: L = \mathrm{CE}\bigl(\ell(\hat x), c\bigr), \qquad (\hat x, c) \sim M

    Embeddings enter the model behind its image tower, and pass its image adapter and head. Whoever adds it
    keeps the memory up to date: `plugins.FeatureReplayPlugin` does.

    Args:
        buffer: the memory.
        batch_size: how many draws a step, of each class as many on average.
        seed: of the random numbers.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number out of its range; in training, a memory of classes that the model has not seen.

    References:
        Auto-Seed VL2, a design brief: seed replay. Iscen et al., Memory-Efficient Incremental Learning
        Through Feature Adaptation, ECCV 2020, for replay of features.

    Deviations:
        The realisation is ours.
    """

    advice = "Give CLIPClassifier a head that learns, an image_adapter, or a text tower that trains."

    def __call__(self, model: CLIPClassifier, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the cross-entropy."""
        draw = self.buffer.sample(self.batch_size, self._generator)
        visual = draw.visual.to(x.device, model.backbone.logit_scale.dtype)
        labels, seen = draw.labels.to(x.device), model.classes_seen.nonzero().flatten().to(x.device)
        if not model.head.compares_by_cosine:
            return label_space_cross_entropy(model.logits_from_embeddings(visual), labels, seen)
        # Rows of the class weights that the forward pass of this step has made already.
        weights = model.head(model.backbone, seen)
        replayed = model.head.compare(model.backbone, model.adapted(visual), weights)
        every = torch.arange(len(seen), device=x.device)
        return label_space_cross_entropy(replayed, torch.searchsorted(seen, labels), every)
