"""A backbone, a classifier and a benchmark that run in milliseconds, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone, TextHead
from avalanche_vlm.models.small_clip import SmallTokenizer

#: The class names of `tiny_benchmark` and `tiny_classifier`.
TINY_CLASSES = ("cat", "dog", "cow", "fox", "hen", "owl")


class TinyBackbone(OpenCLIPBackbone):
    """A CLIP of open_clip with one layer a tower and random weights: 8×8 pixels, 16 dimensions.

    Args:
        seed: of the weights.

    >>> TinyBackbone().encode_image(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 16])
    """

    def __init__(self, *, seed: int = 0) -> None:
        tokenizer = SmallTokenizer()
        configuration: dict[str, Any] = {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
            "text_cfg": {
                "context_length": 77,
                "vocab_size": tokenizer.vocab_size,
                "width": 16,
                "heads": 2,
                "layers": 1,
            },
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(configuration, tokenizer=tokenizer)


def tiny_classifier(head: TextHead | None = None, **arguments: Any) -> CLIPClassifier:
    """Return a `CLIPClassifier` on a `TinyBackbone` with six named classes.

    Args:
        head: as in `CLIPClassifier`.
        **arguments: further arguments of `CLIPClassifier`.
    """
    return CLIPClassifier(TinyBackbone(), head, class_names=TINY_CLASSES, **arguments)


def tiny_images(*, per_class: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noisy images (N, 3, 8, 8), floats around a pattern per class, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(len(TINY_CLASSES), 3, 8, 8, generator=torch.Generator().manual_seed(1234))
    y = torch.arange(len(TINY_CLASSES)).repeat_interleave(per_class)
    return patterns[y] + 0.3 * torch.randn(len(y), 3, 8, 8, generator=generator), y


def tiny_benchmark(
    *, embedded: CLIPClassifier | None = None, n_experiences: int = 3, per_class: int = 4
) -> Any:
    """Return a class-incremental benchmark over `TINY_CLASSES`.

    Args:
        embedded: a classifier whose embeddings (N, 16) take the place of the images; None keeps
            the images (N, 3, 8, 8).
        n_experiences: number of experiences that the six classes are dealt out to.
        per_class: samples of a class, in train and in test.

    >>> len(tiny_benchmark().train_stream)
    3
    """
    pairs = [tiny_images(per_class=per_class, seed=seed) for seed in (0, 1)]
    if embedded is not None:
        with torch.no_grad():
            pairs = [(embedded.encode(x), y) for x, y in pairs]
    return tensor_benchmark(*pairs, class_names=TINY_CLASSES, n_experiences=n_experiences)
