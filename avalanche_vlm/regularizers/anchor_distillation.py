"""Distillation of what a teacher says of images among the old classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_number, check_type
from avalanche_vlm._host import trained_experiences
from avalanche_vlm.functional import cosine_logits, soft_label_divergence
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.regularizers.adversarial_anchors import AdversarialAnchors
from avalanche_vlm.regularizers.learned_classes import LearnedClasses
from avalanche_vlm.regularizers.pair_regularizer import PairDistillation
from avalanche_vlm.regularizers.pairs import ImageTextPairs, PairFeatures, check_model
from avalanche_vlm.regularizers.teachers import Teacher


@final
class AnchorDistillation(PairDistillation):
    r"""Keeps what images are like among the classes learned before, as a teacher had it.

    .. math:: L = \tau^2 \, E_x \, KL\big(\pi'(\cdot \mid x) \,\big\|\, \pi(\cdot \mid x)\big), \qquad
              \pi(c \mid x) = \mathrm{softmax}_{c \in C_{<t}} \frac{s \cos(v(x), w_c)}{\tau}

    with the distribution π of the student and π' of the teacher over the classes :math:`C_{<t}` learned
    before the experience. The images come from anywhere that images and texts come from: adversarial
    anchors in the paper, and in the same place the training batch (`CurrentPairs`), generated images
    (`SyntheticPairs`) or those of another data set (`ReferencePairs`); their texts do not count. What the
    teacher says of images that stay the same for an experience is computed once. With fewer than two old
    classes there is nothing to keep.

    Args:
        images: where images come from; None for `AdversarialAnchors` with its defaults.
        teacher: whose weights the teacher has; None for `LastTeacher`.
        temperature: τ.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a temperature that is not positive; in training, nothing that trains in what it reads.
        RuntimeError: in training, a head that makes its class weights of each image.

    References:
        SeGP-CL (arXiv 2603.12055), anchor-guided cross-modal geometry distillation, with τ = 20.

    Deviations:
        None known: the sources are second-hand.
    """

    advice = "Let CLIPClassifier train a tower (trainable='both', LoRA(...)), or a head whose weights learn."

    __slots__ = ("_class_weights", "_classes")
    _classes: Tensor
    _class_weights: Tensor | None

    def __init__(
        self,
        images: ImageTextPairs | None = None,
        teacher: Teacher | None = None,
        *,
        temperature: float = 20.0,
    ) -> None:
        check_type("images", images, (ImageTextPairs, type(None)))
        super().__init__(AdversarialAnchors() if images is None else images, teacher)
        check_number("temperature", temperature, above=0)
        self.temperature = temperature
        self.learned = LearnedClasses()
        self._classes = torch.zeros(0, dtype=torch.int64)
        self._class_weights = None

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Get the images ready, and ask the teacher about them and the old classes."""
        model = check_model(agent.model)
        learned = self.learned.before(model, *trained_experiences(agent))
        self._classes = learned.to(model.backbone.logit_scale.device)
        super().pre_adapt(agent, exp)

    def _ask(self, model: CLIPClassifier) -> None:
        self._ask_of_images(model)
        self._class_weights = model.head.text_part(model.backbone, self._classes).clone()

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Let go of the teacher, and take note of the classes."""
        super().post_adapt(agent, exp)
        self.learned.note(agent.model)
        self._class_weights = None

    @property
    def is_active(self) -> bool:
        """Whether there are images, and two old classes at least."""
        return len(self._classes) > 1 and super().is_active

    def compare(self, model: CLIPClassifier, student: PairFeatures) -> Tensor:
        """Return the divergence over the old classes."""
        assert self._class_weights is not None
        weights = model.head.text_part(model.backbone, self._classes)
        own = cosine_logits(student.images, weights, student.scale, student.bias)
        said = cosine_logits(self.said_of_images(model, student.batch), self._class_weights, *self._logits)
        return soft_label_divergence(own, said, temperature=self.temperature)

    @property
    def nbytes(self) -> int:
        """Number of bytes that are kept from one experience to the next."""
        return super().nbytes + self.learned.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return what the images and the teacher keep, and which classes were learned."""
        return {**super().state_dict(), "learned": self.learned.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        super().load_state_dict(state)
        self.learned.load_state_dict(state["learned"])
