"""The mean of each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from torch import Tensor

from avalanche_vlm.sources._moments import means_and_deviations
from avalanche_vlm.sources.latents import LatentGenerator


@final
class ClassMean(LatentGenerator):
    r"""A class is its mean, and drawing repeats it.

    .. math:: \hat x = \mu_c = \frac{1}{n_c} \sum_{i: y_i = c} x_i

    Args:
        dtype: how the means are kept, ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        seed: of the random choice between the means of a class that came several times.

    Raises:
        TypeError: ``seed`` is no whole number.
        ValueError: an unknown ``dtype``, or a negative ``seed``.

    Attributes:
        means: (R, D) of the components.

    References:
        Rebuffi et al., iCaRL, CVPR 2017, section 2.1, whose classifier compares with these means.

    Deviations:
        Features are not normalised first.

    >>> import torch
    >>> generator = ClassMean()
    >>> generator.fit(torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 5.0]]), torch.tensor([7, 7, 2]))
    >>> generator.sample([7], 2)
    (tensor([[2., 3.],
            [2., 3.]]), tensor([7, 7]))
    """

    per_component: ClassVar = ("means",)
    means: Tensor

    def _fit(self, features: Tensor, positions: Tensor, counts: Tensor) -> Mapping[str, Tensor]:
        return {"means": means_and_deviations(features, positions, counts)[0]}

    def _sample(self, components: Tensor) -> Tensor:
        return self.means[components].float()
