"""Distillation of what a teacher says of images among the old classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_number, check_type
from avalanche_vlm._host import trained_experiences
from avalanche_vlm.functional import soft_label_divergence
from avalanche_vlm.functional.cross_modal import full_precision
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.regularizers.adversarial_anchors import AdversarialAnchors
from avalanche_vlm.regularizers.learned_classes import LearnedClasses
from avalanche_vlm.regularizers.pair_regularizer import PairDistillation
from avalanche_vlm.regularizers.pairs import (
    ImageTextPairs,
    PairFeatures,
    check_model,
    encode_in_parts,
)
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
    classes there is nothing to keep. Logits are what the head makes of images and class weights. It belongs
    to one run.

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
        That the images of a step are 64 at most is ours; the rest is as far as the sources, which are
        second-hand, go.
    """

    advice = "Let CLIPClassifier train a tower (trainable='both', LoRA(...)), or a head whose weights learn."

    __slots__ = ("_classes", "_said")
    _classes: Tensor
    _said: Tensor | None

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
        self._said = None

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Get the images ready, and ask the teacher about them and the old classes."""
        model = check_model(agent.model)
        learned = self.learned.before(model, *trained_experiences(agent))
        self._classes = learned.to(model.backbone.logit_scale.device)
        super().pre_adapt(agent, exp)

    def _ask(self, model: CLIPClassifier) -> bool:
        images = self.pairs.fixed_images
        self._said = None
        if images is not None:
            self._said = encode_in_parts(
                lambda part: self._logits_of(model, model.visual_features(part)), images
            )
        return images is not None

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Let go of the teacher, and take note of the classes."""
        super().post_adapt(agent, exp)
        self.learned.note(agent.model)
        self._said = None

    @property
    def is_active(self) -> bool:
        """Whether there are images, and two old classes at least."""
        return len(self._classes) > 1 and super().is_active

    def compare(self, model: CLIPClassifier, student: PairFeatures) -> Tensor:
        """Return the divergence over the old classes."""
        own, rows = self._logits_of(model, student.images), student.batch.image_rows
        if self._said is not None and rows is not None:
            said = self._said[rows]
        else:
            assert self._weights is not None
            with self._weights.applied(model):
                said = self._logits_of(model, model.visual_features(student.batch.images))
        return soft_label_divergence(own, said, temperature=self.temperature)

    def _logits_of(self, model: CLIPClassifier, images: Tensor) -> Tensor:
        """Return the logits (B, K) of image features (B, D) for the old classes, in fp32 at least."""
        text = model.head.text_part
        rows = text(model.backbone, self._classes)
        with torch.autocast(images.device.type, enabled=False):
            rows, images = full_precision(rows), full_precision(images)
            # A head may know which class a column is, so that it gets all of them.
            every = rows.new_zeros(len(model.class_names), rows.shape[1])
            weights = every.index_copy(0, self._classes, rows)
            return text.compare(model.backbone, images, weights).index_select(1, self._classes)

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
