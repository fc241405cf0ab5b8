"""The CLIP wrapper: backbones, text heads, what trains, and the classifier made of them."""

from avalanche_vlm.models.backbone import EmbeddingBackbone, VisionLanguageBackbone
from avalanche_vlm.models.classifier import CLIPClassifier, Prediction
from avalanche_vlm.models.feature_heads import CosineHead, TextFeatureHead
from avalanche_vlm.models.fingerprint import fingerprint
from avalanche_vlm.models.heads import TextHead, ZeroShotHead
from avalanche_vlm.models.learned_context_head import LearnedContextHead
from avalanche_vlm.models.lora import LoRA, SeparateAttention
from avalanche_vlm.models.open_clip import OpenCLIPBackbone

__all__ = [
    "CLIPClassifier",
    "CosineHead",
    "EmbeddingBackbone",
    "LearnedContextHead",
    "LoRA",
    "OpenCLIPBackbone",
    "Prediction",
    "SeparateAttention",
    "TextFeatureHead",
    "TextHead",
    "VisionLanguageBackbone",
    "ZeroShotHead",
    "fingerprint",
]
