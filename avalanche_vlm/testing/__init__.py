"""Public checks of the laws that components keep, and tiny models and benchmarks to run them on."""

from avalanche_vlm.testing.generators import check_latent_generator, check_no_features
from avalanche_vlm.testing.laws import (
    LawBroken,
    PairVerdict,
    check_arguments,
    check_callbacks,
    check_composes,
    check_documented,
    check_frozen,
    check_gradient,
    check_modes,
    check_repeatable,
    check_resumable,
    check_seeded,
    check_zero_weight,
    composition,
)
from avalanche_vlm.testing.tiny import (
    TINY_CLASSES,
    TinyBackbone,
    tiny_benchmark,
    tiny_classifier,
    tiny_images,
)
from avalanche_vlm.testing.tiny_diffusion import save_tiny_pipeline

__all__ = [
    "TINY_CLASSES",
    "LawBroken",
    "PairVerdict",
    "TinyBackbone",
    "check_arguments",
    "check_callbacks",
    "check_composes",
    "check_documented",
    "check_frozen",
    "check_gradient",
    "check_latent_generator",
    "check_modes",
    "check_no_features",
    "check_repeatable",
    "check_resumable",
    "check_seeded",
    "check_zero_weight",
    "composition",
    "save_tiny_pipeline",
    "tiny_benchmark",
    "tiny_classifier",
    "tiny_images",
]
