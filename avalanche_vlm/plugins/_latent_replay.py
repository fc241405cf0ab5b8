"""What the plugins that replay from a generator of embeddings have in common."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from avalanche.training.plugins import GDumbPlugin
from torch import Tensor

from avalanche_vlm._checks import check_count, check_type, wrong_value
from avalanche_vlm._host import DatasetForm, dataset_of_embeddings, trained_experiences
from avalanche_vlm.plugins._of_one_strategy import OfOneStrategy
from avalanche_vlm.plugins.latent_features import latent_features
from avalanche_vlm.sources import LatentGenerator


class LatentReplay(OfOneStrategy):
    """Fits a generator to each experience, and trains on what it draws.

    A subclass says which real embeddings stay and which classes are drawn (`_chosen`).
    """

    # In a slot, which checkpoints pass over: a run that goes on inside an experience draws again.
    __slots__ = ("_drawn",)
    _drawn: tuple[Tensor, list[int]] | None

    def __init__(
        self,
        generator: LatentGenerator,
        *,
        samples_per_class: int = 256,
        batch_samples_per_class: int | None = None,
    ) -> None:
        super().__init__()
        check_type("generator", generator, LatentGenerator)
        check_count("samples_per_class", samples_per_class)
        if batch_samples_per_class is not None:
            check_count("batch_samples_per_class", batch_samples_per_class)
        if generator.classes:
            warnings.warn(
                f"`generator` was fitted before, to {len(generator.classes)} classes, which are replayed "
                "from the first experience on. Give each run a fresh one, unless this is what you want.",
                stacklevel=2,
            )
        self.generator = generator
        self.samples_per_class = samples_per_class
        self.batch_samples_per_class = batch_samples_per_class
        self._task_labels: dict[int, int] = {}
        self._usual_batch_size: int | None = None
        self._drawn = None

    @abstractmethod
    def _chosen(
        self, features: Tensor, labels: Tensor, known: Sequence[int]
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Return the real embeddings that are trained on, their labels, and the classes to draw.

        Args:
            features: (N, D), those of the experience, to which the generator is fitted by now.
            labels: (N,), of these.
            known: the classes that were fitted before.
        """

    @property
    def nbytes(self) -> int:
        """Number of bytes that are kept from one experience to the next: those of the generator."""
        return self.generator.nbytes

    def describe(self) -> dict[str, Any]:
        """Return the arguments, those of the generator too, as plain values."""
        return {
            "generator": self.generator.describe(),
            "samples_per_class": self.samples_per_class,
            "batch_samples_per_class": self.batch_samples_per_class,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept from one experience to the next."""
        return {"generator": self.generator.state_dict(), "task_labels": dict(self._task_labels)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        self.generator.load_state_dict(state["generator"])
        self._task_labels = dict(state["task_labels"])

    def after_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Fit the generator, and put embeddings in the place of what was to be trained on."""
        self._restore_batch_size(strategy)  # the last training may have been interrupted
        _refuse_others(strategy)
        known = self.generator.classes
        # Not the adapted data set: what others put there (earlier samples, say) was fitted already.
        data = [experience.dataset for experience in trained_experiences(strategy)]
        batches = [batch for dataset in data for batch in latent_features(strategy, dataset)]
        features = torch.cat([batch[0] for batch in batches])
        labels = torch.cat([batch[1] for batch in batches])
        self._note_task_labels(labels, [batch[2] for batch in batches if batch[2] is not None])
        self.generator.to(strategy.device)
        self.generator.fit(features, labels)
        features, labels, classes = self._chosen(features, labels, known)
        x, y = features.cpu(), labels.cpu()
        if classes:
            drawn, drawn_labels = self.generator.sample(classes, self.samples_per_class)
            x, y = torch.cat([x, drawn.cpu()]), torch.cat([y, drawn_labels.cpu()])
        # A view of the last rows: what is written there is in the data set.
        self._drawn = x[len(features) :], classes
        strategy.adapted_dataset = dataset_of_embeddings(
            x, y, DatasetForm.of(strategy.adapted_dataset), self._task_labels
        )
        if self.batch_samples_per_class is not None:
            self._usual_batch_size = strategy.train_mb_size
            strategy.train_mb_size = self.batch_samples_per_class * len(y.unique())

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Draw anew, into the same data set, for each epoch but the first."""
        super().before_training_epoch(strategy, *args, **kwargs)
        self._restore_batch_size(strategy)  # every loader has been made by now
        if self._drawn is not None and self._drawn[1] and strategy.clock.train_exp_epochs > 0:
            rows, classes = self._drawn
            rows.copy_(self.generator.sample(classes, self.samples_per_class)[0])

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Let go of what was trained on."""
        self._drawn = None

    def _restore_batch_size(self, strategy: Any) -> None:
        if self._usual_batch_size is not None:
            strategy.train_mb_size, self._usual_batch_size = self._usual_batch_size, None

    def _note_task_labels(self, labels: Tensor, task_labels: Sequence[Tensor]) -> None:
        if task_labels:
            pairs = zip(labels.tolist(), torch.cat([*task_labels]).tolist(), strict=True)
            self._task_labels.update(pairs)


def _refuse_others(strategy: Any) -> None:
    """Raise `ValueError` if another plugin would put its own data in the place of what is drawn."""
    found = [type(plugin).__name__ for plugin in strategy.plugins if isinstance(plugin, LatentReplay)]
    if len(found) > 1:
        raise wrong_value(
            "plugins",
            "a list with one plugin that replays from a generator of embeddings",
            f"{' and '.join(found)}",
            "CGIL brings its own: pass it the generator, or take FineTune for another plugin.",
        )
    if any(isinstance(plugin, GDumbPlugin) for plugin in strategy.plugins):
        raise wrong_value(
            "plugins",
            "a list without GDumb, which trains on its own memory alone, beside a generator of embeddings",
            f"GDumb and {found[0]}",
            "Leave one of them out: nothing that is drawn would be trained on.",
        )
