"""Replay of stored embeddings as a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_count, check_type, wrong_value
from avalanche_vlm.functional import label_space_cross_entropy
from avalanche_vlm.memory import SeedBuffer
from avalanche_vlm.models import CLIPClassifier, TextHead
from avalanche_vlm.regularizers.pairs import check_classifier
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
        seen = check_classifier(agent.model).classes_seen.cpu()
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
        kind = type(model.head)
        if kind.logits is not TextHead.logits or kind.compare is not TextHead.compare:
            return label_space_cross_entropy(model.logits_from_embeddings(visual), labels, seen)
        # Rows of the class weights that the forward pass of this step has made already.
        weights = model.head(model.backbone, seen)
        replayed = model.head.compare(model.backbone, model.adapted(visual), weights)
        every = torch.arange(len(seen), device=x.device)
        return label_space_cross_entropy(replayed, torch.searchsorted(seen, labels), every)
