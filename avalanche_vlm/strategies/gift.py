"""GIFT: distillation on synthetic images, with adaptive consolidation of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_vlm._checks import check_count, check_number
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.plugins import AdaptiveWeightConsolidationPlugin
from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    ImageTextAlignment,
    SumRegularizer,
    SyntheticPairs,
    Teacher,
)
from avalanche_vlm.sources import ImageNetPrompts, ImageSource, LearnedClassPrompts, PromptPool, PromptUnion
from avalanche_vlm.strategies.domain_fine_tuning import DomainFineTuning
from avalanche_vlm.strategies.template_arguments import TemplateArguments, check_plugins


@final
class GIFT(DomainFineTuning):
    r"""Fine-tune, and keep what the model says of images that are generated from what it knows.

    .. math:: L = L_{CE} + \alpha L_{KD} + \beta L_{Align} + \lambda \sum_i F_i (\theta_i - \theta^{t-1}_i)^2

    Before each experience prompts about general classes and the classes learned so far are drawn, an
    image is generated for each, and the model as it was becomes the teacher. It is wiring:
    `SyntheticPairs`, `CrossModalDistillation` and `ImageTextAlignment` in a `SumRegularizer`, inside
    `AdaptiveWeightConsolidationPlugin`; each says more, and works in other strategies. The state of the
    optimizer is fresh in each experience.

    Args:
        model: the classifier, ``CLIPClassifier(..., trainable="both")`` in the paper.
        optimizer: made of ``model.parameters()``; AdamW without weight decay in the paper.
        images: the text-to-image model, e.g. ``StoredImageSource("generated", DiffusionImageSource(...))``,
            which keeps what it has drawn.
        prompts: what to draw prompts from; None for ImageNet's names and the classes learned so far.
        images_per_experience: number of images for an experience.
        image_batch_size: of them, in each training batch.
        teacher: whose weights the teacher has; None for `LastTeacher`.
        distillation_weight: α.
        alignment_weight: β.
        consolidation_weight: λ.
        temperature: of the distillation.
        label_smoothing: of the task's loss, unless ``criterion`` is given, and of the alignment.
        seed: of the prompts, images and batches that are drawn.
        plugins: further plugins of ours or the host's.
        **template: the host's arguments; ``train_mb_size`` is 64 unless it is given, and the criterion
            cross-entropy over the classes of the experience.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number out of its range; in training, a model in which no tower trains.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025
        (arXiv 2503.04229); weights and temperature are those of the authors' configuration.

    Deviations:
        Those of its parts. The images are not augmented, so that the teacher sees each of them once.
    """

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        optimizer: Optimizer,
        images: ImageSource,
        prompts: PromptPool | None = None,
        images_per_experience: int = 1000,
        image_batch_size: int = 64,
        teacher: Teacher | None = None,
        distillation_weight: float = 1.0,
        alignment_weight: float = 0.25,
        consolidation_weight: float = 1.0,
        temperature: float = 2.0,
        label_smoothing: float = 0.2,
        seed: int = 0,
        plugins: Sequence[Any] = (),
        **template: Unpack[TemplateArguments],
    ) -> None:
        check_plugins(plugins)
        check_count("images_per_experience", images_per_experience)
        check_count("image_batch_size", image_batch_size)
        check_number("distillation_weight", distillation_weight, at_least=0)
        check_number("alignment_weight", alignment_weight, at_least=0)
        pairs = SyntheticPairs(
            images,
            PromptUnion([ImageNetPrompts(), LearnedClassPrompts()]) if prompts is None else prompts,
            count=images_per_experience,
            batch_size=image_batch_size,
            seed=seed,
        )
        terms = SumRegularizer(
            [
                CrossModalDistillation(pairs, teacher, temperature=temperature),
                ImageTextAlignment(pairs, label_smoothing=label_smoothing),
            ],
            [distillation_weight, alignment_weight],
        )
        consolidation = AdaptiveWeightConsolidationPlugin(terms, consolidation_weight=consolidation_weight)
        super().__init__(
            model=model,
            optimizer=optimizer,
            label_smoothing=label_smoothing,
            plugins=[*plugins, consolidation],
            **template,
        )
