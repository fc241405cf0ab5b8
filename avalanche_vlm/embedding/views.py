"""Several embeddings of one image, of which training draws one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from torch import Tensor
from torch.utils.data import Dataset


@final
class EmbeddingViews(Dataset[tuple[Tensor, int]]):
    """Embeddings (V + 1, D) of each sample: under the eval transform, then V of the train transform.

    A transform of the host's groups picks one of them (`view_transforms`), so that training and
    evaluation see what they would see of images.

    Args:
        views: V + 1 tensors (N, D).
        labels: class ids (N,).
    """

    def __init__(self, views: Sequence[Tensor], labels: Any) -> None:
        self.views = list(views)
        self.y = torch.as_tensor(labels)
        self.targets: list[int] = self.y.tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.stack([view[index] for view in self.views]), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


@final
class DrawView:
    """Maps (V + 1, D) to one of the last V rows, drawn from torch's global generator."""

    def __call__(self, views: Tensor) -> Tensor:
        """Return a row (D,)."""
        return views[1 + int(torch.randint(len(views) - 1, ()))]


@final
class EvalView:
    """Maps (V + 1, D) to the first row."""

    def __call__(self, views: Tensor) -> Tensor:
        """Return the row (D,)."""
        return views[0]


def view_transforms() -> TransformGroups:
    """Return the transform groups that go with `EmbeddingViews`."""
    return TransformGroups({"train": DrawView(), "eval": EvalView()})
