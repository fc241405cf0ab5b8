"""The plugin that keeps what a model said of adversarial anchors."""

from __future__ import annotations

from typing import final

from avalanche_vlm._checks import wrong_type
from avalanche_vlm.plugins.regularizer import RegularizerPlugin
from avalanche_vlm.regularizers import AdversarialAnchors, AnchorDistillation, Teacher


@final
class AdversarialAnchorDistillationPlugin(RegularizerPlugin):
    r"""Adds `AnchorDistillation` on `AdversarialAnchors` to the loss of each batch.

    .. math:: L = L_{task} + \lambda_A L_{ACGD}

    It is ``RegularizerPlugin(AnchorDistillation(anchors, teacher, temperature=...), weight)``. With weight
    consolidation around it, write ``AdaptiveWeightConsolidationPlugin(AnchorDistillation(anchors))``.

    Args:
        anchors: None for `AdversarialAnchors` with its defaults; parts that are given the same anchors
            share them.
        weight: λ_A; with 0 nothing is computed.
        teacher: whose weights the teacher has; None for `LastTeacher`.
        temperature: of the distillation.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number out of its range; in training, a model in which no tower trains.

    References:
        SeGP-CL (arXiv 2603.12055), with λ_A = 5 and a temperature of 20.

    Deviations:
        Those of its parts.

    >>> plugins = [AdversarialAnchorDistillationPlugin(AdversarialAnchors(seeds_per_class=3))]
    """

    def __init__(
        self,
        anchors: AdversarialAnchors | None = None,
        weight: float = 5.0,
        *,
        teacher: Teacher | None = None,
        temperature: float = 20.0,
    ) -> None:
        if anchors is not None and not isinstance(anchors, AdversarialAnchors):
            expected = "AdversarialAnchors or None"
            advice = "For other images, write RegularizerPlugin(AnchorDistillation(images), weight)."
            raise wrong_type("anchors", expected, anchors, advice)
        super().__init__(AnchorDistillation(anchors, teacher, temperature=temperature), weight)
