"""Text-to-image pipelines of diffusers."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import Self

from avalanche_vlm._checks import (
    check_choice,
    check_count,
    check_number,
    check_type,
    close_names,
    wrong_type,
    wrong_value,
)
from avalanche_vlm.sources.image_source import GeneratedImages, ImageSource
from avalanche_vlm.sources.latents import FLOAT_DTYPES

_DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "height": None,
    "width": None,
}


@final
class DiffusionImageSource(ImageSource):
    r"""Draws images with a text-to-image pipeline of diffusers, which is loaded at the first image.

    With classifier-free guidance of scale s each step follows

    .. math:: \hat\epsilon = \epsilon(z_t, \varnothing) + s \, (\epsilon(z_t, p) - \epsilon(z_t, \varnothing))

    for the prompt p, from noise that comes from the image's own seed. An image depends on what is made
    in the same batch by rounding only: single pixels may differ by 1.

    An image that is black all over is what a safety checker leaves. It is drawn again, at attempt a = 2,
    3, ... with the first 63 bits of the SHA-256 of the text "seed a" as its seed; after ``most_attempts``
    there is an error, and no image is ever missing silently.

    Args:
        pipeline: a name on the Hugging Face hub, or the folder of a saved pipeline.
        steps: of denoising.
        guidance_scale: s above; 1 is no guidance.
        scheduler: name of a scheduler class of diffusers that takes the place of the pipeline's own, e.g.
            ``"DPMSolverMultistepScheduler"``, with its configuration; None for the pipeline's own.
        dtype: of the pipeline, ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        height: of the images, in pixels; None for what the pipeline was trained with.
        width: likewise.
        revision: of the pipeline on the hub, a tag or a commit; None for the newest. Weights that change
            under one name give other images under the same settings.
        batch_size: images that are made at once.
        device: where images are made; see also `to`.
        most_attempts: draws of an image until one is not black.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range; in `sample`, an unknown ``scheduler``, a ``pipeline``
            that makes no images of text, or one that does not know an argument whose value is another
            than the default, and prompts of which all attempts are black.
        ImportError: in `sample`, diffusers is not installed.

    References:
        Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022; Ho and
        Salimans, Classifier-Free Diffusion Guidance, 2022, equation 6; the settings of Wu et al.,
        Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025 (arXiv
        2503.04229): Stable Diffusion 1.5 with 50 steps.

    Deviations:
        That work drops black images; here they are drawn again. Its pipeline runs in float16, which is
        ``dtype="float16"``. Noise comes from generators of the CPU whatever the device is.

    >>> source = DiffusionImageSource("stable-diffusion-v1-5/stable-diffusion-v1-5", steps=25)
    >>> source.describe()["steps"]
    25
    """

    def __init__(
        self,
        pipeline: str | Path,
        *,
        steps: int = 50,
        guidance_scale: float = 7.5,
        scheduler: str | None = None,
        dtype: str = "float32",
        height: int | None = None,
        width: int | None = None,
        revision: str | None = None,
        batch_size: int = 8,
        device: torch.device | str = "cpu",
        most_attempts: int = 10,
    ) -> None:
        check_type("pipeline", pipeline, (str, Path))
        check_count("steps", steps)
        check_number("guidance_scale", guidance_scale, at_least=0)
        check_type("scheduler", scheduler, (str, type(None)))
        check_choice("dtype", dtype, tuple(FLOAT_DTYPES))
        for name, size in (("height", height), ("width", width)):
            if size is not None:
                check_count(name, size)
        check_type("revision", revision, (str, type(None)))
        check_count("batch_size", batch_size)
        check_count("most_attempts", most_attempts)
        self.pipeline = pipeline
        self.steps = steps
        self.guidance_scale = guidance_scale
        self.scheduler = scheduler
        self.dtype = dtype
        self.height = height
        self.width = width
        self.revision = revision
        self.batch_size = batch_size
        self.device = _device(device)
        self.most_attempts = most_attempts
        # A function that gives it: checkpoints walk through objects, and have no business in this one.
        self._loaded: Callable[[], Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Return all settings but those that change no more than the last bits."""
        return {
            "kind": "DiffusionImageSource",
            "pipeline": str(self.pipeline),
            "steps": self.steps,
            "guidance_scale": float(self.guidance_scale),
            "scheduler": self.scheduler,
            "dtype": self.dtype,
            "height": self.height,
            "width": self.width,
            "revision": self.revision,
            "most_attempts": self.most_attempts,
        }

    def to(self, device: torch.device | str) -> Self:
        """Choose where images are made."""
        self.device = _device(device)
        if self._loaded is not None:
            self._loaded().to(self.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Gigabytes that are loaded again where they are needed.
        return {**self.__dict__, "_loaded": None}

    def _sample(self, prompts: list[str], seeds: list[int]) -> GeneratedImages:
        if self._loaded is None:
            loaded = self._load()
            self._loaded = lambda: loaded
        pipeline = self._loaded()
        drawn: dict[int, Tensor] = {}
        waiting = list(range(len(prompts)))
        for attempt in range(1, self.most_attempts + 1):
            for start in range(0, len(waiting), self.batch_size):
                rows = waiting[start : start + self.batch_size]
                tried = [_seed_of(seeds[row], attempt) for row in rows]
                images = self._draw(pipeline, [prompts[row] for row in rows], tried)
                drawn |= {row: image for row, image in zip(rows, images, strict=True) if image.any()}
            waiting = [row for row in waiting if row not in drawn]
            if not waiting:
                return GeneratedImages(torch.stack([drawn[row] for row in range(len(prompts))]), prompts)
        raise wrong_value(
            "prompts",
            f"sentences that {str(self.pipeline)!r} draws images of",
            f"{prompts[waiting[0]]!r} with seed {seeds[waiting[0]]}, of which {self.most_attempts} "
            "attempts in a row were black",
            "Its safety checker may have blacked them out: take the prompt out of the pool.",
        )

    def _draw(self, pipeline: Any, prompts: list[str], seeds: list[int]) -> Tensor:
        """Return uint8 images (B, 3, H, W) on the CPU."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        arguments = self._arguments(pipeline)
        images = pipeline(prompt=prompts, generator=generators, output_type="pt", **arguments).images
        images = torch.as_tensor(images).detach().float().cpu()
        if not images.isfinite().all():
            advice = "Try 'float32' or 'bfloat16'."
            raise wrong_value("dtype", "one in which images are finite", f"{self.dtype!r} and NaN", advice)
        return (images.clamp(0, 1) * 255).round().to(torch.uint8)

    def _arguments(self, pipeline: Any) -> dict[str, Any]:
        """Return those of the arguments that a pipeline knows; others must have their default values."""
        known = inspect.signature(pipeline.__call__).parameters
        missing = [name for name in ("prompt", "generator", "output_type") if name not in known]
        if missing:
            got = f"a {type(pipeline).__name__}, which takes no `{missing[0]}`"
            raise wrong_value("pipeline", "one that makes images of text", got)
        wanted = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
        }
        for name, value in wanted.items():
            if name not in known and value != _DEFAULTS[name]:
                argument = "steps" if name == "num_inference_steps" else name
                expected = f"left out for a {type(pipeline).__name__}, which has none"
                raise wrong_value(argument, expected, value)
        return {name: value for name, value in wanted.items() if name in known and value is not None}

    def _load(self) -> Any:
        try:
            import diffusers as library
        except ImportError as error:
            raise ImportError(
                "DiffusionImageSource needs diffusers, transformers and accelerate: "
                'pip install "avalanche-vlm[diffusion]"'
            ) from error
        diffusers: Any = library
        if isinstance(self.pipeline, Path) and not self.pipeline.is_dir():
            raise wrong_value("pipeline", "a folder that exists, or a name", repr(str(self.pipeline)))
        scheduler = None if self.scheduler is None else _scheduler_class(diffusers, self.scheduler)
        dtype = FLOAT_DTYPES[self.dtype]
        with _without_progress_bars(diffusers):
            loaded: Any = diffusers.DiffusionPipeline.from_pretrained(
                str(self.pipeline), dtype=dtype, revision=self.revision
            )
        if loaded.dtype != dtype:
            loaded.to(dtype)  # older versions do not know the argument, and load float32
        self._arguments(loaded)
        if scheduler is not None:
            loaded.scheduler = scheduler.from_config(loaded.scheduler.config)
        loaded.set_progress_bar_config(disable=True)
        return loaded.to(self.device)


def _device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise wrong_type("device", "a device of torch, e.g. 'cuda'", device) from error


def _seed_of(seed: int, attempt: int) -> int:
    """Return the seed of an attempt at an image: its own first, then numbers made of it."""
    if attempt == 1:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {attempt}".encode()).digest()[:8], "big") >> 1


def _scheduler_class(diffusers: Any, name: str) -> Any:
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        known = [each for each in dir(diffusers) if each.endswith("Scheduler")]
        advice = close_names(name, known)
        raise wrong_value("scheduler", "the name of a scheduler class of diffusers", repr(name), advice)
    return kind


@contextmanager
def _without_progress_bars(diffusers: Any) -> Generator[None, None, None]:
    """Silence the bars of loading, which both libraries draw, and leave them as they were."""
    import transformers

    logs = [diffusers.utils.logging, transformers.utils.logging]
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
