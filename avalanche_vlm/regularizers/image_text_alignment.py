"""Alignment of images with their own captions."""

from __future__ import annotations

from typing import final

from torch import Tensor

from avalanche_vlm._checks import check_number, wrong_value
from avalanche_vlm.functional import image_text_alignment
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.regularizers.pair_regularizer import PairRegularizer
from avalanche_vlm.regularizers.pairs import ImageTextPairs, PairFeatures


@final
class ImageTextAlignment(PairRegularizer):
    r"""Aligns images with their captions, by the contrastive loss that CLIP was trained with.

    .. math:: L = -\frac1B \sum_{ij} I_{ij} \log \sigma_j(M_{i \cdot})
                  -\frac1B \sum_{ij} I_{ij} \log \sigma_i(M_{\cdot j})

    with the similarities M = s cos(image, caption), and targets I in which equal captions share the mass:
    see `functional.image_text_alignment`.

    Args:
        pairs: where images and captions come from.
        label_smoothing: mass in [0, 1] that is spread evenly over the batch.

    Raises:
        TypeError: no `ImageTextPairs`.
        ValueError: smoothing outside [0, 1]; in training, images and texts that are no pairs.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025,
        L_Align; the smoothing of 0.2 is in the authors' code.

    Deviations:
        None.
    """

    def __init__(self, pairs: ImageTextPairs, *, label_smoothing: float = 0.2) -> None:
        super().__init__(pairs)
        check_number("label_smoothing", label_smoothing, at_least=0, at_most=1)
        self.label_smoothing = label_smoothing

    def compare(self, model: CLIPClassifier, student: PairFeatures) -> Tensor:
        """Return the loss of the pairs."""
        if student.batch.text_of is None:
            raise wrong_value(
                "pairs",
                "pairs of images and their captions",
                f"{type(self.pairs).__name__}, whose texts belong to no image",
                "Use SyntheticPairs or CurrentPairs.",
            )
        return image_text_alignment(
            student.similarities, student.batch.text_of, label_smoothing=self.label_smoothing
        )
