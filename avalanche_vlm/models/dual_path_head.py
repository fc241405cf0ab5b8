"""Text and visual prototypes side by side in one head."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checked_features import check_features
from avalanche_vlm._checks import check_choice, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.fused_head import FusedHead
from avalanche_vlm.models.fusion_rules import (
    FusionRule,
    check_fusion,
)
from avalanche_vlm.models.heads import KeptBytes, TextHead, VisualSpace, adds_names, bytes_of_classes
from avalanche_vlm.text import ClassNames

VISUAL_SPACES: tuple[VisualSpace, ...] = get_args(VisualSpace)


class DualPathHead(FusedHead):
    r"""Text logits in training; in evaluation fused with the cosines to a visual prototype of each class.

    .. math::
        z_c = s \cos(v, w_c) + \beta \, s \cos(h, p_c) + k, \qquad c \in F

    with the image's embedding v and its visual features h, the text weights w, and the prototypes p of
    the classes F that have one. k is the same for all of F and such that F as a whole keeps the
    probability that text gives it, as in `functional.fused_logits`; classes without a prototype keep their
    text logits. In training mode the logits are those of the text alone, whatever prototypes there are.
    `PrototypePlugin` fills in prototypes, `PrototypeTransferPlugin` also moves them with the tower.

    Args:
        text: the head that compares with text; None for `ZeroShotHead`.
        fusion_weight: β, at least 0; 0 is the text alone. Or a `FusionRule` for another way to put both
            together.
        visual_space: where prototypes live: ``"raw"``, the pooled features before the projection into the
            embedding space, for streams of images; or ``"embedding"``, for streams of embeddings and for
            towers without raw features.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a wrong number or space; when the names are set, raw features of a tower that has none;
            in evaluation, embeddings where prototypes are of raw features.

    Attributes:
        prototypes: (C, D'), the mean visual features of each class, zeros for those without.
        counts: int64 (C,), how many samples each is the mean of.

    References:
        SeGP-CL (arXiv 2603.12055), dual-path inference, with β = 0.5.

    Deviations:
        The sources do not say in which scale the two scores are added; here both are cosines times the
        model's scale s. They score learned classes only: that the others keep their probability is ours.

    >>> import torch
    >>> from avalanche_vlm.models import CLIPClassifier, EmbeddingBackbone, TextFeatureHead
    >>> head = DualPathHead(TextFeatureHead(torch.eye(3)), visual_space="embedding")
    >>> model = CLIPClassifier(EmbeddingBackbone(3), head, class_names=["cat", "dog", "cow"]).eval()
    >>> head.update(torch.tensor([[0.0, 1, 0], [1, 0, 0]]), torch.tensor([0, 1]))
    >>> model(torch.tensor([[1.0, 0.9, 0.0]])).argmax(dim=1)
    tensor([0])
    >>> head.fusion_weight = 2.0
    >>> model(torch.tensor([[1.0, 0.9, 0.0]])).argmax(dim=1)
    tensor([1])
    """

    text: TextHead
    prototypes: Tensor
    counts: Tensor

    _FIRST = "text"

    def __init__(
        self,
        text: TextHead | None = None,
        *,
        fusion_weight: float | FusionRule = 0.5,
        visual_space: VisualSpace = "raw",
    ) -> None:
        super().__init__(text)
        if isinstance(text, DualPathHead):
            raise wrong_value("text", "a head without prototypes of its own", "a DualPathHead")
        check_fusion("fusion_weight", fusion_weight)
        check_choice("visual_space", visual_space, VISUAL_SPACES)
        self.fusion_weight = fusion_weight
        self.visual_space: VisualSpace = visual_space
        self.register_buffer("prototypes", torch.zeros(0, 0))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Take the names; prototypes of earlier classes are kept if new names come after them."""
        width = backbone.embed_dim if self.visual_space == "embedding" else backbone.raw_dim
        if width is None:
            raise wrong_value(
                "visual_space",
                f"'embedding' for a {type(backbone).__name__} whose images have no raw features",
                repr(self.visual_space),
            )
        prototypes = torch.zeros(len(class_names), width, device=self.prototypes.device)
        counts = torch.zeros(len(class_names), dtype=torch.int64, device=self.counts.device)
        if adds_names(self.class_names, class_names):
            prototypes[: len(self.prototypes)], counts[: len(self.counts)] = self.prototypes, self.counts
        self.prototypes, self.counts = prototypes, counts
        super().set_classes(class_names, backbone)

    @property
    def classes_with_prototype(self) -> Tensor:
        """The ids (K,) of the classes that have a prototype."""
        return self.counts.nonzero().flatten()

    def visual_features(self, embeddings: Tensor, raw: Tensor | None) -> Tensor:
        """Return the features (B, D') that prototypes are compared with.

        Args:
            embeddings: (B, D).
            raw: raw visual features (B, D_raw); None where the stream is one of embeddings.

        Raises:
            ValueError: raw features are needed and there are none.
        """
        if self.visual_space == "embedding":
            return embeddings
        if raw is None:
            raise wrong_value(
                "x",
                "images, because the prototypes are means of raw visual features",
                "embeddings",
                "Use DualPathHead(visual_space='embedding') for a stream of embeddings.",
            )
        return raw

    def visual_prototypes(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prototypes (K, D') of classes (K,), and which have one, bool (K,)."""
        return self.prototypes[class_ids], self.counts[class_ids] > 0

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take samples into the means of their classes.

        Args:
            features: floats (N, D'), as from `visual_features`.
            labels: int64 (N,), ids of named classes.

        Raises:
            TypeError: not a tensor of floats and one of whole numbers.
            ValueError: a wrong shape, a label without a name, or a feature that is not finite.
        """
        count, width = len(self.names_or_error()), self.prototypes.shape[1]
        check_features(features, labels, width, class_count=count, at_least=0)
        device = self.prototypes.device
        labels, features = labels.to(device, torch.int64), features.to(device, torch.float64)
        counts = self.counts + labels.bincount(minlength=count)
        sums = self.prototypes.double() * self.counts[:, None]
        sums = sums.index_add(0, labels, features)
        # In place, as is all state of a head that resuming fills in.
        self.prototypes.copy_(sums / counts.clamp(min=1)[:, None])
        self.counts.copy_(counts)

    def own_kept_bytes(self) -> KeptBytes:
        """Return the bytes of the prototypes and their counts."""
        return KeptBytes(by_class=bytes_of_classes((self.prototypes, self.counts), self.counts))

    @property
    def reads_raw_features(self) -> bool:
        """Whether prototypes are of raw features, or the text head reads them."""
        return self.visual_space == "raw" or self.text.reads_raw_features

    @property
    def is_fused(self) -> bool:
        """Not in training: then the text is alone."""
        return not self.training and self.fusion_weight != 0

    def second_scores(
        self, backbone: VisionLanguageBackbone, embeddings: Tensor, raw: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the classes (K,) that have a prototype, and the scaled cosines (B, K) to these."""
        classes = self.classes_with_prototype
        if len(classes) == 0:
            return classes, embeddings.new_zeros(len(embeddings), 0)
        features = self.visual_features(embeddings, raw).float()
        prototypes = F.normalize(self.prototypes[classes].float(), dim=1)
        return classes, backbone.logit_scale * F.normalize(features, dim=1) @ prototypes.T

    def own_config(self) -> dict[str, Any]:
        """Return the arguments, the text head aside."""
        return {"visual_space": self.visual_space}
