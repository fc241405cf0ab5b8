"""How far learned prompt vectors are from being orthonormal."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.models import CLIPClassifier, HybridPromptHead, LearnedVectors
from avalanche_vlm.regularizers.regularizer import Regularizer


@final
class PromptOrthogonality(Regularizer):
    r"""Draws the learned vectors of prompts towards orthonormal ones, so that classes keep apart.

    .. math:: R = \frac{1}{K^2} \sum_{i, j} (V V^\top - I)_{ij}^2

    with the rows of V (K, W) the vectors of `LearnedVectors` in a `HybridPromptHead`: those of the classes
    seen, one row a class and vector, and shared ones. Several such parts of a context add up.

    References:
        An option in the code of Frascaroli et al., CLIP with Generative Latent Replay: a Strong Baseline for
        Incremental Learning, BMVC 2024, which is off in the published settings.

    Deviations:
        None. Classes without a prompt have no row.
    """

    advice = "Give CLIPClassifier a HybridPromptHead(context=[LearnedVectors(), ...])."

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Refuse a model without such vectors.

        Raises:
            ValueError: it has none.
        """
        if not _parts(agent.model):
            raise wrong_value(
                "model",
                "a CLIPClassifier with learned prompt vectors",
                f"one with a {type(getattr(agent.model, 'head', agent.model)).__name__}",
                self.advice,
            )

    def __call__(self, model: CLIPClassifier, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the mean squared deviation from orthonormal vectors."""
        terms: list[Tensor] = []
        for part in _parts(model):
            vectors = part.vectors
            assert vectors is not None
            own = vectors if part.sharing == "shared" else vectors[model.classes_seen.to(vectors.device)]
            rows = own.flatten(0, 1)
            terms.append((rows @ rows.T - torch.eye(len(rows), device=rows.device)).square().mean())
        return torch.stack(terms).sum()


def _parts(model: Any) -> list[LearnedVectors]:
    head = getattr(model, "head", None)
    if not isinstance(head, HybridPromptHead):
        return []
    return [part for part in head.context if isinstance(part, LearnedVectors)]
