"""A head whose prompts are partly learned."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from avalanche_vlm._checks import check_choice, check_count, wrong_type, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.heads import adds_names, with_rows_kept
from avalanche_vlm.models.learned_vectors import random_vectors
from avalanche_vlm.models.prompt_head import CLASSES_AT_ONCE, PromptHead
from avalanche_vlm.text import ClassNames


class LearnedContextHead(PromptHead):
    r"""Prompts whose context is learned: ``[v_1] ... [v_n] name.`` (CoOp).

    Args:
        context_length: n; with ``initial_context`` it must be left out.
        initial_context: words whose token embeddings start the context (``"a photo of a"``); None
            starts at N(0, 0.02²).
        sharing: ``"shared"``, one context for all classes, or ``"per-class"``.
        suffix: what follows the name.
        seed: of the random start.
        classes_at_once: how many prompts go through the text tower together in training, see
            `PromptHead`; None for all of them.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: both or neither of ``context_length`` and ``initial_context``, an unknown
            ``sharing``, or a name too long for the model's context.

    References:
        Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022, equations 3 and 4.

    Deviations:
        Names stand at the end of the prompt only.

    >>> LearnedContextHead(context_length=4).sharing
    'shared'
    """

    def __init__(
        self,
        *,
        context_length: int | None = None,
        initial_context: str | None = None,
        sharing: Literal["shared", "per-class"] = "shared",
        suffix: str = ".",
        seed: int = 0,
        classes_at_once: int | None = CLASSES_AT_ONCE,
    ) -> None:
        super().__init__(suffix=suffix, classes_at_once=classes_at_once)
        if (context_length is None) == (initial_context is None):
            raise wrong_value(
                "context_length",
                "given, unless initial_context is",
                f"context_length={context_length} with initial_context={initial_context!r}",
            )
        if context_length is not None:
            check_count("context_length", context_length)
        if initial_context is not None and (
            not isinstance(initial_context, str) or not initial_context.strip()
        ):
            raise wrong_type("initial_context", "words such as 'a photo of a'", initial_context)
        check_choice("sharing", sharing, ("shared", "per-class"))
        check_count("seed", seed, at_least=0)
        self.context_length = context_length
        self.initial_context = initial_context
        self.sharing = sharing
        self.seed = seed
        self.context: nn.Parameter | None = None

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Make the contexts (1 or C, n, W); contexts of earlier classes are kept when names are added."""
        # The tokens first: what does not fit into the model's context is refused before it is made.
        words = None if self.initial_context is None else self._words(backbone)
        length = (self.context_length or 0) if words is None else len(words)
        tokens = self.prompt_tokens(class_names, backbone, length)
        initial = self._initial_context(len(class_names), backbone, words)
        # All contexts exist before the caller makes an optimizer of model.parameters().
        keep = self.sharing == "shared" or adds_names(self.class_names, class_names)
        self.context = with_rows_kept(self.context, initial, keep)
        super().set_classes(class_names, backbone)
        self._tokens = tokens

    def _words(self, backbone: VisionLanguageBackbone) -> Tensor:
        """Return the tokens (n,) of the words that the context starts from."""
        # They are those in which the two texts agree before the second one ends.
        alone, followed = backbone.tokenize([str(self.initial_context), f"{self.initial_context} x"])
        length = int((alone == followed).int().cumprod(0).sum())
        return alone[backbone.start_length : length]

    def _initial_context(
        self, class_count: int, backbone: VisionLanguageBackbone, words: Tensor | None
    ) -> Tensor:
        contexts = 1 if self.sharing == "shared" else class_count
        if words is None:
            return random_vectors(contexts, self.context_length or 0, backbone, self.seed)
        return backbone.embed_tokens(words[None]).detach().float().expand(contexts, -1, -1).clone()

    def context_of(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the contexts (K, n, W), or (1, n, W) if they are shared."""
        if self.context is None:  # forward has checked that names are set
            raise RuntimeError("set_classes comes first")
        return self.context if self.sharing == "shared" else self.context[class_ids.to(self.context.device)]

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "context_length": self.context_length,
            "initial_context": self.initial_context,
            "sharing": self.sharing,
            "seed": self.seed,
            **super().config(),
        }
