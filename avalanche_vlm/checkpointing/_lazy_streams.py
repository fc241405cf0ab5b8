"""Streams that are cut while one goes through them, where that draws random numbers of Python."""

from __future__ import annotations

import random
from typing import Any

from avalanche_vlm._host import position_in_training
from avalanche_vlm.checkpointing._walk import CheckpointingPlugin

_MOST_CUTS = 10_000


def settle_after_skipping(strategy: Any, benchmark: Any) -> None:
    """See to it that skipping what was trained leaves Python's generator where it was.

    The host draws a seed for each experience that it cuts, even where nothing is shuffled. A script that is
    resumed goes through the stream from its start, and so draws the earlier ones again, or all of them if it
    lists the stream first. (Where only the last experience is left, both look the same, and the former is
    taken.)

    Args:
        strategy: has just got back its state, that of the generator included.
        benchmark: its streams without a length are cut on the way.
    """
    streams = getattr(benchmark, "streams", {}).values()
    if any(not hasattr(stream, "__len__") for stream in streams):
        strategy.plugins = [_Settling(random.getstate()), *strategy.plugins]


class _Settling(CheckpointingPlugin):
    """Goes back to the state before anything was skipped, once, and takes itself out."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self._state = state

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Draw what would have been drawn since the checkpoint: a seed, if an experience is cut anew."""
        strategy.plugins = [plugin for plugin in strategy.plugins if plugin is not self]
        # By its attributes themselves: the host hides this one while a strategy trains.
        is_first: Any = vars(strategy.experience).get("is_first_subexp")
        if is_first is None:
            return
        drawn = _draws_between(self._state, random.getstate())
        if not drawn:
            return  # none, or the script has drawn numbers of its own
        random.setstate(self._state)
        is_cut_anew = drawn == position_in_training(strategy.experience.logging()) + 1
        if is_cut_anew and getattr(is_first, "value", is_first):
            _draw(random)


def _draw(source: Any) -> None:
    source.randint(0, 2**32 - 1)  # as FixedSizeExperienceSplitter does


def _draws_between(state: Any, now: Any) -> int:
    """Return by how many of the host's draws a state comes from another one; 0 if it does not."""
    source = random.Random()
    source.setstate(state)
    for count in range(1, _MOST_CUTS + 1):
        _draw(source)
        if source.getstate() == now:
            return count
    return 0
