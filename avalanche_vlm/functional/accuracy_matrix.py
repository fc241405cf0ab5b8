r"""Continual-learning metrics as functions of one accuracy matrix.

The matrix has shape (T+1, T) for T experiences. Entry :math:`a_{t,j}` is the accuracy on the j-th
experience after training on t of them; row 0 was measured before any training, which for a
vision-language model is zero-shot accuracy. Rows are counted from 0 and experiences from 1 in the
equations below; in the tensor, experience j is column j−1.

An entry that was not measured, or that its label space does not define (an unseen experience among
the classes seen so far), is NaN. A metric is NaN exactly when an entry that enters its equation is
NaN, or when the equation is an average over nothing (``transfer`` of a single experience). A joint
training therefore fills row 0 and row T, and has zero-shot and last accuracy and nothing else.

A value means little without the label space that the matrix was measured in: MTIL scores each data
set among its own class names (``"dataset"``), class-incremental papers use the classes seen so far
(``"seen"``), and CI-Transfer needs all named classes (``"all"``).

References:
    Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017.
    Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018.
    Zheng et al., "Preventing Zero-Shot Transfer Degradation in Continual Learning of
    Vision-Language Models" (ZSCL), ICCV 2023, for MTIL's Transfer, Avg and Last.
    Frascaroli et al., "CLIP with Generative Latent Replay" (CGIL), BMVC 2024, for CI-Transfer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_type, wrong_type, wrong_value
from avalanche_vlm.functional.label_space import LABEL_SPACES, LabelSpace


def _trained_rows(accuracies: Tensor) -> Tensor:
    """Check the matrix (T+1, T) and return its rows 1..T as (T, T)."""
    check_type("accuracies", accuracies, Tensor)
    if not accuracies.is_floating_point():
        raise wrong_type("accuracies", "a tensor of floats", accuracies)
    if accuracies.ndim != 2 or accuracies.shape[0] != accuracies.shape[1] + 1 or accuracies.shape[1] == 0:
        raise wrong_value(
            "accuracies",
            "a matrix (T+1, T) with T of at least 1",
            f"shape {tuple(accuracies.shape)}",
            "Row 0 is zero-shot; fill rows that were not measured with NaN.",
        )
    return accuracies[1:]


def _weights(accuracies: Tensor, counts: Tensor | None) -> Tensor:
    """Return the weight (T,) of each experience: its samples, or 1."""
    experiences = accuracies.shape[1]
    if counts is None:
        return accuracies.new_ones(experiences)
    check_type("counts", counts, Tensor)
    if counts.shape != (experiences,):
        raise wrong_value(
            "counts", f"one number of samples per experience ({experiences},)", tuple(counts.shape)
        )
    if bool((counts < 0).any()):
        raise wrong_value("counts", "numbers of samples of at least 0", counts.tolist())
    return counts.to(accuracies)


def average_accuracy(accuracies: Tensor) -> Tensor:
    r"""MTIL's Avg: the mean of every entry measured after training.

    .. math:: \frac{1}{T^2} \sum_{t=1}^{T} \sum_{j=1}^{T} a_{t,j}

    Entries of experiences not trained on yet count, so this mixes learning with zero-shot
    transfer. Class-incremental papers call another number "Avg" or "average accuracy": see
    `average_incremental_accuracy`.

    Args:
        accuracies: (T+1, T).

    Returns:
        A scalar.

    Raises:
        ValueError: ``accuracies`` has another shape.

    >>> average_accuracy(torch.tensor([[0.0, 0.0], [0.8, 0.4], [0.6, 1.0]]))
    tensor(0.7000)

    References:
        ZSCL (ICCV 2023), from MTIL's official evaluation.
    """
    return _trained_rows(accuracies).mean()


def average_incremental_accuracy(accuracies: Tensor, counts: Tensor | None = None) -> Tensor:
    r"""Class-incremental Avg: the accuracy over the experiences seen so far, averaged over time.

    .. math:: \frac{1}{T} \sum_{t=1}^{T} \frac{\sum_{j \le t} n_j\, a_{t,j}}{\sum_{j \le t} n_j}

    With :math:`n_j = 1` each experience weighs the same (Mammoth); with the numbers of test samples
    it is the accuracy over all samples seen so far (iCaRL, PyCIL and most class-incremental
    tables). The two agree when experiences are equally large.

    Args:
        accuracies: (T+1, T).
        counts: (T,), test samples of each experience; None weighs experiences equally.

    Returns:
        A scalar.

    Raises:
        ValueError: a shape does not fit, or a count is negative.

    >>> average_incremental_accuracy(torch.tensor([[0.0, 0.0], [0.8, 0.4], [0.6, 1.0]]))
    tensor(0.8000)

    References:
        Rebuffi et al., "iCaRL", CVPR 2017, §4.
    """
    rows = _trained_rows(accuracies)
    weights = _weights(accuracies, counts)
    # Entries above the diagonal are left out before the sum: 0 · NaN would be NaN.
    weighted = torch.where(torch.ones_like(rows, dtype=torch.bool).tril(), rows * weights, 0.0)
    return (weighted.sum(dim=1) / weights.cumsum(dim=0)).mean()


def last_accuracy(accuracies: Tensor, counts: Tensor | None = None) -> Tensor:
    r"""Accuracy after the last experience (Last, final average accuracy).

    .. math:: \frac{\sum_j n_j\, a_{T,j}}{\sum_j n_j}

    MTIL and Mammoth take :math:`n_j = 1`; class-incremental tables mostly count samples.

    Args:
        accuracies: (T+1, T); only the last row is read.
        counts: (T,), test samples of each experience; None weighs experiences equally.

    Returns:
        A scalar.

    Raises:
        ValueError: a shape does not fit, or a count is negative.

    >>> last_accuracy(torch.tensor([[0.0, 0.0], [0.8, 0.4], [0.6, 1.0]]))
    tensor(0.8000)

    References:
        ZSCL (ICCV 2023), from MTIL's official evaluation.
    """
    rows = _trained_rows(accuracies)
    weights = _weights(accuracies, counts)
    return (rows[-1] * weights).sum() / weights.sum()


def transfer(accuracies: Tensor) -> Tensor:
    r"""MTIL's Transfer: accuracy on experiences before they are trained on.

    .. math:: \frac{1}{T-1} \sum_{j=2}^{T} \frac{1}{j-1} \sum_{t=1}^{j-1} a_{t,j}

    The zero-shot row is not part of it. Each experience weighs the same, however often it was
    measured; `ci_transfer` averages the same entries in the other order.

    Args:
        accuracies: (T+1, T).

    Returns:
        A scalar; NaN for a single experience.

    Raises:
        ValueError: ``accuracies`` has another shape.

    >>> transfer(torch.tensor([[0.0, 0.0], [0.8, 0.4], [0.6, 1.0]]))
    tensor(0.4000)

    References:
        ZSCL (ICCV 2023), from MTIL's official evaluation.
    """
    unseen, count = _unseen(accuracies)
    return (unseen.sum(dim=0) / count.sum(dim=0))[1:].mean()


def ci_transfer(accuracies: Tensor) -> Tensor:
    r"""CI-Transfer: class-incremental accuracy on what is still to come, averaged over time.

    .. math:: \frac{1}{T-1} \sum_{t=1}^{T-1} \frac{1}{T-t} \sum_{j=t+1}^{T} a_{t,j}

    The matrix must be measured in the label space ``"all"``: an image of an unseen class competes
    with the classes already trained.

    Args:
        accuracies: (T+1, T), measured over all named classes.

    Returns:
        A scalar; NaN for a single experience.

    Raises:
        ValueError: ``accuracies`` has another shape.

    >>> ci_transfer(torch.tensor([[0.0, 0.0], [0.8, 0.4], [0.6, 1.0]]))
    tensor(0.4000)

    References:
        CGIL (BMVC 2024), from its official evaluation of future tasks in Mammoth.

    Deviations:
        The official code compares with the text features of unseen classes before they are
        normalised, and with normalised ones of seen classes. Text features of CLIP are longer
        than 1, so unseen classes are favoured there, and published numbers lean towards the
        accuracy among the unseen classes alone. Here the matrix is what the classifier says; one
        that normalises all classes alike should be expected to score lower than published.
    """
    unseen, count = _unseen(accuracies)
    return (unseen.sum(dim=1) / count.sum(dim=1))[:-1].mean()


def _unseen(accuracies: Tensor) -> tuple[Tensor, Tensor]:
    """Return the entries of rows 1..T with t < j (others 0), and which they are, both (T, T)."""
    rows = _trained_rows(accuracies)
    mask = torch.ones_like(rows, dtype=torch.bool).triu(diagonal=1)
    return torch.where(mask, rows, 0.0), mask


def forgetting(accuracies: Tensor) -> Tensor:
    r"""Mean drop from the best accuracy since an experience was learned; lower is better.

    .. math:: \frac{1}{T-1} \sum_{j=1}^{T-1} \Bigl(\max_{j \le t < T} a_{t,j} - a_{T,j}\Bigr)

    The maximum starts at t = j, where the experience has been learned, so that the value is the
    same question in every label space (``"seen"`` has no earlier entries) and zero-shot accuracy is
    never called learned. Chaudhry et al. and Mammoth take the maximum over every t ≥ 1; GIFT and
    the host's ``Forgetting`` take :math:`a_{j,j}` instead of a maximum, which is
    −`backward_transfer`.

    Args:
        accuracies: (T+1, T).

    Returns:
        A scalar, negative if every experience improved; NaN for a single experience.

    Raises:
        ValueError: ``accuracies`` has another shape.

    >>> forgetting(torch.tensor([[0.0, 0.0], [0.75, 0.5], [0.5, 1.0]]))
    tensor(0.2500)

    References:
        Chaudhry et al. (ECCV 2018).
    """
    rows = _trained_rows(accuracies)
    learned = torch.ones_like(rows, dtype=torch.bool).tril()[:-1, :-1]
    if learned.numel() == 0:
        return rows.new_tensor(float("nan"))
    best = torch.where(learned, rows[:-1, :-1], -torch.inf).amax(dim=0)
    return (best - rows[-1, :-1]).mean()


def backward_transfer(accuracies: Tensor) -> Tensor:
    r"""What later training did to an experience since it was learned; higher is better.

    .. math:: \frac{1}{T-1} \sum_{j=1}^{T-1} (a_{T,j} - a_{j,j})

    Args:
        accuracies: (T+1, T).

    Returns:
        A scalar; NaN for a single experience.

    Raises:
        ValueError: ``accuracies`` has another shape.

    >>> backward_transfer(torch.tensor([[0.0, 0.0], [0.75, 0.5], [0.5, 1.0]]))
    tensor(-0.2500)

    References:
        Lopez-Paz and Ranzato (NeurIPS 2017), eq. 3.
    """
    rows = _trained_rows(accuracies)
    return (rows[-1] - rows.diagonal())[:-1].mean()


def forward_transfer(accuracies: Tensor) -> Tensor:
    r"""What earlier training did to an experience just before it is learned.

    .. math:: \frac{1}{T-1} \sum_{j=2}^{T} (a_{j-1,j} - a_{0,j})

    The baseline is the untrained model. Lopez-Paz and Ranzato mean a random initialisation by
    that; here it is zero-shot accuracy, so the value is the change of zero-shot ability. Some
    papers call :math:`a_{j-1,j}` alone forward transfer.

    Args:
        accuracies: (T+1, T).

    Returns:
        A scalar; NaN for a single experience.

    Raises:
        ValueError: ``accuracies`` has another shape.

    >>> forward_transfer(torch.tensor([[0.0, 0.25], [0.75, 0.5], [0.5, 1.0]]))
    tensor(0.2500)

    References:
        Lopez-Paz and Ranzato (NeurIPS 2017), eq. 4.
    """
    _trained_rows(accuracies)
    # The diagonal of the (T+1, T) matrix itself holds a_{j−1, j}.
    return (accuracies.diagonal() - accuracies[0])[1:].mean()


def zero_shot_accuracy(accuracies: Tensor) -> Tensor:
    r"""Mean accuracy before any training.

    .. math:: \frac{1}{T} \sum_{j=1}^{T} a_{0,j}

    Args:
        accuracies: (T+1, T); only row 0 is read.

    Returns:
        A scalar.

    Raises:
        ValueError: ``accuracies`` has another shape.

    >>> zero_shot_accuracy(torch.tensor([[0.25, 0.75], [0.8, 0.4], [0.6, 1.0]]))
    tensor(0.5000)

    References:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
        ICML 2021.
    """
    _trained_rows(accuracies)
    return accuracies[0].mean()


def accuracy_matrix_summary(
    accuracies: Tensor, *, space: LabelSpace, counts: Tensor | None = None
) -> dict[str, float]:
    """Return the metrics that a label space has, by the names of their functions.

    Args:
        accuracies: (T+1, T).
        space: the label space that the matrix was measured in. ``"seen"`` says nothing about
            experiences not trained on yet, so its summary leaves out ``average_accuracy``,
            ``transfer``, ``forward_transfer`` and ``zero_shot_accuracy``; ``ci_transfer`` is there
            for ``"all"`` only.
        counts: (T,), test samples of each experience; adds ``pooled_last_accuracy`` and
            ``pooled_average_incremental_accuracy``, which weigh by them.

    Returns:
        Name to value; NaN where an entry is missing.

    Raises:
        ValueError: a shape does not fit, or ``space`` is unknown.

    >>> summary = accuracy_matrix_summary(torch.tensor([[0.25], [1.0]]), space="dataset")
    >>> summary["last_accuracy"], summary["zero_shot_accuracy"], summary["forgetting"]
    (1.0, 0.25, nan)
    """
    check_choice("space", space, LABEL_SPACES)
    values = {
        "average_incremental_accuracy": average_incremental_accuracy(accuracies),
        "last_accuracy": last_accuracy(accuracies),
        "forgetting": forgetting(accuracies),
        "backward_transfer": backward_transfer(accuracies),
    }
    if space != "seen":
        values["average_accuracy"] = average_accuracy(accuracies)
        values["transfer"] = transfer(accuracies)
        values["forward_transfer"] = forward_transfer(accuracies)
        values["zero_shot_accuracy"] = zero_shot_accuracy(accuracies)
    if space == "all":
        values["ci_transfer"] = ci_transfer(accuracies)
    if counts is not None:
        values["pooled_average_incremental_accuracy"] = average_incremental_accuracy(accuracies, counts)
        values["pooled_last_accuracy"] = last_accuracy(accuracies, counts)
    return {name: float(value) for name, value in values.items()}
