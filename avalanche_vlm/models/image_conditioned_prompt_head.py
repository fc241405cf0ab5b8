"""Prompts whose context depends on the image that they are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from avalanche_vlm._checks import check_count
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.heads import TextHead
from avalanche_vlm.models.hybrid_prompt_head import HybridPromptHead
from avalanche_vlm.models.learned_vectors import LearnedVectors
from avalanche_vlm.models.prompt_context import PromptContext
from avalanche_vlm.models.seeded_layers import seeded_linear
from avalanche_vlm.text import ClassNames


class ImageConditionedPromptHead(HybridPromptHead):
    r"""A `HybridPromptHead` whose context vectors are shifted by what a network reads off the image.

    .. math:: w_c(x) = f_T([\text{start}]\,[v_{c,1} + \pi(x)] \dots [v_{c,m} + \pi(x)]\,
              [\text{name}_c\text{.}]\,[\text{end}])

    .. math:: \pi(x) = W_2 \max(W_1 \tfrac{f_I(x)}{\lVert f_I(x) \rVert} + b_1, 0) + b_2

    Every image is compared with prompts of its own: B images and K classes seen cost B·K prompts, in
    evaluation too, and no class has weights without an image.

    Args:
        context: the parts; None for ``[LearnedVectors(4, sharing="shared")]``, as in CoCoOp.
        unseen: as in `HybridPromptHead`.
        reduction: the hidden layer has a width of D divided by this, at least 1.
        suffix: what follows the name.
        prompts_at_once: how many prompts go through the text tower together, also in evaluation; in
            training each part keeps only what goes into it.
        seed: of the network's random start.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: no part, a number below its least value; when the names are set, a name too long
            for the model's context.

    References:
        Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022, section 3.2.

    Deviations:
        The context starts at N(0, 0.02²), not at the words "a photo of a".

    >>> ImageConditionedPromptHead(context=[LearnedVectors(1)]).config()["reduction"]
    16
    """

    def __init__(
        self,
        *,
        context: Iterable[PromptContext] | None = None,
        unseen: TextHead | None = None,
        reduction: int = 16,
        suffix: str = ".",
        prompts_at_once: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(context=context, unseen=unseen, suffix=suffix)
        check_count("reduction", reduction)
        check_count("prompts_at_once", prompts_at_once)
        check_count("seed", seed, at_least=0)
        self.reduction = reduction
        self.prompts_at_once = prompts_at_once
        self.seed = seed
        self.network: nn.Sequential | None = None

    @staticmethod
    def _usual_context() -> list[PromptContext]:
        return [LearnedVectors(4, sharing="shared")]

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Make what is learned; the network is made when there are names for the first time."""
        super().set_classes(class_names, backbone)
        if self.network is None:
            generator = torch.Generator().manual_seed(self.seed)
            hidden = max(backbone.embed_dim // self.reduction, 1)
            self.network = nn.Sequential(
                seeded_linear(backbone.embed_dim, hidden, generator),
                nn.ReLU(),
                seeded_linear(hidden, backbone.token_dim, generator),
            ).to(backbone.logit_scale.device)

    @property
    def has_class_weights(self) -> bool:
        """Weights are made for each image."""
        return False

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Refuse: no class has weights without an image."""
        raise RuntimeError(
            "The class weights of an ImageConditionedPromptHead depend on the image: without one there are "
            "none. Call model(images) or head.logits(backbone, embeddings); what needs class "
            "weights needs another head, such as HybridPromptHead."
        )

    def logits(self, backbone: VisionLanguageBackbone, embeddings: Tensor) -> Tensor:
        """Map un-normalised embeddings (B, D) to finite logits (B, C) over all named classes."""
        self.names_or_error()
        seen = self.classes_seen.nonzero().flatten()
        logits = self.unseen.logits(backbone, embeddings)
        if len(seen) == 0 or len(embeddings) == 0:
            return logits
        classes_at_once = min(len(seen), self.prompts_at_once)
        images_at_once = self.prompts_at_once // classes_at_once
        rows = [
            torch.cat([self._part(backbone, images, ids) for ids in seen.split(classes_at_once)], dim=1)
            for images in embeddings.split(images_at_once)
        ]
        return logits.index_copy(1, seen, torch.cat(rows).to(logits.dtype))

    def _part(self, backbone: VisionLanguageBackbone, embeddings: Tensor, class_ids: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self._pairs(backbone, embeddings, class_ids)
        # Its annotation says nothing of what it returns: that of the function that it is given.
        result: Any = checkpoint(self._pairs, backbone, embeddings, class_ids, use_reentrant=False)
        return result

    def _pairs(self, backbone: VisionLanguageBackbone, embeddings: Tensor, class_ids: Tensor) -> Tensor:
        """Return the logits (B, K) of images and classes seen."""
        if self.network is None:
            raise RuntimeError("set_classes comes first")
        images = F.normalize(embeddings, dim=-1)
        shifts = self.network(images)[:, None, None]  # (B, 1, 1, W)
        context = self.hold_earlier(self.context_of(backbone, class_ids) + shifts, class_ids)
        context = context.flatten(0, 1)  # (B·K, L, W)
        weights = self.encode_prompts(backbone, class_ids.repeat(len(images)), context)
        cosine = (F.normalize(weights, dim=-1).unflatten(0, (len(images), -1)) * images[:, None]).sum(dim=-1)
        return backbone.logit_scale * cosine + backbone.logit_bias

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments; parts by kind and arguments."""
        own = {"reduction": self.reduction, "prompts_at_once": self.prompts_at_once, "seed": self.seed}
        return {**{key: value for key, value in super().config().items() if key != "classes_at_once"}, **own}
