"""What one can sample from: models of embeddings."""

from avalanche_vlm.sources.class_mean import ClassMean
from avalanche_vlm.sources.class_vae import ClassVAE
from avalanche_vlm.sources.conditional_vae import ConditionalVAE
from avalanche_vlm.sources.diagonal_gaussian import DiagonalGaussian
from avalanche_vlm.sources.full_gaussian import FullGaussian
from avalanche_vlm.sources.gaussian_mixture import GaussianMixture
from avalanche_vlm.sources.latent_diffusion import LatentDiffusion
from avalanche_vlm.sources.latents import LatentGenerator
from avalanche_vlm.sources.low_rank_gaussian import LowRankGaussian
from avalanche_vlm.sources.shared_covariance_gaussian import SharedCovarianceGaussian

__all__ = [
    "ClassMean",
    "ClassVAE",
    "ConditionalVAE",
    "DiagonalGaussian",
    "FullGaussian",
    "GaussianMixture",
    "LatentDiffusion",
    "LatentGenerator",
    "LowRankGaussian",
    "SharedCovarianceGaussian",
]
