"""What one can sample from: models of embeddings, text-to-image models and what to ask them for."""

from avalanche_vlm.sources.class_mean import ClassMean
from avalanche_vlm.sources.class_vae import ClassVAE
from avalanche_vlm.sources.conditional_vae import ConditionalVAE
from avalanche_vlm.sources.diagonal_gaussian import DiagonalGaussian
from avalanche_vlm.sources.diffusion_image_source import DiffusionImageSource
from avalanche_vlm.sources.full_gaussian import FullGaussian
from avalanche_vlm.sources.gaussian_mixture import GaussianMixture
from avalanche_vlm.sources.image_source import GeneratedImages, ImageSource
from avalanche_vlm.sources.latent_diffusion import LatentDiffusion
from avalanche_vlm.sources.latents import LatentGenerator
from avalanche_vlm.sources.learned_class_prompts import LearnedClassPrompts
from avalanche_vlm.sources.low_rank_gaussian import LowRankGaussian
from avalanche_vlm.sources.name_prompts import ImageNetPrompts, NamePrompts
from avalanche_vlm.sources.prompt_pools import Prompt, PromptPool, PromptUnion, draw_prompts
from avalanche_vlm.sources.rendered_image_source import RenderedImageSource
from avalanche_vlm.sources.shared_covariance_gaussian import SharedCovarianceGaussian
from avalanche_vlm.sources.stored_image_source import StoredImageSource

__all__ = [
    "ClassMean",
    "ClassVAE",
    "ConditionalVAE",
    "DiagonalGaussian",
    "DiffusionImageSource",
    "FullGaussian",
    "GaussianMixture",
    "GeneratedImages",
    "ImageNetPrompts",
    "ImageSource",
    "LatentDiffusion",
    "LatentGenerator",
    "LearnedClassPrompts",
    "LowRankGaussian",
    "NamePrompts",
    "Prompt",
    "PromptPool",
    "PromptUnion",
    "RenderedImageSource",
    "SharedCovarianceGaussian",
    "StoredImageSource",
    "draw_prompts",
]
