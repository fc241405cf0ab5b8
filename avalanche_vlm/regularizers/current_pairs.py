"""The training batch itself as pairs of images and sentences."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from avalanche_vlm._checks import check_type
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.regularizers.pairs import ImageTextPairs, PairBatch
from avalanche_vlm.sources.learned_class_prompts import class_prompts
from avalanche_vlm.text import PromptTemplate


@final
class CurrentPairs(ImageTextPairs):
    """The images of the training batch, each with a sentence about its class.

    The teacher sees each batch as it comes, augmentation and all, so it is asked at every step.

    Args:
        template: the sentence, with one ``{}`` for the class name; None for the first template of the
            model's head for the class, or "a photo of a {}." if it has none.

    Raises:
        TypeError: ``template`` is no sentence.

    References:
        The distillation on new data of Li and Hoiem, Learning without Forgetting, ECCV 2016, with the
        similarities of a vision-language model.

    Deviations:
        Similarities to the sentences of the batch take the place of old classes' logits.
    """

    __slots__ = ("_text_of", "_tokens")
    _tokens: Tensor | None
    _text_of: Tensor | None

    def __init__(self, template: str | PromptTemplate | None = None) -> None:
        super().__init__()
        check_type("template", template, (str, PromptTemplate, type(None)))
        self.template = PromptTemplate(template) if isinstance(template, str) else template
        self._tokens = self._text_of = None

    def _prepare(self, strategy: Any, model: CLIPClassifier) -> None:
        everything = range(len(model.class_names))
        prompts = class_prompts(model, everything, self.template)
        tokens = model.backbone.tokenize([prompt.text for prompt in prompts])
        # Classes of two data sets may have one sentence.
        self._tokens, self._text_of = tokens.unique(dim=0, return_inverse=True)

    def _release(self, model: CLIPClassifier) -> None:
        self._tokens = self._text_of = None

    def batch(self, model: CLIPClassifier, x: Tensor, y: Tensor) -> PairBatch:
        """Return the training batch with its sentences."""
        assert self._tokens is not None
        assert self._text_of is not None
        rows, text_of = self._text_of[y].unique(return_inverse=True)
        return PairBatch(x, self._tokens[rows], text_of)
