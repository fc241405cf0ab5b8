"""What seeds of a memory are made with: gradients, contrast, and distance from real features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_number, wrong_value

_TRIES = 8
_MARGIN = 0.005  # of a cosine: storing in eight bits may move one by less
_LONELY = 0.5  # largest cosine with a feature that has no other to be compared with


def gradient_directions(
    features: Tensor, weights: Tensor, classes: Tensor, groups: Tensor, *, scale: float = 1.0
) -> Tensor:
    r"""Return the directions in which the loss of groups of features falls, (G, 2 D).

    .. math::
        L_g = \frac{1}{n_g} \sum_{i \in g} \mathrm{CE}\bigl(s\, x_i^\top W, y_i\bigr), \qquad
        d_g = \Bigl[ \overline{-\partial L_g / \partial w_{c(g)}} \; ; \;
                     \overline{-\textstyle\sum_i \partial L_g / \partial x_i} \Bigr]

    where a bar stands for unit length. With the probabilities p of the softmax over the C classes given,

    .. math::
        -\frac{\partial L_g}{\partial w_{c}} = \frac{s}{n_g} \sum_{i \in g} (1 - p_{ic}) \, x_i , \qquad
        -\sum_i \frac{\partial L_g}{\partial x_i} = \frac{s}{n_g} \sum_{i \in g} \sum_k ([k = c] - p_{ik}) \,
        w_k

    The first is a mean of the group, in which features count by how wrong the model is about them: all alike
    where s is small, and few of them where s is large. **The direction of a group of one feature is that
    feature**, whatever s is: see `kept_apart`. Where nothing can be wrong, because there is one class only,
    the first direction is that of the plain mean, to which it tends as s goes to 0, and the second is 0.

    Args:
        features: x (N, D), of unit length.
        weights: W (C, D), of unit length.
        classes: int64 (N,), the row of W that is right for each feature.
        groups: int64 (N,), the group of each, 0 to G - 1, all of one class; no group is empty.
        scale: s.

    References:
        Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, for gradients in place
        of data.

    >>> x = torch.eye(3)[[0, 1]]
    >>> gradient_directions(x, torch.eye(3), torch.tensor([0, 1]), torch.tensor([0, 1]))[:, :3]
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    check_number("scale", scale, above=0)
    # 1 - p as the sum of the others, which is right where it is far below what can be told from 0.
    x, w = features.double(), weights.double()
    others = (scale * x @ w.T).softmax(dim=1).scatter(1, classes[:, None], 0.0)
    own = others.sum(dim=1, keepdim=True)
    wrong = (-others).scatter(1, classes[:, None], own)
    sums = own.new_zeros(int(groups.max()) + 1, 1).index_add_(0, groups, own)
    own = torch.where(sums[groups] == 0, torch.ones_like(own), own)
    to_text = x.new_zeros(int(groups.max()) + 1, x.shape[1]).index_add_(0, groups, own * x)
    to_image = torch.zeros_like(to_text).index_add_(0, groups, wrong @ w)
    directions = [F.normalize(part, dim=1, eps=1e-300) for part in (to_text, to_image)]
    return torch.cat(directions, dim=1).to(features)


def multi_positive_contrast(
    anchors: Tensor,
    others: Tensor,
    anchor_classes: Tensor,
    other_classes: Tensor,
    *,
    temperature: float = 0.1,
) -> Tensor:
    r"""Return the contrastive loss of features among others, those of the same class being the right ones.

    .. math:: L = -\frac1A \sum_i \frac{1}{|P_i|} \sum_{j \in P_i}
        \log \frac{e^{\cos(a_i, b_j) / \tau}}{\sum_k e^{\cos(a_i, b_k) / \tau}}, \qquad
        P_i = \{ j : c(b_j) = c(a_i) \}

    An anchor without any right one counts for nothing.

    Args:
        anchors: a (A, D).
        others: b (B, D).
        anchor_classes: int64 (A,).
        other_classes: int64 (B,).
        temperature: τ.

    Raises:
        ValueError: a temperature that is not positive, or widths that differ.

    References:
        Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2.

    >>> same = torch.tensor([0, 1])
    >>> float(multi_positive_contrast(torch.eye(2), torch.eye(2), same, same, temperature=1.0))
    0.3132...
    """
    check_number("temperature", temperature, above=0)
    if anchors.shape[1] != others.shape[1]:
        raise wrong_value("others", f"of the width of the anchors, {anchors.shape[1]}", others.shape[1])
    logits = F.normalize(anchors, dim=1) @ F.normalize(others, dim=1).T / temperature
    right = (anchor_classes[:, None] == other_classes[None, :]).to(logits)
    count = right.sum(dim=1)
    each = (F.log_softmax(logits, dim=1) * right).sum(dim=1) / count.clamp(min=1)
    return -each.sum() / (count > 0).sum().clamp(min=1)


def kept_apart(
    seeds: Tensor, features: Tensor, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Return seeds (M, D) turned away from real features, and which of them could be.

    .. math::
        \cos(v, x_i) \le \max_{k: y_k = y_i} \, \max_{j \ne k} \cos(x_k, x_j) \qquad \text{for all } i

    No seed is nearer to a feature than the features of its class come to any other feature. For a class with
    a single feature that is its nearest neighbour in another class. A right angle is always far
    enough. A seed that is too near gets turned in a random direction that is orthogonal to it, as little as
    it takes. Copies of a feature are no neighbours of it; a feature without any neighbour, because it is
    alone, keeps seeds at a cosine of at most 0.5.

    It is no proof of privacy: a seed still tells where its class lies. A bound for each feature by its own
    nearest neighbour is out of reach of a faithful memory: means are nearer to most features than these are
    to each other.

    Args:
        seeds: (M, D), of unit length.
        features: x (N, D), of unit length, those that the seeds were made of.
        labels: y int64 (N,).
        generator: of the random directions.

    Returns:
        The seeds (M, D), and bool (M,): False where the bound is still broken after some tries, which
        happens in few dimensions.

    >>> label = torch.tensor([0])
    >>> away, done = kept_apart(torch.eye(64)[:1], torch.eye(64)[:1], label, torch.Generator())
    >>> bool(done), float(away @ torch.eye(64)[0]) < 0.5
    (True, True)
    """
    limits = (largest_cosines(features, labels) - _MARGIN).clamp(min=0)
    result, broken = seeds.clone(), _excess(seeds, features, limits) > 0
    for _ in range(_TRIES):
        rows = broken.nonzero().flatten()
        if len(rows) == 0:
            break
        start = seeds[rows]
        away = torch.randn(start.shape, generator=generator, device=generator.device).to(start)
        away = F.normalize(away - (away * start).sum(dim=1, keepdim=True) * start, dim=1)
        # The least angle, by halving: the excess falls with the angle but for the small cosines of `away`.
        low, high = torch.zeros(len(rows), 1).to(start), torch.full((len(rows), 1), torch.pi / 2).to(start)
        for _ in range(20):
            middle = (low + high) / 2
            inside = _excess(_turned(start, away, middle), features, limits)[:, None] <= 0
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        result[rows] = _turned(start, away, high)
        # In one dimension there is no direction to turn to.
        broken[rows] = (_excess(result[rows], features, limits) > 0) | (away.norm(dim=1) < 0.5)
    return result, ~broken


def largest_cosines(features: Tensor, labels: Tensor) -> Tensor:
    """Return the largest of `nearest_cosines` (N,) in the class of each feature (N, D)."""
    nearest, (_, positions) = nearest_cosines(features), labels.unique(return_inverse=True)
    largest = nearest.new_full((int(positions.max()) + 1,), -1.0)
    return largest.scatter_reduce(0, positions, nearest, "amax")[positions]


def nearest_cosines(features: Tensor) -> Tensor:
    """Return the cosine (N,) of each feature (N, D) of unit length with its nearest neighbour.

    Copies are no neighbours; where there is none, it is 0.5.
    """
    found: list[Tensor] = []
    for start in range(0, len(features), 1024):
        cosines = features[start : start + 1024] @ features.T
        found.append(cosines.masked_fill(cosines > 1 - 1e-5, -1).amax(dim=1))
    nearest = torch.cat(found)
    return torch.where(nearest <= -1, torch.full_like(nearest, _LONELY), nearest)


def _turned(start: Tensor, away: Tensor, angle: Tensor) -> Tensor:
    return F.normalize(angle.cos() * start + angle.sin() * away, dim=1)


def _excess(seeds: Tensor, features: Tensor, limits: Tensor) -> Tensor:
    """Return by how much (M,) the cosine of a seed with any feature is above the feature's limit."""
    parts = [(part @ features.T - limits).amax(dim=1) for part in seeds.split(1024)]
    return torch.cat(parts) if parts else seeds.new_zeros(0)


def variance_shares(
    seeds: Tensor, labels: Tensor, features: Tensor, feature_labels: Tensor
) -> dict[str, float]:
    r"""Return how much seeds and features vary within classes, by whether directions tell classes apart.

    Relevant directions are the span of the differences between class means of the features; the rest of the
    space is irrelevant. The within-class variance of each set is divided among the two:

    .. math:: V_P = \frac1n \sum_i \lVert P (x_i - \mu_{c(i)}) \rVert^2

    Args:
        seeds: (M, D).
        labels: int64 (M,).
        features: (N, D), real ones.
        feature_labels: int64 (N,).

    Returns:
        ``seeds_relevant``, ``seeds_irrelevant``, ``features_relevant``, ``features_irrelevant``.

    >>> x = torch.tensor([[1.0, 0.1, 0], [1, -0.1, 0], [0, 0, 1]])
    >>> variance_shares(x, torch.tensor([0, 0, 1]), x, torch.tensor([0, 0, 1]))["seeds_relevant"]
    0.0
    """
    features, seeds = features.double(), seeds.double()
    means = class_means(features, feature_labels)
    centred = means - means.mean(dim=0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    relevant = directions[values > 1e-9 * values.max().clamp(min=1e-300)]
    shares: dict[str, float] = {}
    for name, rows, own in (("seeds", seeds, labels), ("features", features, feature_labels)):
        _, positions = own.unique(return_inverse=True)
        rest = rows - class_means(rows, own)[positions]
        inside = (rest @ relevant.T).square().sum(dim=1).mean()
        shares[f"{name}_relevant"] = float(inside)
        shares[f"{name}_irrelevant"] = float((rest.square().sum(dim=1).mean() - inside).clamp(min=0))
    return shares


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """Return the mean feature (K, D) of each class, by id.

    Args:
        features: (N, D).
        labels: int64 (N,).

    >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([7, 7, 2]))
    tensor([[5.],
            [2.]])
    """
    means = [features[labels == label].mean(dim=0) for label in labels.unique().tolist()]
    return torch.stack(means) if means else features.new_empty(0, features.shape[1])


def class_mean_cosines(seeds: Tensor, labels: Tensor, features: Tensor, feature_labels: Tensor) -> Tensor:
    """Return the cosine (K,) of the mean seed with the mean feature, for each class that has both, by id.

    Args:
        seeds: (M, D).
        labels: int64 (M,).
        features: (N, D).
        feature_labels: int64 (N,).

    Returns:
        (K,); empty where no class has both.

    >>> eye = torch.eye(2)
    >>> class_mean_cosines(eye, torch.tensor([0, 1]), eye, torch.tensor([0, 1]))
    tensor([1., 1.])
    """
    own, real = torch.isin(labels, feature_labels), torch.isin(feature_labels, labels)
    means = class_means(seeds[own], labels[own])
    return F.cosine_similarity(means, class_means(features[real], feature_labels[real]), dim=1)
