"""Consolidation of the weights that a regularizer depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from avalanche_vlm._checks import check_count, check_number
from avalanche_vlm.functional import normalised_importance
from avalanche_vlm.models import WeightSnapshot
from avalanche_vlm.plugins.regularizer import RegularizingPlugin
from avalanche_vlm.regularizers import Regularizer

Gradients = list[Tensor | None]


class _WithGradients(torch.autograd.Function):
    """A scalar whose value and whose gradients with respect to some tensors are given."""

    @staticmethod
    @override
    def forward(ctx: Any, value: Tensor, gradients: Gradients, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)  # an attribute would outlive the backward pass
        return value.clone()

    @staticmethod
    @override
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        (factor,) = outputs
        return None, None, *(None if own is None else factor * own for own in ctx.saved_tensors)


class WeightConsolidation(RegularizingPlugin):
    r"""Adds a regularizer, and a penalty on moving the weights that it depends on.

    A subclass says how important each weight is, given the regularizer's gradient.

    Args:
        regularizer: R.
        regularizer_weight: w.
        consolidation_weight: λ.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a negative weight.
    """

    # In a slot, which checkpoints pass over: an experience that goes on takes the weights again.
    __slots__ = ("_reference",)
    _reference: WeightSnapshot | None

    def __init__(
        self,
        regularizer: Regularizer,
        *,
        regularizer_weight: float = 1.0,
        consolidation_weight: float = 1.0,
    ) -> None:
        super().__init__(regularizer)
        check_number("regularizer_weight", regularizer_weight, at_least=0)
        check_number("consolidation_weight", consolidation_weight, at_least=0)
        self.regularizer_weight = regularizer_weight
        self.consolidation_weight = consolidation_weight
        self._reference = None

    def _importances(self, names: Sequence[str], gradients: Gradients) -> Gradients:
        """Return the importance F of each weight in new tensors, None for those that do not count.

        Args:
            names: of the tensors that train.
            gradients: of the regularizer, None for tensors without an influence on it.
        """
        raise NotImplementedError

    @property
    def _has_effect(self) -> bool:
        return self.regularizer_weight > 0 or self.consolidation_weight > 0

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take the weights that are held on to, and get the regularizer ready."""
        if self.consolidation_weight > 0:
            self._reference = WeightSnapshot.shared(strategy)
        super().before_training_exp(strategy, *args, **kwargs)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Let go of the weights, and let the regularizer take note."""
        self._reference = None
        super().after_training_exp(strategy, *args, **kwargs)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the regularizer and the penalty."""
        if not (self._has_effect and self.regularizer.is_active):
            return
        term = self._term(strategy)
        named = {name: p for name, p in strategy.model.named_parameters() if p.requires_grad}
        names, weights = list(named), list(named.values())
        scaler = getattr(strategy, "gradient_scaler", None)
        keep = _shares_graph(term, strategy.loss)  # the loss of the task needs what they share afterwards
        if scaler is None:
            gradients = list(torch.autograd.grad(term, weights, allow_unused=True, retain_graph=keep))
        else:
            # Scaled, so that small gradients survive half precision on their way.
            scale = scaler.get_scale()
            found = torch.autograd.grad(term * scale, weights, allow_unused=True, retain_graph=keep)
            gradients = [None if own is None else own / scale for own in found]
        if all(own is None for own in gradients):
            raise self._without_influence()
        value, totals = self._consolidated(term.detach(), names, weights, gradients)
        strategy.loss = strategy.loss + _WithGradients.apply(value, totals, *weights)

    @torch.no_grad()
    def _consolidated(
        self, term: Tensor, names: Sequence[str], weights: Sequence[Tensor], gradients: Gradients
    ) -> tuple[Tensor, Gradients]:
        """Return w R + λ Σ F (θ - θ')² and its gradients, with those of R given."""
        value, weight = self.regularizer_weight * term.float(), self.regularizer_weight
        totals = gradients if weight == 1 else [None if own is None else weight * own for own in gradients]
        if self._reference is None:
            return value, totals
        importances = self._importances(names, gradients)
        for place, (name, importance) in enumerate(zip(names, importances, strict=True)):
            origin = self._reference.tensors.get(name)
            if importance is None or origin is None:
                continue
            moved = weights[place] - origin
            pull = importance.mul_(moved)
            value = value + self.consolidation_weight * torch.dot(pull.flatten(), moved.flatten())
            pull = pull.mul_(2 * self.consolidation_weight)
            total = totals[place]
            totals[place] = pull if total is None else pull.add_(total)
        return value, totals


@final
class AdaptiveWeightConsolidationPlugin(WeightConsolidation):
    r"""Adds a regularizer and holds on to the weights that it depends on at present.

    .. math:: L = L_{task} + w R + \lambda \sum_i F_i (\theta_i - \theta^{t-1}_i)^2, \qquad
              F_i = \frac{g_i^2}{\frac1n \sum_{i'} g_{i'}^2}, \quad g = \frac{\partial R}{\partial \theta}

    with means over the n entries of a tensor, the weights :math:`\theta^{t-1}` before the experience, and
    F recomputed from the gradient of each batch, without a gradient of its own. What R does not depend
    on is not held. The importance is that *of R*, whatever R is: distillation, alignment, a sum.

    The gradient of R is computed once, apart from that of the task's loss, and serves both: R itself
    costs no second backward pass. A teacher of the same experience and this plugin share one copy of the
    weights.

    Args:
        regularizer: R; no other plugin adds the same one.
        regularizer_weight: w; with 0, R only says which weights matter.
        consolidation_weight: λ.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a negative weight; in training, a regularizer that nothing in training has an
            influence on, or one that another plugin adds too.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025,
        equations 8 and 9; one squared gradient a batch, with mean 1 in each tensor, is in the authors'
        code.

    Deviations:
        The paper's equation has a mean over samples of squared gradients. A tensor that R does not depend
        on has an importance of 1e-6 in the code and none here.

    >>> from avalanche_vlm.regularizers import CrossModalDistillation, CurrentPairs
    >>> plugins = [AdaptiveWeightConsolidationPlugin(CrossModalDistillation(CurrentPairs()))]
    """

    def _importances(self, names: Sequence[str], gradients: Gradients) -> Gradients:
        """Return the importances of this batch."""
        return normalised_importance([None if own is None else own.square() for own in gradients])


@final
class StaticWeightConsolidationPlugin(WeightConsolidation):
    r"""Adds a regularizer and holds on to the weights that it depended on early in the experience.

    .. math:: F_i = \frac{\bar q_i}{\frac1n \sum_{i'} \bar q_{i'}}, \qquad
              \bar q = \frac1k \sum_{b=1}^{k} \Big(\frac{\partial R_b}{\partial \theta}\Big)^2

    over the first k batches of the experience, and then fixed; the rest is as in
    `AdaptiveWeightConsolidationPlugin`. The gradient of a distillation is 0 where student and teacher
    are equal, so the importance cannot come from before the first batch.

    Args:
        regularizer: R; no other plugin adds the same one.
        regularizer_weight: w; with 0, R only says which weights matter.
        consolidation_weight: λ.
        batches: k; while they come, the mean is that of the batches so far.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a negative weight or no batch; in training, a regularizer that nothing in training has
            an influence on, or one that another plugin adds too.

    References:
        Wu et al., CVPR 2025 (GIFT), the static form that adaptive consolidation is compared with;
        Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017.

    Deviations:
        The paper does not say when its static importance is taken; the number of batches is ours.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        *,
        regularizer_weight: float = 1.0,
        consolidation_weight: float = 1.0,
        batches: int = 20,
    ) -> None:
        super().__init__(
            regularizer, regularizer_weight=regularizer_weight, consolidation_weight=consolidation_weight
        )
        check_count("batches", batches)
        self.batches = batches
        self._squares: dict[str, Tensor] = {}
        self._batches_met = 0

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin to count batches, and do what the base class does."""
        self._squares, self._batches_met = {}, 0
        super().before_training_exp(strategy, *args, **kwargs)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Let go of the importances, and do what the base class does."""
        self._squares, self._batches_met = {}, 0
        super().after_training_exp(strategy, *args, **kwargs)

    def _importances(self, names: Sequence[str], gradients: Gradients) -> Gradients:
        """Return the importances of the first batches."""
        finite = all(own is None or bool(own.isfinite().all()) for own in gradients)
        if self._batches_met < self.batches and finite:  # a step that fp16 leaves out says nothing
            self._batches_met += 1
            for name, own in zip(names, gradients, strict=True):
                if own is not None:
                    mean = self._squares.setdefault(name, torch.zeros_like(own))
                    self._squares[name] = mean.lerp(own.square(), 1 / self._batches_met)
        return normalised_importance([self._squares.get(name) for name in names])


def _shares_graph(term: Tensor, loss: Tensor) -> bool:
    """Return whether a backward pass through one of two tensors passes a part of the graph of the other."""
    # What gathers the gradient of a parameter stays after a backward pass, and has nothing below it.
    return not {node for node in _graph(term) if node.next_functions}.isdisjoint(_graph(loss))


def _graph(tensor: Tensor) -> set[Any]:
    waiting = [] if tensor.grad_fn is None else [tensor.grad_fn]
    met = set(waiting)
    while waiting:
        for below, _ in waiting.pop().next_functions:
            if below is not None and below not in met:
                met.add(below)
                waiting.append(below)
    return met
