"""The host's synaptic intelligence, working on every device."""

from __future__ import annotations

from typing import Any, final

import torch
from avalanche.training.plugins import SynapticIntelligencePlugin as HostSynapticIntelligencePlugin

from avalanche_vlm._checks import check_number, wrong_type
from avalanche_vlm.plugins._of_one_strategy import OfOneStrategy


@final
class SynapticIntelligencePlugin(OfOneStrategy, HostSynapticIntelligencePlugin):
    r"""Synaptic intelligence (SI): the host's plugin, with copies of the weights it compares with.

    .. math:: L = \frac{\lambda}{2} \sum_k \Omega_k (\theta_k - \tilde\theta_k)^2

    with the weights θ̃ at the end of the last experience, and importances Ω from how much each
    weight's path through training lowered the loss.

    The host keeps the weights before each step, and those at the start of an experience, as views of
    the live ones where these are on the CPU: no weight ever seems to have moved, no importance grows,
    and the result is that of naive training. It begins its sums as float32, which stops it at weights of any
    other precision; here they have that of the weights.

    Args:
        si_lambda: λ.
        eps: added to the squared distance that a weight has moved, to divide by.

    Raises:
        TypeError: an argument is no number.
        ValueError: ``si_lambda`` is negative, or ``eps`` not above 0.

    References:
        Zenke et al., Continual Learning Through Synaptic Intelligence, ICML 2017, equations 4 and 5;
        the host's ``SynapticIntelligencePlugin``.

    Deviations:
        As the host's: importances are at most 0.001, and gradients include that of the penalty.

    >>> SynapticIntelligencePlugin(si_lambda=100.0).si_lambda
    [100.0]
    """

    def __init__(self, si_lambda: float, *, eps: float = 1e-7) -> None:
        check_number("si_lambda", si_lambda, at_least=0)
        check_number("eps", eps, above=0)
        super().__init__(si_lambda, eps)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the weights at the start of the experience.

        Raises:
            TypeError: the weights are bfloat16.
        """
        if any(p.dtype == torch.bfloat16 for p in strategy.model.parameters()):
            raise wrong_type(
                "model",
                "one whose weights NumPy knows, which the host's computation of importances goes through",
                torch.bfloat16,
                "Keep the model in float32; for bfloat16 arithmetic pass precision='bf16' to the strategy.",
            )
        super().before_training_exp(strategy, **kwargs)
        sums = self.ewc_data[1], self.syn_data["trajectory"], self.syn_data["cum_trajectory"]
        for name, anchor in self.ewc_data[0].items():
            anchor.data = anchor.data.clone()
            for kept in sums:  # which the host begins as float32, whatever the weights are
                kept[name].data = kept[name].data.to(anchor.data.dtype)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the weights before the step."""
        super().before_training_iteration(strategy, **kwargs)
        for old in self.syn_data["old_theta"].values():
            old.data = old.data.clone()
