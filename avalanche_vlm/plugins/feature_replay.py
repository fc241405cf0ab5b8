"""Replay from a memory of embeddings, on streams of images or of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import check_number, check_type, wrong_value
from avalanche_vlm._host import eval_loader, trained_experiences
from avalanche_vlm.functional.splits import held_out_positions
from avalanche_vlm.memory import SeedBuffer
from avalanche_vlm.models.required_classifier import required_classifier
from avalanche_vlm.plugins.drift_compensator import DriftCompensator
from avalanche_vlm.plugins.latent_features import embeddings_of, refuse_trained_image_tower
from avalanche_vlm.plugins.regularizer import RegularizerPlugin
from avalanche_vlm.plugins.visual_features import visual_features
from avalanche_vlm.regularizers import FeatureReplay
from avalanche_vlm.regularizers.pairs import ENCODED_AT_ONCE


@final
class FeatureReplayPlugin(RegularizerPlugin):
    r"""Adds the loss on draws from a memory to that of each batch, and keeps the memory up to date.

    .. math:: L = L_{task} + \lambda \, \mathrm{CE}(M)

    After each experience its samples are embedded with their eval transform, and the memory makes seeds of
    them; embeddings are then let go of. The stream may be one of images, whose tower is frozen, or of
    embeddings. Where the image tower trains, a drift compensator moves the seeds along.

    It touches neither data nor loader: the host's plugins, GIFT's, SeGP-CL's and others can be beside it. On
    a stream of embeddings the host's ``ReplayPlugin`` with the same memory does the same through the loader.

    Args:
        buffer: the memory, which no other plugin keeps.
        weight: λ; with 0 the memory is not kept either.
        batch_size: how many draws a step.
        validation_fraction: share of each class of an experience that is held out of training, for sources
            of seeds that want to validate (``GeneratedSeeds(outer_weight=...)``). A class with one sample
            keeps it, so that an experience in which each class has one holds out nothing.
        drift_compensator: None, where the image tower is frozen.
        seed: of the random numbers.

    Raises:
        TypeError: an argument has a wrong type; in training, a model that is no `CLIPClassifier`.
        ValueError: a number out of its range; in training, an image tower that trains without a compensator,
            a memory that two plugins keep, or samples to hold out after another plugin has changed them.

    References:
        Auto-Seed VL2, a design brief: seed replay and seed update. Iscen et al., ECCV 2020, for features that
        follow a model.

    Deviations:
        The realisation is ours.

    >>> plugins = [FeatureReplayPlugin(SeedBuffer(max_size=400))]
    """

    # In a slot, which checkpoints pass over: a run that goes on inside an experience holds out the same.
    __slots__ = ("_held_out", "_trained_on")
    _held_out: Any
    _trained_on: Any

    def __init__(
        self,
        buffer: SeedBuffer,
        weight: float = 1.0,
        *,
        batch_size: int = 128,
        validation_fraction: float = 0.0,
        drift_compensator: DriftCompensator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(FeatureReplay(buffer, batch_size=batch_size, seed=seed), weight)
        check_number("validation_fraction", validation_fraction, at_least=0, below=1)
        check_type("drift_compensator", drift_compensator, (DriftCompensator, type(None)))
        if drift_compensator is not None and drift_compensator.visual_space != "embedding":
            expected = (
                "one that measures embeddings, as seeds are: DriftCompensator(visual_space='embedding')"
            )
            raise wrong_value(
                "drift_compensator", expected, f"one of {drift_compensator.visual_space!r} features"
            )
        self.buffer = buffer
        self.validation_fraction = validation_fraction
        self.drift_compensator = drift_compensator
        self._generator = torch.Generator().manual_seed(int(seed))
        self._held_out = self._trained_on = None

    def after_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Hold out samples."""
        self._held_out = None
        if not self._has_effect or self.validation_fraction == 0:
            return
        datasets = [experience.dataset for experience in trained_experiences(strategy)]
        if len(strategy.adapted_dataset) != sum(map(len, datasets)):
            raise wrong_value(
                "validation_fraction",
                "0 where another plugin has changed what is trained on",
                self.validation_fraction,
                "Or list FeatureReplayPlugin before it.",
            )
        targets = torch.tensor([int(label) for label in strategy.adapted_dataset.targets])
        out = held_out_positions(targets, self.validation_fraction, self._generator)
        if len(out) > 0:
            stays = torch.ones(len(targets), dtype=torch.bool)
            stays[out] = False
            whole = strategy.adapted_dataset
            strategy.adapted_dataset = whole.subset(stays.nonzero().flatten().tolist())
            self._held_out, self._trained_on = whole.subset(out.tolist()), strategy.adapted_dataset

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse what could not be replayed, and measure probes of drift."""
        if self._has_effect:
            self._refuse_shared(strategy)
            model = required_classifier(strategy.model, "into which embeddings are replayed")
            self.buffer.source.check(model)
            if self.drift_compensator is None:
                refuse_trained_image_tower(model)
            else:
                if model.image_adapter is not None:
                    expected = "None beside an image adapter, behind which it would measure"
                    raise wrong_value("drift_compensator", expected, "one")
                self.drift_compensator.begin(strategy)
        super().before_training_exp(strategy, *args, **kwargs)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Move earlier seeds, if they have to, and make those of the experience."""
        super().after_training_exp(strategy, *args, **kwargs)
        if not self._has_effect:
            return
        if self.drift_compensator is not None:
            self.drift_compensator.end(strategy)
            self.buffer.move(self.drift_compensator.moved)
        held_out, self._held_out = self._held_out, None
        if held_out is None:
            datasets = [experience.dataset for experience in trained_experiences(strategy)]
        else:
            datasets, self._trained_on = [self._trained_on], None
        features, labels = self._embedded(strategy, datasets)
        validation = None if held_out is None else self._embedded(strategy, [held_out])
        self.buffer.note_form(datasets[0])
        self.buffer.update_from_features(strategy.model, features, labels, validation)

    def _embedded(self, strategy: Any, datasets: list[Any]) -> tuple[Tensor, Tensor]:
        if self.drift_compensator is None:
            batches = [batch for dataset in datasets for batch in embeddings_of(strategy, dataset)]
            return torch.cat([x for x, _, _ in batches]), torch.cat([y for _, y, _ in batches])
        found = [
            (visual_features(strategy, x, "embedding"), y)
            for dataset in datasets
            for x, y, *_ in eval_loader(dataset.eval(), ENCODED_AT_ONCE)
        ]
        return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])

    def _refuse_shared(self, strategy: Any) -> None:
        owners = [
            type(plugin).__name__
            for plugin in strategy.plugins
            if self.buffer in (getattr(plugin, "buffer", None), getattr(plugin, "storage_policy", None))
        ]
        if len(owners) > 1:
            expected = "plugins of which one keeps each memory"
            raise wrong_value("plugins", expected, f"one memory in {' and '.join(owners)}")

    @property
    def nbytes(self) -> int:
        """Number of bytes of the memory, and of what probes of drift keep."""
        compensator = self.drift_compensator
        return self.buffer.nbytes + (0 if compensator is None else compensator.nbytes)

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept from one experience to the next."""
        compensator = self.drift_compensator
        own: dict[str, Any] = {} if compensator is None else {"drift_compensator": compensator.state_dict()}
        own["generator"] = self._generator.get_state()
        return {**super().state_dict(), "buffer": self.buffer.state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        super().load_state_dict(state)
        self.buffer.load_state_dict(state["buffer"])
        self._generator.set_state(state["generator"].cpu())
        if self.drift_compensator is not None:
            self.drift_compensator.load_state_dict(state["drift_compensator"])
