"""Distillation through the similarities of images and texts: in both directions, in one, or by features."""

from __future__ import annotations

from typing import final

from torch import Tensor

from avalanche_vlm._checks import check_number
from avalanche_vlm.functional import (
    contrastive_distillation,
    cosine_logits,
    feature_distance,
    soft_label_divergence,
)
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.regularizers.pair_regularizer import PairDistillation
from avalanche_vlm.regularizers.pairs import ImageTextPairs, PairFeatures
from avalanche_vlm.regularizers.teachers import Teacher


class SimilarityDistillation(PairDistillation):
    """A `PairDistillation` with a temperature; what it compares is up to the subclass.

    Args:
        pairs: where images and texts come from.
        teacher: whose weights the teacher has; None for `LastTeacher`.
        temperature: τ of both softmaxes.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a temperature that is not positive.
    """

    def __init__(
        self, pairs: ImageTextPairs, teacher: Teacher | None = None, *, temperature: float = 2.0
    ) -> None:
        super().__init__(pairs, teacher)
        check_number("temperature", temperature, above=0)
        self.temperature = temperature


@final
class CrossModalDistillation(SimilarityDistillation):
    r"""Keeps the similarities of images and texts as a teacher had them, read in both directions.

    .. math:: L = \frac{\tau^2}{B} \sum_i KL(\sigma(M'_{i \cdot}/\tau) \| \sigma(M_{i \cdot}/\tau))
                + \frac{\tau^2}{C} \sum_j KL(\sigma(M'_{\cdot j}/\tau) \| \sigma(M_{\cdot j}/\tau))

    with the similarities M = s cos(image, text) of the student and M' of the teacher.

    Args:
        pairs: where images and texts come from, e.g. `SyntheticPairs`.
        teacher: whose weights the teacher has; None for `LastTeacher`.
        temperature: τ of both softmaxes.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a temperature that is not positive.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025,
        L_KD; the factor τ² is in the authors' code.

    Deviations:
        The code's cross-entropy with soft labels, less its lowest value: the gradient is the same. The
        teacher is asked once an experience about a pool of pairs, not once a step.
    """

    def compare(self, model: CLIPClassifier, student: PairFeatures) -> Tensor:
        """Return the divergence in both directions."""
        teacher = self.says(model, student).similarities
        return contrastive_distillation(student.similarities, teacher, temperature=self.temperature)


@final
class ImageToTextDistillation(SimilarityDistillation):
    r"""Keeps which texts an image is like, and not which images a text is like.

    .. math:: L = \frac{\tau^2}{B} \sum_i KL(\sigma(M'_{i \cdot}/\tau) \| \sigma(M_{i \cdot}/\tau))

    Args:
        pairs: where images and texts come from.
        teacher: whose weights the teacher has; None for `LastTeacher`.
        temperature: τ.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a temperature that is not positive.

    References:
        One direction of L_KD of Wu et al., CVPR 2025 (GIFT). Their ablation "image-only" is another one:
        `ImageOnlyDistillation`.

    Deviations:
        As in `CrossModalDistillation`. Both towers learn, where both train.
    """

    def compare(self, model: CLIPClassifier, student: PairFeatures) -> Tensor:
        """Return the divergence of the rows."""
        teacher = self.says(model, student).similarities
        return soft_label_divergence(student.similarities, teacher, temperature=self.temperature)


@final
class TextToImageDistillation(SimilarityDistillation):
    r"""Keeps which images a text is like, and not which texts an image is like.

    .. math:: L = \frac{\tau^2}{C} \sum_j KL(\sigma(M'_{\cdot j}/\tau) \| \sigma(M_{\cdot j}/\tau))

    Args:
        pairs: where images and texts come from.
        teacher: whose weights the teacher has; None for `LastTeacher`.
        temperature: τ.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a temperature that is not positive.

    References:
        One direction of L_KD of Wu et al., CVPR 2025 (GIFT). Their ablation "text-only" is another one:
        `TextOnlyDistillation`.

    Deviations:
        As in `CrossModalDistillation`. Both towers learn, where both train.
    """

    def compare(self, model: CLIPClassifier, student: PairFeatures) -> Tensor:
        """Return the divergence of the columns."""
        teacher = self.says(model, student).similarities
        return soft_label_divergence(student.similarities.T, teacher.T, temperature=self.temperature)


@final
class FeatureDistillation(PairDistillation):
    r"""Keeps the features of images and of texts where a teacher had them.

    .. math:: L = \frac1{BD} \sum_i \lVert \hat f_i - \hat f'_i \rVert^2
                + \frac1{CD} \sum_j \lVert \hat g_j - \hat g'_j \rVert^2

    with features (D,) on the unit sphere, of images f and texts g.

    Args:
        pairs: where images and texts come from.
        teacher: whose weights the teacher has; None for `LastTeacher`.

    Raises:
        TypeError: an argument has a wrong type.

    References:
        The ablation "feature distillation" of Wu et al., CVPR 2025 (GIFT).

    Deviations:
        The poster does not say whether features are normalised; here they are, as in all comparisons.
    """

    def compare(self, model: CLIPClassifier, student: PairFeatures) -> Tensor:
        """Return the distances."""
        teacher = self.says(model, student)
        distance = feature_distance(student.images, teacher.images) + feature_distance(
            student.texts, teacher.texts
        )
        return distance / student.images.shape[1]


class ImageOnlyDistillation(SimilarityDistillation):
    r"""Keeps what images are like among the texts of the teacher; the text tower gets no gradient.

    .. math:: L = D(\tilde M, M') + D(\tilde M^\top, M'^\top), \qquad
              \tilde M_{ij} = s \cos(f_i, g'_j), \quad M'_{ij} = s' \cos(f'_i, g'_j)

    with D of `soft_label_divergence`, image features f and text features g; those of the teacher have a
    prime.

    Args:
        pairs: where images and texts come from, e.g. `SyntheticPairs`.
        teacher: whose weights the teacher has; None for `LastTeacher`.
        temperature: τ.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a temperature that is not positive.

    References:
        The ablation "image-only" of Wu et al., Synthetic Data is an Elegant GIFT for Continual
        Vision-Language Models, CVPR 2025, as the authors' code has it.

    Deviations:
        As in `CrossModalDistillation`, the cross-entropy less its lowest value.
    """

    advice = "Let CLIPClassifier train what images pass: trainable='image' or 'both', or LoRA(...)."

    def compare(self, model: CLIPClassifier, student: PairFeatures) -> Tensor:
        """Return the divergence of the student's images among the teacher's texts."""
        teacher = self.says(model, student)
        mixed = cosine_logits(student.images, teacher.texts, student.scale, student.bias)
        return contrastive_distillation(mixed, teacher.similarities, temperature=self.temperature)


@final
class TextOnlyDistillation(SimilarityDistillation):
    r"""Keeps what texts are like among the images of the teacher; the image tower gets no gradient.

    .. math:: L = D(\tilde M, M') + D(\tilde M^\top, M'^\top), \qquad
              \tilde M_{ij} = s \cos(f'_i, g_j), \quad M'_{ij} = s' \cos(f'_i, g'_j)

    with D of `soft_label_divergence`, image features f and text features g; those of the teacher have a
    prime.

    Args:
        pairs: where images and texts come from, e.g. `SyntheticPairs`.
        teacher: whose weights the teacher has; None for `LastTeacher`.
        temperature: τ.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a temperature that is not positive.

    References:
        The ablation "text-only" of Wu et al., Synthetic Data is an Elegant GIFT for Continual
        Vision-Language Models, CVPR 2025, as the authors' code has it.

    Deviations:
        As in `CrossModalDistillation`, the cross-entropy less its lowest value.
    """

    advice = (
        "Let CLIPClassifier train what texts pass: trainable='text' or 'both', LoRA(...), or a head that "
        "learns, with texts=HeadTexts()."
    )

    def compare(self, model: CLIPClassifier, student: PairFeatures) -> Tensor:
        """Return the divergence of the student's texts among the teacher's images."""
        teacher = self.says(model, student)
        mixed = cosine_logits(teacher.images, student.texts, student.scale, student.bias)
        return contrastive_distillation(mixed, teacher.similarities, temperature=self.temperature)


@final
class ReferenceDistillation(ImageOnlyDistillation):
    r"""ZSCL's distillation: `ImageOnlyDistillation` on pictures and sentences that belong to nobody.

    .. math:: L = D(\tilde M, M') + D(\tilde M^\top, M'^\top), \qquad
              \tilde M_{ij} = s \cos(f_i, g'_j), \quad M'_{ij} = s' \cos(f'_i, g'_j)

    Args:
        pairs: where images and texts come from, `ReferencePairs` in the paper.
        teacher: whose weights the teacher has; None for `LastTeacher`, `InitialTeacher` in the paper.
        temperature: τ.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a temperature that is not positive.

    References:
        Zheng et al., Preventing Zero-Shot Transfer Degradation in Continual Learning of
        Vision-Language Models (ZSCL), ICCV 2023, section 4.1; that both logits take the teacher's texts
        is in the authors' code.

    Deviations:
        As in `CrossModalDistillation`, the cross-entropy less its lowest value.
    """
