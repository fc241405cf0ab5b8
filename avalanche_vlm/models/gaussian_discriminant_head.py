"""A Gaussian discriminant on embeddings, fused with zero-shot scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, final, get_args

import torch
from torch import Tensor
from typing_extensions import Self

from avalanche_vlm._checks import check_choice, check_count, check_number, wrong_value
from avalanche_vlm.functional.discriminant import PRIORS, FeatureSums, Prior, discriminant_weights
from avalanche_vlm.functional.exact_sums import (
    MOMENT_UNIT,
    ExactSums,
    Sketches,
    exact_sums,
    row_hashes,
    sketches,
)
from avalanche_vlm.functional.held_out import (
    LeftOutScores,
    chosen_fusion,
    fusion_grid,
    left_out_differences,
    left_out_scores,
)
from avalanche_vlm.functional.predictive_discriminant import (
    PredictiveDiscriminant,
    fit_predictive_discriminant,
)
from avalanche_vlm.functional.ridge_regression import LEAST_RIDGE
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.closed_form_head import ClosedFormHead
from avalanche_vlm.models.fusion_rules import (
    FusionRule,
    LogLinearFusion,
    check_fusion,
    fusion_from_config,
)
from avalanche_vlm.models.heads import KeptBytes, TextHead, adds_names
from avalanche_vlm.models.modes import in_eval_mode
from avalanche_vlm.text import ClassNames

MeanPrior = Literal["text", "classes", "none"]
MEAN_PRIORS: tuple[MeanPrior, ...] = get_args(MeanPrior)
FOLDS = 4
_MOST_LEFT_OUT = 2**14  # rows of an experience, and
_MOST_SCORES = 2**24  # rows times classes
_FEWEST_LEFT_OUT = 64
_MOST_SKETCHES = 16
_GROWTH = 0.05  # rows are left out and scored once the sums have grown by so much


@final
class GaussianDiscriminantHead(ClosedFormHead):
    r"""Zero-shot scores fused with Gaussians of the classes' embeddings, which share one covariance.

    .. math::
        \log p(c) = \begin{cases}
            \log p_0(c) & c \text{ without rows} \\
            \log p_0(F) + \log \mathrm{softmax}_{c \in F} \bigl( t \log p_0(c) + a \log q(c) \bigr)
                & c \in F, \text{ with rows}
        \end{cases}

    :math:`p_0` is the softmax of the zero-shot logits and q that of the discriminant, whose class means have
    a prior around what the text of each class predicts; `functional.fit_predictive_discriminant` has its
    equations. Nothing trains by gradient, unless the zero-shot part is a head that learns.

    a and t are chosen on held-out rows: a hash of its values puts each row into one of four folds, sums are
    kept for each, and at the end of each experience its rows are scored by the sums of the other folds.
    `functional.held_out.chosen_fusion` says how: where rows leave doubt, on the side of zero-shot. What is
    scored while other classes were not there yet depends on the order of the experiences a little; counts,
    means, prior and covariance do not, nor do logits at given a and t: they are the same to the last bit for
    any order, split and merge (on one machine with one number of threads).

    Args:
        zero_shot: the head that scores classes by their text; None for `ZeroShotHead`.
        fusion_weight: how both scores are put together. None to choose a and t on held-out rows; a number, a
            with t = 1, where 0 gives zero-shot; or a `FusionRule`.
        mean_prior: what class means are expected to be: ``"text"``, what their text predicts;
            ``"classes"``, the mean of the others; ``"none"``, no expectation, for linear discriminant
            analysis. Heads without class weights have no text, and take the second.
        ridge: how strongly S is drawn towards the identity, as a multiple of what the number of
            rows asks for.
        prior: of the classes in q: ``"uniform"``, or ``"counts"``, their share of the rows.
        sketch: so many random sums of each class (1 to 16) say how it spreads in directions of its own; 0
            for one covariance for all. For classes of many rows. a and t are chosen without it.
        sketch_share: how much of a class's covariance they make up; see
            `functional.PredictiveDiscriminant.with_spreads`.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range.

    Attributes:
        fold_counts: int64 (4, C), number of rows of each class in each fold; one fold where a is given.
        fold_sums: float64 (4, C, D), the sum of these rows, of unit length and rounded to 2⁻¹⁶.
        fold_moments: int64 (4, D, D), the sum over all rows of u uᵀ, in units of 2⁻³².
        text: (C, D), the text features of the classes when they were named, where ``mean_prior`` is "text".

    References:
        Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024
        (arXiv 2402.04087), section 3; Hayes and Kanan, Lifelong Machine Learning with Deep Streaming
        Linear Discriminant Analysis, CVPRW 2020, section 4; Ioffe, Probabilistic Linear Discriminant
        Analysis, ECCV 2006.

    Deviations:
        The covariance is exact, from second moments, and not updated by a moving estimate. Classes
        without rows keep their zero-shot probability. The prior of means and the choice of a and t are
        ours. With ``mean_prior="none"`` and a number as ``fusion_weight`` this is what Wang et al. do, with
        their covariance.

    >>> import torch
    >>> from avalanche_vlm.models import CLIPClassifier, EmbeddingBackbone, TextFeatureHead
    >>> head = GaussianDiscriminantHead(TextFeatureHead(torch.eye(3)))
    >>> model = CLIPClassifier(EmbeddingBackbone(3), head, class_names=["cat", "dog", "cow"])
    >>> head.update(torch.eye(3)[:2], torch.tensor([0, 1]))
    >>> model(torch.eye(3)).argmax(dim=1)
    tensor([0, 1, 2])
    """

    fold_counts: Tensor
    fold_sums: Tensor
    fold_moments: Tensor
    sketches: Tensor
    sketch_signs: Tensor
    text: Tensor
    left_out_sums: Tensor
    left_out_products: Tensor
    left_out_weights: Tensor
    scored_rows: Tensor

    _BY_CLASS: ClassVar = {"fold_counts": 1, "fold_sums": 1, "sketches": 0, "sketch_signs": 0}
    _SHARED = ("fold_moments", "left_out_sums", "left_out_products", "left_out_weights", "scored_rows")
    _STATE = ("text",)
    _FIXED = ("folds", "sketch")

    def __init__(
        self,
        zero_shot: TextHead | None = None,
        *,
        fusion_weight: float | FusionRule | None = None,
        mean_prior: MeanPrior = "text",
        ridge: float = 1.0,
        prior: Prior = "uniform",
        sketch: int = 0,
        sketch_share: float = 0.02,
    ) -> None:
        super().__init__(zero_shot)
        if fusion_weight is not None:
            check_fusion("fusion_weight", fusion_weight)
        check_choice("mean_prior", mean_prior, MEAN_PRIORS)
        check_number("ridge", ridge, at_least=LEAST_RIDGE)
        check_choice("prior", prior, PRIORS)
        self.fusion_weight = fusion_weight
        self.folds = FOLDS if fusion_weight is None else 1
        self.mean_prior: MeanPrior = mean_prior
        self.ridge = ridge
        self.prior: Prior = prior
        check_count("sketch", sketch, at_least=0)
        if sketch > _MOST_SKETCHES or (sketch > 0 and mean_prior == "none"):
            got = f"{sketch}" + (" with mean_prior='none'" if mean_prior == "none" else "")
            raise wrong_value("sketch", f"at most {_MOST_SKETCHES}, with a prior of class means", got)
        check_number("sketch_share", sketch_share, above=0, below=1)
        self.sketch = sketch
        self.sketch_share = sketch_share
        for name, empty in self._empty(0, 0).items():
            self.register_buffer(name, empty)
        self.register_buffer("text", torch.zeros(0, 0))
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def _empty(self, class_count: int, width: int) -> dict[str, Tensor]:
        folds, pairs = self.folds, len(fusion_grid()) if self.folds > 1 else 0
        return {
            "fold_counts": torch.zeros(folds, class_count, dtype=torch.int64),
            "fold_sums": torch.zeros(folds, class_count, width, dtype=torch.float64),
            "fold_moments": torch.zeros(folds, width, width, dtype=torch.int64),
            "sketches": torch.zeros(class_count, self.sketch, width, dtype=torch.float64),
            "sketch_signs": torch.zeros(class_count, self.sketch, dtype=torch.float64),
            "left_out_sums": torch.zeros(2, pairs, dtype=torch.float64),
            "left_out_products": torch.zeros(pairs, pairs, dtype=torch.float64),
            "left_out_weights": torch.zeros(2, dtype=torch.float64),
            "scored_rows": torch.zeros((), dtype=torch.int64),
        }

    @property
    def width(self) -> int:
        """Width D of the rows."""
        return self.fold_sums.shape[-1]

    @property
    def counts(self) -> Tensor:
        """int64 (C,), number of rows of each class."""
        return self.fold_counts.sum(dim=0)

    @property
    def sums(self) -> Tensor:
        """float64 (C, D), the sum of the rows of each class."""
        return self.fold_sums.sum(dim=0)

    @property
    def second_moment(self) -> Tensor:
        """float64 (D, D), the sum over all rows of u uᵀ."""
        return self._sums().second_moment

    def _left_out(self) -> LeftOutScores:
        return LeftOutScores(self.left_out_sums, self.left_out_products, self.left_out_weights)

    def _sums(self, without: int | None = None) -> FeatureSums:
        return ExactSums(self.fold_counts, self.fold_sums, self.fold_moments).total(without)

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Take the names and their text; what was summed for earlier classes is kept if new names follow."""
        kept = len(self.text) if adds_names(self.class_names, class_names) else 0
        if not adds_names(self.class_names, class_names):
            self._waiting = []
        super().set_classes(class_names, backbone)
        if self.mean_prior != "text":
            return
        with torch.inference_mode(False):
            text = torch.zeros(len(class_names), backbone.embed_dim, device=self.text.device)
        if self.first.has_class_weights:
            ids = torch.arange(len(class_names))
            with torch.inference_mode(False), torch.no_grad():
                text.copy_(self.first.text_part.frozen_text(backbone, ids))
        if kept:
            text[:kept] = self.text
        self.text = text

    def _add_rows(self, unit: Tensor, labels: Tensor) -> None:
        more = exact_sums(unit, labels, self.fold_counts.shape[1], folds=self.folds)
        for own, added in zip((self.fold_counts, self.fold_sums, self.fold_moments), more, strict=True):
            own.add_(added)
        if self.sketch > 0:
            drawn = sketches(unit, labels, len(self.sketches), size=self.sketch)
            self.sketches.add_(drawn.rows)
            self.sketch_signs.add_(drawn.signs)
        if self.folds > 1:
            self._waiting.append((unit.float(), labels, row_hashes(unit)))
            if sum(len(rows) for rows, _, _ in self._waiting) > 2 * self._most_left_out:
                self._waiting = [self._fewest_hashes()]

    @property
    def _most_left_out(self) -> int:
        classes = max(self.fold_counts.shape[1], 1)
        return min(_MOST_LEFT_OUT, max(_FEWEST_LEFT_OUT, _MOST_SCORES // classes))

    def _fewest_hashes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the waiting rows, at most so many as are scored: those of the smallest hashes."""
        unit, labels, hashes = (torch.cat(each) for each in zip(*self._waiting, strict=True))
        order = hashes.argsort(stable=True)[: self._most_left_out]
        return unit[order], labels[order], hashes[order]

    @torch.no_grad()
    def settle(self, backbone: VisionLanguageBackbone) -> None:
        """Score the rows that were added since the last time by the sums of the other folds.

        Of many rows those with the smallest hashes are taken. Rows that add less than a twentieth to the sums
        are left out, so that a class costs the same however many there are.
        """
        if not self._waiting:
            return
        if self.first.reads_raw_features:
            raise wrong_value(
                "zero_shot",
                "a head that needs no raw features, because the weight is chosen on embeddings",
                f"a {type(self.first).__name__} with prototypes of raw features",
                "Give fusion_weight a number, or DualPathHead visual_space='embedding'.",
            )
        unit, labels, hashes = self._fewest_hashes()
        self._waiting = []
        total = int(self.counts.sum())
        if total - int(self.scored_rows) < _GROWTH * total:
            return
        self.scored_rows.fill_(total)
        classes = self.counts.nonzero().flatten()
        columns = torch.full((len(self.counts),), -1, device=classes.device)
        with torch.autocast(unit.device.type, enabled=False), in_eval_mode(self.first):
            for fold in range(self.folds):
                if int(self.fold_counts[fold].sum()) == total:
                    continue  # no row is in another fold
                scored, scores = self._scorer(fold, classes)
                columns.fill_(-1)
                columns[scored] = torch.arange(len(scored), device=scored.device)
                chosen = (hashes % self.folds == fold) & (columns[labels] >= 0)
                rows, targets = unit[chosen].to(backbone.logit_scale.dtype), columns[labels[chosen]]
                first = self.first.logits(backbone, rows).float()[:, scored]
                found = left_out_differences(first, scores(rows.float()), targets)
                for own, added in zip(self._left_out(), left_out_scores(found, len(scored)), strict=True):
                    own.add_(added)

    def _scorer(
        self, without: int | None = None, classes: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the classes (K,) that are scored, and what maps unit rows (B, D) to their scores (B, K)."""
        check_choice("mean_prior", self.mean_prior, MEAN_PRIORS)
        check_choice("prior", self.prior, PRIORS)
        if self.mean_prior == "none":
            solved = discriminant_weights(self._sums(without), ridge=self.ridge, prior=self.prior)
            return solved[0], _Linear(solved[1].float(), solved[2].float())
        fitted = self._fitted(without, classes)
        if self.sketch > 0 and without is None:
            kept = Sketches(self.sketches, self.sketch_signs)
            fitted = fitted.with_spreads(self._sums(), kept, self.sketch_share)
        fitted = fitted.to(torch.float32)
        return fitted.classes, fitted.scores

    def own_kept_bytes(self) -> KeptBytes:
        """Return the bytes of the sums, and of rows that wait for `settle`, which are shared."""
        by_class, shared = super().own_kept_bytes()
        return KeptBytes(by_class, shared + sum(each.nbytes for batch in self._waiting for each in batch))

    def _fitted(self, without: int | None = None, classes: Tensor | None = None) -> PredictiveDiscriminant:
        if self.mean_prior == "text" and len(self.text) == 0:
            raise wrong_value(
                "mean_prior",
                "'text' when the head is built, because text features are taken when classes are named",
                f"{self.mean_prior!r} afterwards",
                "Build another head.",
            )
        text = self.text.double() if self.mean_prior == "text" and bool(self.text.any()) else None
        return fit_predictive_discriminant(
            self._sums(without), text, classes=classes, ridge=self.ridge, by_counts=self.prior == "counts"
        )

    def _take_over(self, other: Any) -> None:
        """Let rows of the other head that wait to be scored wait here."""
        device = self.fold_sums.device
        self._waiting += [(x.to(device), y.to(device), each.to(device)) for x, y, each in other._waiting]
        if self._waiting:
            self._waiting = [self._fewest_hashes()]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Take over another state, to which rows that wait here do not belong."""
        self._waiting = []
        super()._load_from_state_dict(*args, **kwargs)

    def _solved_anew(self, backbone: VisionLanguageBackbone) -> Any:
        return self._scorer() if bool((self.fold_counts > 0).any()) else None

    def _settings(self) -> Any:
        return self.mean_prior, self.ridge, self.prior, self.sketch_share

    def second_scores(
        self, backbone: VisionLanguageBackbone, embeddings: Tensor, raw: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the classes (K,) that have rows, and the scores (B, K) of the discriminant."""
        self.settle(backbone)
        solved = self.solved(backbone)
        if solved is None:
            return self.counts.nonzero().flatten(), embeddings.new_zeros(len(embeddings), 0)
        classes, scores = solved
        return classes, scores(torch.nn.functional.normalize(embeddings.float(), dim=-1))

    @property
    def fusion_rule(self) -> FusionRule:
        """How both scores are put together now."""
        if self.fusion_weight is not None:
            return super().fusion_rule
        if self.folds == 1:
            raise wrong_value(
                "fusion_weight",
                "a number, as when the head was built, so that no folds were kept to choose it by",
                None,
                "Build a head with fusion_weight=None.",
            )
        rows = int(self.fold_counts.sum())
        if rows >= _FEWEST_LEFT_OUT and not bool(self.left_out_weights.any()):
            warnings.warn(
                f"No left-out row was scored although there are {rows} rows, so that zero-shot stands alone: "
                "this state was taken before head.settle(model.backbone).",
                stacklevel=2,
            )
        return LogLinearFusion(*chosen_fusion(self._left_out()))

    def own_config(self) -> dict[str, Any]:
        """Return the arguments, the zero-shot head aside."""
        own: dict[str, Any] = {"mean_prior": self.mean_prior, "ridge": self.ridge, "prior": self.prior}
        own |= {"sketch": self.sketch, "sketch_share": self.sketch_share, "folds": self.folds}
        return own

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the head; a state dict fills in what was counted."""
        config = {"mean_prior": "none", "folds": 1, **config}  # what there was before there were others
        weight, folds = config["fusion_weight"], config.pop("folds")
        head = super().from_config({**config, "fusion_weight": None if folds > 1 else weight})
        head.fusion_weight = fusion_from_config(weight)
        return head

    def state_of_now(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return sums of before there were folds as those of one."""
        if "second_moment" not in state:
            return state
        counts, sums, moment = (state.pop(name) for name in ("counts", "sums", "second_moment"))
        if counts.dtype != torch.int64 or not (sums.is_floating_point() and moment.is_floating_point()):
            raise ValueError(f"its sums are of {counts.dtype}, {sums.dtype} and {moment.dtype}")
        whole = (moment.double() / MOMENT_UNIT).round().to(torch.int64)
        found = {"fold_counts": counts, "fold_sums": sums.double(), "fold_moments": whole}
        missing = [f"left_out_{name}" for name in ("sums", "products", "weights")]
        missing += ["scored_rows", "text", "sketches", "sketch_signs"]
        empty = {name: getattr(self, name) for name in missing}
        return {**state, **empty, **{name: each[None] for name, each in found.items()}}


class _Linear(NamedTuple):
    """Maps unit rows (B, D) to scores (B, K)."""

    weights: Tensor
    biases: Tensor

    def __call__(self, unit: Tensor) -> Tensor:
        return unit @ self.weights.T + self.biases
