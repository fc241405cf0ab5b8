"""How captions become text features: through the text tower, or through the prompts of the head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.models.modes import is_frozen
from avalanche_vlm.regularizers.pairs import encode_in_parts
from avalanche_vlm.sources import Prompt


class CaptionTexts(ABC):
    """What the captions of pairs pass on their way to text features."""

    @abstractmethod
    def prepare(
        self, model: CLIPClassifier, prompts: Sequence[Prompt], captions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Return what `encode` takes, once for equal captions, and which of it belongs to each.

        Args:
            model: the model.
            prompts: N prompts that images were made for.
            captions: N captions of the images.

        Returns:
            Texts (U, ...) and int64 (N,).
        """

    @abstractmethod
    def encode(self, model: CLIPClassifier, texts: Tensor) -> Tensor:
        """Return features (U, D) of texts (U, ...)."""


@final
class TowerTexts(CaptionTexts):
    """Captions pass the text tower, as in the papers."""

    def prepare(
        self, model: CLIPClassifier, prompts: Sequence[Prompt], captions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Return token ids (U, L), or the features (U, D) themselves where no text tower trains."""
        distinct = list(dict.fromkeys(captions))
        places = {caption: place for place, caption in enumerate(distinct)}
        text_of = torch.tensor([places[caption] for caption in captions])
        texts = model.backbone.tokenize(distinct)
        if is_frozen(model.backbone.text_tower):
            texts = encode_in_parts(model.backbone.encode_text, texts)
        return texts, text_of.to(texts.device)

    def encode(self, model: CLIPClassifier, texts: Tensor) -> Tensor:
        """Return what the text tower says of token ids (U, L); features (U, D) pass."""
        return texts if texts.is_floating_point() else model.backbone.encode_text(texts)


@final
class HeadTexts(CaptionTexts):
    """The class of a caption passes the model's head: its class weights stand for the caption.

    So a regularizer reaches prompts that are learned. Every prompt must be about a class of the model:
    `LearnedClassPrompts`.
    """

    def prepare(
        self, model: CLIPClassifier, prompts: Sequence[Prompt], captions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Return class ids (U,)."""
        strangers = [prompt.text for prompt in prompts if prompt.class_id is None]
        if strangers:
            raise wrong_value(
                "prompts",
                "prompts about classes of the model, for HeadTexts",
                f"{strangers[0]!r}, which is about none",
                "Use LearnedClassPrompts, or TowerTexts.",
            )
        ids = torch.tensor([prompt.class_id for prompt in prompts], device=model.backbone.logit_scale.device)
        return ids.unique(return_inverse=True)

    def encode(self, model: CLIPClassifier, texts: Tensor) -> Tensor:
        """Return the head's weights of class ids (U,)."""
        return model.head.text_part(model.backbone, texts)
