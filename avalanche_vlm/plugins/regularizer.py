"""The plugin that adds a regularizer to the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from avalanche_vlm._checks import check_number, check_type, wrong_type, wrong_value
from avalanche_vlm.plugins._of_one_strategy import OfOneStrategy
from avalanche_vlm.regularizers import Regularizer, SumRegularizer


class RegularizingPlugin(OfOneStrategy):
    """What the plugins that add a `Regularizer` to the loss have in common: its lifecycle.

    The plugin and its regularizer belong to one strategy.

    Args:
        regularizer: what is added.

    Raises:
        TypeError: no `Regularizer`.
    """

    def __init__(self, regularizer: Regularizer) -> None:
        super().__init__()
        check_type("regularizer", regularizer, Regularizer)
        self.regularizer = regularizer

    @property
    def _has_effect(self) -> bool:
        """Whether a weight is above 0."""
        raise NotImplementedError

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Get the regularizer ready."""
        self._refuse_twice(strategy)
        if self._has_effect:
            with autocast_of(strategy):
                self.regularizer.pre_adapt(strategy, strategy.experience)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Let the regularizer take note of the experience."""
        if self._has_effect:
            self.regularizer.post_adapt(strategy, strategy.experience)

    def _term(self, strategy: Any) -> Tensor:
        """Return the regularizer's value for the current batch, in the strategy's precision.

        Raises:
            TypeError: it is no scalar.
            ValueError: nothing that trains has an influence on it.
        """
        with autocast_of(strategy):
            term = self.regularizer(strategy.model, strategy.mb_x, strategy.mb_y, strategy.mb_output)
        if not isinstance(term, Tensor) or term.numel() != 1:
            got = tuple(term.shape) if isinstance(term, Tensor) else repr(term)
            expected = "one that returns a tensor with a single number"
            raise wrong_type("regularizer", expected, f"{_names(self.regularizer)}, which returned {got}")
        if not term.requires_grad:
            raise self._without_influence()
        return term.squeeze()

    def _without_influence(self) -> ValueError:
        regularizer = self.regularizer
        return wrong_value(
            "regularizer",
            "one that a parameter in training has an influence on",
            f"{_names(regularizer)}, which none has",
            regularizer.advice,
        )

    def _refuse_twice(self, strategy: Any) -> None:
        own = _terms(self.regularizer)
        others = [plugin for plugin in strategy.plugins if isinstance(plugin, RegularizingPlugin)]
        del others[[plugin is self for plugin in others].index(True)]  # once: it may be listed twice
        for plugin in others:
            for term in _terms(plugin.regularizer):
                if any(term is each for each in own):
                    raise wrong_value(
                        "plugins",
                        "plugins with regularizers of their own",
                        f"a {type(term).__name__} in {type(self).__name__} and {type(plugin).__name__}",
                        "Each adds its regularizer to the loss: keep one of the plugins, or make a second "
                        "regularizer.",
                    )

    @property
    def nbytes(self) -> int:
        """Number of bytes that are kept from one experience to the next: those of the regularizer."""
        return self.regularizer.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept from one experience to the next."""
        return {"regularizer": self.regularizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        self.regularizer.load_state_dict(state["regularizer"])


class RegularizerPlugin(RegularizingPlugin):
    r"""Adds a regularizer to the loss of each batch.

    .. math:: L = L_{task} + w R

    Args:
        regularizer: R.
        weight: w; with 0 it is not computed.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a negative weight; in training, a regularizer that nothing in training has an
            influence on, or one that another plugin adds too.

    >>> from avalanche_vlm.regularizers import PreviousWeightsPenalty
    >>> plugins = [RegularizerPlugin(PreviousWeightsPenalty(), weight=1.0)]
    """

    def __init__(self, regularizer: Regularizer, weight: float = 1.0) -> None:
        super().__init__(regularizer)
        check_number("weight", weight, at_least=0)
        self.weight = weight

    @property
    def _has_effect(self) -> bool:
        return self.weight > 0

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the term."""
        if self._has_effect and self.regularizer.is_active:
            strategy.loss = strategy.loss + self.weight * self._term(strategy)


def autocast_of(strategy: Any) -> contextlib.AbstractContextManager[Any]:
    """Return the precision of the strategy's forward pass; that of a stock strategy is full."""
    return getattr(strategy, "autocast", contextlib.nullcontext)()


def _terms(regularizer: Regularizer) -> list[Regularizer]:
    return [regularizer, *(regularizer.terms if isinstance(regularizer, SumRegularizer) else ())]


def _names(regularizer: Regularizer) -> str:
    own = regularizer.terms if isinstance(regularizer, SumRegularizer) else [regularizer]
    return " + ".join(type(term).__name__ for term in own)
