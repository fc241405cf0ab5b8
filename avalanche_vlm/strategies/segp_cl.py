"""SeGP-CL: what lies between old and new classes is probed by adversarial anchors, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_vlm._checks import check_number, check_type
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.plugins import (
    AdversarialAnchorDistillationPlugin,
    LabelSpaceCrossEntropy,
    PrototypeTransferPlugin,
    RegularizerPlugin,
)
from avalanche_vlm.plugins.prototypes import prototype_head
from avalanche_vlm.regularizers import AdversarialAnchors, Teacher, TextGeometry
from avalanche_vlm.strategies.template import VLMTemplate
from avalanche_vlm.strategies.template_arguments import TemplateArguments, check_plugins


@final
class SeGPCL(VLMTemplate):
    r"""Train both towers on new classes; keep what was said of anchors, and how names lie to each other.

    .. math:: L = L_{CE} + \lambda_A L_{ACGD} + \lambda_{GR} L_{GR}

    Before each experience images of the new classes are moved towards the old ones
    (`AdversarialAnchors`); in training the last model's distribution over the old classes is distilled
    on them (`AnchorDistillation`), and new names keep their place among their neighbours
    (`TextGeometry`); afterwards the prototypes of old classes follow the anchors
    (`PrototypeTransferPlugin`), and evaluation fuses them with text (`DualPathHead`). Each part works in
    other strategies, alone or beside others; an ablation is another list of plugins under `FineTune`. The
    state of the optimizer is fresh in each experience.

    Args:
        model: a classifier with a `DualPathHead`; ``trainable=LoRA(rank=32, factors=("B",))`` in the paper.
        optimizer: made of ``model.parameters()``; SGD with a cosine in the paper.
        anchors: None for `AdversarialAnchors` with its defaults.
        teacher: whose weights the teacher of the distillation has; None for `LastTeacher`.
        distillation_weight: λ_A.
        distillation_temperature: of L_ACGD.
        geometry_weight: λ_GR.
        neighbours: of each new class, in L_GR.
        geometry_temperature: of L_GR.
        transfer_temperature: of the weights of the anchors.
        plugins: further plugins of ours or the host's.
        **template: the host's arguments; ``train_mb_size`` is 128 unless it is given, and the criterion
            cross-entropy over the classes of the experience.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a model with another head, or a number out of its range; in training, a model in which
            no text tower trains, or a stream without images.

    References:
        Continual Learning with Vision-Language Models via Semantic-Geometry Preservation (SeGP-CL, arXiv
        2603.12055), under review. Known here from three summaries, two of which agree: ViT-B/16, with
        CIFAR-100, ImageNet-R, ImageNet-Sub, CUB-200 and UCF101. The third has ViT-L/14 and other data
        sets, and is not followed.

    Deviations:
        Those of its parts; each says which numbers and formulas no summary gives. The loss over the
        classes of the experience alone is our reading.
    """

    _fresh_optimizer_state = True

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        optimizer: Optimizer,
        anchors: AdversarialAnchors | None = None,
        teacher: Teacher | None = None,
        distillation_weight: float = 5.0,
        distillation_temperature: float = 20.0,
        geometry_weight: float = 1.0,
        neighbours: int = 10,
        geometry_temperature: float = 0.05,
        transfer_temperature: float = 0.1,
        plugins: Sequence[Any] = (),
        **template: Unpack[TemplateArguments],
    ) -> None:
        check_type("model", model, CLIPClassifier)
        prototype_head(model)
        check_type("anchors", anchors, (AdversarialAnchors, type(None)))
        check_number("distillation_weight", distillation_weight, at_least=0)
        check_number("geometry_weight", geometry_weight, at_least=0)
        check_number("distillation_temperature", distillation_temperature, above=0)
        check_number("geometry_temperature", geometry_temperature, above=0)
        check_number("transfer_temperature", transfer_temperature, above=0)
        check_plugins(plugins)
        anchors = AdversarialAnchors() if anchors is None else anchors
        own = [
            AdversarialAnchorDistillationPlugin(
                anchors, distillation_weight, teacher=teacher, temperature=distillation_temperature
            ),
            RegularizerPlugin(TextGeometry(neighbours, temperature=geometry_temperature), geometry_weight),
            PrototypeTransferPlugin(anchors, temperature=transfer_temperature),
        ]
        if "criterion" not in template:
            template["criterion"] = LabelSpaceCrossEntropy("experience")
            template.setdefault("text_space", "seen")
        template.setdefault("train_mb_size", 128)
        super().__init__(model=model, optimizer=optimizer, plugins=[*plugins, *own], **template)
