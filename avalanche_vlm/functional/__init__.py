"""Pure tensor functions: the mathematics, without the host."""

from __future__ import annotations

from avalanche_vlm.functional.accuracy_matrix import (
    accuracy_matrix_summary,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    ci_transfer,
    forgetting,
    forward_transfer,
    last_accuracy,
    transfer,
    zero_shot_accuracy,
)
from avalanche_vlm.functional.discriminant import (
    FeatureSums,
    discriminant_weights,
    feature_sums,
    fused_logits,
    shrunk_covariance,
)
from avalanche_vlm.functional.label_space import (
    LABEL_SPACES,
    LabelSpace,
    label_space_columns,
    label_space_cross_entropy,
    label_space_predictions,
)

__all__ = [
    "LABEL_SPACES",
    "FeatureSums",
    "LabelSpace",
    "accuracy_matrix_summary",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "ci_transfer",
    "discriminant_weights",
    "feature_sums",
    "forgetting",
    "forward_transfer",
    "fused_logits",
    "label_space_columns",
    "label_space_cross_entropy",
    "label_space_predictions",
    "last_accuracy",
    "shrunk_covariance",
    "transfer",
    "zero_shot_accuracy",
]
