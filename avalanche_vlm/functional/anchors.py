"""Adversarial images between what is known and what is new."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_count, check_number, check_type, wrong_value


class PixelSpace(NamedTuple):
    """What the numbers of an image tensor mean: x = (p - mean) / std, for pixel values p in [0, 1].

    Attributes:
        mean: one number a channel.
        std: one number a channel. With the defaults the tensor holds the pixel values themselves.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def pixels(self, images: Tensor) -> Tensor:
        """Return the pixel values of images (N, 3, H, W)."""
        mean, std = (images.new_tensor(part)[:, None, None] for part in self)
        return images * std + mean


class AdversarialImages(NamedTuple):
    """Images that were moved, and how far they were from their targets on the way.

    Attributes:
        images: (N, 3, H, W), in the pixel space of the originals.
        embeddings: (N, D), of these images.
        text_distances: (K + 1, N), the cosine distance to the text targets before and after each step.
        visual_distances: (K + 1, N), likewise to the visual targets.
    """

    images: Tensor
    embeddings: Tensor
    text_distances: Tensor
    visual_distances: Tensor


class AnchorSet(NamedTuple):
    """Images of new classes that were moved towards old ones.

    Attributes:
        seeds: (N, 3, H, W), the images as they were.
        images: (N, 3, H, W), the anchors.
        classes: int64 (N,), the old class that each was moved towards.
        text_distances: (K + 1, N): see `AdversarialImages`.
        visual_distances: (K + 1, N), likewise; it says nothing of a class without prototype.
        probabilities_before: (N,), the probability of the old class for the seed, among all classes seen.
        probabilities_after: (N,), likewise for the anchor.
    """

    seeds: Tensor
    images: Tensor
    classes: Tensor
    text_distances: Tensor
    visual_distances: Tensor
    probabilities_before: Tensor
    probabilities_after: Tensor


def dual_targeted_pgd(
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    text_targets: Tensor,
    visual_targets: Tensor,
    *,
    space: PixelSpace,
    visual_weight: Tensor | float = 1.0,
    epsilon: float = 4 / 255,
    step_size: float = 1.5e-3,
    steps: int = 10,
) -> AdversarialImages:
    r"""Move images towards a target in the embedding space and one in the space of visual features.

    .. math::
        \delta^{k+1} = \Pi \bigl( \delta^k - \gamma \,\mathrm{sign} \nabla_\delta L(\delta^k) \bigr), \qquad
        L = 1 - \cos(v(x + \delta), u) + \lambda_p \bigl( 1 - \cos(h(x + \delta), p) \bigr)

    from :math:`\delta^0 = 0`; :math:`\Pi` keeps :math:`\lVert \delta \rVert_\infty \le \epsilon` and pixel
    values in [0, 1]. A pixel that lies outside of [0, 1] from the start may stay, and moves inwards only.
    Each image has targets of its own, so all classes go at once; gradients are taken of the inputs alone.
    Nothing is random.

    Args:
        encode: images (N, 3, H, W) -> embeddings v (N, D) and visual features h (N, D').
        images: floats (N, 3, H, W).
        text_targets: u (N, D), of any length.
        visual_targets: p (N, D'), of any length; rows of zeros have no direction, and no effect.
        space: what the numbers of the images mean.
        visual_weight: λ_p, or one for each image (N,).
        epsilon: ε, in pixel values: 1 is the way from black to white.
        step_size: γ, likewise.
        steps: K; 0 leaves the images as they are.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: images of another shape, targets that are not one for each, or a number out of range.

    References:
        SeGP-CL (arXiv 2603.12055), dual-targeted projected gradient descent; Madry et al., Towards Deep
        Learning Models Resistant to Adversarial Attacks, ICLR 2018, for the projection.

    Deviations:
        The sources give neither ε nor the form of the two objectives: cosine distances, and 4/255, which
        10 steps of 1.5e-3 cannot reach. Pixel values are clipped at each step, and not after the last one
        only, so that the gradient is that of an image.

    >>> images, target = torch.full((1, 3, 2, 2), 0.5), torch.tensor([[1.0, 0, 0]])
    >>> def encode(x):
    ...     return x.mean(dim=(2, 3)), x.mean(dim=(2, 3))
    >>> moved = dual_targeted_pgd(encode, images, target, target, space=PixelSpace(), steps=2)
    >>> moved.images[0, :, 0, 0]
    tensor([0.5030, 0.4970, 0.4970])
    """
    check_type("space", space, PixelSpace)
    for centre, spread in zip(space.mean, space.std, strict=True):
        check_number("space.mean", centre)
        check_number("space.std", spread, above=0)
    check_number("epsilon", epsilon, at_least=0)
    check_number("step_size", step_size, above=0)
    check_count("steps", steps, at_least=0)
    if images.ndim != 4 or images.shape[1] != 3:
        raise wrong_value("images", "(N, 3, H, W)", tuple(images.shape))
    for name, targets in (("text_targets", text_targets), ("visual_targets", visual_targets)):
        if targets.ndim != 2 or len(targets) != len(images):
            raise wrong_value(name, f"one row for each of {len(images)} images", tuple(targets.shape))
    mean, std = (images.new_tensor(part)[:, None, None] for part in space)
    # What the pixel values allow and what the ball allows, both in the numbers of the images.
    lowest, highest = (-mean / std).minimum(images), ((1 - mean) / std).maximum(images)
    lowest, highest = lowest.maximum(images - epsilon / std), highest.minimum(images + epsilon / std)
    weight = torch.as_tensor(visual_weight, dtype=images.dtype, device=images.device)
    is_wrong = bool((~weight.isfinite() | (weight < 0)).any())
    if weight.ndim > 1 or (weight.ndim == 1 and len(weight) != len(images)) or is_wrong:
        expected = f"a finite number of at least 0, or one for each of {len(images)} images"
        raise wrong_value("visual_weight", expected, visual_weight)
    text, visual = F.normalize(text_targets, dim=1), F.normalize(visual_targets, dim=1)
    moved, to_text, to_visual = images.detach(), list[Tensor](), list[Tensor]()
    for _ in range(steps):
        with torch.enable_grad():
            moved = moved.requires_grad_(True)
            embeddings, features = encode(moved)
            first, second = _cosine_distance(embeddings, text), _cosine_distance(features, visual)
            (gradient,) = torch.autograd.grad((first + weight * second).sum(), moved)
        to_text.append(first.detach())
        to_visual.append(second.detach())
        moved = (moved.detach() - step_size / std * gradient.sign()).maximum(lowest).minimum(highest)
    with torch.no_grad():
        embeddings, features = encode(moved)
        to_text.append(_cosine_distance(embeddings, text))
        to_visual.append(_cosine_distance(features, visual))
    return AdversarialImages(moved, embeddings, torch.stack(to_text), torch.stack(to_visual))


def _cosine_distance(features: Tensor, unit: Tensor) -> Tensor:
    """Return 1 - cos (N,) of features (N, D), possibly in half precision, to unit vectors (N, D)."""
    return 1 - (F.normalize(features.to(unit.dtype), dim=1) * unit).sum(dim=1)


def nearest_images(similarities: Tensor, count: int) -> Tensor:
    """Return for each class the images that are most like it, the likest first.

    Args:
        similarities: (N, C), of N images and C classes.
        count: how many of each class; all N of them if there are fewer.

    Returns:
        int64 (C, min(count, N)), rows of ``similarities``.

    References:
        SeGP-CL (arXiv 2603.12055), the choice of seeds.

    >>> nearest_images(torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.4]]), 2)
    tensor([[1, 2],
            [0, 2]])
    """
    return similarities.topk(min(count, len(similarities)), dim=0).indices.T
