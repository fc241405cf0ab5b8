"""Label spaces: which classes count in a loss or a prediction, chosen by column.

A classifier returns finite logits for every named class. Masking columns with a large negative
number is not equivalent to leaving them out (label smoothing, distillation and importance
estimates see the number), so a space is a set of columns that is indexed.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_choice, check_number, wrong_type, wrong_value

#: Which classes compete: those seen so far, all named, those of the experience, those of its data set.
LabelSpace = Literal["seen", "all", "experience", "dataset"]
Reduction = Literal["mean", "sum", "none"]
#: All label spaces; see `LabelSpace`.
LABEL_SPACES: tuple[LabelSpace, ...] = get_args(LabelSpace)


def label_space_columns(
    space: LabelSpace,
    *,
    class_count: int,
    seen: Tensor | None = None,
    current: Tensor | None = None,
    dataset_of_class: Tensor | None = None,
) -> Tensor:
    """Return the sorted class ids (K,) that belong to a label space.

    ========== =================================================================================
    space      classes
    ========== =================================================================================
    seen       those trained on so far
    all        every named class
    experience those of the current experience
    dataset    every class of the data sets that the current experience's classes belong to
    ========== =================================================================================

    Args:
        space: one of the four names.
        class_count: number C of named classes.
        seen: bool (C,), the classes trained on so far; needed for ``"seen"``.
        current: int64 (K,), class ids of the current experience; needed for the last two spaces.
        dataset_of_class: int64 (C,), an id of the data set of each class; None if there is one.

    Raises:
        ValueError: ``space`` is unknown, or what it needs is missing.

    >>> label_space_columns("seen", class_count=4, seen=torch.tensor([True, False, True, False]))
    tensor([0, 2])
    """
    check_choice("space", space, LABEL_SPACES)
    if space == "all":
        return torch.arange(class_count)
    if space == "seen":
        if seen is None:
            raise wrong_value("seen", "given for the space 'seen'", None)
        return torch.arange(len(seen)).masked_select(seen.cpu())
    if current is None:
        raise wrong_value("current", f"given for the space {space!r}", None)
    current = torch.tensor(sorted(set(current.tolist())))
    if space == "experience":
        return current
    if dataset_of_class is None:
        return torch.arange(class_count)
    in_dataset = torch.isin(dataset_of_class, dataset_of_class[current])
    return torch.arange(class_count).masked_select(in_dataset)


def columns_with_labels(columns: Tensor, targets: Tensor) -> Tensor:
    """Return the sorted union of ``columns`` (K,) and the labels present in ``targets`` (B,), for training.

    In evaluation it would make a space of each batch: see `label_space_evaluation_loss`.
    """
    return torch.cat([columns.to(targets.device), targets]).unique()


def label_space_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    columns: Tensor,
    *,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy over a subset of the columns.

    .. math:: L = -\frac1B \sum_i \log \frac{e^{z_{i,y_i}}}{\sum_{c \in S} e^{z_{i,c}}}

    where S is the union of ``columns`` and the labels in the batch, so that the loss is finite
    for replayed classes too. Label smoothing spreads its mass over S only.

    Args:
        logits: (B, C), finite, over all named classes.
        targets: int64 (B,), labels in 0..C-1.
        columns: int64 (K,), the class ids of the label space.
        label_smoothing: mass in [0, 1] spread evenly over S.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``.

    Returns:
        A scalar, or (B,) without reduction.

    Raises:
        TypeError: the labels are not whole numbers, or the smoothing is no number.
        ValueError: labels of another shape, a label without a column, smoothing outside [0, 1], or an
            unknown reduction.
    """
    check_number("label_smoothing", label_smoothing, at_least=0, at_most=1)
    check_choice("reduction", reduction, get_args(Reduction))
    if targets.is_floating_point():
        raise wrong_type("targets", "int64 class ids (B,)", targets.dtype)
    if targets.ndim != 1:
        raise wrong_value("targets", "int64 class ids (B,)", tuple(targets.shape))
    every = torch.arange(logits.shape[1], device=columns.device)
    if torch.equal(columns, every) and _are_columns(targets, len(every)):
        # The common case at the end of a stream, without the sorting and copying of the general one.
        return F.cross_entropy(logits, targets.long(), label_smoothing=label_smoothing, reduction=reduction)
    space = columns_with_labels(columns, targets)
    _check_columns(space, logits.shape[1])
    return F.cross_entropy(
        logits.index_select(1, space),  # the backward pass of `logits[:, space]` takes several times as long
        torch.searchsorted(space, targets),
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def label_space_evaluation_loss(
    logits: Tensor,
    targets: Tensor,
    columns: Tensor,
    *,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy over a subset of the columns that is the same for every batch.

    .. math:: L_i = -\log \frac{e^{z_{i,y_i}}}{\sum_{c \in S} e^{z_{i,c}}}
        \text{ for } y_i \in S, \text{ else NaN}

    Where `label_space_cross_entropy` lets labels of the batch join S, so that what is replayed is learned,
    a sample whose label is outside S has no loss here: among S it cannot be right, and among more classes
    its loss would depend on the samples that it happens to be evaluated with. A mean or sum over samples of
    which one has no loss is NaN.

    Args:
        logits: as for `label_space_cross_entropy`, and so are the arguments that follow.
        targets: likewise.
        columns: S.
        label_smoothing: likewise.
        reduction: likewise.

    Raises:
        TypeError: as there.
        ValueError: as there.

    >>> logits, targets = torch.zeros(2, 3), torch.tensor([0, 2])
    >>> label_space_evaluation_loss(logits, targets, torch.tensor([0, 1]), reduction="none")
    tensor([0.6931,    nan])
    """
    outside = ~torch.isin(targets, columns.to(targets.device))
    if not bool(outside.any()):
        return label_space_cross_entropy(
            logits, targets, columns, label_smoothing=label_smoothing, reduction=reduction
        )
    check_choice("reduction", reduction, get_args(Reduction))
    _check_columns(columns_with_labels(columns, targets), logits.shape[1])
    losses = logits.new_full(targets.shape, float("nan"))
    if not bool(outside.all()):
        losses[~outside] = label_space_cross_entropy(
            logits[~outside], targets[~outside], columns, label_smoothing=label_smoothing, reduction="none"
        )
    return {"mean": losses.mean, "sum": losses.sum, "none": losses.clone}[reduction]()


def _check_columns(space: Tensor, count: int) -> None:
    if len(space) and (space[0] < 0 or space[-1] >= count):
        raise wrong_value(
            "targets",
            f"labels in 0..{count - 1}, one for each column of the logits, as `columns` must",
            f"labels and columns from {int(space[0])} to {int(space[-1])}",
            "Name all classes of the benchmark with model.set_classes(class_names(benchmark)).",
        )


def _are_columns(targets: Tensor, count: int) -> bool:
    if len(targets) == 0:
        return False
    lowest, highest = targets.aminmax()
    return int(lowest) >= 0 and int(highest) < count


def label_space_predictions(logits: Tensor, columns: Tensor) -> Tensor:
    """Return the class id (B,) with the largest logit among ``columns`` (K,).

    −1, which is no class, if K is 0 or one of these logits is NaN.

    >>> label_space_predictions(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), torch.arange(2))
    tensor([ 1, -1])
    """
    if columns.numel() == 0:
        return torch.full((len(logits),), -1, device=logits.device)
    columns = columns.to(logits.device)
    best, places = logits[:, columns].max(dim=1)  # NaN if one of them is
    return columns[places].masked_fill(best.isnan(), -1)
