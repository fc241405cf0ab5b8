"""Fixed random features of embeddings, regenerated from a seed."""

from __future__ import annotations

import math
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_count, check_number, wrong_value

Activation = Literal["relu", "cosine"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
MOST_WIDTH = 2**16  # the second moment of so many features takes 32 GiB
_GRID = 2.0**-16
_LARGEST = 8.0
_SINE_TERMS = 9  # of its series, which then errs by less than 1e-13 up to a quarter turn


@final
class RandomProjection:
    r"""A fixed random map of rows x (B, D) of unit length to features h (B, M), from a seed.

    .. math::
        h = \begin{cases}
            2^{-e} \max(0, x W) & \text{activation "relu"} \\
            \sqrt{2 / M} \, \cos(b \, x W + \phi) & \text{activation "cosine"}
        \end{cases}

    with entries of W (D, M) from a standard normal distribution, and angles :math:`\phi` (M,) from a uniform
    one over the circle. Inner products of cosine features come near the Gaussian kernel
    :math:`\exp(-b^2 \lVert x - x' \rVert^2 / 2)` as M grows. :math:`2^e` is the least power of two that is
    not below the length of any column of W, so that no entry of h exceeds 1; it changes no result that does
    not depend on the scale of features.

    W is drawn on the CPU once the width D of the rows is known, moved to where they are, and never stored. It
    is rounded to multiples of 2⁻¹⁶ and clipped to ±8. So the product of W with rows that are multiples of
    2⁻¹⁶ has no rounding error in float64: it is the same for any batch, on any device. The rest is done entry
    by entry, by sums and products alone, so that it does not depend on the batch either. (PyTorch does
    not promise equal normal draws between its versions, nor between kinds of processors. Where they differ by
    a last bit, 1 in 200 of these entries of W differs by 2⁻¹⁶.)

    Args:
        width: M, how many features, at most 65536.
        seed: of W and the angles.
        activation: ``"relu"`` or ``"cosine"``.
        bandwidth: b, above 0; of ``"cosine"`` alone.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range.

    References:
        McDonnell et al., RanPAC, NeurIPS 2023 (arXiv 2307.02251), section 4; Rahimi and Recht, Random
        Features for Large-Scale Kernel Machines, NIPS 2007, section 3.

    Deviations:
        W is rounded and clipped as said above; features of "relu" are divided by a power of two.

    >>> import torch
    >>> RandomProjection(5, seed=1)(torch.eye(3)).shape
    torch.Size([3, 5])
    """

    def __init__(
        self, width: int, seed: int = 0, activation: Activation = "relu", bandwidth: float = 1.0
    ) -> None:
        check_count("width", width)
        if width > MOST_WIDTH:
            raise wrong_value("width", f"at most {MOST_WIDTH}", width)
        check_count("seed", seed, at_least=0)
        check_choice("activation", activation, ACTIVATIONS)
        check_number("bandwidth", bandwidth, above=0)
        self.width = width
        self.seed = seed
        self.activation: Activation = activation
        self.bandwidth = bandwidth
        self._drawn: tuple[Tensor, Tensor, float] | None = None

    def weights(self, inputs: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, float]:
        """Return W (D, M) and angles (M,) in turns, both float32, and 2ᵉ, for rows of width D."""
        if self._drawn is None or self._drawn[0].shape[0] != inputs:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randn(inputs, self.width, generator=generator, dtype=torch.float32)
            drawn = ((drawn / _GRID).round() * _GRID).clamp(-_LARGEST, _LARGEST)
            angles = torch.rand(self.width, generator=generator, dtype=torch.float32)
            longest = float(drawn.double().square().sum(dim=0).max()) ** 0.5
            # Rows that were rounded to the grid may be longer than 1 by as much.
            longest *= 1 + 0.5 * _GRID * inputs**0.5
            self._drawn = drawn, angles, 2.0 ** math.ceil(math.log2(max(longest, 2.0**-16)))
        drawn, angles, scale = self._drawn
        if drawn.device != torch.device(device):
            self._drawn = drawn, angles, scale = drawn.to(device), angles.to(device), scale
        return drawn, angles, scale

    def __call__(self, x: Tensor) -> Tensor:
        """Map rows (B, D) of unit length to features (B, M), in the precision of the rows."""
        weights, angles, scale = self.weights(x.shape[1], x.device)
        product = x @ weights.to(x.dtype)
        if self.activation == "relu":
            return product.relu() / scale
        turns = product * (self.bandwidth / math.tau) + angles.to(x.dtype)
        return _cosine_of_turns(turns) * (2 / self.width) ** 0.5

    def config(self) -> dict[str, Any]:
        """Return the arguments, as plain values."""
        own = {"width": self.width, "seed": self.seed, "activation": self.activation}
        return {**own, "bandwidth": self.bandwidth}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RandomProjection) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(tuple(self.config().values()))

    def __repr__(self) -> str:
        return f"RandomProjection({', '.join(f'{name}={value!r}' for name, value in self.config().items())})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": None}


def _cosine_of_turns(turns: Tensor) -> Tensor:
    """Return the cosine of angles in turns, of sums and products alone.

    `torch.cos` may round the last entries of a batch, which do not fill a register, otherwise than the rest.
    """
    angle = (0.25 - (turns - turns.round()).abs()) * math.tau  # whose sine it is, from -π/2 to π/2
    square = angle * angle
    series = torch.zeros_like(angle)
    for term in range(_SINE_TERMS - 1, -1, -1):
        series = series * square + (-1) ** term / math.factorial(2 * term + 1)
    return series * angle
