"""The CLIP wrapper: backbones, text heads, what trains, and the classifier made of them."""

from avalanche_vlm.models.adapted_text_head import AdaptedTextHead
from avalanche_vlm.models.adapters import EmbeddingAdapter, ResidualAdapter
from avalanche_vlm.models.backbone import EmbeddingBackbone, VisionLanguageBackbone
from avalanche_vlm.models.classifier import CLIPClassifier, Prediction
from avalanche_vlm.models.closed_form_head import ClosedFormHead
from avalanche_vlm.models.dual_path_head import DualPathHead
from avalanche_vlm.models.feature_heads import CosineHead, TextFeatureHead
from avalanche_vlm.models.fingerprint import fingerprint
from avalanche_vlm.models.fused_head import FusedHead
from avalanche_vlm.models.fusion_rules import (
    FusionRule,
    LogLinearFusion,
    ProbabilityMixture,
    TopKRescoring,
)
from avalanche_vlm.models.gaussian_discriminant_head import GaussianDiscriminantHead
from avalanche_vlm.models.generated_context import GeneratedContext
from avalanche_vlm.models.heads import KeptBytes, TextHead
from avalanche_vlm.models.hybrid_prompt_head import HybridPromptHead
from avalanche_vlm.models.image_conditioned_prompt_head import ImageConditionedPromptHead
from avalanche_vlm.models.learned_context_head import LearnedContextHead
from avalanche_vlm.models.learned_vectors import LatestLearnedVectors, LearnedVectors
from avalanche_vlm.models.linear_head import LinearHead
from avalanche_vlm.models.lora import LoRA, SeparateAttention
from avalanche_vlm.models.nearest_class_mean_head import NearestClassMeanHead
from avalanche_vlm.models.open_clip import OpenCLIPBackbone
from avalanche_vlm.models.prompt_context import PromptContext
from avalanche_vlm.models.prompt_head import PromptHead
from avalanche_vlm.models.random_projection import RandomProjection
from avalanche_vlm.models.ridge_regression_head import RidgeRegressionHead
from avalanche_vlm.models.weight_snapshot import WeightSnapshot
from avalanche_vlm.models.zero_shot_head import UnnormalisedZeroShotHead, ZeroShotHead

__all__ = [
    "AdaptedTextHead",
    "CLIPClassifier",
    "ClosedFormHead",
    "CosineHead",
    "DualPathHead",
    "EmbeddingAdapter",
    "EmbeddingBackbone",
    "FusedHead",
    "FusionRule",
    "GaussianDiscriminantHead",
    "GeneratedContext",
    "HybridPromptHead",
    "ImageConditionedPromptHead",
    "KeptBytes",
    "LatestLearnedVectors",
    "LearnedContextHead",
    "LearnedVectors",
    "LinearHead",
    "LoRA",
    "LogLinearFusion",
    "NearestClassMeanHead",
    "OpenCLIPBackbone",
    "Prediction",
    "ProbabilityMixture",
    "PromptContext",
    "PromptHead",
    "RandomProjection",
    "ResidualAdapter",
    "RidgeRegressionHead",
    "SeparateAttention",
    "TextFeatureHead",
    "TextHead",
    "TopKRescoring",
    "UnnormalisedZeroShotHead",
    "VisionLanguageBackbone",
    "WeightSnapshot",
    "ZeroShotHead",
    "fingerprint",
]
