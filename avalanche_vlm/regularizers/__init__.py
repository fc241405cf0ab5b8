"""Regularizers: terms that are added to the training loss, and what they are made of."""

from avalanche_vlm.regularizers.adversarial_anchors import AdversarialAnchors
from avalanche_vlm.regularizers.anchor_distillation import AnchorDistillation
from avalanche_vlm.regularizers.caption_texts import CaptionTexts, HeadTexts, TowerTexts
from avalanche_vlm.regularizers.cross_modal_distillation import (
    CrossModalDistillation,
    FeatureDistillation,
    ImageOnlyDistillation,
    ImageToTextDistillation,
    ReferenceDistillation,
    TextOnlyDistillation,
    TextToImageDistillation,
)
from avalanche_vlm.regularizers.current_pairs import CurrentPairs
from avalanche_vlm.regularizers.feature_replay import FeatureReplay
from avalanche_vlm.regularizers.image_text_alignment import ImageTextAlignment
from avalanche_vlm.regularizers.pair_regularizer import PairDistillation, PairRegularizer
from avalanche_vlm.regularizers.pairs import ImageTextPairs, PairBatch, PairFeatures
from avalanche_vlm.regularizers.previous_weights_penalty import PreviousWeightsPenalty
from avalanche_vlm.regularizers.prompt_orthogonality import PromptOrthogonality
from avalanche_vlm.regularizers.reference_pairs import ReferencePairs
from avalanche_vlm.regularizers.regularizer import Regularizer
from avalanche_vlm.regularizers.seed_consistency import SeedConsistency
from avalanche_vlm.regularizers.sum_regularizer import SumRegularizer
from avalanche_vlm.regularizers.synthetic_pairs import SyntheticPairs
from avalanche_vlm.regularizers.teachers import InitialTeacher, InterpolatedTeacher, LastTeacher, Teacher
from avalanche_vlm.regularizers.text_geometry import TextGeometry

__all__ = [
    "AdversarialAnchors",
    "AnchorDistillation",
    "CaptionTexts",
    "CrossModalDistillation",
    "CurrentPairs",
    "FeatureDistillation",
    "FeatureReplay",
    "HeadTexts",
    "ImageOnlyDistillation",
    "ImageTextAlignment",
    "ImageTextPairs",
    "ImageToTextDistillation",
    "InitialTeacher",
    "InterpolatedTeacher",
    "LastTeacher",
    "PairBatch",
    "PairDistillation",
    "PairFeatures",
    "PairRegularizer",
    "PreviousWeightsPenalty",
    "PromptOrthogonality",
    "ReferenceDistillation",
    "ReferencePairs",
    "Regularizer",
    "SeedConsistency",
    "SumRegularizer",
    "SyntheticPairs",
    "Teacher",
    "TextGeometry",
    "TextOnlyDistillation",
    "TextToImageDistillation",
    "TowerTexts",
]
