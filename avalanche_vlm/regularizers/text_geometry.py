"""How the names of classes lie to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_count, check_number, check_type
from avalanche_vlm._host import experience_classes, trained_experiences
from avalanche_vlm.functional import nearest_classes, neighbour_cosines, text_geometry_divergence
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.models.required_classifier import required_classifier
from avalanche_vlm.regularizers.regularizer import Regularizer
from avalanche_vlm.regularizers.teachers import InitialTeacher, Teacher


@final
class TextGeometry(Regularizer):
    r"""Keeps how near the new classes are to their neighbours in the text space, as a teacher had it.

    .. math:: L = \frac{1}{|C_t|} \sum_{c \in C_t} KL\big(\rho'_c \,\big\|\, \rho_c\big), \qquad
              \rho_c(j) = \mathrm{softmax}_{j \in N(c)} \frac{\cos(w_c, w_j)}{\tau}

    with the classes :math:`C_t` of the experience, and for each the k classes N(c) among those seen so
    far that are nearest to it by the teacher's class weights. ρ' is that of the teacher. With one class
    seen so far there are no neighbours, and nothing is added. The default teacher belongs to one run, and
    keeps a copy of all that trains.

    Args:
        neighbours: k; all other classes where there are fewer.
        teacher: whose weights say where classes lie; None for `InitialTeacher`, the text tower as it was
            before the first experience: the pretrained one.
        temperature: τ.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number out of its range; in training, class weights that nothing in training has an
            influence on.
        RuntimeError: in training, a head that makes its class weights of each image.

    References:
        SeGP-CL (arXiv 2603.12055), text semantic-geometry regularisation, with k = 10 and τ = 0.05.

    Deviations:
        One source has a fixed threshold for the edges in place of the k nearest.
    """

    advice = "Let CLIPClassifier train the text tower (trainable='both', LoRA(...)), or a head that learns."

    # In slots, which checkpoints pass over: an experience that goes on computes them again.
    __slots__ = ("_classes", "_cosines", "_neighbours", "_rows")
    _classes: Tensor
    _rows: Tensor
    _neighbours: Tensor | None
    _cosines: Tensor

    def __init__(
        self, neighbours: int = 10, teacher: Teacher | None = None, *, temperature: float = 0.05
    ) -> None:
        check_count("neighbours", neighbours)
        check_type("teacher", teacher, (Teacher, type(None)))
        check_number("temperature", temperature, above=0)
        self.neighbours = neighbours
        self.teacher = InitialTeacher() if teacher is None else teacher
        self.temperature = temperature
        self._neighbours = None

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Find the neighbours of the classes of an experience."""
        model = required_classifier(agent.model, "whose class weights are made of text")
        self._neighbours = None
        weights = self.teacher.weights(
            agent
        )  # also where there are no neighbours: a teacher may keep the first
        seen = model.classes_seen.nonzero().flatten()
        if len(seen) < 2:
            return
        trained = [experience_classes(each) for each in trained_experiences(agent)]
        current = torch.cat(trained).unique().to(seen.device)
        with weights.applied(model):
            features = model.head.text_part(model.backbone, seen).float()
        rows = torch.searchsorted(seen, current)
        neighbours = nearest_classes(features, rows, self.neighbours)
        self._cosines = neighbour_cosines(features, rows, neighbours)
        # Only these classes are asked for in training, by their place among them.
        places, numbered = torch.cat([rows, neighbours.flatten()]).unique(return_inverse=True)
        self._classes, self._rows = seen[places], numbered[: len(rows)]
        self._neighbours = numbered[len(rows) :].view_as(neighbours)

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Let go of the neighbours."""
        self._neighbours = None

    @property
    def is_active(self) -> bool:
        """Whether there are neighbours."""
        return self._neighbours is not None

    def __call__(self, model: CLIPClassifier, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the divergence."""
        assert self._neighbours is not None
        features = model.head.text_part(model.backbone, self._classes)
        with torch.autocast(features.device.type, enabled=False):
            cosines = neighbour_cosines(features.float(), self._rows, self._neighbours)
            return text_geometry_divergence(cosines, self._cosines, temperature=self.temperature)

    @property
    def nbytes(self) -> int:
        """Number of bytes that the teacher keeps."""
        return self.teacher.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return what the teacher keeps."""
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what the teacher keeps."""
        self.teacher.load_state_dict(state["teacher"])
