"""The one way in which prompts with learned vectors are assembled and encoded."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from avalanche_vlm._checks import check_count, check_type, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.heads import TextHead, check_distinct
from avalanche_vlm.text import ClassNames

# Few enough that memory stays small, many enough that the benchmarks of up to 200 classes go at once, which
# is the fastest. Smaller parts take little more time and less memory.
CLASSES_AT_ONCE = 256


class PromptHead(TextHead):
    """Prompts ``[start] [context] [name.] [end]`` whose L context vectors are made by a subclass.

    Where more classes than ``classes_at_once`` take a gradient, they go through the text tower in
    parts. A part keeps only what goes into it, and is computed a second time in the backward pass:
    the gradient is the same, and memory does not grow with the number of classes.

    Args:
        suffix: what follows the name.
        classes_at_once: how many prompts go through the text tower together in training; None for
            all of them.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: ``classes_at_once`` is below 1; when the names are set, a name is too long to
            stand beside the context.
    """

    _tokens: Tensor

    def __init__(self, *, suffix: str = ".", classes_at_once: int | None = CLASSES_AT_ONCE) -> None:
        super().__init__()
        check_type("suffix", suffix, str)
        if classes_at_once is not None:
            check_count("classes_at_once", classes_at_once)
        self.suffix = suffix
        self.classes_at_once = classes_at_once
        self.register_buffer("_tokens", torch.empty(0, dtype=torch.long), persistent=False)

    @abstractmethod
    def context_of(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the context vectors (K, L, W), or (1, L, W) if all classes have the same."""

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the features (K, D) of the prompts of some classes."""
        at_once = self.classes_at_once
        if at_once is None or len(class_ids) <= at_once or not torch.is_grad_enabled():
            return self._encode_at_once(backbone, class_ids)
        parts = class_ids.split(at_once)
        return torch.cat(
            [checkpoint(self._encode_at_once, backbone, part, use_reentrant=False) for part in parts]
        )

    def _encode_at_once(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        return self.encode_prompts(backbone, class_ids, self.context_of(backbone, class_ids))

    def encode_prompts(self, backbone: VisionLanguageBackbone, class_ids: Tensor, context: Tensor) -> Tensor:
        """Return the features (N, D) of prompts.

        Args:
            backbone: encodes them.
            class_ids: int64 (N,), whose name each prompt ends in; an id may come more than once.
            context: (N, L, W), or (1, L, W) for all of them.
        """
        tokens = self._tokens[class_ids.to(self._tokens.device)]
        embeddings = backbone.embed_tokens(tokens)
        start, length = backbone.start_length, context.shape[1]
        context = context.expand(len(tokens), -1, -1).to(embeddings.dtype)
        embeddings = torch.cat([embeddings[:, :start], context, embeddings[:, start + length :]], dim=1)
        return backbone.encode_token_embeddings(embeddings, tokens)

    def prompt_tokens(self, class_names: ClassNames, backbone: VisionLanguageBackbone, length: int) -> Tensor:
        """Return the tokens of ``name.`` with ``length`` fillers (any word) put before them."""
        tokens = backbone.tokenize([name + self.suffix for name in class_names])
        check_distinct(tokens, class_names)
        start = backbone.start_length
        # What the fillers push out at the end must be padding, which ends an empty text.
        padding = backbone.tokenize([""])[0, -1]
        room = max(tokens.shape[1] - length, 0)
        lost = (tokens[:, room:] != padding).any(dim=1)
        if lost.any():
            name = class_names[int(lost.nonzero()[0, 0])]
            raise wrong_value(
                "class_names",
                f"names that fit beside {length} context tokens in {tokens.shape[1]} positions",
                repr(name),
                "Shorten the name or the context.",
            )
        filler = tokens[:, start : start + 1].expand(-1, length)
        tokens = torch.cat([tokens[:, :start], filler, tokens[:, start : tokens.shape[1] - length]], dim=1)
        return backbone.without_padding(tokens)

    def config(self) -> dict[str, Any]:
        """Return the arguments that all such heads have."""
        return {"suffix": self.suffix, "classes_at_once": self.classes_at_once}
