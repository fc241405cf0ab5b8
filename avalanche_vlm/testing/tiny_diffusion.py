"""A text-to-image pipeline of diffusers that runs in milliseconds, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_tiny_pipeline(folder: str | Path, *, seed: int = 0) -> Path:
    """Save a Stable Diffusion with random weights and tiny layers: 64×64 pixels of noise.

    Its tokenizer is the one of CLIP, from the vocabulary that open_clip brings along: no network is
    needed. About 11 MB, most of it embeddings of words.

    Args:
        folder: where to save it, for ``DiffusionImageSource(folder)``; made if it does not exist.
        seed: of the weights.

    Returns:
        The folder.

    Raises:
        ImportError: diffusers or transformers is not installed.
    """
    import diffusers as library

    diffusers: Any = library  # its types are stricter than its constructors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = diffusers.StableDiffusionPipeline(
            vae=_autoencoder(diffusers),
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(),
            unet=_denoiser(diffusers),
            scheduler=diffusers.DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(str(folder))
    return Path(folder)


def _denoiser(diffusers: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def _autoencoder(diffusers: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )


def _text_encoder() -> Any:
    import transformers

    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=32,
        )
    )


def _tokenizer() -> Any:
    import transformers as library
    from open_clip.tokenizer import SimpleTokenizer

    transformers: Any = library
    theirs = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(word, word): number for word, number in theirs.encoder.items()}
    merges = sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.__getitem__)
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
