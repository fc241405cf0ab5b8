"""The small CLIP: a real one, trained on the package's own rendered world, its weights inside.

It exists so that everything in this package runs without a network: tests, examples and the first
hour of a new user. Its architecture is a configuration that ``open_clip`` builds; what it has seen
and how well it recognises what it has not is written in ``benchmarks/small_clip.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avalanche_vlm.models.small_tokenizer import VOCABULARY_SIZE, SmallTokenizer

__all__ = [
    "SMALL_CLIP_CONFIG",
    "SMALL_CLIP_NAME",
    "SMALL_CLIP_PREPROCESS",
    "SMALL_CLIP_TAG",
    "SmallTokenizer",
    "small_clip_weights",
]

SMALL_CLIP_NAME: str = "small-clip"
"""The name of the architecture."""

SMALL_CLIP_TAG: str = "small-world"
"""The name of the weights, after what they were trained on."""

SMALL_CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 4,
        "width": 128,
        "layers": 4,
        "head_width": 32,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": VOCABULARY_SIZE,
        "width": 96,
        "heads": 3,
        "layers": 2,
    },
}
"""What ``open_clip.model.CLIP(**SMALL_CLIP_CONFIG)`` builds."""

SMALL_CLIP_PREPROCESS: dict[str, Any] = {
    "size": 32,
    "mean": (0.50, 0.49, 0.48),
    "std": (0.25, 0.24, 0.25),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""How pictures are resized, and normalised by the mean and spread of rendered photos."""


def small_clip_weights() -> Path:
    """Return the file of the small CLIP's weights, for ``safetensors.torch.load_file``.

    They may be stored in half precision: load them into float32 parameters.

    Raises:
        FileNotFoundError: the file is not there, which means a broken installation.
    """
    path = Path(__file__).with_name("small_clip.safetensors")
    if not path.is_file():
        raise FileNotFoundError(
            f"The weights of {SMALL_CLIP_NAME!r} are not at {path}. They come with the package: "
            "install it again, or train them with benchmarks/train_small_clip.py."
        )
    return path
