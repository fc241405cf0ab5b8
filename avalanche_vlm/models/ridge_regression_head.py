"""Ridge regression on embeddings or on random features of them, fused with zero-shot scores."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from avalanche_vlm._checks import check_number, check_type
from avalanche_vlm.functional.discriminant import FeatureSums
from avalanche_vlm.functional.exact_sums import MOMENT_UNIT, UNIT, exact_sums
from avalanche_vlm.functional.ridge_regression import LEAST_RIDGE, ridge_regression_weights
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.closed_form_head import ClosedFormHead
from avalanche_vlm.models.fusion_rules import (
    SECOND_ALONE,
    FusionRule,
    check_fusion,
)
from avalanche_vlm.models.heads import TextHead
from avalanche_vlm.models.random_projection import RandomProjection
from avalanche_vlm.text import ClassNames

_ENTRIES_AT_ONCE = 2**23  # of projected rows, 64 MiB, or as many as G has


@final
class RidgeRegressionHead(ClosedFormHead):
    r"""Zero-shot scores fused with those of a ridge regression of the labels on the rows.

    .. math::
        q(c) = \mathrm{softmax}_{c \in F} \bigl( s \, h^T (G + \lambda I)^{-1} Q_c \bigr), \qquad
        G = \sum_i h_i h_i^T, \quad Q_c = \sum_{i: y_i = c} h_i, \quad
        \lambda = \rho \, \frac{\mathrm{tr}\, G}{M}

    over the classes F that have rows, with h the row u of unit length, or a `RandomProjection` of it. Classes
    without rows keep their zero-shot probability. Nothing trains by gradient, unless the zero-shot part is a
    head that learns.

    Rows, and their projections, are rounded to multiples of 2⁻¹⁶ and summed as whole numbers. No entry is
    larger than 1, and the product with the projection has no rounding error, so that G, Q and counts are the
    same to the last bit for any order, split and merge of up to 2³¹ - 1 rows.

    G takes 8 M² bytes, 32 MiB at M = 2048 and 763 MiB at M = 10000, and adding rows and solving about four
    times as much in all. A row takes about M² multiplications to add, and the solution M³ / 3, after each
    experience. On a processor M = 2048 is a good start: one core takes a second for two thousand rows.

    Args:
        zero_shot: the head that scores classes by their text; None for `ZeroShotHead`.
        projection: of rows to M features; None for the rows themselves.
        ridge: ρ, at least 1e-9; how strongly weights are drawn towards zero. On held-out rows of Caltech-101
            and Oxford-IIIT Pets, of 1e-5 to 3 that of the least cross-entropy is 0.01 to 0.3, with features
            of CLIP ViT-B/32 as with 2048 projections of them.
        scale: s, above 0. Regression answers labels of 0 and 1 with numbers in that range, which as logits
            would leave all classes about equally likely. 20 has the least cross-entropy on these held-out
            rows. With few rows of many classes (ImageNet, 4 of each) less weight is due than 1 in a fusion.
        fusion_weight: how both scores are put together: a number, the weight of a `LogLinearFusion`, where 0
            gives zero-shot; or a `FusionRule`. By default the regression alone decides within F.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range.

    Attributes:
        class_counts: int64 (C,), number of rows of each class.
        sums: float64 (C, M), Q.
        second_moment: int64 (M, M), G in units of 2⁻³².

    References:
        McDonnell et al., RanPAC: Random Projections and Pre-trained Models for Continual Learning,
        NeurIPS 2023 (arXiv 2307.02251), section 4.

    Deviations:
        There is no first phase, which trains the tower on the first experience; rows have unit length;
        projected rows are divided by a power of two, which cancels; ρ is given, not chosen on the last rows
        of each experience, which would make the result depend on their order; classes without rows keep
        their zero-shot probability.

    >>> import torch
    >>> from avalanche_vlm.models import CLIPClassifier, EmbeddingBackbone, TextFeatureHead
    >>> head = RidgeRegressionHead(TextFeatureHead(torch.eye(3)), projection=RandomProjection(64))
    >>> model = CLIPClassifier(EmbeddingBackbone(3), head, class_names=["cat", "dog", "cow"])
    >>> head.update(torch.eye(3)[:2], torch.tensor([1, 0]))
    >>> model(torch.eye(3)).argmax(dim=1)
    tensor([1, 0, 2])
    """

    class_counts: Tensor
    sums: Tensor
    second_moment: Tensor

    _BY_CLASS: ClassVar = {"class_counts": 0, "sums": 0}
    _FIXED = ("projection",)
    _SHARED = ("second_moment",)

    def __init__(
        self,
        zero_shot: TextHead | None = None,
        *,
        projection: RandomProjection | None = None,
        ridge: float = 0.1,
        scale: float = 20.0,
        fusion_weight: float | FusionRule = SECOND_ALONE,
    ) -> None:
        super().__init__(zero_shot)
        check_type("projection", projection, (RandomProjection, type(None)))
        check_number("ridge", ridge, at_least=LEAST_RIDGE)
        check_number("scale", scale, above=0)
        check_fusion("fusion_weight", fusion_weight)
        self.projection = projection
        self.ridge = ridge
        self.scale = scale
        self.fusion_weight = fusion_weight
        self._width = 0
        for name, empty in self._empty(0, 0).items():
            self.register_buffer(name, empty)

    def _empty(self, class_count: int, width: int) -> dict[str, Tensor]:
        features = self.projection.width if self.projection is not None and width > 0 else width
        return {
            "class_counts": torch.zeros(class_count, dtype=torch.int64),
            "sums": torch.zeros(class_count, features, dtype=torch.float64),
            "second_moment": torch.zeros(features, features, dtype=torch.int64),
        }

    @property
    def counts(self) -> Tensor:
        """int64 (C,), number of rows of each class."""
        return self.class_counts

    @property
    def width(self) -> int:
        """Width D of the rows."""
        return self._width

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Take the names; what was summed for earlier classes is kept if new names come after them."""
        super().set_classes(class_names, backbone)
        self._width = backbone.embed_dim

    def _add_rows(self, unit: Tensor, labels: Tensor) -> None:
        width = max(self.sums.shape[1], 1)
        at_once = max(_ENTRIES_AT_ONCE // width, width)
        for rows, targets in zip(unit.split(at_once), labels.split(at_once), strict=True):
            features = rows
            if self.projection is not None:
                features = (self.projection(rows) / UNIT).round() * UNIT
            more = exact_sums(features, targets, len(self.counts))
            for own, added in zip((self.class_counts, self.sums, self.second_moment), more, strict=True):
                own.add_(added[0] if added.ndim > own.ndim else added)

    def _settings(self) -> Any:
        return self.ridge, self.projection

    def _solved_anew(self, backbone: VisionLanguageBackbone) -> tuple[Tensor, Tensor]:
        sums = FeatureSums(self.class_counts, self.sums, self.second_moment.double().mul_(MOMENT_UNIT))
        classes, weights = ridge_regression_weights(sums, ridge=self.ridge)
        return classes, weights.float()

    def second_scores(
        self, backbone: VisionLanguageBackbone, embeddings: Tensor, raw: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the classes (K,) that have rows, and the scores (B, K) of the regression."""
        classes, weights = self.solved(backbone)
        features = F.normalize(embeddings.float(), dim=-1)
        if self.projection is not None:
            features = self.projection(features)
        return classes, self.scale * (features @ weights)

    def own_config(self) -> dict[str, Any]:
        """Return the arguments, the zero-shot head aside."""
        return {
            "projection": None if self.projection is None else self.projection.config(),
            "ridge": self.ridge,
            "scale": self.scale,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the head; a state dict fills in what was counted."""
        projection = config["projection"]
        made = None if projection is None else RandomProjection(**projection)
        return super().from_config({**config, "projection": made})
