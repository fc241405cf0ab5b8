"""The learning rate of each iteration, by the place of its experience in the stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from avalanche.core import SupervisedPlugin

from avalanche_vlm._checks import check_function, check_number, wrong_type, wrong_value
from avalanche_vlm._host import position_in_training


@final
class LearningRatesPlugin(SupervisedPlugin[Any]):
    r"""Sets the learning rate of each iteration by the place of the experience in its stream.

    .. math:: \eta_{t, i} = r_t f(i)

    for experience t and its iteration i, both from 0. Nothing is counted here, so there is nothing to
    resume, and an experience that was interrupted or trained twice does not move what follows. A piece of
    an online stream has the place of the experience that it was cut from, and iterations of its own.

    Args:
        learning_rates: r, one for each experience.
        schedule: f, which begins anew in each experience, `functional.WarmupCosine` for instance.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a learning rate below 0 or not finite, or none; in training, an experience without one,
            or a value of the schedule below 0 or not finite.

    References:
        Zheng et al., Preventing Zero-Shot Transfer Degradation in Continual Learning of
        Vision-Language Models (ZSCL), ICCV 2023, and its code: a learning rate for each data set of MTIL.

    Deviations:
        All groups of the optimizer have the same learning rate.

    >>> from avalanche_vlm.functional import WarmupCosine
    >>> plugins = [LearningRatesPlugin([5e-5, 1e-5], WarmupCosine(warmup=100, total=1000))]
    """

    def __init__(self, learning_rates: Sequence[float], schedule: Callable[[int], float]) -> None:
        super().__init__()
        if isinstance(learning_rates, str) or not isinstance(learning_rates, Sequence):
            raise wrong_type("learning_rates", "a list of learning rates", learning_rates)
        if not learning_rates:
            raise wrong_value("learning_rates", "one learning rate for each experience", "none")
        for rate in learning_rates:
            check_number("learning_rates", rate, at_least=0)
        check_function("schedule", schedule, "a function of the iteration, e.g. WarmupCosine(100, 1000)")
        self.learning_rates = tuple(learning_rates)
        self.schedule = schedule

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Set the learning rate of all groups of the optimizer."""
        experience = position_in_training(strategy.experience)
        if experience >= len(self.learning_rates):
            raise wrong_value(
                "learning_rates",
                f"one for each experience, so that number {experience} of the stream has one",
                f"{len(self.learning_rates)} of them",
                "Train on the stream that the learning rates are for.",
            )
        iteration = strategy.clock.train_exp_iterations
        factor = float(self.schedule(iteration))
        check_number(f"schedule({iteration})", factor, at_least=0)
        rate = self.learning_rates[experience] * factor
        for group in strategy.optimizer.param_groups:
            group["lr"] = rate
