"""The host's GDumb, whose fresh model knows nothing of evaluations."""

from __future__ import annotations

from typing import Any, final

from avalanche.training.plugins import GDumbPlugin as HostGDumbPlugin

from avalanche_vlm._checks import check_count
from avalanche_vlm.plugins._of_one_strategy import OfOneStrategy


@final
class GDumbPlugin(OfOneStrategy, HostGDumbPlugin):
    """GDumb: in each experience a model is trained from scratch, on a class-balanced memory alone.

    "Scratch" is the model as it was at the first training: for a pretrained model its pretrained
    weights. What is trained are copies: afterwards the model is ``strategy.model``, and not the object
    that the strategy was given.

    The host also adapts the fresh model to each experience that is *evaluated*, as if it were trained
    on, and trains copies of it: after one evaluation of the whole test stream all classes count as
    seen. This plugin leaves that out.

    Args:
        mem_size: number of samples in the memory.

    Raises:
        TypeError: ``mem_size`` is no whole number.
        ValueError: ``mem_size`` is smaller than 1.

    References:
        Prabhu et al., GDumb: A Simple Approach that Questions Our Progress in Continual Learning,
        ECCV 2020; the host's ``GDumbPlugin``.

    Deviations:
        As the host's: the memory is filled at the start of each experience, not sample by sample.

    >>> GDumbPlugin(mem_size=50).storage_policy.max_size
    50
    """

    def __init__(self, mem_size: int = 200) -> None:
        check_count("mem_size", mem_size)
        super().__init__(mem_size)

    def before_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Leave the fresh model alone."""
