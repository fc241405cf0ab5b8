"""A Gaussian discriminant on embeddings, fused with zero-shot scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from avalanche_vlm._checked_features import check_features
from avalanche_vlm._checks import check_choice, check_number, check_type, wrong_value
from avalanche_vlm.functional.discriminant import (
    PRIORS,
    FeatureSums,
    Prior,
    discriminant_weights,
    feature_sums,
    fused_logits,
)
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.heads import TextHead, adds_names
from avalanche_vlm.models.parts import part_config, part_from_config
from avalanche_vlm.models.zero_shot_head import ZeroShotHead
from avalanche_vlm.text import ClassNames, PromptTemplate

_SUMS = ("counts", "sums", "second_moment")


class GaussianDiscriminantHead(TextHead):
    r"""Zero-shot scores fused with Gaussians of the classes' embeddings, which share one covariance.

    .. math::
        \log p(c) = \begin{cases}
            \log p_0(c) & c \text{ without features} \\
            \log p_0(F) + \log \mathrm{softmax}_{c \in F} \bigl( \log p_0(c) + a \log q(c) \bigr)
                & c \in F, \text{ with features}
        \end{cases}

    :math:`p_0` is the softmax of the zero-shot logits and q that of the discriminant,
    :math:`q(c) \propto \exp(w_c^T u + b_c)` with :math:`w_c = S^{-1} \mu_c`,
    :math:`b_c = -\frac12 \mu_c^T S^{-1} \mu_c + \log \pi_c` and :math:`u = x / \lVert x \rVert`. The
    logits have this p as their softmax over all named classes.

    Kept are a count and a sum for each class, and one (D, D) matrix in all, in float64: any order of the
    samples, any split into experiences and any split over processes (`merge`) end in the same weights.
    Nothing trains by gradient, unless the zero-shot part is a head that learns.

    Args:
        zero_shot: the head that scores classes by their text; None for `ZeroShotHead`.
        fusion_weight: the factor a; 0 gives zero-shot. Few samples want less: with four images per class
            of ImageNet, 0.1 gave 63.2 %, 0.3 gave 59.6 %, and zero-shot 61.1 %. A weak zero-shot model
            wants more: validation chose 10 for the small CLIP on the small world, and 30 on digits.
        ridge: how strongly S is drawn towards the identity, as a multiple of what the number of
            features asks for; see `functional.discriminant.shrunk_covariance`.
        prior: of the classes in q: ``"uniform"``, or ``"counts"``, their share of the samples.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range.

    Attributes:
        counts: int64 (C,), number of samples of each class.
        sums: float64 (C, D), the sum of their normalised embeddings.
        second_moment: float64 (D, D), the sum over all samples of u uᵀ.

    References:
        Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024
        (arXiv 2402.04087), section 3; Hayes and Kanan, Lifelong Machine Learning with Deep Streaming
        Linear Discriminant Analysis, CVPRW 2020, section 4.

    Deviations:
        The covariance is exact, from second moments, and not updated by a moving estimate. Classes
        without samples keep their zero-shot probability. The fusion weight is an argument; Wang et al.
        choose it on validation data. See the functions of `functional.discriminant` for S.

    >>> import torch
    >>> from avalanche_vlm.models import CLIPClassifier, EmbeddingBackbone, TextFeatureHead
    >>> head = GaussianDiscriminantHead(TextFeatureHead(torch.eye(3)))
    >>> model = CLIPClassifier(EmbeddingBackbone(3), head, class_names=["cat", "dog", "cow"])
    >>> head.update(torch.eye(3)[:2], torch.tensor([0, 1]))
    >>> model(torch.eye(3)).argmax(dim=1)
    tensor([0, 1, 2])
    """

    counts: Tensor
    sums: Tensor
    second_moment: Tensor

    def __init__(
        self,
        zero_shot: TextHead | None = None,
        *,
        fusion_weight: float = 0.3,
        ridge: float = 1.0,
        prior: Prior = "uniform",
    ) -> None:
        super().__init__()
        check_type("zero_shot", zero_shot, (TextHead, type(None)))
        check_number("fusion_weight", fusion_weight, at_least=0)
        check_number("ridge", ridge, above=0)
        check_choice("prior", prior, PRIORS)
        self.zero_shot = ZeroShotHead() if zero_shot is None else zero_shot
        self.fusion_weight = fusion_weight
        self.ridge = ridge
        self.prior: Prior = prior
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("second_moment", torch.zeros(0, 0, dtype=torch.float64))
        self._solved: tuple[Any, tuple[Tensor, Tensor, Tensor]] | None = None

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Take the names; what was counted for earlier classes is kept if new names come after them."""
        self.zero_shot.set_classes(class_names, backbone)
        count, size, device = len(class_names), backbone.embed_dim, self.sums.device
        counts = torch.zeros(count, dtype=torch.int64, device=device)
        sums = torch.zeros(count, size, dtype=torch.float64, device=device)
        if adds_names(self.class_names, class_names):
            counts[: len(self.counts)], sums[: len(self.sums)] = self.counts, self.sums
        else:
            self.second_moment = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.counts, self.sums = counts, sums
        super().set_classes(class_names, backbone)

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add samples.

        Args:
            embeddings: floats (N, D), un-normalised.
            labels: int64 (N,), ids of named classes.

        Raises:
            TypeError: not tensors of floats and of whole numbers.
            ValueError: a wrong shape, a label without a name, or an embedding that is not finite.
        """
        count, width = len(self.names_or_error()), self.sums.shape[1]
        check_features(embeddings, labels, width, argument="embeddings", class_count=count, at_least=0)
        labels = labels.to(self.sums.device, torch.int64)
        self._add(feature_sums(embeddings.to(self.sums.device), labels, count))

    def merge(self, other: GaussianDiscriminantHead) -> None:
        """Add the samples of another head, which saw others of the same classes.

        Raises:
            TypeError: ``other`` is no such head.
            ValueError: it has other names.
        """
        check_type("other", other, GaussianDiscriminantHead)
        if other.names_or_error().names != self.names_or_error().names:
            got = f"one with {len(other.counts)} other names"
            raise wrong_value("other", "a head with the same class names", got)
        device = self.sums.device
        self._add(FeatureSums(*(getattr(other, name).to(device) for name in _SUMS)))

    @torch.no_grad()
    def _add(self, more: FeatureSums) -> None:
        for name, value in more._asdict().items():
            getattr(self, name).add_(value)

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the class weights (K, D) of the zero-shot part."""
        return self.zero_shot.encode(backbone, class_ids)

    def logits(self, backbone: VisionLanguageBackbone, embeddings: Tensor) -> Tensor:
        """Map un-normalised embeddings (B, D) to logits (B, C) over all named classes."""
        zero_shot = self.zero_shot.logits(backbone, embeddings).float()
        # Weights of a discriminant are large and cancel: half precision would leave nothing of them.
        with torch.autocast(embeddings.device.type, enabled=False):
            classes, weights, biases = self._weights()
            unit = torch.nn.functional.normalize(embeddings.float(), dim=-1)
            scores = unit @ weights.T + biases
            return fused_logits(zero_shot, scores, classes, fusion_weight=self.fusion_weight)

    @property
    def text_part(self) -> TextHead:
        """That of the zero-shot head."""
        return self.zero_shot.text_part

    @property
    def has_class_weights(self) -> bool:
        """Whether the zero-shot head has some."""
        return self.zero_shot.has_class_weights

    def templates_of(self, dataset: str) -> tuple[PromptTemplate, ...]:
        """Return those of the zero-shot head."""
        return self.zero_shot.templates_of(dataset)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return classes (K,), weights (K, D) and biases (K,), solved anew when something has changed."""
        own = [getattr(self, name) for name in _SUMS]
        state = [self.ridge, self.prior, *((t.data_ptr(), t._version) for t in own)]
        if self._solved is None or self._solved[0] != state:
            with torch.no_grad():
                if bool((self.counts > 0).any()):
                    solved = discriminant_weights(FeatureSums(*own), ridge=self.ridge, prior=self.prior)
                    weights = solved[1].float(), solved[2].float()
                else:
                    solved = (self.counts.nonzero().flatten(),)
                    weights = self.sums[:0].float(), self.sums.new_zeros(0).float()
            self._solved = state, (solved[0], *weights)
        return self._solved[1]

    def adapt(self, classes_seen: Tensor) -> None:
        """Pass on the classes seen."""
        self.zero_shot.adapt(classes_seen)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Another device is followed; `half()` and the like are not, for the sums would lose all meaning.
        kept = [getattr(self, name) for name in _SUMS]
        super()._apply(fn, recurse)
        for name, tensor in zip(_SUMS, kept, strict=True):
            setattr(self, name, tensor.to(getattr(self, name).device))
        self._solved = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_solved": None}

    def config(self) -> dict[str, Any]:
        """Return the arguments, the zero-shot head by kind and configuration."""
        own = {"fusion_weight": self.fusion_weight, "ridge": self.ridge, "prior": self.prior}
        return {"zero_shot": part_config(self.zero_shot), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the head; a state dict fills in what was counted."""
        own = {name: value for name, value in config.items() if name != "zero_shot"}
        return cls(part_from_config(config["zero_shot"], TextHead, "head"), **own)
