"""What every method asks of a vision-language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_vlm._checks import check_count, check_number
from avalanche_vlm.functional.anchors import PixelSpace


class VisionLanguageBackbone(nn.Module, ABC):
    """An image tower and a text tower that end in one embedding space.

    Features are un-normalised everywhere; whoever compares them normalises. Subclasses set the
    attributes below in their constructor and implement the abstract methods.

    Attributes:
        embed_dim: width D of the shared embedding space.
        token_dim: width W of a token embedding.
        image_size: (height, width) of an image that the tower takes; None without image tower.
        image_tower: the module of the image side, or None.
        text_tower: the module of the text side, or None.
        eval_transform: image (PIL, uint8 tensor or array) -> float tensor (3, H, W).
        train_transform: the same with the model's training augmentation.
    """

    embed_dim: int
    token_dim: int
    image_size: tuple[int, int] | None
    image_tower: Any  # an nn.Module or None; Any, so that a subclass may say which
    text_tower: Any
    eval_transform: Callable[[Any], Tensor]
    train_transform: Callable[[Any], Tensor]

    @property
    @abstractmethod
    def logit_scale(self) -> Tensor:
        """The positive factor s of the logits s·cos + b, already exponentiated; a scalar."""

    @property
    def logit_bias(self) -> Tensor | float:
        """The bias b of the logits s·cos + b; 0 except in SigLIP-style models."""
        return 0.0

    @property
    def raw_dim(self) -> int | None:
        """Width D_raw of the raw visual features; None where the image tower has none."""
        return None

    @property
    def pixel_space(self) -> PixelSpace:
        """What the numbers of a preprocessed image mean; by default they are pixel values in [0, 1]."""
        return PixelSpace()

    @abstractmethod
    def encode_image_raw(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to pooled visual features (B, D_raw) before the projection."""

    @abstractmethod
    def project_image(self, raw: Tensor) -> Tensor:
        """Map raw visual features (B, D_raw) to embeddings (B, D)."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to embeddings (B, D)."""
        return self.project_image(self.encode_image_raw(images))

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Map N texts to token ids (N, L), int64, padded to the context length."""

    @abstractmethod
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Map token ids (N, L) to token embeddings (N, L, W), without positions."""

    @abstractmethod
    def encode_token_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Map token embeddings (N, L, W) to text embeddings (N, D).

        Args:
            embeddings: as from `embed_tokens`, some of them possibly replaced by learned vectors.
            tokens: int64 (N, L), the ids in whose place the embeddings stand; they say where each
                text ends. Positions after the last end-of-text token are not computed where the
                tower is causal, because nothing before them can see them.
        """

    def without_padding(self, tokens: Tensor) -> Tensor:
        """Return token ids (N, L) without the last positions, if no embedding depends on them."""
        return tokens

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (N, L) to text embeddings (N, D)."""
        return self.encode_token_embeddings(self.embed_tokens(tokens), tokens)

    @property
    @abstractmethod
    def start_length(self) -> int:
        """Number of tokens that the tokenizer puts before every text (1 for CLIP, 0 for SigLIP)."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return JSON-serialisable arguments that rebuild this backbone, weights apart."""


class EmbeddingBackbone(VisionLanguageBackbone):
    """The stand-in for a model whose features were computed elsewhere: no tower, only the scale.

    With it a `CLIPClassifier` takes embeddings (B, D), and its class weights come from a head
    that needs no text tower, such as `TextFeatureHead`.

    Args:
        embed_dim: width D of the embeddings.
        logit_scale: the factor of the cosine, 100 for OpenAI's models.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is not positive.

    >>> EmbeddingBackbone(512).logit_scale
    tensor(100.)
    """

    _scale: Tensor

    def __init__(self, embed_dim: int, *, logit_scale: float = 100.0) -> None:
        super().__init__()
        check_count("embed_dim", embed_dim)
        check_number("logit_scale", logit_scale, above=0)
        self.embed_dim = embed_dim
        self.token_dim = 0
        self.image_size = None
        self.image_tower = None
        self.text_tower = None
        self.eval_transform = self.train_transform = torch.as_tensor
        self.register_buffer("_scale", torch.tensor(float(logit_scale)))

    @property
    def logit_scale(self) -> Tensor:
        """The factor given to the constructor."""
        return self._scale

    @property
    def start_length(self) -> int:
        """No tokens, so none before a text."""
        return 0

    def _refuse(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"An EmbeddingBackbone has no towers and cannot encode {what}. Give the classifier embeddings "
            f"(B, {self.embed_dim}) and a TextFeatureHead, or build it on an OpenCLIPBackbone."
        )

    def encode_image_raw(self, images: Tensor) -> Tensor:
        """Refuse: there is no image tower."""
        raise self._refuse("images")

    def project_image(self, raw: Tensor) -> Tensor:
        """Refuse: there is no image tower."""
        raise self._refuse("images")

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Refuse: there is no text tower."""
        raise self._refuse("text")

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Refuse: there is no text tower."""
        raise self._refuse("text")

    def encode_token_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Refuse: there is no text tower."""
        raise self._refuse("text")

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"embed_dim": self.embed_dim, "logit_scale": float(self._scale)}
