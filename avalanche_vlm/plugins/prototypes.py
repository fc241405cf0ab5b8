"""Keeping the visual prototypes of a head, and moving them with the image tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import eval_loader, trained_experiences
from avalanche_vlm.models import DualPathHead
from avalanche_vlm.plugins._of_one_strategy import OfOneStrategy
from avalanche_vlm.plugins.drift_compensator import DriftCompensator
from avalanche_vlm.plugins.required_head import required_head
from avalanche_vlm.plugins.visual_features import check_visual_space, visual_features
from avalanche_vlm.regularizers import ImageTextPairs
from avalanche_vlm.regularizers.pairs import ENCODED_AT_ONCE


class PrototypePlugin(OfOneStrategy):
    r"""Adds the mean visual features of the classes of each experience to a `DualPathHead`.

    .. math:: p_c = \frac{1}{n_c} \sum_{i: y_i = c} h(x_i)

    That happens at the end of the experience, with the model as it is then, each sample once with its
    eval transform. A class that comes again has the mean of all its samples, each as the model saw it at
    the time. Prototypes of earlier classes stay where they are, however far the image tower moves:
    `PrototypeTransferPlugin` moves them too. What other plugins replay does not count. List it after plugins
    that change weights or read logits at the end of an experience (`WeightEnsemblePlugin`, the host's
    EWC): from then on evaluation sees the prototypes.

    Raises:
        ValueError: in training, a model with another head, raw features of a stream of embeddings, or a
            second plugin of this kind.

    References:
        SeGP-CL (arXiv 2603.12055), visual prototypes; Rebuffi et al., iCaRL: Incremental Classifier and
        Representation Learning, CVPR 2017, for means of features.

    Deviations:
        None.

    >>> plugins = [PrototypePlugin()]
    """

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse what could not keep prototypes before it is trained in vain."""
        head = prototype_head(strategy.model)
        sample: Any = strategy.experience.dataset.eval()[0][0]
        check_visual_space(head.visual_space, sample)
        kinds = [type(each).__name__ for each in strategy.plugins if isinstance(each, PrototypePlugin)]
        if len(kinds) > 1:
            expected = "one plugin that keeps prototypes, so that each sample counts once"
            advice = "SeGPCL brings its own."
            raise wrong_value("plugins", expected, " and ".join(kinds), advice)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the prototypes of the experience."""
        head = prototype_head(strategy.model)
        for experience in trained_experiences(strategy):
            dataset: Any = experience.dataset.eval()
            for x, y, *_ in eval_loader(dataset, ENCODED_AT_ONCE):
                head.update(visual_features(strategy, x, head.visual_space), y)


@final
class PrototypeTransferPlugin(PrototypePlugin):
    r"""Moves prototypes as the features of probe images near them move, and adds those of new classes.

    .. math:: p_c \leftarrow p_c + \eta_c \sum_a \omega_{a,c} \, \bigl( h_t(a) - h_{t-1}(a) \bigr)

    with the features of probe images a before the experience and after it: see
    `functional.transferred_prototypes`. Probes are any images that stay the same for an experience:
    adversarial anchors in the paper, ``AdversarialAnchors(steps=0)`` for images of the experience as they
    are, or `SyntheticPairs`. They are asked for before training, and let go of after it.

    Args:
        probes: None for `AdversarialAnchors` with its defaults; give it the anchors that a distillation
            has, and they are made once.
        temperature: of the weights ω.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a temperature that is not positive; in training, a model without a `DualPathHead`, or
            probes that change from batch to batch.

    References:
        SeGP-CL (arXiv 2603.12055), anchor-induced prototype transfer.

    Deviations:
        Those of `functional.transferred_prototypes`.

    >>> from avalanche_vlm.regularizers import AdversarialAnchors
    >>> anchors = AdversarialAnchors()
    >>> plugins = [PrototypeTransferPlugin(anchors)]
    """

    def __init__(self, probes: ImageTextPairs | None = None, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.compensator = DriftCompensator(probes, temperature=temperature)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure the probes before they move."""
        super().before_training_exp(strategy, *args, **kwargs)
        self.compensator.visual_space = prototype_head(strategy.model).visual_space
        self.compensator.begin(strategy)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Move earlier prototypes, then add those of the experience."""
        head = prototype_head(strategy.model)
        self.compensator.end(strategy)
        classes = head.classes_with_prototype
        with torch.no_grad():
            head.prototypes[classes] = self.compensator.moved(head.prototypes[classes], classes)
        super().after_training_exp(strategy, *args, **kwargs)

    @property
    def nbytes(self) -> int:
        """Number of bytes that the probes keep; prototypes count as the head's."""
        return self.compensator.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return what the probes keep from one experience to the next."""
        return self.compensator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        self.compensator.load_state_dict(state)


def prototype_head(model: Any) -> DualPathHead:
    """Return the head of a classifier that keeps prototypes; refuse another."""
    return required_head(model, DualPathHead, ", which keeps prototypes")
