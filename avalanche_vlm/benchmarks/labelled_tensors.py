"""A data set of images or embeddings in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_vlm._checks import wrong_type, wrong_value

_X_EXPECTED = (
    "images (N, 3, H, W) or (N, H, W, 3) of uint8 or floats, or embeddings (N, D) of floats, at least one"
)


@final
class LabelledTensors(Dataset[tuple[Tensor, int]]):
    """Images or embeddings with their labels, each in one tensor.

    ``x`` and ``y`` are public, so that a loader can index them as a whole; ``targets`` holds the
    labels once more as plain numbers, which is what the host reads, sample by sample.

    Args:
        x: images (N, 3, H, W) or (N, H, W, 3), uint8 or floats, or embeddings (N, D), floats; an
            array or a tensor. Images with the channels last are turned to (N, 3, H, W) (a shape
            that can be read both ways counts as channels first); uint8 stays uint8, and floats of
            any width become float32. Nothing is copied that has the right form already.
        y: whole numbers (N,): an array, a tensor or a list.
        argument: what to call the pair in an error.

    Raises:
        TypeError: ``x`` or ``y`` is not of these types.
        ValueError: a wrong shape, lengths that differ, no sample, or a float that is not finite.

    >>> data = LabelledTensors(np.zeros((2, 4, 5, 3), dtype=np.uint8), [0, 1])
    >>> tuple(data.x.shape), data.targets, data[1][1]
    ((2, 3, 4, 5), [0, 1], 1)
    """

    x: Tensor
    y: Tensor
    targets: list[int]

    def __init__(self, x: Any, y: Any, *, argument: str = "data") -> None:
        self.x = _as_inputs(x, f"{argument} x")
        self.y = _as_labels(y, f"{argument} y")
        if len(self.x) != len(self.y):
            raise wrong_value(
                argument, "x and y of one length", f"{len(self.x)} inputs and {len(self.y)} labels"
            )
        self.targets = self.y.tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


def check_one_shape(datasets: Mapping[str, Any], *, transformed: bool) -> None:
    """Raise `ValueError` unless the inputs of all `LabelledTensors` have one shape.

    Args:
        datasets: from what to call each data set in an error to the data set; of others than
            `LabelledTensors` nothing is known.
        transformed: whether transforms are applied, which may bring images of several sizes to one.
    """
    shapes = {
        argument: tuple(dataset.x.shape[1:])
        for argument, dataset in datasets.items()
        if isinstance(dataset, LabelledTensors)
    }
    if not shapes:
        return
    first, expected = next(iter(shapes.items()))
    for argument, shape in shapes.items():
        both_images = len(shape) == len(expected) == 3
        if shape != expected and not (both_images and transformed):
            raise wrong_value(
                argument,
                f"inputs of the shape {expected}, as those of `{first}`",
                f"inputs of the shape {shape}",
                "Resize images alike, or pass transforms that do." if both_images else "",
            )


def _as_inputs(x: Any, argument: str) -> Tensor:
    if not isinstance(x, (np.ndarray, Tensor)):
        raise wrong_type(argument, "a numpy array or a tensor", x)
    if isinstance(x, np.ndarray) and x.dtype.kind not in "fu":
        raise wrong_value(argument, _X_EXPECTED, f"an array of {x.dtype}")
    tensor = _as_tensor(x) if isinstance(x, np.ndarray) else x.detach()
    shape = tuple(tensor.shape)
    of_floats = tensor.is_floating_point()
    is_embedding = tensor.dim() == 2 and of_floats
    is_image = tensor.dim() == 4 and 3 in (shape[1], shape[3]) and (of_floats or tensor.dtype == torch.uint8)
    if shape[:1] == (0,):
        raise wrong_value(argument, _X_EXPECTED, f"no samples: shape {shape} of {tensor.dtype}")
    if not (is_embedding or is_image) or 0 in shape:
        advice = ""
        if tensor.dim() == 3 or (tensor.dim() == 4 and 1 in (shape[1], shape[3])):
            advice = "Repeat the one channel of grey images three times."
        elif tensor.dim() == 2 and not of_floats:
            advice = "Convert embeddings to floats."
        raise wrong_value(argument, _X_EXPECTED, f"shape {shape} of {tensor.dtype}", advice)
    if is_image and shape[1] != 3:
        tensor = tensor.permute(0, 3, 1, 2).contiguous()
    if not of_floats:
        return tensor
    tensor = tensor.float()
    finite = torch.isfinite(tensor).flatten(1).all(dim=1)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise wrong_value(argument, "finite numbers", f"NaN or infinity in {len(rows)} samples ({shown})")
    return tensor


def _as_labels(y: Any, argument: str) -> Tensor:
    if isinstance(y, (list, tuple)):
        y = np.asarray(y)
    if isinstance(y, np.ndarray):
        whole = y.dtype.kind in "iu"
    elif isinstance(y, Tensor):
        whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    else:
        raise wrong_type(argument, "an array, a tensor or a list of whole numbers", y)
    if not whole or y.ndim != 1:
        raise wrong_value(argument, "whole numbers (N,)", f"shape {tuple(y.shape)} of {y.dtype}")
    return torch.from_numpy(y.astype(np.int64)) if isinstance(y, np.ndarray) else y.detach().long()


def _as_tensor(array: NDArray[Any]) -> Tensor:
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)  # unsigned types without a tensor of their own: refused by dtype
    # A tensor cannot be backwards, byte-swapped or read-only (the last would only warn).
    plain = np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "W"])
    return torch.from_numpy(plain)
