"""One seed a class: its mean."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm.memory.seed_source import NewSeeds, SeedSource


@final
class ClassMeanSeeds(SeedSource):
    r"""The mean feature of each class, :math:`v_c = \overline{\sum_{i: y_i = c} x_i}`: the plainest memory.

    Args:
        seed: of no effect; every source has one.

    Raises:
        TypeError: ``seed`` is no whole number.
        ValueError: it is negative.

    References:
        Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017, for means of
        features.

    Deviations:
        None.

    >>> import torch
    >>> ClassMeanSeeds().make(None, torch.eye(2), torch.tensor([3, 3])).visual
    tensor([[0.7071, 0.7071]])
    """

    def make(
        self, model: Any, features: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
    ) -> NewSeeds:
        """Return a seed a class."""
        classes, positions = labels.unique(return_inverse=True)
        sums = features.new_zeros(len(classes), features.shape[1]).index_add_(0, positions, features)
        return NewSeeds(F.normalize(sums, dim=1), classes)
