"""How far what a model says of images has drifted, near the border to new classes and far from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_vlm._checks import check_number, wrong_value


def jensen_shannon_divergence(first: Tensor, second: Tensor) -> Tensor:
    r"""Return the Jensen-Shannon divergence (B,) of the softmax of logits (B, C), in bits: in [0, 1].

    .. math:: D(p, q) = \tfrac12 KL(p \| m) + \tfrac12 KL(q \| m), \qquad m = \tfrac12 (p + q)

    References:
        Lin, Divergence Measures Based on the Shannon Entropy, IEEE Transactions on Information Theory,
        1991, section IV.

    >>> jensen_shannon_divergence(torch.tensor([[1e3, 0.0], [0, 0]]), torch.tensor([[0, 1e3], [0, 0.0]]))
    tensor([1., 0.])
    """
    if first.shape != second.shape or first.ndim != 2:
        raise wrong_value("second", f"logits (B, C) like {tuple(first.shape)}", tuple(second.shape))
    p, q = first.double().softmax(dim=1), second.double().softmax(dim=1)
    m = (p + q) / 2
    bits = (torch.xlogy(p, p) + torch.xlogy(q, q)).sum(dim=1) / 2 - torch.xlogy(m, m).sum(dim=1)
    return (bits / torch.log(torch.tensor(2.0, dtype=bits.dtype))).clamp(0, 1).to(first.dtype)


class SemanticDrift(NamedTuple):
    """Mean Jensen-Shannon divergences, in bits.

    Attributes:
        everywhere: of all samples.
        boundary: of those that were nearest to the new classes.
        core: of those that were farthest from them.
    """

    everywhere: float
    boundary: float
    core: float


def semantic_drift(
    before: Tensor, after: Tensor, old: Tensor, new: Tensor, *, fraction: float = 0.25
) -> SemanticDrift:
    r"""Return how far the distribution over old classes has drifted, at the boundary and in the core.

    Samples of old classes are ordered by how near they were to the new ones *before* training on them,

    .. math:: b_i = \max_{c \in new} z_{i,c} - \max_{c \in old} z_{i,c},

    and the drift of a sample is the Jensen-Shannon divergence of :math:`\mathrm{softmax}_{c \in old} z_i`
    before and after. The boundary is the share of samples with the largest b, the core that with the
    smallest. Over a single old class there is nothing to drift, and the divergence is 0.

    Args:
        before: logits (N, C) of samples of old classes, before training on the new ones.
        after: logits (N, C) of the same samples, after it.
        old: int64 (K,), the old classes.
        new: int64 (M,), the new ones, none of them old.
        fraction: the share of samples that is boundary, and that is core, in (0, 0.5].

    Raises:
        ValueError: different shapes, no sample, no class, or a fraction out of its range.

    References:
        SeGP-CL (arXiv 2603.12055), which finds three to five times the drift at the boundary.

    Deviations:
        The sources do not say which samples are boundary and which are core; the order by b is ours.

    >>> before = torch.tensor([[9.0, 1.0, 0.0], [2.0, 1.0, 1.9]])
    >>> after = torch.tensor([[9.0, 1.0, 0.0], [1.0, 2.0, 1.9]])
    >>> drift = semantic_drift(before, after, torch.tensor([0, 1]), torch.tensor([2]), fraction=0.5)
    >>> round(drift.boundary, 3), drift.core
    (0.16, 0.0)
    """
    check_number("fraction", fraction, above=0, at_most=0.5)
    if before.shape != after.shape:
        raise wrong_value("after", f"logits like those before, {tuple(before.shape)}", tuple(after.shape))
    for name, classes in (("old", old), ("new", new)):
        if len(classes) == 0:
            raise wrong_value(name, "at least one class", "none")
    if len(before) == 0:
        raise wrong_value("before", "logits of at least one sample", "none")
    nearness = before[:, new].amax(dim=1) - before[:, old].amax(dim=1)
    drift = jensen_shannon_divergence(before[:, old], after[:, old])
    order = nearness.argsort(stable=True)
    share = max(1, round(fraction * len(order)))
    parts = (drift, drift[order[-share:]], drift[order[:share]])
    return SemanticDrift(*(float(part.mean()) for part in parts))
