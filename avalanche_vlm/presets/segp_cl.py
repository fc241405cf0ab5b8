"""The published settings of SeGP-CL, as far as they are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, final

from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from avalanche_vlm.models import CLIPClassifier, DualPathHead, LoRA, VisionLanguageBackbone
from avalanche_vlm.presets.class_incremental_setting import ClassIncrementalSetting
from avalanche_vlm.presets.setting_a import setting_a
from avalanche_vlm.regularizers import AdversarialAnchors


@final
@dataclass(frozen=True)
class SeGPCLSetting:
    """What SeGP-CL was run with: numbers, and the parts that they make.

    Attributes:
        stream: data set, weights, templates, class order.
        learning_rate: of SGD, which falls along a cosine in each experience.
        epochs: of each experience.
        batch_size: training images of a batch.
        rank: of the low-rank updates of query, value and both layers of the MLP of both towers, of which
            B trains: 3,440,640 weights in ViT-B-16.
        seeds_per_class: images that become anchors, for each old class.
        anchor_steps: of projected gradient descent.
        anchor_step_size: of them, in pixel values.
        distillation_weight: λ_A.
        distillation_temperature: τ_A.
        geometry_weight: λ_GR.
        neighbours: of each new class.
        geometry_temperature: of their softmax.
        fusion_weight: β of the visual path.
        reference: where the setting was published.
    """

    stream: ClassIncrementalSetting
    learning_rate: float = 1e-3
    epochs: int = 10
    batch_size: int = 128
    rank: int = 32
    seeds_per_class: int = 5
    anchor_steps: int = 10
    anchor_step_size: float = 1.5e-3
    distillation_weight: float = 5.0
    distillation_temperature: float = 20.0
    geometry_weight: float = 1.0
    neighbours: int = 10
    geometry_temperature: float = 0.05
    fusion_weight: float = 0.5
    reference: str = "SeGP-CL (arXiv 2603.12055), by two summaries that agree"

    def model(
        self, class_names: Sequence[str], *, backbone: VisionLanguageBackbone | None = None, seed: int = 0
    ) -> CLIPClassifier:
        """Return the classifier: two paths, low-rank updates in both towers.

        Args:
            class_names: ``class_names(benchmark)``.
            backbone: in place of that of the published weights, which open_clip downloads.
            seed: of the factors that stay as they are drawn.
        """
        return CLIPClassifier(
            self.stream.backbone() if backbone is None else backbone,
            DualPathHead(self.stream.head(), fusion_weight=self.fusion_weight),
            class_names=class_names,
            trainable=LoRA(rank=self.rank, factors=("B",), seed=seed),
        )

    def optimizer(self, model: CLIPClassifier) -> SGD:
        """Return the published optimizer over what trains in a model."""
        return SGD(model.parameters(), lr=self.learning_rate)

    def plugins(self, optimizer: Optimizer) -> list[SupervisedPlugin[Any]]:
        """Return what lets the learning rate fall along a cosine in each experience."""
        return [LRSchedulerPlugin(CosineAnnealingLR(optimizer, T_max=self.epochs), reset_lr=True)]

    def anchors(self, **arguments: Any) -> AdversarialAnchors:
        """Return what makes the anchors.

        Args:
            **arguments: for `AdversarialAnchors`: what none of the summaries says, or other numbers.
        """
        own: dict[str, Any] = {
            "seeds_per_class": self.seeds_per_class,
            "steps": self.anchor_steps,
            "step_size": self.anchor_step_size,
        }
        return AdversarialAnchors(**{**own, **arguments})

    def strategy_arguments(self) -> dict[str, Any]:
        """Return the numbers that `strategies.SeGPCL` takes, to be passed on as ``**`` arguments."""
        return {
            "train_mb_size": self.batch_size,
            "train_epochs": self.epochs,
            "distillation_weight": self.distillation_weight,
            "distillation_temperature": self.distillation_temperature,
            "geometry_weight": self.geometry_weight,
            "neighbours": self.neighbours,
            "geometry_temperature": self.geometry_temperature,
        }

    def describe(self) -> dict[str, Any]:
        """Return all attributes as a dictionary that JSON can hold, to be kept beside results."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return told | {"stream": self.stream.describe()}


def segp_cl_setting(
    dataset: str, *, class_order: Sequence[int] | None = None, classes: Sequence[str] | None = None
) -> SeGPCLSetting:
    """Return what SeGP-CL was run with on a data set of setting A: OpenAI's ViT-B-16, ten experiences.

    ::

        setting = segp_cl_setting("cifar100")
        transform = setting.stream.backbone().eval_transform
        benchmark = setting.stream.benchmark("data", download=True, train_transform=transform, ...)
        model = setting.model(class_names(benchmark))
        optimizer = setting.optimizer(model)
        strategy = SeGPCL(
            model=model,
            optimizer=optimizer,
            anchors=setting.anchors(),
            plugins=setting.plugins(optimizer),
            **setting.strategy_arguments(),
        )

    Args:
        dataset: as in `setting_a`.
        class_order: likewise.
        classes: likewise.

    Raises:
        TypeError: as in `setting_a`.
        ValueError: likewise.

    References:
        SeGP-CL (arXiv 2603.12055). No text of it could be read here, but three summaries: two agree on these
        numbers and on ViT-B/16; the third has ViT-L/14, other data sets and other baselines, and is not
        followed.

    Deviations:
        Whether the published runs have the class orders of setting A, and its template, is not known; nor
        is momentum or weight decay, of which SGD has none here. ε, λ_p, the anchors of a step and the
        temperature of the transfer are in no summary: they are the defaults of `AdversarialAnchors` and
        `strategies.SeGPCL`, where to set them.

    >>> setting = segp_cl_setting("cub200")
    >>> setting.stream.model, setting.learning_rate, setting.strategy_arguments()["distillation_weight"]
    ('ViT-B-16', 0.001, 5.0)
    """
    return SeGPCLSetting(setting_a(dataset, class_order=class_order, classes=classes))
