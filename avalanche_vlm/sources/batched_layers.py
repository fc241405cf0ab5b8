"""Layers of K small networks that are trained side by side, none of which sees another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_NORM_EPS = 1e-5


class BatchedLinear(nn.Module):
    r"""K linear layers as one product.

    .. math:: y_k = x_k W_k + b_k

    Args:
        networks: K.
        in_features: width of x.
        out_features: width of y.
        device: of the weights.
        dtype: of the weights, which `initialise` or `load_flat_weights` fills.

    >>> BatchedLinear(3, 4, 2)(torch.zeros(3, 5, 4)).shape
    torch.Size([3, 5, 2])
    """

    def __init__(
        self,
        networks: int,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(networks, in_features, out_features, device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.empty(networks, 1, out_features, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return y (K, B, out) for x (K, B, in)."""
        return torch.baddbmm(self.bias, x, self.weight)


class BatchedBatchNorm(nn.Module):
    r"""K batch norms, each over the rows of its own network, with the statistics of the batch.

    .. math:: y = \gamma \frac{x - \bar x}{\sqrt{\overline{(x - \bar x)^2} + 10^{-5}}} + \beta

    Padded rows have no part in the means. A batch of a single row gives :math:`\beta`.

    Args:
        networks: K.
        features: width of x.
        device: of the weights.
        dtype: of the weights.

    Deviations:
        No running statistics: the encoder that it stands in is not used after training.
    """

    def __init__(
        self,
        networks: int,
        features: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(networks, 1, features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(networks, 1, features, device=device, dtype=dtype))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Return y (K, B, W) for x (K, B, W); ``inside`` bool (K, B) is False at padded rows."""
        share = (inside / inside.sum(dim=1, keepdim=True)).to(x.dtype)[:, None]  # (K, 1, B)
        # Padded rows become zeros: far from the rest of a small batch they could overflow further on.
        centred = torch.where(inside[..., None], x - share @ x, 0)
        variance = share @ centred.square()
        return centred * ((variance + _NORM_EPS).rsqrt() * self.weight) + self.bias


@torch.no_grad()
def initialise(network: nn.Module, generators: Sequence[torch.Generator]) -> None:
    r"""Fill the linear layers from :math:`U(\pm 1/\sqrt{in})`, as the host's library does.

    Args:
        network: K networks side by side.
        generators: K of them, so that a network's start does not depend on its neighbours.
    """
    for module in network.modules():
        if isinstance(module, BatchedLinear):
            bound = module.weight.shape[1] ** -0.5
            for tensor in (module.weight, module.bias):
                for row, generator in zip(tensor, generators, strict=True):
                    row.uniform_(-bound, bound, generator=generator)


def flat_weights(network: nn.Module) -> Tensor:
    """Return the weights (K, P) of K networks, one row each."""
    return torch.cat([weight.detach().flatten(1) for weight in network.parameters()], dim=1)


@torch.no_grad()
def load_flat_weights(network: nn.Module, flat: Tensor) -> None:
    """Take over the weights (K, P) that `flat_weights` gave."""
    weights = list(network.parameters())
    for weight, part in zip(weights, flat.split([w[0].numel() for w in weights], dim=1), strict=True):
        weight.copy_(part.view_as(weight))
