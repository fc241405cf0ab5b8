"""The sum of regularizers, which share what they can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_number, check_type, wrong_type, wrong_value
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.regularizers.pair_regularizer import PairRegularizer
from avalanche_vlm.regularizers.pairs import PairFeatures
from avalanche_vlm.regularizers.regularizer import Regularizer


@final
class SumRegularizer(Regularizer):
    r"""The weighted sum of regularizers, over one batch and one forward pass where they share pairs.

    .. math:: R = \sum_k w_k R_k

    Terms that were given the same `ImageTextPairs` see the same batch of them, encoded once.

    Args:
        terms: regularizers; a sum among them counts as its terms.
        weights: w, one for each term, at least 0; None for 1 each.

    Raises:
        TypeError: a term is no `Regularizer`.
        ValueError: no term, one that is there twice, or not one weight for each.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025,
        the sum of L_KD and L_Align.

    Deviations:
        None.
    """

    def __init__(self, terms: Sequence[Regularizer], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if isinstance(terms, Regularizer) or not isinstance(terms, Sequence):
            raise wrong_type("terms", "a list of regularizers", terms)
        for term in terms:
            check_type("terms", term, Regularizer)
        if not terms:
            raise wrong_value("terms", "at least one regularizer", "none")
        if weights is None:
            weights = [1.0] * len(terms)
        if not isinstance(weights, Sequence) or len(weights) != len(terms):
            raise wrong_value("weights", f"a list of {len(terms)} numbers, one for each term", weights)
        for weight in weights:
            check_number("weights", weight, at_least=0)
        self.terms: list[Regularizer] = []
        self.weights: list[float] = []
        for term, weight in zip(terms, weights, strict=True):
            inner = zip(term.terms, term.weights, strict=True) if isinstance(term, SumRegularizer) else ()
            for part, factor in inner or [(term, 1.0)]:
                self.terms.append(part)
                self.weights.append(float(weight) * factor)
        if len({id(term) for term in self.terms}) < len(self.terms):
            raise wrong_value("terms", "different regularizers", "one of them twice", "Add up its weights.")

    @property
    def advice(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the first term advises."""
        return self.terms[0].advice

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Get every term ready that has a weight."""
        for term in self._weighted():
            term.pre_adapt(agent, exp)

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Let every term take note that has a weight."""
        for term in self._weighted():
            term.post_adapt(agent, exp)

    @property
    def is_active(self) -> bool:
        """Whether a term has anything to add."""
        return any(term.is_active for term in self._weighted())

    def _weighted(self) -> list[Regularizer]:
        return [term for term, weight in zip(self.terms, self.weights, strict=True) if weight]

    def __call__(self, model: CLIPClassifier, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the sum; a term with weight 0 is not computed."""
        encoded: dict[int, PairFeatures] = {}
        total = torch.zeros((), device=logits.device)
        for term, weight in zip(self.terms, self.weights, strict=True):
            if not weight or not term.is_active:
                continue
            if isinstance(term, PairRegularizer):
                key = id(term.pairs)
                if key not in encoded:
                    encoded[key] = term.encode(model, x, y)
                total = total + weight * term.compare(model, encoded[key])
            else:
                total = total + weight * term(model, x, y, logits)
        return total

    @property
    def nbytes(self) -> int:
        """Number of bytes that the terms keep."""
        return sum(term.nbytes for term in self.terms)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the terms."""
        return {"terms": [term.state_dict() for term in self.terms]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the states of the terms."""
        for term, own in zip(self.terms, state["terms"], strict=True):
            term.load_state_dict(own)
