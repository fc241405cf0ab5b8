"""Features that follow a tower that has moved."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_number, wrong_value


def transferred_prototypes(
    prototypes: Tensor,
    before: Tensor,
    after: Tensor,
    *,
    classes: Tensor | None = None,
    stands_for: Tensor | None = None,
    temperature: float = 0.1,
) -> Tensor:
    r"""Return prototypes moved as the features of probe images near them have moved.

    .. math::
        p_c \leftarrow p_c + \eta_c \sum_{a \in A_c} \omega_{a,c} \, (h'_a - h_a), \qquad
        \omega_{a,c} = \mathrm{softmax}_{a \in A_c} \frac{\cos(h_a, p_c)}{\tau}, \qquad
        \eta_c = \Bigl[ \frac{1}{|A_c|} \sum_{a \in A_c} \cos(h_a, p_c) \Bigr]_0^1

    with the features h of the probes before training and h' after it. The probes :math:`A_c` of a class
    are those that stand for it, and all of them where none does. Weights are positive and add up to one
    whatever the cosines are, so that no denominator can vanish and no probe pulls backwards.

    Args:
        prototypes: p (K, D): one a class, or any features of classes.
        before: h (N, D), N at least 1.
        after: h' (N, D).
        classes: int64 (K,), the class of each of them; None for 0 to K - 1.
        stands_for: int64 (N,), the class that each probe stands for, -1 for none; None if no probe stands
            for any.
        temperature: τ.

    Returns:
        Moved prototypes (K, D).

    Raises:
        ValueError: different shapes, no probe, or a temperature that is not positive.

    References:
        SeGP-CL (arXiv 2603.12055), anchor-induced prototype transfer; Yu et al., Semantic Drift
        Compensation for Class-Incremental Learning, CVPR 2020, for the idea.

    Deviations:
        The sources say "magnitude modulated by proximity" and give no formula: the weights, η and the
        rule for classes without a probe are ours.

    >>> shift = torch.tensor([[0.0, 1.0]])
    >>> transferred_prototypes(torch.tensor([[2.0, 0.0]]), torch.eye(2)[:1], torch.eye(2)[:1] + shift)
    tensor([[2., 1.]])
    """
    check_number("temperature", temperature, above=0)
    if before.shape != after.shape or before.ndim != 2 or before.shape[1] != prototypes.shape[1]:
        got = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise wrong_value("before", f"(N, {prototypes.shape[1]}), as `after`", got)
    for name, labels, rows in (("classes", classes, prototypes), ("stands_for", stands_for, before)):
        if labels is not None and labels.shape != rows.shape[:1]:
            raise wrong_value(name, f"of shape ({len(rows)},)", tuple(labels.shape))
    if len(before) == 0:
        raise wrong_value("before", "features of at least one probe", "none")
    cosines = F.normalize(prototypes, dim=1) @ F.normalize(before, dim=1).T
    others = torch.zeros_like(cosines, dtype=torch.bool)
    if stands_for is not None:
        if classes is None:
            classes = torch.arange(len(prototypes), device=stands_for.device)
        others = classes[:, None] != stands_for[None]
        others &= ~others.all(dim=1, keepdim=True)
    weights = (cosines / temperature).masked_fill(others, -torch.inf).softmax(dim=1)
    near = cosines.masked_fill(others, 0).sum(dim=1) / (~others).sum(dim=1)
    return prototypes + near.clamp(0, 1)[:, None] * (weights @ (after - before))
