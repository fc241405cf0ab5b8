"""A Gaussian discriminant from sums that add up in any order, and its fusion with zero-shot scores."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_choice, check_count, check_number, wrong_value

Prior = Literal["uniform", "counts"]
PRIORS: tuple[Prior, ...] = get_args(Prior)


class FeatureSums(NamedTuple):
    """What a Gaussian discriminant keeps of its features; two of them are added entry by entry.

    Attributes:
        counts: int64 (C,), number of features of each class.
        sums: float64 (C, D), their sum.
        second_moment: float64 (D, D), the sum of the products of all features with themselves.
    """

    counts: Tensor
    sums: Tensor
    second_moment: Tensor


def feature_sums(features: Tensor, labels: Tensor, class_count: int) -> FeatureSums:
    r"""Return the sums of normalised features.

    .. math:: n_c = \sum_{i: y_i = c} 1, \qquad s_c = \sum_{i: y_i = c} u_i, \qquad
        M = \sum_i u_i u_i^T, \qquad u_i = x_i / \lVert x_i \rVert

    Args:
        features: floats (N, D), of any length.
        labels: int64 (N,), in 0..C-1.
        class_count: number C of classes.
    """
    unit = F.normalize(features.detach().double(), dim=1)
    sums = unit.new_zeros(class_count, unit.shape[1]).index_add_(0, labels, unit)
    return FeatureSums(labels.bincount(minlength=class_count), sums, unit.T @ unit)


def shrunk_covariance(of: FeatureSums, *, ridge: float = 1.0) -> Tensor:
    r"""Return the covariance (D, D) that the classes share, drawn towards a multiple of the identity.

    .. math::
        S = W + \rho \frac{D}{N - K} \frac{\mathrm{tr} W}{D} I, \qquad
        W = \frac{1}{N - K} \Bigl( M - \sum_c \frac{s_c s_c^T}{n_c} \Bigr)

    for N features of K classes. With fewer features than dimensions the identity outweighs W; it fades
    as features come. Without any spread inside the classes (one feature each) S is the identity, scaled
    to the mean variance of all features.

    Args:
        of: sums over at least one feature.
        ridge: the factor :math:`\rho`, above 0.

    References:
        Kubokawa and Srivastava, Estimation of the precision matrix of a singular Wishart distribution,
        JMVA 2008, as used by Wang et al., ICLR 2024, section 3.2 (rho = 1).

    Deviations:
        N - K in place of N - 1, and S has the scale of a covariance, so that the discriminant's
        probabilities do not grow sharper with N.
    """
    check_number("ridge", ridge, above=0)
    fitted = of.counts > 0
    n, size = of.counts[fitted].double(), len(of.second_moment)
    total, freedom = float(n.sum()), float(n.sum()) - len(n)
    means = of.sums[fitted] / n[:, None]
    identity = torch.eye(size, dtype=means.dtype, device=means.device)
    # Rounding leaves a trace of about 1e-16 of the features' unit length where there is no spread.
    scatter = of.second_moment - (means * n[:, None]).T @ means
    variance = float(scatter.trace()) / size
    if freedom == 0 or variance < 1e-12 * total / size:
        mean = of.sums.sum(dim=0) / total
        spread = float(of.second_moment.trace() / total - mean @ mean) / size
        return identity * (spread if spread > 1e-12 / size else 1.0 / size)
    return (scatter + ridge * size / freedom * variance * identity) / freedom


def discriminant_weights(
    of: FeatureSums, *, ridge: float = 1.0, prior: Prior = "uniform"
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the classes (K,) that have features, and their weights (K, D) and biases (K,).

    .. math:: w_c = S^{-1} \mu_c, \qquad b_c = -\tfrac12 \mu_c^T S^{-1} \mu_c + \log \pi_c

    with the class means :math:`\mu_c = s_c / n_c` and S of `shrunk_covariance`; the log-probability of
    class c given x is :math:`w_c^T x + b_c` up to what all classes share.

    Args:
        of: sums over at least one feature.
        ridge: see `shrunk_covariance`.
        prior: of the classes: ``"uniform"``, or ``"counts"``, their share of the features.

    References:
        Hayes and Kanan, Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis,
        CVPRW 2020, section 4; Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based
        Adaptation, ICLR 2024, section 3.2.

    Deviations:
        See `shrunk_covariance`.
    """
    check_choice("prior", prior, PRIORS)
    classes = of.counts.nonzero().flatten()
    if len(classes) == 0:
        raise wrong_value("of", "sums over at least one feature", "none")
    n = of.counts[classes].double()
    means = of.sums[classes] / n[:, None]
    factor = torch.linalg.cholesky(shrunk_covariance(of, ridge=ridge))
    weights = torch.cholesky_solve(means.T, factor).T
    biases = -0.5 * (weights * means).sum(dim=1)
    return classes, weights, biases + (n / n.sum()).log() if prior == "counts" else biases


def fused_logits(
    zero_shot: Tensor,
    discriminant: Tensor,
    classes: Tensor,
    *,
    fusion_weight: float,
    temperature: float = 1.0,
) -> Tensor:
    r"""Return logits (B, C) of zero-shot scores and of a discriminant over some classes F.

    .. math::
        z_c = \begin{cases}
            z^0_c & c \notin F \\
            t z^0_c + a \log q(c) + k, \quad
            k = \log \sum_{c \in F} e^{z^0_c} - \log \sum_{c \in F} e^{t z^0_c} q(c)^a & c \in F
        \end{cases}

    with the zero-shot logits :math:`z^0` and the softmax q of the discriminant's logits over F. So the
    softmax p of z and that of :math:`z^0` agree on the classes outside of F and on F as a whole: zero-shot
    decides between them, and within F :math:`p(c) \propto p_0(c)^t \, q(c)^a`. The loss over classes of F
    alone has no gradient to the others, not even by rounding, which Adam would make steps of.

    Args:
        zero_shot: logits (B, C).
        discriminant: logits (B, K) of the classes of F.
        classes: int64 (K,), the ids of these classes.
        fusion_weight: the factor a, finite; 0 gives zero-shot (where t is 1).
        temperature: the factor t of the zero-shot logits within F, finite; 0 leaves the discriminant alone.

    Raises:
        ValueError: a or t is not finite.

    References:
        Wang et al., ICLR 2024, section 3.3 (the sum of both logits).

    Deviations:
        There every class has features, t is 1 and raw logits are added; the log-softmax of q and k add the
        same number to each class, and so change neither ranks nor probabilities.
    """
    check_number("fusion_weight", fusion_weight)
    check_number("temperature", temperature)
    if len(classes) == 0:
        return zero_shot
    seen = zero_shot[:, classes]
    added = (seen if temperature == 1 else temperature * seen) + fusion_weight * F.log_softmax(
        discriminant, dim=1
    )
    mass = seen.logsumexp(dim=1, keepdim=True) - added.logsumexp(dim=1, keepdim=True)
    return zero_shot.index_copy(1, classes, added + mass)


def mixed_logits(first: Tensor, second: Tensor, classes: Tensor, *, weight: float) -> Tensor:
    r"""Return logits (B, C) whose softmax mixes the probabilities of two scorers over some classes F.

    .. math::
        p(c) = p_0(F) \bigl[ (1 - \omega) \, p_0(c \mid F) + \omega \, q(c) \bigr], \qquad c \in F

    with the softmax :math:`p_0` of the first logits and that of the second, q, over F. Classes outside of F
    keep their logits, and F as a whole its probability.

    Args:
        first: logits (B, C).
        second: logits (B, K) of the classes of F.
        classes: int64 (K,), the ids of these classes.
        weight: ω in [0, 1]; 0 gives the first.

    Raises:
        ValueError: ω is outside [0, 1].

    References:
        Huang et al., Mind the Gap, ICCV 2025 (arXiv 2507.09118), inference.

    Deviations:
        There all classes are seen ones.
    """
    check_number("weight", weight, at_least=0, at_most=1)
    if len(classes) == 0 or weight == 0:
        return first
    seen = first[:, classes]
    mass = seen.logsumexp(dim=1, keepdim=True)
    mixed = F.log_softmax(second, dim=1)
    if weight < 1:
        mixed = torch.logaddexp(seen - mass + math.log1p(-weight), mixed + math.log(weight))
    return first.index_copy(1, classes, mixed + mass)


def rescored_logits(first: Tensor, second: Tensor, classes: Tensor, *, k: int, weight: float) -> Tensor:
    r"""Return logits (B, C) in which a second scorer puts the first's k best of some classes F in order.

    The k best classes of F by the first logits are ordered by :math:`z^0_c + a \log q(c)`, q being the
    softmax of the second scores over these k, and the k first logits are handed out anew in that order. So
    the set of the k best never changes, nor does the probability of any class outside of it, nor theirs
    together.

    Args:
        first: logits (B, C).
        second: logits (B, K) of the classes of F.
        classes: int64 (K,), the ids of these classes.
        k: how many are put in order, at least 1; all of F if it has no more.
        weight: the factor a, at least 0; 0 gives the first.

    Raises:
        TypeError: k is no whole number.
        ValueError: k is below 1, or a negative.

    References:
        Re-scoring of the best classes by text: Zhou et al., ENGINE, ICCV 2025 (arXiv 2503.08510).

    Deviations:
        There scores of several kinds are added, which may move classes in and out of the best k.
    """
    check_count("k", k)
    check_number("weight", weight, at_least=0)
    if len(classes) == 0 or weight == 0:
        return first
    seen = first[:, classes]
    best, places = seen.topk(min(k, len(classes)), dim=1)
    own = F.log_softmax(second.gather(1, places), dim=1)
    order = (best + weight * own).argsort(dim=1, descending=True, stable=True)
    return first.index_copy(1, classes, seen.scatter(1, places.gather(1, order), best))
