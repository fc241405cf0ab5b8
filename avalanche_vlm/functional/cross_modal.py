"""Losses between images and texts: distillation in either direction, and alignment of pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_number, wrong_value


def cosine_logits(images: Tensor, texts: Tensor, scale: Tensor | float, bias: Tensor | float = 0.0) -> Tensor:
    r"""Return the logits (B, C) of image features (B, D) and text features (C, D).

    .. math:: M_{ij} = s \cos(f_i, g_j) + b

    They are fp32 at least, also under autocast: s is near 100, and bf16 would leave two digits.

    >>> cosine_logits(torch.eye(2), 3 * torch.eye(2), 10.0)
    tensor([[10.,  0.],
            [ 0., 10.]])
    """
    with torch.autocast(images.device.type, enabled=False):
        images, texts = (
            F.normalize(full_precision(images), dim=-1),
            F.normalize(full_precision(texts), dim=-1),
        )
        return scale * (images @ texts.T) + bias


def soft_label_divergence(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    r"""Return how far the rows of a student's logits (B, C) are from those of a teacher, a scalar.

    .. math:: L = \frac{\tau^2}{B} \sum_i KL\big(\sigma(M'_i / \tau) \,\big\|\, \sigma(M_i / \tau)\big)

    with the teacher's logits M', which get no gradient, and the student's M. It is the cross-entropy with
    soft labels less the teacher's entropy: the gradient is the same, and 0 means agreement.

    Args:
        student: (B, C).
        teacher: (B, C).
        temperature: τ.

    Raises:
        ValueError: different shapes, or a temperature that is not positive.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.

    >>> logits = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    >>> float(soft_label_divergence(logits, logits))
    0.0
    """
    check_number("temperature", temperature, above=0)
    if student.shape != teacher.shape or student.ndim != 2:
        expected = f"logits (B, C) like those of the student, {tuple(student.shape)}"
        raise wrong_value("teacher", expected, tuple(teacher.shape))
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def contrastive_distillation(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    r"""Return the divergence of the logits (B, C) of images and texts, read in both directions.

    .. math:: L = D(M, M') + D(M^\top, M'^\top)

    with D of `soft_label_divergence`: each image among the texts, and each text among the images.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025,
        the equation of L_KD.

    >>> logits = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    >>> float(contrastive_distillation(logits, logits.T.clone())) > 0
    True
    """
    rows = soft_label_divergence(student, teacher, temperature=temperature)
    return rows + soft_label_divergence(student.T, teacher.T, temperature=temperature)


def shared_targets(captions: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    r"""Return target probabilities (B, B) of pairs in which equal captions share the mass.

    .. math:: I_{ij} = (1 - \epsilon) \frac{[c_i = c_j]}{\sum_k [c_i = c_k]} + \frac{\epsilon}{B}

    Args:
        captions: int64 (B,), a number for each caption, equal for equal ones.
        label_smoothing: ε in [0, 1].

    Raises:
        ValueError: smoothing outside [0, 1].

    >>> shared_targets(torch.tensor([5, 5, 7]))
    tensor([[0.5000, 0.5000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    check_number("label_smoothing", label_smoothing, at_least=0, at_most=1)
    same = (captions[:, None] == captions[None, :]).to(torch.get_default_dtype())
    shares = same / same.sum(dim=1, keepdim=True)
    return (1 - label_smoothing) * shares + label_smoothing / len(captions)


def image_text_alignment(logits: Tensor, captions: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    r"""Return the contrastive loss of pairs, a scalar, with equal captions sharing the mass.

    .. math:: L = -\frac1B \sum_{ij} I_{ij} \log \sigma_j(M_{i \cdot})
                  -\frac1B \sum_{ij} I_{ij} \log \sigma_i(M_{\cdot j})

    with the targets I of `shared_targets`, which are symmetric.

    Args:
        logits: M (B, B), of image i and caption j.
        captions: int64 (B,), a number for each caption, equal for equal ones.
        label_smoothing: ε in [0, 1].

    Raises:
        ValueError: not one caption an image, or smoothing outside [0, 1].

    References:
        Wu et al., CVPR 2025 (GIFT), the equation of L_Align; the smoothing is in the authors' code.

    >>> float(image_text_alignment(torch.zeros(2, 2), torch.tensor([0, 1])))  # twice log 2
    1.386294...
    """
    check_number("label_smoothing", label_smoothing, at_least=0, at_most=1)
    if logits.ndim != 2 or not logits.shape[0] == logits.shape[1] == len(captions):
        got = f"logits {tuple(logits.shape)} and {len(captions)} captions"
        raise wrong_value("logits", "(B, B), one row and one column a pair", got)
    targets = shared_targets(captions, label_smoothing=label_smoothing).to(logits)
    return F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the mean squared distance of features (B, D) on the unit sphere, a scalar.

    .. math:: L = \frac1B \sum_i \Big\lVert \frac{f_i}{\lVert f_i \rVert}
                                           - \frac{f'_i}{\lVert f'_i \rVert} \Big\rVert^2

    >>> feature_distance(torch.eye(2), 2 * torch.eye(2))
    tensor(0.)
    """
    difference = F.normalize(full_precision(student), dim=-1) - F.normalize(
        full_precision(teacher.detach()), dim=-1
    )
    return difference.square().sum(dim=-1).mean()


def full_precision(features: Tensor) -> Tensor:
    """Return features in fp32 where they are in half precision."""
    return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features
