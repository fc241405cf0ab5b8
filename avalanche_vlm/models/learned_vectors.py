"""Learned vectors as a part of prompts."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_vlm._checks import check_choice, check_count
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.heads import with_rows_kept
from avalanche_vlm.models.prompt_context import PromptContext
from avalanche_vlm.text import ClassNames


def random_vectors(count: int, length: int, backbone: VisionLanguageBackbone, seed: int) -> Tensor:
    """Return vectors (count, length, W) drawn from N(0, 0.02²), where the backbone is."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((count, length, backbone.token_dim), generator=generator)
    return (drawn * 0.02).to(backbone.logit_scale.device)


class LearnedVectors(PromptContext):
    r"""Vectors that are parameters, drawn from N(0, 0.02²).

    Args:
        length: m, how many vectors a class has.
        sharing: ``"per-class"``, each class has its own, or ``"shared"``, all have the same.
        seed: of the random start.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number below its least value, an unknown ``sharing``.

    References:
        Frascaroli et al., CLIP with Generative Latent Replay: a Strong Baseline for Incremental
        Learning, BMVC 2024 (per class, m = 1); Zhou et al., Learning to Prompt for Vision-Language
        Models, IJCV 2022, section 3.2 (both ways of sharing).

    Deviations:
        None.

    >>> LearnedVectors(4, sharing="shared").length
    4
    """

    def __init__(
        self, length: int = 1, *, sharing: Literal["per-class", "shared"] = "per-class", seed: int = 0
    ) -> None:
        super().__init__()
        check_count("length", length)
        check_choice("sharing", sharing, ("per-class", "shared"))
        check_count("seed", seed, at_least=0)
        self.length = length
        self.sharing = sharing
        self.seed = seed
        self.vectors: nn.Parameter | None = None

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone, *, added: bool) -> None:
        """Make the vectors (C or 1, m, W); those of earlier classes, and shared ones, are kept."""
        shared = self.sharing == "shared"
        initial = random_vectors(1 if shared else len(class_names), self.length, backbone, self.seed)
        self.vectors = with_rows_kept(self.vectors, initial, shared or added)

    def forward(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the vectors (K, m, W) of classes, or (1, m, W) if they are shared."""
        vectors = self._vectors()
        return vectors if self.sharing == "shared" else vectors[class_ids.to(vectors.device)]

    def _vectors(self) -> Tensor:
        if self.vectors is None:  # the head has checked that names are set
            raise RuntimeError("set_classes comes first")
        return self.vectors

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"length": self.length, "sharing": self.sharing, "seed": self.seed}


class LatestLearnedVectors(LearnedVectors):
    r"""Vectors of each class, beside which only the prompts of the latest classes take a gradient.

    The latest classes are those that the last experience with new classes brought; the vectors of all
    earlier ones stay as they were learned. The other parts of the context do not learn through the prompts
    of earlier classes either: the network of `GeneratedContext`, for instance, learns from those of the
    latest alone.

    Args:
        length: m, how many vectors a class has.
        seed: of the random start.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number below its least value.

    References:
        The ablation ``train_only_current_prompts`` in the code of Frascaroli et al., CLIP with
        Generative Latent Replay: a Strong Baseline for Incremental Learning, BMVC 2024.

    Deviations:
        None with an optimizer that starts anew in each experience, as theirs does, and no weight
        decay. Otherwise momentum that is left from an earlier experience, and weight decay, still
        move vectors without a gradient.

    >>> LatestLearnedVectors().sharing
    'per-class'
    """

    classes_latest: Tensor

    def __init__(self, length: int = 1, *, seed: int = 0) -> None:
        super().__init__(length, seed=seed)
        self.register_buffer("classes_latest", torch.zeros(0, dtype=torch.bool))

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone, *, added: bool) -> None:
        """Make the vectors (C, m, W); those of earlier classes are kept."""
        super().set_classes(class_names, backbone, added=added)
        latest = torch.zeros(len(class_names), dtype=torch.bool, device=backbone.logit_scale.device)
        if added:
            latest[: len(self.classes_latest)] = self.classes_latest
        self.classes_latest = latest

    def begin_classes(self, classes: Tensor) -> None:
        """Let the vectors of these classes (C,), bool, train from now on, and no others."""
        self.classes_latest.copy_(classes)

    def classes_that_learn(self) -> Tensor:
        """Return which classes (C,) are the latest."""
        return self.classes_latest

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"length": self.length, "seed": self.seed}
