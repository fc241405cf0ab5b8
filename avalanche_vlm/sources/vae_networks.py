"""Encoder, decoder and loss of variational auto-encoders, K of them side by side."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_vlm.sources.batched_layers import BatchedBatchNorm, BatchedLinear

NoiseScale = Literal["deviation", "variance"]

_SLOPE = 0.2


class VAEEncoder(nn.Module):
    """K encoders in → hidden → hidden → 2 · latent, with batch norm and leaky ReLU (0.2).

    Args:
        networks: K.
        in_features: width of what is encoded.
        hidden: width of the two hidden layers.
        latent: width of a code.
        device: of the weights.
        dtype: of the weights.
    """

    def __init__(
        self,
        networks: int,
        in_features: int,
        hidden: int,
        latent: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.first = BatchedLinear(networks, in_features, hidden, device=device, dtype=dtype)
        self.first_norm = BatchedBatchNorm(networks, hidden, device=device, dtype=dtype)
        self.second = BatchedLinear(networks, hidden, hidden, device=device, dtype=dtype)
        self.second_norm = BatchedBatchNorm(networks, hidden, device=device, dtype=dtype)
        self.last = BatchedLinear(networks, hidden, 2 * latent, device=device, dtype=dtype)

    def forward(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance (K, B, latent) of the codes of x (K, B, in)."""
        x = F.leaky_relu(self.first_norm(self.first(x), inside), _SLOPE)
        x = F.leaky_relu(self.second_norm(self.second(x), inside), _SLOPE)
        mean, log_variance = self.last(x).chunk(2, dim=-1)
        return mean, log_variance


class VAEDecoder(nn.Module):
    """K decoders latent → hidden → hidden → out, with leaky ReLU (0.2).

    Args:
        networks: K.
        latent: width of what is decoded.
        hidden: width of the two hidden layers.
        out_features: width of the result.
        device: of the weights.
        dtype: of the weights.
    """

    def __init__(
        self,
        networks: int,
        latent: int,
        hidden: int,
        out_features: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.first = BatchedLinear(networks, latent, hidden, device=device, dtype=dtype)
        self.second = BatchedLinear(networks, hidden, hidden, device=device, dtype=dtype)
        self.last = BatchedLinear(networks, hidden, out_features, device=device, dtype=dtype)

    def forward(self, z: Tensor) -> Tensor:
        """Return what the codes (K, B, latent) stand for, (K, B, out)."""
        z = F.leaky_relu(self.first(z), _SLOPE)
        return self.last(F.leaky_relu(self.second(z), _SLOPE))


def drawn_code(mean: Tensor, log_variance: Tensor, noise: Tensor, noise_scale: NoiseScale) -> Tensor:
    r"""Return :math:`m + \epsilon e^{l/2}` (``"deviation"``) or :math:`m + \epsilon e^l` (``"variance"``)."""
    scale = log_variance / 2 if noise_scale == "deviation" else log_variance
    return mean + noise * scale.exp()


def code_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Return :math:`KL(N(m, e^l) \| N(0, 1)) = \frac12 \sum_k (e^{l_k} + m_k^2 - 1 - l_k)` of each row.

    >>> code_divergence(torch.zeros(1, 3), torch.zeros(1, 3))
    tensor([0.])
    """
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=-1)


def negative_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor | None = None) -> Tensor:
    r"""Return :math:`-\log N(x; m, \mathrm{diag}\, e^{2 s})` of each row; s = 0 where it is None.

    .. math:: \sum_d \frac{(x_d - m_d)^2}{2 e^{2 s_d}} + s_d + \frac12 \log 2 \pi
    """
    constant = 0.5 * math.log(2 * math.pi) * x.shape[-1]
    if log_scale is None:
        return 0.5 * (x - mean).square().sum(dim=-1) + constant
    return (0.5 * ((x - mean) * (-log_scale).exp()).square() + log_scale).sum(dim=-1) + constant


def mean_of_rows(values: Tensor, inside: Tensor) -> Tensor:
    """Return the mean (K,) of the values (K, B) of the rows that are no padding."""
    return torch.where(inside, values, 0).sum(dim=1) / inside.sum(dim=1)
