"""Learning rates over the iterations of an experience."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from avalanche_vlm._checks import check_count, wrong_value


@final
@dataclass(frozen=True)
class WarmupCosine:
    r"""A linear warm-up to 1, then a cosine to 0; what ``LambdaLR`` multiplies learning rates by.

    .. math:: f(i) = \begin{cases}
            (i + 1) / W & i < W \\
            \frac12 \bigl( 1 + \cos \pi \frac{i - W}{N - W} \bigr) & W \le i < N
        \end{cases} \qquad f(i + N) = f(i)

    for iterations i from 0, with W of warm-up and N in all. Used with the host, for experiences of N
    iterations each (``train_iterations=N``)::

        schedule = LambdaLR(optimizer, WarmupCosine(warmup=100, total=1000))
        plugin = LRSchedulerPlugin(schedule, step_granularity="iteration", reset_lr=False)

    It begins anew in each experience. With ``reset_lr=True`` the host would give the first iteration of all
    experiences but the first the full rate instead of f(0). The state of the optimizer stays unless it
    is asked to go: ``strategy.train(experience, reset_optimizer_state=True)``.

    Args:
        warmup: iterations of the warm-up; 0 for none.
        total: iterations of an experience, warm-up included.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: ``warmup`` below 0, or ``total`` not above it.

    References:
        The schedule of open_clip's training and of ZSCL's code; GIFT has 100 of 1,000 iterations.

    Deviations:
        It is periodic: where an experience has ended, the rate is that with which the next begins.

    >>> [WarmupCosine(warmup=2, total=4)(iteration) for iteration in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.5]
    """

    warmup: int
    total: int

    def __post_init__(self) -> None:
        check_count("warmup", self.warmup, at_least=0)
        check_count("total", self.total)
        if self.total <= self.warmup:
            raise wrong_value("total", f"more than the {self.warmup} iterations of warm-up", self.total)

    def __call__(self, iteration: int) -> float:
        """Return the factor of an iteration, counted from 0."""
        iteration %= self.total
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (iteration - self.warmup) / (self.total - self.warmup)))
