"""How the scores of two scorers become logits, as parts that a head is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from avalanche_vlm._checks import check_count, check_number
from avalanche_vlm.functional.discriminant import fused_logits, mixed_logits, rescored_logits


class FusionRule(ABC):
    """A function of first logits over all classes and second scores over some, F, to logits over all.

    Every rule gives finite logits, leaves those of the classes outside of F and the probability of F as a
    whole as the first scorer has them, and at weight 0 returns the first logits to the last bit.
    """

    @abstractmethod
    def __call__(self, first: Tensor, second: Tensor, classes: Tensor) -> Tensor:
        """Map first logits (B, C) and second scores (B, K) of the classes (K,) to logits (B, C)."""

    def config(self) -> dict[str, Any]:
        """Return the name of the rule and its arguments, as plain values."""
        return {"kind": type(self).__name__, **vars(self)}


@final
@dataclass(frozen=True)
class LogLinearFusion(FusionRule):
    r"""Probabilities multiplied: within F :math:`p(c) \propto p_0(c)^t \, q(c)^a`; see `fused_logits`.

    Args:
        weight: a, finite and at least 0.
        temperature: t, finite and at least 0; 0 leaves the second scorer alone.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative or not finite.

    >>> import torch
    >>> LogLinearFusion(1.0)(torch.zeros(1, 3), torch.tensor([[2.0, 0.0]]), torch.tensor([0, 1])).argmax()
    tensor(0)
    """

    weight: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_number("weight", self.weight, at_least=0)
        check_number("temperature", self.temperature, at_least=0)

    def __call__(self, first: Tensor, second: Tensor, classes: Tensor) -> Tensor:
        """Return `fused_logits`."""
        return fused_logits(first, second, classes, fusion_weight=self.weight, temperature=self.temperature)


SECOND_ALONE = LogLinearFusion(1.0, temperature=0.0)
"""Within F the second scorer alone decides."""


@final
@dataclass(frozen=True)
class ProbabilityMixture(FusionRule):
    r"""Probabilities averaged: within F :math:`(1 - \omega) p_0(c) + \omega q(c)`; see `mixed_logits`.

    Args:
        weight: ω in [0, 1].

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside [0, 1].
    """

    weight: float

    def __post_init__(self) -> None:
        """Check the argument."""
        check_number("weight", self.weight, at_least=0, at_most=1)

    def __call__(self, first: Tensor, second: Tensor, classes: Tensor) -> Tensor:
        """Return `mixed_logits`."""
        return mixed_logits(first, second, classes, weight=self.weight)


@final
@dataclass(frozen=True)
class TopKRescoring(FusionRule):
    """The second scorer puts the first's k best classes of F in order; see `rescored_logits`.

    Args:
        k: how many, at least 1.
        weight: how much the second scorer counts, at least 0.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of its range.
    """

    k: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_count("k", self.k)
        check_number("weight", self.weight, at_least=0)

    def __call__(self, first: Tensor, second: Tensor, classes: Tensor) -> Tensor:
        """Return `rescored_logits`."""
        return rescored_logits(first, second, classes, k=self.k, weight=self.weight)


def check_fusion(argument: str, value: Any) -> None:
    """Raise unless a value is a weight of at least 0, or a rule.

    Raises:
        TypeError: it is neither.
        ValueError: a negative weight, or one that is not finite.
    """
    if not isinstance(value, FusionRule):
        check_number(argument, value, at_least=0)


def as_fusion(value: float | FusionRule) -> FusionRule:
    """Return the rule that a weight stands for, or the rule itself."""
    return value if isinstance(value, FusionRule) else LogLinearFusion(value)


def fusion_config(value: float | FusionRule | None) -> Any:
    """Return a weight or a rule as plain values."""
    return value.config() if isinstance(value, FusionRule) else value


def fusion_from_config(config: Any) -> Any:
    """Return what `fusion_config` was given; a file's description was checked before."""
    if not isinstance(config, dict):
        return config
    kinds = {kind.__name__: kind for kind in (LogLinearFusion, ProbabilityMixture, TopKRescoring)}
    return kinds[config["kind"]](**{name: value for name, value in config.items() if name != "kind"})
