"""The embeddings of what a strategy is about to train on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.training.storage_policy import BalancedExemplarsBuffer, ReservoirSamplingBuffer
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import eval_loader
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.models.modes import is_frozen
from avalanche_vlm.models.required_classifier import required_classifier
from avalanche_vlm.plugins.fast_loader import fast_loader

_EMBEDDINGS_AT_ONCE = 4096
_ENCODES = (
    "which encodes images",
    "Or make the stream one of embeddings: avalanche_vlm.embedding.embed(benchmark, backbone, ...).",
)


def latent_features(strategy: Any, data: Any) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield un-normalised embeddings (B, D), labels (B,) and task labels (B,), or None without these.

    Each sample of a data set of the host comes once, in its order, under its eval transform.
    Images go through the image tower of the model without gradient, ``eval_mb_size`` at once;
    embeddings are taken as they are. No global random number is drawn.

    Raises:
        TypeError: the samples are images, and the model is no `CLIPClassifier`.
        ValueError: the image tower trains, so that embeddings would go out of date; or the samples are
            images, and so are those of a buffer of the host that would be mixed with embeddings.
    """
    if len(data.eval()[0][0].shape) != 1:
        _check_images(strategy)
    yield from embeddings_of(strategy, data)


def embeddings_of(strategy: Any, data: Any) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield what `latent_features` does, where embeddings are not mixed with what is trained on."""
    model = strategy.model
    refuse_trained_image_tower(model)
    dataset: Any = data.eval()
    of_images = len(dataset[0][0].shape) != 1
    if of_images:
        required_classifier(model, *_ENCODES)
        # The host moves the model only after it has prepared the data.
        model.to(strategy.device)
    size = strategy.eval_mb_size if of_images else max(_EMBEDDINGS_AT_ONCE, strategy.eval_mb_size)
    for x, y, *rest in fast_loader(eval_loader(dataset, size)):
        yield _encoded(model, x.to(strategy.device)) if of_images else x, y, rest[-1] if rest else None


def refuse_trained_image_tower(model: Any) -> None:
    """Raise `ValueError` if the image tower of a classifier trains."""
    if isinstance(model, CLIPClassifier) and not is_frozen(model.backbone.image_tower):
        raise wrong_value(
            "strategy.model",
            "one whose image tower is frozen",
            "one whose image tower trains: embeddings fitted in one experience would be out of date in the "
            "next",
            "Train the text tower or a head, e.g. CosineHead or LearnedContextHead, or replay images with "
            "the host's ReplayPlugin.",
        )


@torch.no_grad()
def _encoded(model: CLIPClassifier, images: Tensor) -> Tensor:
    # A frozen tower is in eval mode, whatever the mode of the model.
    return model.encode(images).float()


def _check_images(strategy: Any) -> None:
    required_classifier(strategy.model, *_ENCODES)
    for part in (*strategy.plugins, strategy):
        policy = getattr(part, "storage_policy", None)
        if isinstance(policy, (BalancedExemplarsBuffer, ReservoirSamplingBuffer)):
            raise wrong_value(
                "strategy.plugins",
                "plugins whose buffers hold what is trained on, which is embeddings here",
                f"a {type(part).__name__} with a {type(policy).__name__} of images",
                "Take FeatureReplayPlugin(SeedBuffer(...)) in its place, which encodes images. Or, if no "
                "other plugin needs images, embed the benchmark with avalanche_vlm.embedding.embed("
                "benchmark, backbone, cache_dir=...): then the buffer holds embeddings too.",
            )
