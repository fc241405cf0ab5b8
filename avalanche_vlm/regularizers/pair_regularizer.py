"""Regularizers of what a model says of images and texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from avalanche_vlm._checks import check_type
from avalanche_vlm.models import CLIPClassifier, WeightSnapshot
from avalanche_vlm.regularizers.pairs import (
    ImageTextPairs,
    PairFeatures,
    check_model,
    encode_in_parts,
    encode_pairs,
)
from avalanche_vlm.regularizers.regularizer import Regularizer
from avalanche_vlm.regularizers.teachers import LastTeacher, Teacher


class PairRegularizer(Regularizer):
    """A term that compares what a model says of images with what it says of texts.

    Args:
        pairs: where images and texts come from.

    Raises:
        TypeError: no `ImageTextPairs`.
    """

    advice = (
        "Let CLIPClassifier train a tower that its images or texts pass (trainable='both', LoRA(...)), or "
        "give its pairs HeadTexts(), through which texts pass the prompts of the model's head."
    )

    def __init__(self, pairs: ImageTextPairs) -> None:
        check_type("pairs", pairs, ImageTextPairs)
        self.pairs = pairs

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Get the pairs ready."""
        check_model(agent.model)
        self.pairs.pre_adapt(agent, exp)

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Let the pairs take note."""
        self.pairs.post_adapt(agent, exp)

    @property
    def is_active(self) -> bool:
        """Whether there are pairs in this experience."""
        return self.pairs.is_active

    def encode(self, model: CLIPClassifier, x: Tensor, y: Tensor) -> PairFeatures:
        """Return what the model says of the next batch of pairs."""
        return encode_pairs(self.pairs, model, self.pairs.batch(model, x, y))

    @abstractmethod
    def compare(self, model: CLIPClassifier, student: PairFeatures) -> Tensor:
        """Return the term, a scalar, for what the model says of a batch."""

    def __call__(self, model: CLIPClassifier, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the term for the next batch of pairs."""
        return self.compare(model, self.encode(model, x, y))

    @property
    def nbytes(self) -> int:
        """Number of bytes that the pairs keep from one experience to the next."""
        return self.pairs.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return what the pairs keep."""
        return {"pairs": self.pairs.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what the pairs keep."""
        self.pairs.load_state_dict(state["pairs"])


class PairDistillation(PairRegularizer):
    """A `PairRegularizer` with a teacher.

    What the teacher says of pairs that stay the same for an experience is computed once, before it.

    Args:
        pairs: where images and texts come from.
        teacher: whose weights the teacher has; None for `LastTeacher`.

    Raises:
        TypeError: an argument has a wrong type.
    """

    # In slots, which checkpoints pass over: an experience that goes on computes them again.
    __slots__ = ("_images", "_logits", "_texts", "_weights")
    _images: Tensor | None
    _texts: Tensor | None
    _logits: tuple[Tensor, Tensor | float]
    _weights: WeightSnapshot | None

    def __init__(self, pairs: ImageTextPairs, teacher: Teacher | None = None) -> None:
        super().__init__(pairs)
        check_type("teacher", teacher, (Teacher, type(None)))
        self.teacher = LastTeacher() if teacher is None else teacher
        self._images = self._texts = self._weights = None

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Get the pairs ready, and ask the teacher about them if they stay the same."""
        super().pre_adapt(agent, exp)
        self._images = self._texts = self._weights = None  # of an experience that was interrupted
        weights = self.teacher.weights(agent)  # also where nothing is compared: a teacher may keep the first
        if not self.is_active:
            return
        model = agent.model
        with weights.applied(model):
            answered = self._ask(model)
            # Copies: what the backbone returns may be the parameter itself.
            scale, bias = model.backbone.logit_scale, model.backbone.logit_bias
            self._logits = scale.clone(), bias.clone() if isinstance(bias, Tensor) else bias
        if not answered:
            self._weights = weights

    def _ask(self, model: CLIPClassifier) -> bool:
        """Ask a model, which has the teacher's weights, about what stays the same for an experience.

        Returns:
            Whether nothing is left to be asked at each step.
        """
        images, texts = self.pairs.fixed_images, self.pairs.fixed_texts
        if images is not None:
            self._images = encode_in_parts(model.visual_features, images)
        if texts is not None:
            self._texts = encode_in_parts(partial(self.pairs.encode_texts, model), texts)
        return images is not None and texts is not None

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Let go of the teacher."""
        super().post_adapt(agent, exp)
        self._images = self._texts = self._weights = None

    def says(self, model: CLIPClassifier, student: PairFeatures) -> PairFeatures:
        """Return what the teacher says of the pairs that a student has seen."""
        batch = student.batch
        images = self._rows(self._images, batch.image_rows)
        texts = self._rows(self._texts, batch.text_rows)
        if images is None or texts is None:
            assert self._weights is not None
            with self._weights.applied(model):
                images = model.visual_features(batch.images) if images is None else images
                texts = self.pairs.encode_texts(model, batch.texts) if texts is None else texts
        if batch.text_of is not None:
            texts = texts[batch.text_of]
        return PairFeatures(batch, images, lambda: texts, *self._logits)

    @staticmethod
    def _rows(said: Tensor | None, rows: Tensor | None) -> Tensor | None:
        return None if said is None or rows is None else said[rows]

    @property
    def nbytes(self) -> int:
        """Number of bytes that the pairs and the teacher keep from one experience to the next."""
        return super().nbytes + self.teacher.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return what the pairs and the teacher keep."""
        return {**super().state_dict(), "teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what the pairs and the teacher keep."""
        super().load_state_dict(state)
        self.teacher.load_state_dict(state["teacher"])
