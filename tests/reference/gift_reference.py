"""GIFT as a plain loop: a teacher of its own, an anchor of its own, two backward passes a step.

Written from the equations, for tests and for `benchmarks/gift_cost.py`; nothing of the package is used but
the model's two towers.
"""

import copy

import torch
from torch.nn import functional as F


class PlainGIFT:
    """Holds what the method needs in its plainest form.

    Args:
        model: a classifier whose towers train; what trains is ``model.parameters()``.
        optimizer: over the same parameters.
        distillation: weight of the distillation.
        alignment: weight of the alignment.
        consolidation: weight of the penalty.
    """

    def __init__(self, model, optimizer, *, distillation=1.0, alignment=0.25, consolidation=1.0):
        self.model, self.optimizer = model, optimizer
        self.weights = distillation, alignment, consolidation
        self.temperature, self.smoothing = 2.0, 0.2
        self.trained = list(model.parameters())

    def begin(self):
        """Take a teacher and an anchor for an experience."""
        self.teacher = copy.deepcopy(self.model).eval()
        self.anchor = [parameter.detach().clone() for parameter in self.trained]

    def similarities(self, model, images, tokens):
        """Return the similarity matrix of images and captions."""
        backbone = model.backbone
        texts = F.normalize(backbone.encode_text(tokens), dim=-1)
        return backbone.logit_scale * F.normalize(backbone.encode_image(images), dim=-1) @ texts.T

    def soft_cross_entropy(self, student, teacher):
        """Return the mean cross-entropy of rows with the teacher's soft labels, without its lowest value."""
        t = self.temperature
        labels = F.softmax(teacher / t, dim=1)
        entropy = -(labels * F.log_softmax(teacher / t, dim=1)).sum(dim=1).mean()
        return t * t * (-(labels * F.log_softmax(student / t, dim=1)).sum(dim=1).mean() - entropy)

    def aligned(self, rows, captions):
        """Return the mean cross-entropy of rows with equal captions sharing the mass."""
        same = (captions[:, None] == captions[None, :]).float()
        labels = same / same.sum(dim=1, keepdim=True)
        labels = (1 - self.smoothing) * labels + self.smoothing / len(captions)
        return -(labels * F.log_softmax(rows, dim=1)).sum(dim=1).mean()

    def step(self, task_loss, images, tokens, captions):
        """Make one step.

        Args:
            task_loss: a function that returns the loss of the task.
            images: (B, 3, H, W).
            tokens: (B, L).
            captions: (B,), a number for each caption.

        Returns:
            The regularizer's value and the penalty.
        """
        distillation, alignment, consolidation = self.weights
        self.optimizer.zero_grad()
        student = self.similarities(self.model, images, tokens)
        with torch.no_grad():
            teacher = self.similarities(self.teacher, images, tokens)
        kept = self.soft_cross_entropy(student, teacher) + self.soft_cross_entropy(student.T, teacher.T)
        pairs = self.aligned(student, captions) + self.aligned(student.T, captions)
        own = distillation * kept + alignment * pairs
        own.backward()
        importances = []
        for parameter in self.trained:
            if parameter.grad is None:
                importances.append(None)
                continue
            square = parameter.grad.detach() ** 2
            importances.append(square / square.mean() if square.mean() > 0 else square)
        penalty = 0.0
        for parameter, anchor, importance in zip(self.trained, self.anchor, importances, strict=True):
            if importance is not None:
                penalty = penalty + (importance * (parameter - anchor) ** 2).sum()
        (task_loss() + consolidation * penalty).backward()
        self.optimizer.step()
        return float(own.detach()), float(torch.as_tensor(penalty).detach())
