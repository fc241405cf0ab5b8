"""Auto-Seed: a memory of generated seeds, and a learner that replays them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_vlm._checks import check_count, check_number, check_type, wrong_value
from avalanche_vlm.memory import SeedBuffer
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.plugins import FeatureReplayPlugin, RegularizerPlugin
from avalanche_vlm.regularizers import SeedConsistency
from avalanche_vlm.strategies.template import VLMTemplate
from avalanche_vlm.strategies.template_arguments import TemplateArguments, check_plugins


@final
class AutoSeed(VLMTemplate):
    r"""Replay seeds of earlier classes while learning new ones; then make seeds of these.

    .. math:: L = \mathrm{CE}(B) + \lambda_r \, \mathrm{CE}(R) + \lambda_c \, L_{con}(R), \qquad R \sim M

    Seeds are replayed and the model adapts to the experience in the same steps (`FeatureReplayPlugin`,
    `SeedConsistency`); after the experience the memory makes its seeds, and prunes (`memory.SeedBuffer`). All
    losses are over the classes seen so far. The state of the optimizer is fresh in each experience. An
    ablation is another part in the memory, or another list of plugins under `FineTune`.

    Args:
        model: the classifier, whose image tower is frozen; in the design an ``image_adapter`` and an
            `AdaptedTextHead`, and anything that learns behind the image tower here.
        optimizer: made of ``model.parameters()``.
        buffer: the memory; None for ``SeedBuffer()``, which keeps 400 seeds.
        replay_weight: λ_r; with 0 no memory is kept.
        consistency_weight: λ_c; 0 leaves the term out.
        replay_batch_size: how many draws a step.
        validation_fraction: see `FeatureReplayPlugin`.
        seed: of the draws from the memory, and of what is held out; the memory's is that of ``buffer``.
        plugins: further plugins of ours or the host's.
        **template: the host's arguments; ``train_mb_size`` is 128 unless it is given.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number out of its range; in training, an image tower that trains, or a consistency loss
            that nothing in training has an influence on.

    References:
        Auto-Seed VL2, a design brief that exists as fragments only, without code or verifiable results: three
        phases, the names of its parts, and the directions of its ablations.

    Deviations:
        The realisation is ours, and no number of the brief is claimed or reproduced. The defaults are those
        that did best on features of a real CLIP, where several parts of the brief made things worse:
        ``benchmarks/auto_seed_features.md``.
    """

    _fresh_optimizer_state = True

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        optimizer: Optimizer,
        buffer: SeedBuffer | None = None,
        replay_weight: float = 1.0,
        consistency_weight: float = 0.0,
        replay_batch_size: int = 128,
        validation_fraction: float = 0.0,
        seed: int = 0,
        plugins: Sequence[Any] = (),
        **template: Unpack[TemplateArguments],
    ) -> None:
        check_type("buffer", buffer, (SeedBuffer, type(None)))
        check_number("replay_weight", replay_weight, at_least=0)
        check_number("consistency_weight", consistency_weight, at_least=0)
        if replay_weight == 0 and consistency_weight > 0:
            expected = "0 where replay_weight is 0, with which no memory is kept"
            raise wrong_value("consistency_weight", expected, consistency_weight)
        check_count("replay_batch_size", replay_batch_size)
        check_plugins(plugins)
        memory = SeedBuffer() if buffer is None else buffer
        replay = FeatureReplayPlugin(
            memory,
            replay_weight,
            batch_size=replay_batch_size,
            validation_fraction=validation_fraction,
            seed=seed,
        )
        consistency = SeedConsistency(memory, batch_size=replay_batch_size, seed=seed + 1)
        own = [replay, RegularizerPlugin(consistency, consistency_weight)]
        template.setdefault("train_mb_size", 128)
        super().__init__(model=model, optimizer=optimizer, plugins=[*plugins, *own], **template)
