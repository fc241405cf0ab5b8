"""Seeds of a memory to look at: beside the real embeddings that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_count, wrong_type, wrong_value
from avalanche_vlm.functional import class_mean_cosines, nearest_cosines, variance_shares
from avalanche_vlm.logging._figures import GREY, new_figure


def seed_table(seeds: Tensor, labels: Tensor, features: Tensor, feature_labels: Tensor) -> Table:
    """Return how seeds lie to real embeddings: how faithful, how varied, and how near.

    The variance within classes is split among the directions in which class means differ, and all others
    (`functional.variance_shares`). The largest cosine of a seed with any embedding is beside that of
    any two embeddings.

    Args:
        seeds: (M, D), e.g. ``SeedBuffer.visual``.
        labels: int64 (M,).
        features: real embeddings (N, D).
        feature_labels: int64 (N,).

    Raises:
        TypeError: not tensors of floats and of whole numbers.
        ValueError: shapes that do not agree, or no class that both have.
    """
    seeds, features = _checked(seeds, labels, features, feature_labels)
    cosines = class_mean_cosines(seeds, labels, features, feature_labels)
    shares = variance_shares(seeds, labels, features, feature_labels)
    known = torch.isin(feature_labels, labels)
    to_real = (seeds @ features[known].T).amax(dim=1)
    table = Table(box=box.SIMPLE_HEAD, caption=Text("cosines; variance within classes on the unit sphere"))
    for heading in ("", "Seeds", "Embeddings"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("number", str(len(seeds)), str(len(features)))
    spread = f" ± {float(cosines.std()):.3f}" if len(cosines) > 1 else ""
    table.add_row("class mean to real class mean", f"{float(cosines.mean()):.3f}{spread}", "1.000")
    for name in ("relevant", "irrelevant"):
        values = (shares[f"seeds_{name}"], shares[f"features_{name}"])
        table.add_row(f"variance, {name} directions", *(f"{value:.4f}" for value in values))
    largest = (float(to_real.max()), float(nearest_cosines(features).max()))
    table.add_row("largest cosine to another embedding", *(f"{value:.3f}" for value in largest))
    return table


def plot_seeds(
    seeds: Tensor,
    labels: Tensor,
    features: Tensor,
    feature_labels: Tensor,
    class_names: Sequence[str],
    *,
    most: int = 10,
) -> Figure:
    """Draw seeds among real embeddings, projected to the two leading principal components of class means.

    Args:
        seeds: (M, D), e.g. ``SeedBuffer.visual``.
        labels: int64 (M,).
        features: real embeddings (N, D).
        feature_labels: int64 (N,).
        class_names: by class id.
        most: number of classes to draw; of more, those with the smallest ids.

    Raises:
        TypeError: not tensors of floats and of whole numbers.
        ValueError: shapes that do not agree, no class that both have, a class without a name, or a number
            below 1.
    """
    from sklearn.decomposition import PCA

    check_count("most", most)
    seeds, features = _checked(seeds, labels, features, feature_labels)
    both = [each for each in labels.unique().tolist() if bool((feature_labels == each).any())][:most]
    if both[-1] >= len(class_names):
        raise wrong_value("class_names", f"a name for each class, up to {both[-1]}", len(class_names))
    means = {each: features[feature_labels == each].mean(dim=0) for each in both}
    fitted: Any = PCA(2).fit(torch.stack([*means.values()]).numpy() if len(both) > 2 else features.numpy())
    figure = new_figure(7.5, 5)
    axes = figure.add_subplot()
    for place, (each, mean) in enumerate(means.items()):
        colour = f"C{place % 10}"
        real = fitted.transform(features[feature_labels == each].numpy())
        own = fitted.transform(seeds[labels == each].numpy())
        centre = fitted.transform(mean[None].numpy())
        name = str(class_names[each]).replace("$", r"\$")
        axes.plot(*real.T, ".", color=colour, alpha=0.25, markersize=5)
        axes.plot(*own.T, "D", color=colour, markersize=6, markeredgecolor="white", label=name)
        axes.plot(*centre.T, "+", color=colour, markersize=12, markeredgewidth=2)
    axes.plot([], [], ".", color=GREY, alpha=0.5, label="embedding")
    axes.plot([], [], "D", color=GREY, label="seed")
    axes.plot([], [], "+", color=GREY, markersize=10, markeredgewidth=2, label="class mean")
    axes.set(xlabel="first component of class means", ylabel="second component")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _checked(seeds: Any, labels: Any, features: Any, feature_labels: Any) -> tuple[Tensor, Tensor]:
    """Return seeds and features of unit length, or raise."""
    pairs = (("seeds", seeds, "labels", labels), ("features", features, "feature_labels", feature_labels))
    for name, rows, label_name, own in pairs:
        if not isinstance(rows, Tensor) or not rows.is_floating_point() or rows.ndim != 2:
            raise wrong_type(name, "a float tensor of rows (N, D)", rows)
        if not isinstance(own, Tensor) or own.is_floating_point():
            raise wrong_type(label_name, "a tensor (N,) of whole numbers", own)
        if own.shape != rows.shape[:1]:
            raise wrong_value(label_name, f"one for each of the {len(rows)} {name}", tuple(own.shape))
    if seeds.shape[1] != features.shape[1]:
        raise wrong_value("seeds", f"of the width {features.shape[1]} of the features", seeds.shape[1])
    if not bool(torch.isin(labels, feature_labels).any()):
        raise wrong_value("labels", "of classes that there are features of", "none")
    return F.normalize(seeds.detach().float(), dim=1), F.normalize(features.detach().float(), dim=1)
