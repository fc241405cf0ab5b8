"""The one place that asks the host's objects what they do not answer themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value


def experience_classes(experience: Any) -> Tensor:
    """Return the sorted class ids (K,) of an experience, read from its targets.

    Online experiences and domain-incremental ones carry no class list, so the targets decide.

    Raises:
        ValueError: the experience has no samples.
    """
    dataset = experience.dataset
    if len(dataset) == 0:
        raise wrong_value(
            "experience",
            "an experience with at least one sample",
            f"experience {getattr(experience, 'current_experience', '?')} with none",
            "Leave it out of the stream, or look at how the benchmark was split.",
        )
    return torch.tensor(sorted(int(label) for label in dataset.targets.uniques))
