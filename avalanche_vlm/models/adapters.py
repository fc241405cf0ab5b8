"""Small networks between the image tower and the head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from avalanche_vlm._checks import check_count, check_number, wrong_value
from avalanche_vlm.models.seeded_layers import seeded_linear

_PLACES = "CLIPClassifier(image_adapter=...) or AdaptedTextHead(adapter=...)"


class EmbeddingAdapter(nn.Module, ABC):
    """A trainable map of embeddings (B, D) to embeddings (B, D), for `CLIPClassifier`.

    It stands behind what is stored of images: embeddings in a cache or a memory stay valid while it
    trains.
    """

    @abstractmethod
    def set_width(self, embed_dim: int, device: torch.device) -> None:
        """Make the parameters for embeddings of width D, or refuse another one; the classifier calls it."""

    @abstractmethod
    def forward(self, embeddings: Tensor) -> Tensor:
        """Map un-normalised embeddings (B, D) to such."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return JSON-serialisable constructor arguments."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the adapter from what `config` returned; a state dict replaces its weights."""
        return cls(**config)


class ResidualAdapter(EmbeddingAdapter):
    r"""A bottleneck beside the identity.

    .. math:: f' = f + \alpha\, W_2 \max(W_1 f, 0), \qquad
              W_1 \in R^{D/r \times D},\ W_2 \in R^{D \times D/r}

    :math:`W_2` starts at zero, so the model starts as it is without an adapter, to the last bit.

    Args:
        reduction: r; the bottleneck has at least one channel.
        ratio: α, the weight of the bottleneck.
        seed: of the random :math:`W_1`.

    Raises:
        TypeError: an argument is not a number.
        ValueError: a number out of its range.

    References:
        Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, 2021,
        equations 2 to 5.

    Deviations:
        The paper mixes :math:`(1 - \alpha) f + \alpha A(f)`, which has the direction of
        :math:`f + \frac{\alpha}{1 - \alpha} A(f)`: cosines cannot tell the two apart, and f alone is
        the start. The paper's second ReLU is left out: behind a :math:`W_2` of zeros it would let no
        gradient through, and the adapter would never train.

    >>> ResidualAdapter(reduction=8).ratio
    0.2
    """

    def __init__(self, *, reduction: int = 4, ratio: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        check_count("reduction", reduction)
        check_number("ratio", ratio, above=0)
        check_count("seed", seed, at_least=0)
        self.reduction = reduction
        self.ratio = ratio
        self.seed = seed
        self.bottleneck: nn.Sequential | None = None
        self._width = 0

    def set_width(self, embed_dim: int, device: torch.device) -> None:
        """Make the two layers; of a width that they have already, they are left as they are."""
        if self.bottleneck is not None:
            if self._width != embed_dim:
                expected = f"one of the backbone's width {embed_dim}"
                advice = f"An adapter belongs to one model; make another for {_PLACES}."
                raise wrong_value("adapter", expected, f"one of width {self._width}", advice)
            return
        self._width = embed_dim
        generator = torch.Generator().manual_seed(self.seed)
        hidden = max(embed_dim // self.reduction, 1)
        last = seeded_linear(hidden, embed_dim, generator, bias=False)
        nn.init.zeros_(last.weight)
        self.bottleneck = nn.Sequential(
            seeded_linear(embed_dim, hidden, generator, bias=False), nn.ReLU(), last
        ).to(device)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map un-normalised embeddings (B, D) to such."""
        if self.bottleneck is None:
            raise RuntimeError(f"The adapter has no width yet. Give it to {_PLACES}.")
        return embeddings + self.ratio * self.bottleneck(embeddings)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"reduction": self.reduction, "ratio": self.ratio, "seed": self.seed}
