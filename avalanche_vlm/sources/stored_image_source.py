"""Images of another source on disk, each made once; or a folder of images from elsewhere."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from avalanche_vlm._checks import check_count, check_type, wrong_value
from avalanche_vlm._files import is_inside
from avalanche_vlm._pictures import PICTURE_FORMATS, as_rgb
from avalanche_vlm.sources._image_manifest import (
    ImageManifest,
    StoredImage,
    first_difference,
)
from avalanche_vlm.sources._making_images import Pair, file_name, make_images
from avalanche_vlm.sources.image_source import GeneratedImages, ImageSource, checked_pairs


@final
class StoredImageSource(ImageSource):
    """Keeps the images of another source in a folder, or reads a folder that was made elsewhere.

    An image is a PNG file, and a line of a manifest with its prompt, seed and caption. With a ``source``
    what is missing is made, batch by batch: when the process is killed at most a batch is lost, and no
    file is half written. Under ``torchrun`` or ``accelerate launch`` processes that ask for the same
    images begin with a contiguous share each, help with what is left at the end, and go on when all are
    there.

    Without a ``source`` nothing is made. A prompt and a seed give their image, or else one of the images
    of the prompt, by ``seed`` modulo their number: this is how several runs, whatever seeds they ask
    for, share images that were generated beforehand. To use images of your own write a ``manifest.jsonl``
    into their folder, one line an image: ``{"file": "cat.png", "prompt": "a photo of a cat."}``; "seed"
    and "caption" may be added. Images that are asked for together must have one size. A folder may come from
    anywhere: files that are not in it are not read, links to outside neither.

    Args:
        folder: of the images; made if there is a ``source``.
        source: what makes the images that are missing. Its settings are written down, and a folder that
            was made with others is refused.
        batch_size: images that the source is asked for at once.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: ``batch_size`` below 1; in `sample`, an image that is neither there nor can be made, a
            folder that was made with other settings, images of different sizes.

    References:
        None: a cache.

    Deviations:
        None.

    >>> import tempfile
    >>> from avalanche_vlm.sources import RenderedImageSource
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     StoredImageSource(folder, RenderedImageSource()).generate(["digit one", "digit two"], [0, 1])
    ...     StoredImageSource(folder).sample(["digit two"], [7]).images.shape
    torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self, folder: str | Path, source: ImageSource | None = None, *, batch_size: int = 16
    ) -> None:
        check_type("folder", folder, (str, Path))
        check_type("source", source, (ImageSource, type(None)))
        check_count("batch_size", batch_size)
        self.folder = Path(folder)
        self.source = source
        self.batch_size = batch_size
        self._known: ImageManifest | None = None

    def describe(self) -> dict[str, Any]:
        """Return the settings of the source; without one those in the folder, and a hash of its list."""
        if self.source is not None:
            return {"kind": "StoredImageSource", "source": self.source.describe()}
        manifest = self._manifest()
        listed = hashlib.sha256(json.dumps(manifest.images).encode()).hexdigest()
        return {"kind": "StoredImageSource", "source": manifest.settings, "images": listed}

    def to(self, device: torch.device | str) -> Self:
        """Choose where the source makes its images."""
        if self.source is not None:
            self.source.to(device)
        return self

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        """Make the images that are missing, without reading any.

        For images that runs of any seed are to use, generate several of each prompt, and give the runs
        ``StoredImageSource(folder)`` without the source.

        Args:
            prompts: N sentences.
            seeds: N whole numbers from 0 to 2⁶³ - 1.

        Raises:
            TypeError: as in `sample`.
            ValueError: as in `sample`.
        """
        pairs = list(zip(*checked_pairs(prompts, seeds), strict=True))
        self._fill(pairs)
        self._find(pairs)

    def prepare(self, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        """Make the images that are missing, all in one go; `generate`."""
        self.generate(prompts, seeds)

    def _sample(self, prompts: list[str], seeds: list[int]) -> GeneratedImages:
        pairs = list(zip(prompts, seeds, strict=True))
        self._fill(pairs)
        found = self._find(pairs)
        images = [self._read(each) for each in found]
        for each, image in zip(found, images, strict=True):
            if image.shape != images[0].shape:
                (_, height, width), (_, first_height, first_width) = image.shape, images[0].shape
                raise wrong_value(
                    "folder",
                    f"{str(self.folder)!r} with images of one size",
                    f"{found[0].file!r} of {first_width}×{first_height} pixels and {each.file!r} of "
                    f"{width}×{height}",
                )
        return GeneratedImages(torch.stack(images), [each.caption for each in found])

    def _manifest(self) -> ImageManifest:
        # Gone while it is read: after an error it is read anew.
        manifest, self._known = self._known or ImageManifest(self.folder), None
        manifest.refresh()
        if self.source is None and not manifest.is_there:
            raise wrong_value(
                "folder",
                "a folder with images and a manifest of them",
                f"{str(self.folder)!r}, which has no manifest",
                "Write a manifest.jsonl, or pass `source` to make images.",
            )
        if self.source is not None and manifest.settings is not None:
            # Through JSON, so that tuples and lists are the same.
            difference = first_difference(manifest.settings, json.loads(json.dumps(self.source.describe())))
            if difference:
                raise wrong_value(
                    "folder",
                    "a folder of images that were made with the settings of `source`",
                    f"{str(self.folder)!r}, where {difference}",
                    "Take another folder for other settings.",
                )
        self._known = manifest
        return manifest

    def _find(self, pairs: Sequence[Pair]) -> list[StoredImage]:
        manifest = self._manifest()
        found: list[StoredImage] = []
        for prompt, seed in pairs:
            image = manifest.by_key.get((prompt, seed))
            others = [] if image is not None else manifest.by_prompt.get(prompt, [])
            if image is None and not others:
                raise wrong_value(
                    "prompts",
                    f"prompts of the images in {str(self.folder)!r}",
                    f"{prompt!r} with seed {seed}",
                    "Pass `source` to make what is missing.",
                )
            found.append(others[seed % len(others)] if image is None else image)
        return found

    def _read(self, image: StoredImage) -> Tensor:
        path = self.folder / image.file
        try:
            if not is_inside(path, self.folder):
                raise ValueError("it is a link to somewhere outside the folder")
            if not path.is_file():
                raise FileNotFoundError("there is no such file")
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=PICTURE_FORMATS) as file:
                    pixels = np.array(as_rgb(file))
        except Exception as error:  # decoders raise whatever comes when a file is not what it says
            advice = "Remove the file: it is then made anew." if self.source is not None else ""
            raise wrong_value(
                "folder",
                f"{str(self.folder)!r} with the images that its manifest lists",
                f"{image.file!r}, which cannot be read ({error})",
                advice,
            ) from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _missing(self, pairs: Sequence[Pair]) -> list[Pair]:
        by_key = self._manifest().by_key
        missing: list[Pair] = []
        for pair in pairs:
            image = by_key.get(pair)
            if image is not None and (self.folder / image.file).exists():
                continue
            if image is not None and image.file != file_name(*pair):
                # What is listed first counts: the image that would be made now could never be found.
                raise wrong_value(
                    "folder",
                    f"{str(self.folder)!r} with the images that its manifest lists",
                    f"no file {image.file!r}, which is listed for {pair[0]!r} with seed {pair[1]}",
                    "Put the file back, or remove its line: the image is then made.",
                )
            missing.append(pair)
        return missing

    def _fill(self, pairs: Sequence[Pair]) -> None:
        if self.source is not None:
            wanted = list(dict.fromkeys(pairs))
            make_images(self.folder, self.source, wanted, self._missing, batch_size=self.batch_size)
