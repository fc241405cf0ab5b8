"""From whatever a data set holds to the RGB picture that an image transform expects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avalanche_vlm._checks import wrong_type, wrong_value
from avalanche_vlm._pictures import CONVERSION, as_rgb


def as_pil(image: Any) -> Image.Image:
    """Return the RGB picture of an image in one of the usual forms.

    Args:
        image: a PIL image of any mode that says its range (see `as_rgb`), a uint8 tensor (3, H, W) or
            (1, H, W), or a uint8 array (H, W, 3) or (H, W).

    Raises:
        TypeError: another type, or not uint8: a float image does not say whether its range is
            0..1, 0..255 or already normalised.
        ValueError: another shape, or a PIL image whose mode does not say the range of its values.
    """
    if isinstance(image, Image.Image):
        return as_rgb(image)
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8:
            raise wrong_type(
                "image",
                "a PIL image or uint8 (3, H, W)",
                image.dtype,
                "Convert pixels to 0..255 uint8; an image that is already preprocessed needs no transform.",
            )
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise wrong_value("image", "of shape (3, H, W) or (1, H, W)", tuple(image.shape))
        image = image.permute(1, 2, 0).cpu().numpy()
        image = image[:, :, 0] if image.shape[2] == 1 else image
    if not isinstance(image, np.ndarray):
        raise wrong_type("image", "a PIL image, a uint8 tensor or a uint8 array", image)
    if image.dtype != np.uint8:
        raise wrong_type(
            "image",
            "a uint8 array with values 0..255",
            image.dtype,
            "Scale to 0..255 first, then convert with .astype('uint8').",
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise wrong_value("image", "of shape (H, W, 3) or (H, W)", image.shape)
    return as_rgb(Image.fromarray(image))


class ImageTransform:
    """A picklable chain: any image form, in RGB as it is shown, then the transform that belongs to the model.

    Args:
        transform: RGB PIL image -> float tensor (3, H, W).
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform
        self.conversion = CONVERSION  # part of what identifies this transform

    def __call__(self, image: Any) -> Tensor:
        """Return the preprocessed float tensor (3, H, W)."""
        return self.transform(as_pil(image))

    def __repr__(self) -> str:
        return f"ImageTransform({self.transform!r})"
