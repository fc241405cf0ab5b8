"""The network that makes seeds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_vlm._checks import check_count, check_number
from avalanche_vlm.models.seeded_layers import seeded_linear


class SeedGenerator(nn.Module):
    r"""A hypernetwork from a condition and a text to pairs of seeds.

    .. math::
        [\Delta v; \Delta w] = \mathrm{MLP}([g; \tau; e_j]), \qquad
        v = \overline{g^{(1)} + \Delta v}, \qquad w = \overline{\tau + \beta \Delta w}

    with a learned code :math:`e_j` of each of the m seeds of a class. The last layer starts at zero, so that
    seeds start as their condition.

    Args:
        embed_dim: D.
        seeds_per_class: m.
        code_width: of the codes.
        hidden: width of the two hidden layers.
        text_step: β.
        seed: of the first weights.

    Raises:
        TypeError: an argument is no number.
        ValueError: a number out of its range.

    References:
        von Oswald et al., Continual learning with hypernetworks, ICLR 2020, for networks that generate what
        would be stored; the rest is our realisation of the design brief Auto-Seed VL2.

    Deviations:
        The brief says no more of it than that it is a lightweight hypernetwork conditioned on gradients.

    >>> visual, textual = SeedGenerator(8, 2)(torch.ones(3, 2, 16), torch.ones(3, 8))
    >>> visual.shape, textual.shape
    (torch.Size([3, 2, 8]), torch.Size([3, 2, 8]))
    """

    def __init__(
        self,
        embed_dim: int,
        seeds_per_class: int,
        *,
        code_width: int = 16,
        hidden: int = 128,
        text_step: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("embed_dim", embed_dim),
            ("seeds_per_class", seeds_per_class),
            ("code_width", code_width),
            ("hidden", hidden),
        ):
            check_count(name, value)
        check_number("text_step", text_step, at_least=0)
        check_count("seed", seed, at_least=0)
        self.text_step = text_step
        generator = torch.Generator().manual_seed(seed)
        self.codes = nn.Parameter(torch.randn(seeds_per_class, code_width, generator=generator))
        last = seeded_linear(hidden, 2 * embed_dim, generator)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            seeded_linear(3 * embed_dim + code_width, hidden, generator),
            nn.SELU(),
            seeded_linear(hidden, hidden, generator),
            nn.SELU(),
            last,
        )

    @staticmethod
    def sizes_of(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
        """Return ``embed_dim``, ``seeds_per_class`` and ``hidden`` of the network that a state is of."""
        return len(state["layers.4.bias"]) // 2, len(state["codes"]), len(state["layers.0.bias"])

    def forward(self, conditions: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Map conditions (K, m, 2 D) and texts (K, D) to visual and textual seeds (K, m, D)."""
        classes, seeds, width = *conditions.shape[:2], text.shape[1]
        text = text[:, None].expand(-1, seeds, -1)
        codes = self.codes[None].expand(classes, -1, -1)
        steps = self.layers(torch.cat([conditions, text, codes], dim=2))
        visual = F.normalize(conditions[..., :width] + steps[..., :width], dim=2)
        return visual, F.normalize(text + self.text_step * steps[..., width:], dim=2)
