"""The published settings of GIFT on MTIL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from avalanche_vlm.presets.mtil import mtil
from avalanche_vlm.presets.mtil_training import MTILTraining, mtil_learning_rates
from avalanche_vlm.sources import DiffusionImageSource, StoredImageSource


@final
@dataclass(frozen=True)
class GIFTSetting(MTILTraining):
    """What GIFT was run with on MTIL: numbers, and the parts that they make.

    Attributes:
        images_per_experience: synthetic images, each of a prompt that is drawn with replacement.
        image_batch_size: of them, in each training batch.
        distillation_weight: α.
        alignment_weight: β.
        consolidation_weight: λ.
        temperature: τ, of the distillation.
        image_model: the text-to-image model, on the Hugging Face hub.
        image_steps: of denoising.
        image_dtype: of that model.

    The other attributes are those of `MTILTraining`.

    >>> setting = gift_setting("I", ["aircraft", "dtd"])
    >>> setting.learning_rates, setting.strategy_arguments()["train_iterations"]
    ((5e-05, 1e-05), 1000)
    """

    images_per_experience: int = 1000
    image_batch_size: int = 64
    distillation_weight: float = 1.0
    alignment_weight: float = 0.25
    consolidation_weight: float = 1.0
    temperature: float = 2.0
    image_model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    image_steps: int = 50
    image_dtype: Literal["float32", "float16", "bfloat16"] = "float16"

    def images(self, folder: str | Path, **arguments: Any) -> StoredImageSource:
        """Return the text-to-image model, whose images are kept; it is downloaded at the first.

        Args:
            folder: where images are kept, and found by the next run.
            **arguments: for `DiffusionImageSource`, ``device="cuda"`` for instance.
        """
        settings: dict[str, Any] = {"steps": self.image_steps, "dtype": self.image_dtype, **arguments}
        return StoredImageSource(folder, DiffusionImageSource(self.image_model, **settings))

    def strategy_arguments(self) -> dict[str, Any]:
        """Return the numbers that `strategies.GIFT` takes: ``GIFT(**setting.strategy_arguments(), ...)``."""
        return super().strategy_arguments() | {
            "images_per_experience": self.images_per_experience,
            "image_batch_size": self.image_batch_size,
            "distillation_weight": self.distillation_weight,
            "alignment_weight": self.alignment_weight,
            "consolidation_weight": self.consolidation_weight,
            "temperature": self.temperature,
        }


def gift_setting(order: Literal["I", "II"] = "I", datasets: Sequence[str] | None = None) -> GIFTSetting:
    """Return what GIFT was run with on MTIL: OpenAI's ViT-B-16, both towers, 1,000 iterations a data set.

    ::

        setting = gift_setting("I")
        model = setting.model()
        strategy = GIFT(
            model=model,
            optimizer=setting.optimizer(model),
            images=setting.images("generated", device="cuda"),
            plugins=setting.plugins(),
            **setting.strategy_arguments(),
        )

    Args:
        order: of the data sets: see `mtil`.
        datasets: some of the eleven: see `mtil`.

    Raises:
        TypeError: ``datasets`` is no list.
        ValueError: an unknown order or data set, none, or one twice.

    References:
        Wu et al., Synthetic Data is an Elegant GIFT for Continual Vision-Language Models, CVPR 2025
        (arXiv 2503.04229), and the configurations of their code.

    Deviations:
        None in the numbers; `strategies.GIFT`, `mtil` and `DiffusionImageSource` say theirs. On the hub,
        Stable Diffusion 1.5 is taken from a copy: where it was first is gone.
    """
    stream = mtil(order, datasets)
    return GIFTSetting(
        stream,
        mtil_learning_rates(stream),
        reference="Wu et al., CVPR 2025 (arXiv 2503.04229), and the configurations of its code",
    )
