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
from avalanche_vlm.functional.anchors import (
    AdversarialImages,
    AnchorSet,
    PixelSpace,
    dual_targeted_pgd,
    nearest_images,
)
from avalanche_vlm.functional.consolidation import normalised_importance
from avalanche_vlm.functional.cross_modal import (
    contrastive_distillation,
    cosine_logits,
    feature_distance,
    image_text_alignment,
    shared_targets,
    soft_label_divergence,
)
from avalanche_vlm.functional.discriminant import (
    FeatureSums,
    discriminant_weights,
    feature_sums,
    fused_logits,
    mixed_logits,
    rescored_logits,
    shrunk_covariance,
)
from avalanche_vlm.functional.label_space import (
    LABEL_SPACES,
    LabelSpace,
    label_space_columns,
    label_space_cross_entropy,
    label_space_evaluation_loss,
    label_space_predictions,
)
from avalanche_vlm.functional.learning_rates import WarmupCosine
from avalanche_vlm.functional.predictive_discriminant import (
    PredictiveDiscriminant,
    fit_predictive_discriminant,
)
from avalanche_vlm.functional.prototypes import transferred_prototypes
from avalanche_vlm.functional.ridge_regression import ridge_regression_weights
from avalanche_vlm.functional.seeds import (
    class_mean_cosines,
    class_means,
    gradient_directions,
    kept_apart,
    largest_cosines,
    multi_positive_contrast,
    nearest_cosines,
    variance_shares,
)
from avalanche_vlm.functional.semantic_drift import (
    SemanticDrift,
    jensen_shannon_divergence,
    semantic_drift,
)
from avalanche_vlm.functional.text_geometry import (
    nearest_classes,
    neighbour_cosines,
    text_geometry_divergence,
)

__all__ = [
    "LABEL_SPACES",
    "AdversarialImages",
    "AnchorSet",
    "FeatureSums",
    "LabelSpace",
    "PixelSpace",
    "PredictiveDiscriminant",
    "SemanticDrift",
    "WarmupCosine",
    "accuracy_matrix_summary",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "ci_transfer",
    "class_mean_cosines",
    "class_means",
    "contrastive_distillation",
    "cosine_logits",
    "discriminant_weights",
    "dual_targeted_pgd",
    "feature_distance",
    "feature_sums",
    "fit_predictive_discriminant",
    "forgetting",
    "forward_transfer",
    "fused_logits",
    "gradient_directions",
    "image_text_alignment",
    "jensen_shannon_divergence",
    "kept_apart",
    "label_space_columns",
    "label_space_cross_entropy",
    "label_space_evaluation_loss",
    "label_space_predictions",
    "largest_cosines",
    "last_accuracy",
    "mixed_logits",
    "multi_positive_contrast",
    "nearest_classes",
    "nearest_cosines",
    "nearest_images",
    "neighbour_cosines",
    "normalised_importance",
    "rescored_logits",
    "ridge_regression_weights",
    "semantic_drift",
    "shared_targets",
    "shrunk_covariance",
    "soft_label_divergence",
    "text_geometry_divergence",
    "transfer",
    "transferred_prototypes",
    "variance_shares",
    "zero_shot_accuracy",
]
