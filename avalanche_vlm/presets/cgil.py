"""The published settings of CGIL, data set by data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

from torch.optim import AdamW

from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone
from avalanche_vlm.sources.class_vae import ClassVAE
from avalanche_vlm.text.dataset_name import dataset_name


@final
@dataclass(frozen=True)
class CGILSetting:
    """What CGIL was run with on one data set: numbers, and the parts that they make.

    Attributes:
        dataset: the data set.
        classes_per_experience: number of classes of each experience.
        learning_rate: of AdamW, which has no weight decay and starts anew in each experience.
        epochs: of each experience, over synthetic embeddings.
        vae_passes: times that a variational auto-encoder sees each embedding of its class.
        samples_per_class: draws of each class in an epoch.
        batch_size: draws in a step, however many classes there are.
        model: a model name of open_clip.
        pretrained: the tag of its weights.
        seeds: of the published runs; each draws its own order of the classes.
        reference: where the setting was published.

    >>> setting = cgil_setting("cub200")
    >>> from avalanche_vlm.testing import tiny_classifier
    >>> optimizer = setting.optimizer(tiny_classifier(trainable="text"))
    >>> optimizer.defaults["lr"], setting.strategy_arguments()["train_epochs"]
    (0.01, 60)
    """

    dataset: str
    classes_per_experience: tuple[int, ...]
    learning_rate: float
    epochs: int
    vae_passes: int
    samples_per_class: int = 256
    batch_size: int = 128
    model: str = "ViT-L-14"
    pretrained: str = "openai"
    seeds: tuple[int, ...] = (1992, 1996, 1997)
    reference: str = "Frascaroli et al., BMVC 2024 (arXiv 2407.15793); code: github.com/aimagelab/mammoth"

    def backbone(self, **arguments: Any) -> OpenCLIPBackbone:
        """Return the model with its published weights, which open_clip downloads.

        Args:
            **arguments: for `OpenCLIPBackbone`, ``cache_dir`` for instance.
        """
        return OpenCLIPBackbone(self.model, pretrained=self.pretrained, **arguments)

    def generator(self, *, seed: int = 0) -> ClassVAE:
        """Return the published generator, of which each experience trains one network a class.

        Args:
            seed: of its random numbers.
        """
        return ClassVAE(passes=self.vae_passes, noise_scale="variance", seed=seed)

    def optimizer(self, model: CLIPClassifier) -> AdamW:
        """Return the published optimizer over what trains in a model."""
        return AdamW(model.parameters(), lr=self.learning_rate, weight_decay=0.0)

    def strategy_arguments(self) -> dict[str, int]:
        """Return the numbers that `strategies.CGIL` takes: ``CGIL(**setting.strategy_arguments(), ...)``."""
        return {
            "samples_per_class": self.samples_per_class,
            "train_mb_size": self.batch_size,
            "train_epochs": self.epochs,
        }

    def describe(self) -> dict[str, Any]:
        """Return all attributes as a dictionary that JSON can hold, to be kept beside results."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


_SETTINGS = {
    setting.dataset: setting
    for setting in (
        CGILSetting("imagenet_r", (20,) * 10, learning_rate=0.05, epochs=60, vae_passes=500),
        CGILSetting("stanford_cars", (20,) * 9 + (16,), learning_rate=0.03, epochs=60, vae_passes=500),
        CGILSetting("cub200", (20,) * 10, learning_rate=0.01, epochs=60, vae_passes=500),
        CGILSetting("eurosat", (2,) * 5, learning_rate=0.03, epochs=150, vae_passes=500),
        CGILSetting("isic", (2,) * 3, learning_rate=0.05, epochs=150, vae_passes=750),
    )
}
#: The data sets that `cgil_setting` knows.
CGIL_DATASETS = tuple(_SETTINGS)


def cgil_setting(dataset: str) -> CGILSetting:
    """Return what CGIL was run with on a data set.

    Args:
        dataset: one of `CGIL_DATASETS`; case, spaces, "-" and "_" do not count.

    Raises:
        ValueError: an unknown data set.

    References:
        Frascaroli et al., CLIP with Generative Latent Replay: a Strong Baseline for Incremental
        Learning, BMVC 2024 (arXiv 2407.15793), and the configurations of their code.

    Deviations:
        None in the numbers. The order of the classes for a seed is that of their code, and is not
        drawn here. ``generator`` scales the noise of a code as their code does.

        Data: EuroSAT's split is fixed in their code, and drawn in ``known_benchmark("eurosat", ...)``; of
        ImageNet-R's 200 names 45 differ from theirs; of ISIC there is neither a reader nor names here. To
        run on theirs, hand them in: ``folder_benchmark(train, test, class_names={folder: name, ...})``
        takes any split and any names, and ``with_class_names(benchmark, names)`` names a known benchmark
        anew. Their lists are not part of this package.

    >>> cgil_setting("ImageNet-R").learning_rate
    0.05
    """
    return _SETTINGS[dataset_name("dataset", dataset, CGIL_DATASETS)]
