"""Pairs of a prompt and an image that a text-to-image model makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_count, check_type
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.models.modes import is_frozen
from avalanche_vlm.regularizers.caption_texts import CaptionTexts, TowerTexts
from avalanche_vlm.regularizers.pairs import ENCODED_AT_ONCE, PairBatch
from avalanche_vlm.regularizers.pooled_pairs import PooledPairs
from avalanche_vlm.sources import ImageSource, Prompt, PromptPool, draw_prompts


@final
class SyntheticPairs(PooledPairs):
    """Draws prompts before each experience, has an image made of each, and shows them in batches.

    Without a prompt (a pool of learned classes, before the first experience) there are no pairs, and
    what is built on them adds nothing. Images are preprocessed once, without augmentation; where no
    image tower trains, they are encoded once and only their embeddings are kept. Nothing of them
    outlives the experience.

    Args:
        images: makes an image of a prompt.
        prompts: what to draw prompts from.
        count: number of pairs for an experience.
        batch_size: pairs of a batch; all of them where ``count`` is smaller. Batches go through all pairs
            in a random order, and then again in another.
        replacement: whether a prompt may be drawn again before all were.
        texts: what captions pass on their way to features; None for `TowerTexts`.
        seed: of the draws.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number that is too small; in training, an image that cannot be made, or fewer prompts
            than ``count`` without replacement.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025:
        1,000 images an experience in batches of 64.

    Deviations:
        The last batch of a pass is filled up from the next pass.
    """

    def __init__(
        self,
        images: ImageSource,
        prompts: PromptPool,
        *,
        count: int = 1000,
        batch_size: int = 64,
        replacement: bool = True,
        texts: CaptionTexts | None = None,
        seed: int = 0,
    ) -> None:
        check_type("images", images, ImageSource)
        check_type("prompts", prompts, PromptPool)
        check_count("count", count)
        check_count("batch_size", batch_size)
        check_type("replacement", replacement, bool)
        check_type("texts", texts, (CaptionTexts, type(None)))
        check_count("seed", seed, at_least=0)
        super().__init__(batch_size=min(batch_size, count), seed=seed)
        self.images = images
        self.prompts = prompts
        self.count = count
        self.replacement = replacement
        self.texts = TowerTexts() if texts is None else texts

    def _prepare(self, strategy: Any, model: CLIPClassifier) -> None:
        known = self.prompts.prompts(model)
        self._order = self._order[:0]
        if not known:
            return
        before = self._generator.get_state()
        try:
            drawn = draw_prompts(known, self.count, generator=self._generator, replacement=self.replacement)
            seeds = torch.randint(2**31, (len(drawn),), generator=self._generator).tolist()
            images, captions = self._made(model, drawn, seeds)
        except BaseException:
            self._generator.set_state(before)  # who tries again asks for the same images
            raise
        texts, text_of = self.texts.prepare(model, drawn, captions)
        self._pool = PairBatch(images, texts, text_of)

    def _made(self, model: CLIPClassifier, drawn: list[Prompt], seeds: list[int]) -> tuple[Tensor, list[str]]:
        """Return preprocessed images (N, 3, H, W), or embeddings (N, D), and their captions."""
        prompts = [prompt.text for prompt in drawn]
        self.images.prepare(prompts, seeds)
        device = model.backbone.logit_scale.device
        frozen = is_frozen(model.backbone.image_tower)
        parts: list[Tensor] = []
        captions: list[str] = []
        for start in range(0, len(prompts), ENCODED_AT_ONCE):
            part = slice(start, start + ENCODED_AT_ONCE)
            made = self.images.sample(prompts[part], seeds[part])
            images = torch.stack([model.eval_transform(image) for image in made.images]).to(device)
            if frozen:
                with torch.no_grad():
                    images = model.encode(images)
            parts.append(images)
            captions += made.captions
        return torch.cat(parts), captions

    def _release(self, model: CLIPClassifier) -> None:
        self._pool = None
        self.prompts.learn(model)

    def encode_texts(self, model: CLIPClassifier, texts: Tensor) -> Tensor:
        """Return features (U, D) of texts, as ``texts`` says."""
        return self.texts.encode(model, texts)

    @property
    def nbytes(self) -> int:
        """Number of bytes that are kept from one experience to the next: those of the prompts."""
        return self.prompts.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return which prompts were learned, and the state of the random numbers."""
        return {"prompts": self.prompts.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        self.prompts.load_state_dict(state["prompts"])
        self._generator.set_state(state["generator"].cpu())
