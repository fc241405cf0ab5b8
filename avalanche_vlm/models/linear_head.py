"""A linear classifier that starts from text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.feature_heads import HeadFromText
from avalanche_vlm.models.heads import TextHead, adds_names, scaled_products, with_rows_kept
from avalanche_vlm.text import ClassNames


class LinearHead(HeadFromText):
    r"""A trainable linear classifier that starts as another head's cosine classifier.

    .. math:: z_c = s \Big\langle \frac{f}{\lVert f \rVert}, w_c \Big\rangle + b + b_c

    with the backbone's scale s and bias b, trainable w and :math:`b_c`, which start at the normalised
    class weights and at 0. Unlike those of `CosineHead`, the weights' lengths count.

    Args:
        initial: the head whose class weights are taken when the names are set; it is then left
            alone.

    Raises:
        TypeError: ``initial`` is not a `TextHead`.

    References:
        Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, section 2.

    Deviations:
        The factor s is kept apart from the weights, so that a learning rate means the same for every
        backbone; there is a bias.

    >>> from avalanche_vlm.models import TextFeatureHead
    >>> LinearHead(TextFeatureHead(torch.eye(3))).bias is None  # until the classes have names
    True
    """

    def __init__(self, initial: TextHead) -> None:
        super().__init__(initial)
        self.bias: nn.Parameter | None = None

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Start from the initial head; what was learned for earlier classes is kept."""
        zeros = torch.zeros(len(class_names), device=backbone.logit_scale.device)
        self.bias = with_rows_kept(self.bias, zeros, adds_names(self.class_names, class_names))
        super().set_classes(class_names, backbone)

    def start(self, weights: Tensor) -> Tensor:
        """Return the normalised class weights (C, D)."""
        return F.normalize(weights, dim=-1)

    def compare(self, backbone: VisionLanguageBackbone, embeddings: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B, C) of un-normalised embeddings (B, D)."""
        products = scaled_products(backbone, embeddings, weights)
        return products if self.bias is None else products + self.bias
