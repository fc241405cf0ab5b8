"""The mean embedding of each class as its weight, fused with zero-shot scores."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_type, wrong_value
from avalanche_vlm.functional.exact_sums import UNIT
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.closed_form_head import ClosedFormHead
from avalanche_vlm.models.fusion_rules import (
    SECOND_ALONE,
    FusionRule,
    check_fusion,
)
from avalanche_vlm.models.heads import TextHead

_LARGEST = 2.0**10


@final
class NearestClassMeanHead(ClosedFormHead):
    r"""Zero-shot scores fused with the cosine to the mean of the rows of each class.

    .. math::
        q(c) = \mathrm{softmax}_{c \in F} \Bigl(
            \tau \, \frac{x^T \mu_c}{\lVert x \rVert \lVert \mu_c \rVert} \Bigr), \qquad
        \mu_c = \frac{1}{n_c} \sum_{i: y_i = c} u_i

    over the classes F that have rows, with the logit scale :math:`\tau` of the backbone, and u the embedding,
    of unit length or as it is. Classes without rows keep their zero-shot probability. Nothing trains by
    gradient, unless the zero-shot part is a head that learns.

    Rows are rounded to multiples of 2⁻¹⁶, so that sums are the same to the last bit for any order, split and
    merge: of rows of unit length always, of others for up to 2²⁷ rows of a class.

    Args:
        zero_shot: the head that scores classes by their text; None for `ZeroShotHead`.
        normalise_first: whether rows get unit length before the mean is taken. Otherwise no entry may exceed
            1024, and those far below 1 lose digits; CLIP's are around 1.
        fusion_weight: how both scores are put together: a number, the weight of a `LogLinearFusion`, where 0
            gives zero-shot; or a `FusionRule`. By default the means alone decide within F.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range.

    Attributes:
        class_counts: int64 (C,), number of rows of each class.
        sums: float64 (C, D), their sum.

    References:
        Zhou et al., Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and
        Adaptivity are All You Need, IJCV 2024 (arXiv 2303.07338), section 4.1 (SimpleCIL).

    Deviations:
        There rows are not normalised first, which ``normalise_first=False`` does; classes without rows keep
        their zero-shot probability.

    >>> import torch
    >>> from avalanche_vlm.models import CLIPClassifier, EmbeddingBackbone, TextFeatureHead
    >>> head = NearestClassMeanHead(TextFeatureHead(torch.eye(3)))
    >>> model = CLIPClassifier(EmbeddingBackbone(3), head, class_names=["cat", "dog", "cow"])
    >>> head.update(torch.eye(3)[:2], torch.tensor([1, 0]))
    >>> model(torch.eye(3)).argmax(dim=1)
    tensor([1, 0, 2])
    """

    class_counts: Tensor
    sums: Tensor

    _BY_CLASS: ClassVar = {"class_counts": 0, "sums": 0}
    _FIXED = ("normalise_first",)

    def __init__(
        self,
        zero_shot: TextHead | None = None,
        *,
        normalise_first: bool = True,
        fusion_weight: float | FusionRule = SECOND_ALONE,
    ) -> None:
        super().__init__(zero_shot)
        check_type("normalise_first", normalise_first, bool)
        check_fusion("fusion_weight", fusion_weight)
        self.normalise_first = normalise_first
        self.fusion_weight = fusion_weight
        for name, empty in self._empty(0, 0).items():
            self.register_buffer(name, empty)

    def _empty(self, class_count: int, width: int) -> dict[str, Tensor]:
        return {
            "class_counts": torch.zeros(class_count, dtype=torch.int64),
            "sums": torch.zeros(class_count, width, dtype=torch.float64),
        }

    @property
    def counts(self) -> Tensor:
        """int64 (C,), number of rows of each class."""
        return self.class_counts

    @property
    def width(self) -> int:
        """Width D of the rows."""
        return self.sums.shape[1]

    def _rounded(self, embeddings: Tensor) -> Tensor:
        if self.normalise_first:
            return super()._rounded(embeddings)
        rows = embeddings.detach().double()
        largest = float(rows.abs().max()) if rows.numel() else 0.0
        if largest > _LARGEST:
            advice = "Divide them by a number, or take normalise_first=True."
            raise wrong_value("embeddings", f"of entries up to {_LARGEST:g}", f"{largest:g}", advice)
        return (rows / UNIT).round() * UNIT

    def _add_rows(self, unit: Tensor, labels: Tensor) -> None:
        self.class_counts.add_(labels.bincount(minlength=len(self.counts)))
        self.sums.index_add_(0, labels, unit)

    def _settings(self) -> Any:
        return ()

    def _solved_anew(self, backbone: VisionLanguageBackbone) -> tuple[Tensor, Tensor]:
        classes = self.counts.nonzero().flatten()
        return classes, F.normalize(self.sums[classes], dim=1).float()

    def second_scores(
        self, backbone: VisionLanguageBackbone, embeddings: Tensor, raw: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the classes (K,) that have rows, and the scaled cosines (B, K) to their means."""
        classes, means = self.solved(backbone)
        unit = F.normalize(embeddings.float(), dim=-1)
        return classes, backbone.logit_scale.float() * (unit @ means.T)

    def own_config(self) -> dict[str, Any]:
        """Return the arguments, the zero-shot head and the fusion aside."""
        return {"normalise_first": self.normalise_first}
