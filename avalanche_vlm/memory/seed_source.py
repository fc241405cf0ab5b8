"""Where the seeds of a memory come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_vlm._checks import check_count, wrong_value
from avalanche_vlm._stateful import Stateful


class NewSeeds(NamedTuple):
    """Seeds that a source has made.

    Attributes:
        visual: v (M, D), of unit length.
        labels: int64 (M,), their classes.
        textual: w (M, D), of unit length; None where a seed's text is the text of its class, which the
            model knows and nobody has to keep.
    """

    visual: Tensor
    labels: Tensor
    textual: Tensor | None = None


class SeedSource(Stateful, ABC):
    """Makes seeds of the embeddings of some classes, which are let go of afterwards.

    Random numbers come from the source's own generator, on the CPU.

    Args:
        seed: of the random numbers.

    Raises:
        TypeError: ``seed`` is no whole number.
        ValueError: it is negative.
    """

    def __init__(self, *, seed: int = 0) -> None:
        check_count("seed", seed, at_least=0)
        self.seed = seed
        self._generator = torch.Generator().manual_seed(int(seed))

    def check(self, model: Any) -> None:
        """Raise if seeds cannot be made with a model, before it is trained in vain; most sources ask none."""

    @abstractmethod
    def make(
        self, model: Any, features: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
    ) -> NewSeeds:
        """Return seeds of every class that there is a feature of.

        Args:
            model: the strategy's model, as it is now.
            features: x (N, D), of unit length.
            labels: int64 (N,).
            validation: features (V, D), of unit length, and labels (V,) that were held out of training; or
                None.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random numbers."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state.

        Raises:
            ValueError: the state of another kind of source.
        """
        if set(state) != set(self.state_dict()):
            raise wrong_value("state", f"that of a {type(self).__name__}", f"one with {sorted(state)}")
        self._generator.set_state(state["generator"].cpu())


class CountedSeedSource(SeedSource):
    """Makes a number of seeds of each class that is told.

    Args:
        seeds_per_class: the number.
        seed: of the random numbers.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: a number out of its range.
    """

    def __init__(self, seeds_per_class: int = 4, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        check_count("seeds_per_class", seeds_per_class)
        self.seeds_per_class = seeds_per_class
