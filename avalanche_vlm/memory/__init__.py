"""A memory of generated seeds: a storage policy of the host, sources of seeds, and pruning."""

from avalanche_vlm.memory._seed_draws import SeedDraw
from avalanche_vlm.memory.class_mean_seeds import ClassMeanSeeds
from avalanche_vlm.memory.conditions import GradientCondition, NoiseCondition, SeedCondition
from avalanche_vlm.memory.generated_seeds import GeneratedSeeds
from avalanche_vlm.memory.k_means_seeds import KMeansSeeds
from avalanche_vlm.memory.pruning import HerdingPruning, KCentrePruning, RedundancyPruning, SeedPruning
from avalanche_vlm.memory.random_seeds import RandomSeeds
from avalanche_vlm.memory.seed_buffer import SeedBuffer
from avalanche_vlm.memory.seed_generator import SeedGenerator
from avalanche_vlm.memory.seed_source import NewSeeds, SeedSource
from avalanche_vlm.memory.sigma_point_seeds import SigmaPointSeeds

__all__ = [
    "ClassMeanSeeds",
    "GeneratedSeeds",
    "GradientCondition",
    "HerdingPruning",
    "KCentrePruning",
    "KMeansSeeds",
    "NewSeeds",
    "NoiseCondition",
    "RandomSeeds",
    "RedundancyPruning",
    "SeedBuffer",
    "SeedCondition",
    "SeedDraw",
    "SeedGenerator",
    "SeedPruning",
    "SeedSource",
    "SigmaPointSeeds",
]
