"""What our plugins that keep something from one experience to the next have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from avalanche.core import SupervisedPlugin

from avalanche_vlm._runs import claim
from avalanche_vlm._stateful import Stateful
from avalanche_vlm.memory import SeedBuffer
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.sources import PromptUnion

_ADVICE = "Build new plugins, and what they are made of, for each strategy."


class OfOneStrategy(SupervisedPlugin[Any]):
    """A plugin that belongs to one strategy, with the parts that keep something: another one is refused."""

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse to go on in a second strategy with what was kept in the first.

        Raises:
            ValueError: the plugin, or a part of it, has served another strategy.
        """
        self._claim(strategy, for_good=False)
        super().before_training(strategy, *args, **kwargs)

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Belong to the strategy, now that nothing has refused to train."""
        self._claim(strategy, for_good=True)
        super().before_training_epoch(strategy, *args, **kwargs)

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse data that mean other classes than the model, before a plugin works on them.

        Raises:
            ValueError: as in `CLIPClassifier.check_experience`.
        """
        if isinstance(strategy.model, CLIPClassifier):
            strategy.model.check_experience(strategy.experience)
        super().before_train_dataset_adaptation(strategy, *args, **kwargs)

    def _claim(self, strategy: Any, *, for_good: bool) -> None:
        for part in (self, *_parts(self, {id(self)})):
            claim(part, strategy, argument="plugins", advice=_ADVICE, for_good=for_good)


def _parts(owner: Any, visited: set[int]) -> Iterator[Any]:
    """Yield the parts that keep something: teachers, pairs, memories, ... and those that they are made of."""
    for value in vars(owner).values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, (Stateful, SeedBuffer)) and id(part) not in visited:
                visited.add(id(part))
                # A union of prompts keeps what its members do.
                if (
                    type(part).load_state_dict is not Stateful.load_state_dict
                    and type(part) is not PromptUnion
                ):
                    yield part
                yield from _parts(part, visited)
