"""Public checks of the laws that components keep, and tiny models and benchmarks to run them on."""

from avalanche_vlm.testing.composition_law import PairVerdict, check_composes, composition
from avalanche_vlm.testing.generators import check_latent_generator, check_no_features
from avalanche_vlm.testing.resume_law import check_resumable
from avalanche_vlm.testing.running import LawBroken
from avalanche_vlm.testing.static_laws import check_arguments, check_callbacks, check_documented, check_seeded
from avalanche_vlm.testing.tiny import (
    TINY_CLASSES,
    TinyBackbone,
    tiny_benchmark,
    tiny_classifier,
    tiny_images,
)
from avalanche_vlm.testing.tiny_diffusion import save_tiny_pipeline
from avalanche_vlm.testing.training_laws import (
    check_frozen,
    check_gradient,
    check_modes,
    check_repeatable,
    check_zero_weight,
)

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
