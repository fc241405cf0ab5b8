"""Prompts of several parts for the classes seen, zero-shot weights for the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from avalanche_vlm._checks import check_type, wrong_type, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.generated_context import GeneratedContext
from avalanche_vlm.models.heads import TextHead, adds_names
from avalanche_vlm.models.learned_vectors import LearnedVectors
from avalanche_vlm.models.parts import part_config, part_from_config
from avalanche_vlm.models.prompt_context import PromptContext
from avalanche_vlm.models.prompt_head import CLASSES_AT_ONCE, PromptHead
from avalanche_vlm.models.zero_shot_head import ZeroShotHead
from avalanche_vlm.text import ClassNames


class HybridPromptHead(PromptHead):
    r"""Prompts of learned and generated vectors for the classes seen, another head for the others.

    .. math:: w_c = f_T([\text{start}]\,[V_c]\,[h_c]\,[\text{name}_c\text{.}]\,[\text{end}])
              \quad (c \text{ seen}), \qquad w_c = u_c \quad (c \text{ not seen yet})

    so that one forward pass over all named classes serves class-incremental accuracy and CI-Transfer.
    The parts stand in the prompt in the order in which they are given. Only classes seen are encoded
    in a training step; the weights u are kept for as long as nothing that they depend on changes.

    A strategy says which classes were seen; in a loop of your own, call
    ``model.head.adapt(classes_seen)`` with a bool (C,) before the first step.

    Args:
        context: the parts; None for those of the paper, ``[LearnedVectors(1), GeneratedContext()]``.
        unseen: the head whose weights u, and whose way to compare, hold for the classes not seen yet;
            None for ``ZeroShotHead()``. With ``UnnormalisedZeroShotHead()`` they are scored as in the
            paper's code.
        suffix: what follows the name.
        classes_at_once: how many prompts go through the text tower together in training, see
            `PromptHead`; None for all of them.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: no part, ``classes_at_once`` below 1; when the names are set, a name too long for
            the model's context.

    References:
        Frascaroli et al., CLIP with Generative Latent Replay: a Strong Baseline for Incremental
        Learning, BMVC 2024, and its code.

    Deviations:
        Classes not seen yet are compared by cosine, as those seen are. The paper's code does not
        normalise their weights, which lifts them above all classes seen:
        ``unseen=UnnormalisedZeroShotHead()`` does the same.

    >>> from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone
    >>> backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    >>> model = CLIPClassifier(backbone, HybridPromptHead(), class_names=["red circle", "blue square"])
    >>> [name for name, _ in model.named_parameters()][:2]
    ['head.context.0.vectors', 'head.context.1.network.0.weight']
    >>> shared = HybridPromptHead(context=[LearnedVectors(4, sharing="shared")])
    >>> generated = HybridPromptHead(context=[GeneratedContext()])
    """

    classes_seen: Tensor

    def __init__(
        self,
        *,
        context: Iterable[PromptContext] | None = None,
        unseen: TextHead | None = None,
        suffix: str = ".",
        classes_at_once: int | None = CLASSES_AT_ONCE,
    ) -> None:
        super().__init__(suffix=suffix, classes_at_once=classes_at_once)
        self.context = _as_parts(self._usual_context() if context is None else context)
        check_type("unseen", unseen, (TextHead, type(None)))
        self.unseen = ZeroShotHead() if unseen is None else unseen
        self.register_buffer("classes_seen", torch.zeros(0, dtype=torch.bool))

    @staticmethod
    def _usual_context() -> list[PromptContext]:
        return [LearnedVectors(), GeneratedContext()]

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Make what is learned for each class; that of earlier classes is kept when names are added."""
        tokens = self.prompt_tokens(class_names, backbone, sum(part.length for part in self._parts()))
        added = adds_names(self.class_names, class_names)
        for part in self._parts():
            part.set_classes(class_names, backbone, added=added)
        self.unseen.to(backbone.logit_scale.device).set_classes(class_names, backbone)
        super().set_classes(class_names, backbone)
        self._tokens = tokens
        seen = torch.zeros(len(class_names), dtype=torch.bool, device=tokens.device)
        if added:
            seen[: len(self.classes_seen)] = self.classes_seen
        self.classes_seen = seen

    def _parts(self) -> list[PromptContext]:
        return [part for part in self.context if isinstance(part, PromptContext)]

    def adapt(self, classes_seen: Tensor) -> None:
        """Give prompts to the classes (C,), bool, that training has met."""
        classes_seen = classes_seen.to(self.classes_seen.device)
        new = classes_seen & ~self.classes_seen
        # In place, so that weights kept for other classes are noticed to be out of date.
        self.classes_seen.copy_(classes_seen)
        if bool(new.any()):
            for part in self._parts():
                part.begin_classes(new)
        self.unseen.adapt(classes_seen)

    def context_of(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the vectors (K, L, W) of all parts, one part after the other."""
        vectors = [part(backbone, class_ids) for part in self._parts()]
        context = torch.cat([part.expand(len(class_ids), -1, -1) for part in vectors], dim=1)
        return self.hold_earlier(context, class_ids)

    def hold_earlier(self, context: Tensor, class_ids: Tensor) -> Tensor:
        """Return a context (..., K, L, W) without the gradient of classes whose prompts do not learn."""
        for part in self._parts():
            learns = part.classes_that_learn()
            if learns is not None:
                of_class = learns[class_ids.to(learns.device)][:, None, None]
                context = torch.where(of_class, context, context.detach())
        return context

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the weights (K, D): features of prompts, or what ``unseen`` says."""
        ids = class_ids.to(self.classes_seen.device)
        seen = self.classes_seen[ids]
        if not bool(seen.any()):
            return self.unseen(backbone, ids)
        prompts = super().encode(backbone, ids[seen])
        if len(prompts) == len(ids):
            return prompts
        others = self.unseen(backbone, ids[~seen])
        # The order of the rows below: those seen first. Under mixed precision the two may differ in dtype.
        order = torch.cat([seen.nonzero(), (~seen).nonzero()]).flatten()
        dtype = torch.promote_types(prompts.dtype, others.dtype)
        return torch.cat([prompts.to(dtype), others.to(dtype)])[order.argsort()]

    def compare(self, backbone: VisionLanguageBackbone, embeddings: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B, C): cosines for classes seen, what ``unseen`` says for the others."""
        by_cosine = super().compare(backbone, embeddings, weights)
        if bool(self.classes_seen.all()):
            return by_cosine
        return torch.where(self.classes_seen, by_cosine, self.unseen.compare(backbone, embeddings, weights))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments; parts by kind and arguments."""
        return {
            "context": [part_config(part) for part in self._parts()],
            "unseen": part_config(self.unseen),
            **super().config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the head; a state dict replaces its weights."""
        context = [part_from_config(part, PromptContext, "head") for part in config["context"]]
        unseen = part_from_config(config["unseen"], TextHead, "head")
        others = {key: value for key, value in config.items() if key not in ("context", "unseen")}
        return cls(context=context, unseen=unseen, **others)


def _as_parts(context: Iterable[PromptContext]) -> nn.ModuleList:
    advice = "Write context=[LearnedVectors(1), GeneratedContext()]."
    if not isinstance(context, Iterable):
        raise wrong_type("context", "a list of PromptContext", context, advice)
    parts = list(context)
    for part in parts:
        if not isinstance(part, PromptContext):
            raise wrong_type("context", "a list of PromptContext", part, advice)
    if not parts or len({id(part) for part in parts}) < len(parts):
        raise wrong_value("context", "a list of different parts, at least one", parts, advice)
    return nn.ModuleList(parts)
