"""Reference images and reference texts that do not belong together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_vlm._checks import check_count, check_type, wrong_type, wrong_value
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.regularizers.pairs import ImageTextPairs, PairBatch


@final
class ReferencePairs(ImageTextPairs):
    """Images of any data set and texts of any list, compared with each other and matched with none.

    A batch has ``batch_size`` images, drawn from all with replacement, and ``texts_per_batch`` of the
    texts, drawn without.

    Args:
        images: a data set of images, or of tuples that begin with one, or a uint8 tensor (N, 3, H, W).
            Pictures are preprocessed by the model's ``eval_transform``, float tensors are taken as they
            are.
        texts: M sentences; equal ones count once.
        batch_size: images of a batch.
        texts_per_batch: texts of a batch; None for all of them.
        seed: of the draws.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: no image, no text, or a number that is too small or too large.

    References:
        Zheng et al., Preventing Zero-Shot Transfer Degradation in Continual Learning of
        Vision-Language Models (ZSCL), ICCV 2023: images of ImageNet, and captions of Conceptual Captions
        or names of ImageNet classes.

    Deviations:
        Images are drawn with replacement, there is no pass through all of them.
    """

    __slots__ = ("_tokens",)
    _tokens: Tensor | None

    def __init__(
        self,
        images: Dataset[Any] | Tensor,
        texts: Iterable[str],
        *,
        batch_size: int = 64,
        texts_per_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (
            not hasattr(images, "__getitem__")
            or not hasattr(images, "__len__")
            or isinstance(images, (str, Mapping))
        ):
            raise wrong_type("images", "a data set of images with a length", images)
        if len(images) == 0:  # pyright: ignore[reportArgumentType]
            raise wrong_value("images", "at least one image", "none")
        if isinstance(texts, (str, Mapping)) or not isinstance(texts, Iterable):
            raise wrong_type("texts", "a list of sentences", texts)
        self._texts = list(dict.fromkeys(texts))
        for text in self._texts:
            check_type("texts", text, str)
        if not self._texts:
            raise wrong_value("texts", "at least one sentence", "none")
        check_count("batch_size", batch_size)
        if texts_per_batch is not None:
            check_count("texts_per_batch", texts_per_batch)
            if texts_per_batch > len(self._texts):
                raise wrong_value(
                    "texts_per_batch", f"at most {len(self._texts)}, all texts", texts_per_batch
                )
        check_count("seed", seed, at_least=0)
        self._images: Any = images
        self.batch_size = batch_size
        self.texts_per_batch = texts_per_batch
        self.seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._tokens = None

    def describe(self) -> dict[str, Any]:
        """Return the settings, the number of images, and the number of texts with a hash of them."""
        hashed = hashlib.sha256(json.dumps(self._texts).encode()).hexdigest()
        return {
            "images": {"kind": type(self._images).__name__, "count": len(self._images)},
            "texts": {"count": len(self._texts), "sha256": hashed},
            "batch_size": self.batch_size,
            "texts_per_batch": self.texts_per_batch,
            "seed": self.seed,
        }

    def _prepare(self, strategy: Any, model: CLIPClassifier) -> None:
        self._tokens = model.backbone.tokenize(self._texts)

    def _release(self, model: CLIPClassifier) -> None:
        self._tokens = None

    @property
    def fixed_texts(self) -> Tensor | None:
        """All texts."""
        return self._tokens

    def batch(self, model: CLIPClassifier, x: Tensor, y: Tensor) -> PairBatch:
        """Return images and texts that were drawn."""
        assert self._tokens is not None
        rows = torch.randint(len(self._images), (self.batch_size,), generator=self._generator)
        images = torch.stack([self._image(model, row) for row in rows.tolist()])
        tokens = self._tokens
        text_rows = torch.arange(len(tokens), device=tokens.device)
        if self.texts_per_batch is not None:
            order = torch.randperm(len(tokens), generator=self._generator)[: self.texts_per_batch]
            text_rows = order.to(tokens.device)
        return PairBatch(images.to(tokens.device), tokens[text_rows], None, None, text_rows)

    def _image(self, model: CLIPClassifier, row: int) -> Tensor:
        item = self._images[row]
        image = item[0] if isinstance(item, (tuple, list)) else item
        ready = isinstance(image, Tensor) and image.is_floating_point()
        return image if ready else model.eval_transform(image)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random numbers."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        self._generator.set_state(state["generator"].cpu())
