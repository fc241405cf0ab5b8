"""Images and texts on which a student is compared with its teacher, or with the truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._stateful import Stateful
from avalanche_vlm.functional import cosine_logits
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.models.required_classifier import required_classifier

ENCODED_AT_ONCE = 128  # bounds the memory of encoding without gradient


class PairBatch(NamedTuple):
    """Images, and the texts that they are compared with.

    Attributes:
        images: images (B, 3, H, W), or embeddings (B, D) where no image tower trains.
        texts: token ids (U, L), features (U, D) where no text tower trains, or class ids (U,) where the
            model's head makes the text features.
        text_of: int64 (B,), which text belongs to each image: the similarity matrix then has a column
            a pair. None where images and texts are no pairs, and each text has a column.
        image_rows: int64 (B,), where the images are among those that stay the same for an experience
            (`ImageTextPairs.fixed_images`); None without such.
        text_rows: int64 (U,), where the texts are among `ImageTextPairs.fixed_texts`; None likewise.
    """

    images: Tensor
    texts: Tensor
    text_of: Tensor | None
    image_rows: Tensor | None = None
    text_rows: Tensor | None = None


class PairFeatures:
    r"""What a model says of a batch of images and texts; texts are encoded when they are first asked for.

    Args:
        batch: what is encoded.
        images: features (B, D), un-normalised.
        texts: how to get features (C, D), un-normalised, one a column of the similarity matrix.
        scale: s of the similarities :math:`M = s \cos + b`.
        bias: b of them.
    """

    def __init__(
        self,
        batch: PairBatch,
        images: Tensor,
        texts: Callable[[], Tensor],
        scale: Tensor,
        bias: Tensor | float,
    ) -> None:
        self.batch = batch
        self.images = images
        self.scale = scale
        self.bias = bias
        self._make_texts = texts

    @cached_property
    def texts(self) -> Tensor:
        """Features (C, D) of the texts."""
        return self._make_texts()

    @cached_property
    def similarities(self) -> Tensor:
        """The similarity matrix (B, C)."""
        return cosine_logits(self.images, self.texts, self.scale, self.bias)


class ImageTextPairs(Stateful, ABC):
    """Where the images and texts of a `PairRegularizer` come from.

    Regularizers that are given the same object share its batches inside a `SumRegularizer`.
    """

    # Slots are passed over by checkpoints: an experience that goes on prepares its pairs again.
    __slots__ = ("_experience",)
    _experience: Any

    def __init__(self) -> None:
        self._experience = None

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Get ready for an experience; several regularizers may ask for it.

        Args:
            agent: the strategy.
            exp: the experience.
        """
        if self._experience is not exp:
            self._prepare(agent, agent.model)
            self._experience = exp

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Let go of what only the experience needed, and take note of it; arguments as before."""
        self._experience = None
        self._release(agent.model)

    @abstractmethod
    def _prepare(self, strategy: Any, model: CLIPClassifier) -> None:
        """Make batches of this experience possible."""

    @abstractmethod
    def _release(self, model: CLIPClassifier) -> None:
        """Drop what `_prepare` has made, and note what was learned."""

    @property
    def is_active(self) -> bool:
        """Whether there is anything to compare in this experience."""
        return True

    @property
    def fixed_images(self) -> Tensor | None:
        """All images (N, ...), where batches are rows of them for a whole experience, else None."""
        return None

    @property
    def fixed_texts(self) -> Tensor | None:
        """All texts (M, ...), where batches are rows of them for a whole experience, else None."""
        return None

    @property
    def fixed_classes(self) -> Tensor | None:
        """The class (N,) that each of `fixed_images` stands for; None where they stand for none."""
        return None

    @abstractmethod
    def batch(self, model: CLIPClassifier, x: Tensor, y: Tensor) -> PairBatch:
        """Return the images and texts of a step.

        Args:
            model: the model.
            x: the images of the training batch (B, 3, H, W), which some kinds take.
            y: their labels int64 (B,).
        """

    def encode_texts(self, model: CLIPClassifier, texts: Tensor) -> Tensor:
        """Return features (U, D) of the texts of a batch: token ids (U, L) pass the text tower."""
        return model.backbone.encode_text(texts)


def encode_pairs(pairs: ImageTextPairs, model: CLIPClassifier, batch: PairBatch) -> PairFeatures:
    """Return what a model says of a batch, with a gradient to whatever trains."""

    def texts() -> Tensor:
        encoded = pairs.encode_texts(model, batch.texts)
        return encoded if batch.text_of is None else encoded[batch.text_of]

    images = model.visual_features(batch.images)
    return PairFeatures(batch, images, texts, model.backbone.logit_scale, model.backbone.logit_bias)


def next_rows(
    order: Tensor, count: int, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the rows of the next batch, and what is left of the order.

    Batches go through ``count`` rows in a random order, and then again in another; the last batch of a
    pass is filled up from the next one.

    Args:
        order: int64 (M,), what an earlier call has left.
        count: number of rows.
        batch_size: of them, in a batch; all of them where there are fewer.
        generator: of the random orders.
    """
    size = min(batch_size, count)
    while len(order) < size:
        order = torch.cat([order, torch.randperm(count, generator=generator)])
    return order[:size], order[size:]


def check_model(model: Any) -> CLIPClassifier:
    """Raise unless a strategy's model is one that can be asked for texts."""
    model = required_classifier(model, "for a regularizer of images and texts")
    if model.backbone.text_tower is None:
        expected = "one with a text tower, for a regularizer of images and texts"
        advice = "Build it on an OpenCLIPBackbone; the data may stay embeddings."
        raise wrong_value("model", expected, f"one on an {type(model.backbone).__name__}", advice)
    return model


@torch.no_grad()
def encode_in_parts(encode: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return what ``encode`` makes of rows, a part of them at a time and without gradients."""
    return torch.cat([encode(part) for part in rows.split(ENCODED_AT_ONCE)])
