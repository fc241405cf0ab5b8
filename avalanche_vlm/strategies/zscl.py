"""ZSCL: distillation on reference images and texts, and an ensemble of weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset
from typing_extensions import Unpack

from avalanche_vlm._checks import check_count, check_number
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.plugins import RegularizerPlugin, WeightEnsemblePlugin
from avalanche_vlm.regularizers import (
    InitialTeacher,
    PreviousWeightsPenalty,
    ReferenceDistillation,
    ReferencePairs,
    Teacher,
)
from avalanche_vlm.strategies.domain_fine_tuning import DomainFineTuning
from avalanche_vlm.strategies.template_arguments import TemplateArguments, check_plugins


@final
class ZSCL(DomainFineTuning):
    r"""Fine-tune, and keep what the initial model says of reference images among reference texts.

    .. math:: L = L_{CE} + \alpha L_{dist} + \lambda \sum_i (\theta_i - \theta^{t-1}_i)^2

    and the mean of the weights along the way at the end of each experience. It is wiring:
    `ReferenceDistillation`, `PreviousWeightsPenalty` and `WeightEnsemblePlugin`. The state of the
    optimizer is fresh in each experience.

    Args:
        model: the classifier, ``CLIPClassifier(..., trainable="both")`` in the paper.
        optimizer: made of ``model.parameters()``; AdamW without weight decay in the paper.
        images: reference images: see `ReferencePairs`.
        texts: reference texts.
        image_batch_size: reference images of a batch.
        texts_per_batch: reference texts of a batch; None for all.
        teacher: whose weights the teacher has; None for `InitialTeacher`.
        distillation_weight: α.
        penalty_weight: λ.
        ensemble_every: number of steps between the weights that are averaged.
        ensemble_first: after how many steps the first of them are taken; None for ``ensemble_every``, as the
            paper says, 1 as the authors' code does.
        temperature: of the distillation.
        label_smoothing: of the task's loss, unless ``criterion`` is given.
        seed: of the images and texts that are drawn.
        plugins: further plugins of ours or the host's.
        **template: the host's arguments; ``train_mb_size`` is 64 unless it is given, and the criterion
            cross-entropy over the classes of the experience.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number out of its range; in training, a model in which no image tower trains.

    References:
        Zheng et al., Preventing Zero-Shot Transfer Degradation in Continual Learning of
        Vision-Language Models, ICCV 2023.

    Deviations:
        Those of its parts.
    """

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        optimizer: Optimizer,
        images: Dataset[Any] | Tensor,
        texts: Iterable[str],
        image_batch_size: int = 64,
        texts_per_batch: int | None = None,
        teacher: Teacher | None = None,
        distillation_weight: float = 1.0,
        penalty_weight: float = 1.0,
        ensemble_every: int = 100,
        ensemble_first: int | None = None,
        temperature: float = 2.0,
        label_smoothing: float = 0.2,
        seed: int = 0,
        plugins: Sequence[Any] = (),
        **template: Unpack[TemplateArguments],
    ) -> None:
        check_plugins(plugins)
        check_count("image_batch_size", image_batch_size)
        check_number("distillation_weight", distillation_weight, at_least=0)
        check_number("penalty_weight", penalty_weight, at_least=0)
        check_count("ensemble_every", ensemble_every)
        if ensemble_first is not None:
            check_count("ensemble_first", ensemble_first)
        pairs = ReferencePairs(
            images, texts, batch_size=image_batch_size, texts_per_batch=texts_per_batch, seed=seed
        )
        distillation = ReferenceDistillation(
            pairs, InitialTeacher() if teacher is None else teacher, temperature=temperature
        )
        own = [
            RegularizerPlugin(distillation, distillation_weight),
            RegularizerPlugin(PreviousWeightsPenalty(), penalty_weight),
            WeightEnsemblePlugin(ensemble_every, first=ensemble_first),
        ]
        super().__init__(
            model=model,
            optimizer=optimizer,
            label_smoothing=label_smoothing,
            plugins=[*plugins, *own],
            **template,
        )
