"""The runs that `kill_study.py` kills: strategies, plugins and streams, each as a user's script writes it.

All models are tiny; what is tried is whether a run that was killed ends as if it had not been.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLScenario, EagerCLStream
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.training import (
    AGEM,
    DER,
    ER_ACE,
    EWC,
    GEM,
    MAS,
    Cumulative,
    JointTraining,
    LwF,
    Naive,
    Replay,
    SynapticIntelligence,
)
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    MIRPlugin,
    ReplayPlugin,
)
from avalanche.training.storage_policy import ClassBalancedBuffer
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from avalanche_vlm import plugins as ours
from avalanche_vlm import regularizers as terms
from avalanche_vlm.benchmarks import tensor_benchmark, with_validation_stream
from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.comparison import Setup, compare, grid
from avalanche_vlm.logging import ResultsLogger
from avalanche_vlm.memory import GeneratedSeeds, KMeansSeeds, SeedBuffer
from avalanche_vlm.metrics import (
    ClassAccuracyMetric,
    CostMetric,
    MemoryMetric,
    SemanticDriftMetric,
    continual_metrics,
)
from avalanche_vlm.models import (
    AdaptedTextHead,
    CLIPClassifier,
    CosineHead,
    DualPathHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    HybridPromptHead,
    LearnedContextHead,
    LoRA,
    ResidualAdapter,
    TextFeatureHead,
    ZeroShotHead,
)
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.sources import (
    ClassVAE,
    ConditionalVAE,
    LatentDiffusion,
    NamePrompts,
    PromptUnion,
    RenderedImageSource,
)
from avalanche_vlm.strategies import (
    CGIL,
    GIFT,
    ZSCL,
    AutoSeed,
    FineTune,
    GaussianDiscriminant,
    SeGPCL,
    ZeroShot,
)
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier
from avalanche_vlm.world import TRAINED


@dataclass(frozen=True)
class Script:
    """A script: what it builds from its seed, and how it goes through the stream."""

    strategy: Callable[..., Any]
    benchmark: Callable[[], Any] = lambda: tiny_benchmark(per_class=8)
    train: Mapping[str, Any] = field(default_factory=dict)
    train_stream: str = "train"
    test_streams: Sequence[str] = ("test",)
    periodic: str = ""
    whole: bool = False
    every_n_epochs: int | None = None

    def built(self, name: str, results: Path) -> tuple[Any, Any]:
        """Return the strategy and the benchmark, as a script builds them from its seed."""
        seed_all()
        benchmark = self.benchmark()
        evaluator = EvaluationPlugin(
            *(continual_metrics(spaces=("seen", "all")), ClassAccuracyMetric(), SemanticDriftMetric()),
            *(MemoryMetric(), CostMetric(), loss_metrics(epoch=True, experience=True, stream=True)),
            accuracy_metrics(epoch=True, experience=True, stream=True),
            forgetting_metrics(experience=True, stream=True),
            loggers=[ResultsLogger(results, method=name, seed=0)],
        )
        return self.strategy(evaluator=evaluator), benchmark

    def run(self, folder: Path, name: str, results: Path, keep: int = 2) -> Any:
        """Begin the run, or go on with it, to its end; return the strategy."""
        strategy, benchmark = self.built(name, results)
        checkpoints = folder / "checkpoints"
        plugin = CheckpointPlugin(checkpoints, every_n_epochs=self.every_n_epochs, keep=keep)
        strategy.plugins.append(plugin)
        start = resume(strategy, checkpoints, benchmark)
        stream = benchmark.streams[self.train_stream]
        pieces: Iterable[Any] = [stream] if self.whole else stream
        if start == 0:
            self._evaluate(strategy, benchmark)
        for piece in islice(pieces, start, None):  # a stream may be cut on the way
            more = {"eval_streams": [benchmark.streams[self.periodic]]} if self.periodic else {}
            strategy.train(piece, **more, **self.train)
            self._evaluate(strategy, benchmark)
        return strategy

    def _evaluate(self, strategy: Any, benchmark: Any) -> None:
        for stream in self.test_streams:
            strategy.eval(benchmark.streams[stream])


def seed_all(number: int = 0) -> None:
    """Seed what a script seeds."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


# Models.


def lora() -> CLIPClassifier:
    """Return a classifier with LoRA in both towers, which draws at random."""
    return tiny_classifier(trainable=LoRA(rank=2, dropout=0.2))


def cosine() -> CLIPClassifier:
    """Return a classifier whose class weights train."""
    return tiny_classifier(CosineHead(ZeroShotHead()))


def text() -> CLIPClassifier:
    """Return a classifier whose text tower trains."""
    return tiny_classifier(trainable="text")


def prompts() -> CLIPClassifier:
    """Return a classifier whose prompts train."""
    return tiny_classifier(LearnedContextHead(context_length=2))


def adapted() -> CLIPClassifier:
    """Return a classifier whose adapters of both sides train."""
    return tiny_classifier(AdaptedTextHead(), image_adapter=ResidualAdapter())


def two_paths() -> CLIPClassifier:
    """Return a classifier with prototypes beside text."""
    return tiny_classifier(DualPathHead(), trainable=LoRA(rank=2))


def discriminant() -> CLIPClassifier:
    """Return a classifier with a closed form beside text."""
    return tiny_classifier(GaussianDiscriminantHead(fusion_weight=1.0))


# Strategies.


def made(
    kind: Any,
    model: Callable[[], CLIPClassifier] = cosine,
    plugins: Callable[[], list[Any]] = list,
    *,
    optimizer: Any = Adam,
    **own: Any,
) -> Callable[..., Any]:
    """Return a function that builds a strategy.

    Args:
        kind: of strategy.
        model: what it trains.
        plugins: makes its further plugins.
        optimizer: makes its optimizer; None for a strategy that brings one.
        **own: its further arguments; a function of no arguments stands for what it returns.
    """

    def build(evaluator: EvaluationPlugin) -> Any:
        classifier = model()
        arguments = {name: value() if callable(value) else value for name, value in own.items()}
        arguments = {"train_mb_size": 4, "eval_mb_size": 8} | arguments
        if "train_iterations" not in arguments:
            arguments.setdefault("train_epochs", 3)
        if optimizer is not None:
            arguments["optimizer"] = optimizer(classifier.parameters(), lr=0.01)
        if not kind.__module__.startswith("avalanche_vlm"):
            arguments["criterion"] = LabelSpaceCrossEntropy("seen")
        return kind(model=classifier, plugins=plugins(), evaluator=evaluator, **arguments)

    return build


def scheduled(schedule: Callable[..., Any], plugins: Callable[[], list[Any]] = list, **own: Any) -> Any:
    """Return a function that builds fine-tuning with a scheduler of PyTorch in the host's plugin."""
    metric = own.pop("metric", None)

    def build(evaluator: EvaluationPlugin) -> Any:
        model = cosine()
        optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
        plugin = LRSchedulerPlugin(schedule(optimizer), metric=metric, reset_scheduler=False, reset_lr=False)
        return FineTune(
            model=model,
            optimizer=optimizer,
            train_mb_size=4,
            plugins=[*plugins(), plugin],
            evaluator=evaluator,
            **own,
        )

    return build


def pairs() -> terms.SyntheticPairs:
    """Return rendered images of general names and of the names of learned classes."""
    pool = PromptUnion([NamePrompts([each.name for each in TRAINED[:20]])])
    return terms.SyntheticPairs(RenderedImageSource(wrong_attribute_rate=0.2), pool, count=8, batch_size=4)


def anchors() -> terms.AdversarialAnchors:
    """Return SeGP-CL's anchors."""
    return terms.AdversarialAnchors(seeds_per_class=1, steps=2, step_size=0.05, batch_size=4)


def early() -> EarlyStoppingPlugin:
    """Return the host's plugin that ends an experience when the validation stream gets no better."""
    return EarlyStoppingPlugin(patience=1, val_stream_name="valid_stream", margin=0.01)


plateau = partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=0.1)
vae = partial(ClassVAE, passes=4, batch_size=4, hidden=8, latent=4)
conditional_vae = partial(ConditionalVAE, passes=4, batch_size=4, hidden=8, latent=4)
diffusion = partial(LatentDiffusion, passes=4, batch_size=4, hidden=8, diffusion_steps=5)
few_draws = {"samples_per_class": 8, "train_epochs": 2}


# Streams.


def validated() -> Any:
    """Return the stream with a validation stream."""
    return with_validation_stream(tiny_benchmark(per_class=12), fraction=0.34)


def online(lazy: bool) -> Any:
    """Return the stream in pieces of six samples, cut beforehand at random or on the way in order."""
    benchmark = tiny_benchmark(per_class=6)
    pieces: Any = split_online_stream(benchmark.train_stream, experience_size=6, shuffle=not lazy)
    if not lazy:
        pieces = EagerCLStream("train_online", list(pieces), benchmark)
    return CLScenario([*benchmark.streams.values(), pieces])


class Noise:
    """A transform that draws from all three global generators."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return an image with noise."""
        return x + 0.1 * torch.randn(x.shape) + 0.1 * random.random() + 0.1 * float(np.random.rand())


def noisy() -> Any:
    """Return the stream whose train transform draws at random."""
    from avalanche_vlm.testing import tiny_images

    data = [tiny_images(per_class=8, seed=seed) for seed in (0, 1)]
    return tensor_benchmark(*data, class_names=TINY_CLASSES, n_experiences=3, train_transform=Noise())


ONLINE = {"train_stream": "train_online"}
INSIDE = {"every_n_epochs": 1}
SCRIPTS = {
    # The host's strategies.
    "Naive": Script(made(Naive)),
    "Replay": Script(made(Replay, mem_size=7)),
    "LwF": Script(made(LwF, lora, alpha=1.0, temperature=2.0)),
    "EWC": Script(made(EWC, ewc_lambda=10.0)),
    "EWC, online": Script(made(EWC, ewc_lambda=10.0, mode="online", decay_factor=0.5)),
    "SI": Script(made(SynapticIntelligence, si_lambda=1.0)),
    "MAS": Script(made(MAS, lambda_reg=1.0)),
    "GEM": Script(made(GEM, patterns_per_exp=4)),
    "AGEM": Script(made(AGEM, patterns_per_exp=4, sample_size=6)),
    "DER": Script(made(DER, mem_size=8, batch_size_mem=3, beta=0.5)),
    "ER_ACE": Script(made(ER_ACE, mem_size=8, batch_size_mem=3)),
    "Cumulative": Script(made(Cumulative)),
    "Joint training": Script(made(JointTraining), whole=True),
    "Replay, class-balanced": Script(
        made(Naive, plugins=lambda: [ReplayPlugin(7, storage_policy=ClassBalancedBuffer(7))])
    ),
    "MIR": Script(made(Naive, plugins=lambda: [MIRPlugin(batch_size_mem=4, mem_size=8, subsample=8)])),
    # Ours.
    "ZeroShot": Script(made(ZeroShot, cosine, optimizer=None)),
    "FineTune, image tower": Script(made(FineTune, lambda: tiny_classifier(trainable="image"))),
    "FineTune, prompts": Script(made(FineTune, prompts, train_iterations=5)),
    "SI and GDumb of the package": Script(
        made(FineTune, plugins=lambda: [ours.SynapticIntelligencePlugin(1.0), ours.GDumbPlugin(8)])
    ),
    "GIFT": Script(
        made(
            GIFT,
            lora,
            images=RenderedImageSource,
            prompts=lambda: NamePrompts([each.name for each in TRAINED[:20]]),
            images_per_experience=8,
            image_batch_size=4,
        )
    ),
    "ZSCL": Script(
        made(
            ZSCL,
            lambda: tiny_classifier(trainable="both"),
            images=lambda: torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
            texts=lambda: ["tench", "cock", "ostrich", "robin", "magpie"],
            image_batch_size=3,
            texts_per_batch=4,
            ensemble_every=2,
        )
    ),
    "SeGP-CL": Script(made(SeGPCL, two_paths, anchors=anchors)),
    "CGIL, Gaussian": Script(made(CGIL, text, **few_draws)),
    "CGIL, VAE a class": Script(made(CGIL, text, generator=vae, **few_draws)),
    "CGIL, conditional VAE": Script(
        made(CGIL, lambda: tiny_classifier(HybridPromptHead()), generator=conditional_vae, **few_draws)
    ),
    "CGIL, diffusion": Script(made(CGIL, text, generator=diffusion, **few_draws)),
    "AutoSeed": Script(made(AutoSeed, adapted, consistency_weight=0.5, replay_batch_size=4)),
    "AutoSeed, generated seeds": Script(
        made(
            AutoSeed,
            text,
            buffer=lambda: SeedBuffer(max_size=12, source=GeneratedSeeds(2, steps=4, hidden=8)),
            replay_batch_size=4,
        )
    ),
    "GaussianDiscriminant": Script(made(GaussianDiscriminant, discriminant, optimizer=None)),
    "Parts of four methods": Script(
        made(
            FineTune,
            text,
            lambda: [
                ours.AdaptiveWeightConsolidationPlugin(terms.CrossModalDistillation(pairs())),
                ours.FeatureReplayPlugin(SeedBuffer(max_size=12, source=KMeansSeeds(2)), batch_size=4),
                LwFPlugin(alpha=1.0, temperature=2.0),
                EWCPlugin(ewc_lambda=5.0),
            ],
        )
    ),
    # Inside an experience.
    "LoRA, Replay and LwF, inside": Script(
        made(FineTune, lora, lambda: [ReplayPlugin(7), LwFPlugin()], eval_every=1), **INSIDE
    ),
    "SeGP-CL, inside": Script(made(SeGPCL, two_paths, anchors=anchors), **INSIDE),
    "CGIL, VAE a class, inside": Script(made(CGIL, text, generator=vae, **few_draws), **INSIDE),
    # Validation, schedules.
    "Validation stream": Script(
        made(FineTune, lora, lambda: [ReplayPlugin(7)]), validated, test_streams=("valid", "test")
    ),
    "Validation stream, inside": Script(
        made(FineTune, lora, eval_every=1), validated, periodic="valid", **INSIDE
    ),
    "Early stopping": Script(
        made(Naive, lora, lambda: [early()], train_epochs=5, eval_every=1), validated, periodic="valid"
    ),
    "Early stopping, inside": Script(
        made(FineTune, lora, lambda: [early()], train_epochs=5, eval_every=1),
        validated,
        periodic="valid",
        **INSIDE,
    ),
    "Cosine schedule": Script(scheduled(partial(CosineAnnealingLR, T_max=3), train_epochs=3)),
    "Plateau of the training loss, inside": Script(
        scheduled(plateau, metric="train_loss", train_epochs=4), **INSIDE
    ),
    "Plateau of the validation loss": Script(
        scheduled(plateau, metric="val_loss", train_epochs=4, eval_every=1), validated, periodic="valid"
    ),
    "Plateau and early stopping, inside": Script(
        scheduled(plateau, lambda: [early()], metric="val_loss", train_epochs=4, eval_every=1),
        validated,
        periodic="valid",
        **INSIDE,
    ),
    # Data.
    "Two workers that load": Script(made(FineTune, lora), noisy, {"num_workers": 2}),
    "Two workers, Replay, inside": Script(
        made(FineTune, lora, lambda: [ReplayPlugin(7)]), noisy, {"num_workers": 2}, **INSIDE
    ),
    "Two workers, Naive": Script(made(Naive), noisy, {"num_workers": 2}),
    "Online, cut beforehand": Script(
        made(FineTune, plugins=lambda: [ReplayPlugin(7)], train_epochs=1), partial(online, False), **ONLINE
    ),
    "Online, cut on the way": Script(
        made(FineTune, plugins=lambda: [ReplayPlugin(7)], train_epochs=1), partial(online, True), **ONLINE
    ),
    "Online, cut on the way, Naive": Script(
        made(Naive, plugins=lambda: [ReplayPlugin(7)], train_epochs=1), partial(online, True), **ONLINE
    ),
}


# Comparisons.


def prepare(seed: int) -> Setup:
    """Return a stream of features for a comparison."""
    generator = torch.Generator().manual_seed(seed)
    means, y = torch.randn(6, 8, generator=generator), torch.arange(6).repeat(8)
    data = [(means[y] + torch.randn(48, 8, generator=generator), y) for _ in range(2)]
    return Setup(
        benchmark=tensor_benchmark(*data, class_names=TINY_CLASSES, n_experiences=3, seed=seed),
        backbone=EmbeddingBackbone(8, logit_scale=10.0),
        head=partial(TextFeatureHead, means),
        seed=seed,
    )


def fine_tune(setup: Setup, evaluator: EvaluationPlugin, memory: int = 0) -> FineTune:
    """Return fine-tuning, with replay if there is a memory."""
    model = setup.model(CosineHead(setup.head()))
    return FineTune(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.3),
        plugins=[ReplayPlugin(memory)] if memory else [],
        train_mb_size=4,
        train_epochs=2,
        evaluator=evaluator,
    )


def compared(folder: Path, processes: int) -> list[Any]:
    """Make a comparison, or what is left of it."""
    methods = {"naive": fine_tune, "replay": partial(fine_tune, memory=7)}
    return compare(grid(methods, {"small": prepare}, seeds=range(2)), folder, processes=processes)
