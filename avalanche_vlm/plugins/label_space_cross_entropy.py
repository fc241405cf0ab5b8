"""The criterion that chooses which classes count."""

from __future__ import annotations

from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avalanche_vlm._checks import check_choice, check_number
from avalanche_vlm._host import strategy_columns
from avalanche_vlm.functional import (
    LABEL_SPACES,
    LabelSpace,
    label_space_cross_entropy,
    label_space_evaluation_loss,
)
from avalanche_vlm.plugins._finite import check_loss, check_settings, check_weights


class LabelSpaceCrossEntropy(nn.Module, SupervisedPlugin[Any]):
    r"""Cross-entropy over the classes of a label space; in training the labels of the batch join them.

    .. math:: L = -\frac1B \sum_i \log \frac{e^{z_{i,y_i}}}{\sum_{c \in S} e^{z_{i,c}}}

    Given to a strategy as its criterion, it is called back by the host before each experience and
    reads there which classes S are. It works in the host's own strategies too.

    In training the labels present in the batch join S, so that classes that are replayed keep a finite
    loss. In evaluation S does not depend on the batch: a sample whose label is outside S (of a class that
    has not been seen, in ``"seen"``) has the loss NaN, and so has the experience that it belongs to. The
    mean over samples is the same for every ``eval_mb_size``.

    Training with numbers that are not finite is refused, in the host's strategies as in ours: settings of
    the optimizer before an experience and before each step, a loss before its step, weights after an epoch.

    Args:
        space: ``"seen"``, the classes trained on so far; ``"all"`` named classes; ``"experience"``,
            the current ones; ``"dataset"``, those of the current data set.
        label_smoothing: mass in [0, 1] spread evenly over S.

    Raises:
        ValueError: an unknown space, or smoothing outside [0, 1]; in training, a loss, a weight or a setting
            of the optimizer that is not finite.

    References:
        Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, section 7 (smoothing).

    Deviations:
        Logits outside S are left out by column instead of being set to a large negative number,
        so smoothing and replayed classes keep a finite loss.

    >>> LabelSpaceCrossEntropy("all")(torch.zeros(1, 2), torch.tensor([0]))
    tensor(0.6931)
    """

    supports_distributed = True

    def __init__(self, space: LabelSpace = "seen", *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_choice("space", space, LABEL_SPACES)
        check_number("label_smoothing", label_smoothing, at_least=0, at_most=1)
        self.space: LabelSpace = space
        self.label_smoothing = label_smoothing
        # Some of the host's plugins (MIR) read and set this, as of torch's own losses.
        self.reduction: Literal["mean", "sum", "none"] = "mean"
        self._columns: Tensor | None = None
        self._columns_of_training: Tensor | None = None
        self._in_evaluation = False

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, a scalar (or (B,) if ``reduction`` was set to ``"none"``).

        Args:
            logits: (B, C) over all named classes.
            targets: int64 (B,).

        Raises:
            RuntimeError: the space depends on the experience, and no strategy has set it.
        """
        if self._columns is None and self.space != "all":
            raise RuntimeError(
                f"LabelSpaceCrossEntropy({self.space!r}) learns its classes from the strategy. Give it to "
                "the strategy as `criterion`, or use the space 'all' or functional.label_space_cross_entropy."
            )
        columns = torch.arange(logits.shape[1]) if self._columns is None else self._columns
        loss = label_space_evaluation_loss if self._in_evaluation else label_space_cross_entropy
        return loss(logits, targets, columns, label_smoothing=self.label_smoothing, reduction=self.reduction)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Read the classes of the label space."""
        self._in_evaluation = False  # an evaluation may have been interrupted
        if not _checks_itself(strategy):
            check_settings(strategy.optimizer)
        if self.space != "all":
            self._columns = self._columns_of_training = strategy_columns(strategy, self.space)

    def before_eval_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Read the classes for the evaluation loss."""
        self._in_evaluation = True
        if self.space != "all":
            self._columns = strategy_columns(strategy, self.space)

    def after_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Go back to the classes of training: this may have been a periodic evaluation inside it."""
        self._columns, self._in_evaluation = self._columns_of_training, False

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse a loss that is not finite."""
        if not _checks_itself(strategy):
            check_loss(strategy)

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse settings of the optimizer that a schedule has made other than finite."""
        if not _checks_itself(strategy):
            check_settings(strategy.optimizer)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse weights that are not finite."""
        if not _checks_itself(strategy):
            check_weights(strategy)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"{self.space!r}, label_smoothing={self.label_smoothing}"


def _checks_itself(strategy: Any) -> bool:
    """Return whether a strategy looks at its numbers whatever its criterion is, as ours do."""
    return bool(getattr(strategy, "refuses_non_finite", False))
