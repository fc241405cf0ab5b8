"""The types that a forward pass can be computed in."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

# What autocast goes to; under fp32 there is none.
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
