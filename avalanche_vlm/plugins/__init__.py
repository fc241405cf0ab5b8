"""Plugins: thin shells on the host's callbacks."""

from avalanche_vlm.plugins.adversarial_anchor_distillation import AdversarialAnchorDistillationPlugin
from avalanche_vlm.plugins.closed_form import ClosedFormPlugin, GaussianDiscriminantPlugin
from avalanche_vlm.plugins.drift_compensator import DriftCompensator
from avalanche_vlm.plugins.fast_loading_plugin import FastLoadingPlugin
from avalanche_vlm.plugins.feature_replay import FeatureReplayPlugin
from avalanche_vlm.plugins.gdumb import GDumbPlugin
from avalanche_vlm.plugins.generative_latent_replay import (
    GenerativeLatentReplayPlugin,
    PastGenerativeLatentReplayPlugin,
)
from avalanche_vlm.plugins.label_space_cross_entropy import LabelSpaceCrossEntropy
from avalanche_vlm.plugins.learning_rates import LearningRatesPlugin
from avalanche_vlm.plugins.memory_aware_synapses import MASPlugin
from avalanche_vlm.plugins.prototypes import PrototypePlugin, PrototypeTransferPlugin
from avalanche_vlm.plugins.regularizer import RegularizerPlugin
from avalanche_vlm.plugins.synaptic_intelligence import SynapticIntelligencePlugin
from avalanche_vlm.plugins.weight_consolidation import (
    AdaptiveWeightConsolidationPlugin,
    StaticWeightConsolidationPlugin,
)
from avalanche_vlm.plugins.weight_ensemble import WeightEnsemblePlugin

__all__ = [
    "AdaptiveWeightConsolidationPlugin",
    "AdversarialAnchorDistillationPlugin",
    "ClosedFormPlugin",
    "DriftCompensator",
    "FastLoadingPlugin",
    "FeatureReplayPlugin",
    "GDumbPlugin",
    "GaussianDiscriminantPlugin",
    "GenerativeLatentReplayPlugin",
    "LabelSpaceCrossEntropy",
    "LearningRatesPlugin",
    "MASPlugin",
    "PastGenerativeLatentReplayPlugin",
    "PrototypePlugin",
    "PrototypeTransferPlugin",
    "RegularizerPlugin",
    "StaticWeightConsolidationPlugin",
    "SynapticIntelligencePlugin",
    "WeightEnsemblePlugin",
]
