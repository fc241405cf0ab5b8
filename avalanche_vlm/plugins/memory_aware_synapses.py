"""The host's memory-aware synapses, which take a loss of zero for what it is."""

from __future__ import annotations

from typing import Any, final

from avalanche.training.plugins import MASPlugin as HostMASPlugin

from avalanche_vlm._checks import check_number, check_type
from avalanche_vlm.plugins._of_one_strategy import OfOneStrategy


@final
class MASPlugin(OfOneStrategy, HostMASPlugin):
    r"""Memory-aware synapses (MAS): the host's plugin, which goes on where the loss of a batch is zero.

    .. math:: L = \lambda \sum_k \Omega_k (\theta_k - \tilde\theta_k)^2

    with the weights θ̃ at the end of the last experience, and importances Ω: the mean over batches of how
    much the squared length of the logits changes with each weight, mixed with those of before by α.

    The host takes a loss that is exactly 0.0 for one that is missing and stops with "Loss is not available".
    With CLIP's scale of 100 a batch that is classified well has such a loss.

    Args:
        lambda_reg: λ.
        alpha: share of the importances of before, in [0, 1].
        verbose: whether the host shows a progress bar while it computes importances.

    Raises:
        TypeError: an argument is not a number, or ``verbose`` not a bool.
        ValueError: ``lambda_reg`` is negative, or ``alpha`` is not between 0 and 1.

    References:
        Aljundi et al., Memory Aware Synapses: Learning What (Not) to Forget, ECCV 2018, equations 3 and 4;
        the host's ``MASPlugin``.

    Deviations:
        As the host's: the gradient of a batch stands for that of a sample, and importances are mixed.

    >>> MASPlugin(lambda_reg=1.0).alpha
    0.5
    """

    def __init__(self, lambda_reg: float = 1.0, *, alpha: float = 0.5, verbose: bool = False) -> None:
        check_number("lambda_reg", lambda_reg, at_least=0)
        check_number("alpha", alpha, at_least=0, at_most=1)
        check_type("verbose", verbose, bool)
        super().__init__(lambda_reg, alpha, verbose)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty to the loss, whatever that is."""
        all_importance, all_before = self.importance, self.params
        if strategy.clock.train_exp_counter == 0 or not (all_importance and all_before) or strategy.loss:
            super().before_backward(strategy, **kwargs)
            return
        for name, weight in strategy.model.named_parameters():
            if name in all_importance:
                importance, before = (
                    each[name].expand(weight.shape) for each in (all_importance, all_before)
                )
                strategy.loss = strategy.loss + self._lambda * (importance * (weight - before).pow(2)).sum()
