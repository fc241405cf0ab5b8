"""From a picture, in a file or in memory, to the RGB pixels that it shows."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from avalanche_vlm._checks import wrong_value

# Pillow goes by the content, and would ask other programs to draw some of the other formats.
PICTURE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# What `as_rgb` does. Embeddings are kept under it: another text whenever a picture comes out otherwise.
CONVERSION = "upright, on white, 16 bits by their range"
_FULL_16_BITS = 65535
_ORIENTATION = ExifTags.Base.Orientation
_UPRIGHT = 1
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of a TIFF


class UnreadablePicture(OSError, ValueError):
    """A file is no picture that can be read; the message names it, and says what to do."""


def as_rgb(picture: Image.Image, argument: str = "image") -> Image.Image:
    """Return the 8-bit RGB picture that a viewer shows of ``picture``.

    - It is turned upright by its EXIF orientation.
    - Transparency of any kind (an alpha channel, a colour of a palette, a colour that counts as
      transparent) shows white.
    - Grey values of 16 bits are scaled, so that 0..65535 becomes 0..255; those of a TIFF by the bits it says.
    - Palettes, one-bit pictures, CMYK, YCbCr and HSV become RGB as Pillow does it, without colour profiles.
    - Of several frames or pages it is the current one, which is the first after opening a file.

    What is RGB, opaque and upright is returned itself.

    Args:
        picture: of any mode that says the range of its values.
        argument: what an error calls the picture.

    Raises:
        ValueError: whole numbers of 32 bits or floats, whose range is not said, or a mode that Pillow
            cannot convert (LAB).
        OSError: the file behind the picture is truncated or broken.

    >>> as_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    picture.load()  # before the rest is asked for: some formats say it behind the pixels
    orientation = _orientation(picture)
    if picture.mode == "RGB" and orientation == _UPRIGHT and not picture.has_transparency_data:
        return picture
    rgb = _opaque(_eight_bits(picture, argument))
    rgb.info = {}  # of the picture as it was
    if orientation != _UPRIGHT:
        rgb.getexif()[_ORIENTATION] = orientation
        rgb = ImageOps.exif_transpose(rgb)
    return rgb


def read_picture(path: str | PathLike[str]) -> Image.Image:
    """Return what a file shows, in RGB: see `as_rgb`.

    Raises:
        OSError: there is no such file, or it may not be read.
        UnreadablePicture: it is no picture, truncated, too large for Pillow, or of a mode whose range is not
            said; the error names the file.
    """
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            rgb = as_rgb(picture, "picture")
            return rgb.copy() if rgb is picture else rgb
    except Exception as error:  # decoders raise whatever comes when a file is not what it says
        if getattr(error, "filename", None) is not None:
            raise
        advice = "Repair the file, or move it away."
        if isinstance(error, Image.DecompressionBombError):
            advice = "Make it smaller; or, if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS."
        said = str(error).rstrip(".") or type(error).__name__
        got = f"{str(path)!r}, which cannot ({said})"
        raise UnreadablePicture(
            str(wrong_value("file", "a picture that can be read", got, advice))
        ) from error


def _orientation(picture: Image.Image) -> int:
    try:
        found: Any = picture.getexif().get(_ORIENTATION, _UPRIGHT)
    except Exception:  # broken notes of a camera are no reason to refuse its picture
        return _UPRIGHT
    return found if found in range(1, 9) else _UPRIGHT


def _eight_bits(picture: Image.Image, argument: str) -> Image.Image:
    """Return a picture of 8-bit channels."""
    # Older Pillow opens a PNG of 16 bits as whole numbers of 32, and every Pillow a PGM.
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in {"PNG", "PPM"}):
        values = np.asarray(picture).astype(np.int64)
        tags: Any = getattr(picture, "tag_v2", {})
        bits = tags.get(_BITS, (16,))[0]
        full = 2**bits - 1 if 8 < bits < 16 else _FULL_16_BITS
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            values = full - values  # as Pillow does it for 8 bits
        grey = np.rint(values * (255 / full)).clip(0, 255).astype(np.uint8)
        if isinstance(transparent := picture.info.get("transparency"), int):
            grey[values == transparent] = 255
        return Image.fromarray(grey)
    if picture.mode.startswith(("I", "F")):
        raise wrong_value(
            argument,
            "a picture whose mode says the range of its values",
            f"mode {picture.mode!r}",
            "Scale the values to 0..255 first: Image.fromarray(values.astype('uint8')).",
        )
    return picture


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    if picture.mode == "La":
        picture = picture.convert("LA")
    shown = Image.new("RGBA", picture.size, "white")
    shown.alpha_composite(picture.convert("RGBA"))
    return shown.convert("RGB")
