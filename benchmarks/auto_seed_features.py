"""Memories of seeds on stored features of a real CLIP, beside real features in as many bytes.

    AVALANCHE_VLM_DATA=folder python benchmarks/auto_seed_features.py --output results

Streams of caltech101 (7 experiences), oxford_pets (5) and imagenet with 4 shots (10), in three class orders;
see ``real_features.py``. The learner has an adapter for images and one for text, the same in all methods:
AdamW 1e-3 without weight decay, fresh in each experience, batches of 128 and as many draws from the memory,
30 epochs (imagenet 10). ``discriminant`` rows have no adapter for images. Runs that the output folder has
already are not repeated; ``--report`` writes the table, the short file and the pictures beside this script.

Rows "brief: ..." realise the design brief as closely as its fragments allow: gradients at temperature 1, one
a class, contrast, gradient matching and an outer term, consistency in the learner, four seeds a class
pruned to two, kept as floats without jitter; each ablation leaves one of them out.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import torch
from auto_seed_report import write_report
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from real_features import STREAMS, load, unique
from study import finish
from torch.optim import AdamW

from avalanche_vlm import logging as report
from avalanche_vlm.benchmarks import class_names, tensor_benchmark
from avalanche_vlm.memory import (
    ClassMeanSeeds,
    GeneratedSeeds,
    GradientCondition,
    KMeansSeeds,
    NoiseCondition,
    RandomSeeds,
    SeedBuffer,
    SigmaPointSeeds,
)
from avalanche_vlm.metrics import MemoryMetric, continual_metrics
from avalanche_vlm.models import (
    AdaptedTextHead,
    CLIPClassifier,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    ResidualAdapter,
    TextFeatureHead,
)
from avalanche_vlm.plugins import (
    FeatureReplayPlugin,
    GaussianDiscriminantPlugin,
    LabelSpaceCrossEntropy,
    PastGenerativeLatentReplayPlugin,
)
from avalanche_vlm.sources import LowRankGaussian, SharedCovarianceGaussian
from avalanche_vlm.strategies import AutoSeed, FineTune, GaussianDiscriminant, ZeroShot, host_baselines

FUSION = {"caltech101": 0.02, "oxford_pets": 2.0, "imagenet": 0.05}  # as chosen for cgil_features.md


def brief(per_class: int | None = 2, consistency: float = 0.5, **changes):
    """Return what makes the row of the brief, or of one of its ablations."""
    settings = {
        "condition": GradientCondition(temperature=1.0, groups=1),
        "contrast_weight": 1.0,
        "matching_weight": 1.0,
        "outer_weight": 1.0,
        "meta_rate": 1.0,
    }
    memory = {"jitter": 0.0, "dtype": "float32"}
    held = 0.05 if changes.get("outer_weight", 1) else 0.0
    learner = {"consistency_weight": consistency, "validation_fraction": held}
    return partial(GeneratedSeeds, 4, **{**settings, **changes}), per_class, memory, learner


# The source, seeds a class, arguments of the memory, arguments of the strategy.
FLOATS = {"jitter": 0.0, "dtype": "float32"}
SEEDS = {
    "class means": (ClassMeanSeeds, 1, FLOATS, {}),
    "class means, int8": (ClassMeanSeeds, 1, {"jitter": 0.0}, {}),
    "class means, int8, jitter": (ClassMeanSeeds, 1, {}, {}),
    "random seeds": (partial(RandomSeeds, 4), 4, {}, {}),
    "generated, 1": (partial(GeneratedSeeds, 1), 1, {}, {}),
    "generated, 2": (partial(GeneratedSeeds, 2), 2, {}, {}),
    "generated, 4": (partial(GeneratedSeeds, 4), 4, {}, {}),
    "generated, 4, consistency 0.5": (partial(GeneratedSeeds, 4), 4, {}, {"consistency_weight": 0.5}),
    "generated, 4, noise-conditioned": (
        partial(GeneratedSeeds, 4, condition=NoiseCondition()),
        4,
        {},
        {},
    ),
    "generated, 4, network kept": (partial(GeneratedSeeds, 4, meta_rate=1.0), 4, {}, {}),
    "generated, 4, not trained": (partial(GeneratedSeeds, 4, steps=0), 4, {}, {}),
    "k-means, 2": (partial(KMeansSeeds, 2), 2, {}, {}),
    "k-means, 3": (partial(KMeansSeeds, 3), 3, {}, {}),
    "k-means, 4": (partial(KMeansSeeds, 4), 4, {}, {}),
    "k-means, 8": (partial(KMeansSeeds, 8), 8, {}, {}),
    "sigma points, 4": (partial(SigmaPointSeeds, 2), 4, {}, {}),
    "brief: full": brief(),
    "brief: without consistency": brief(consistency=0.0, contrast_weight=0.0, definition_weight=0.0),
    "brief: without generator updates": brief(trained_experiences=1),
    "brief: noise-conditioned": brief(condition=NoiseCondition()),
    "brief: without outer term": brief(outer_weight=0.0),
    "brief: without pruning": brief(per_class=None),
    "brief: random seeds": (partial(RandomSeeds, 4), 2, FLOATS, {"consistency_weight": 0.5}),
}
REAL = {f"real features, {count}": count for count in (1, 2, 4, 8)}
COMBINED = (
    "host Replay of k-means, 4",
    "host Replay of k-means, 4, + LwF + EWC",
    "k-means, 4, + low-rank Gaussians",
    "k-means, 4, + discriminant",
)
OTHERS = ("zero-shot", "naive", "zero-shot + discriminant", "shared-covariance Gaussian", "joint training")
METHODS = (*OTHERS, *SEEDS, *REAL, *COMBINED)
ON_IMAGENET = (
    "zero-shot",
    "naive",
    "zero-shot + discriminant",
    "joint training",
    "class means",
    "class means, int8, jitter",
    "generated, 2",
    "k-means, 2",
    "real features, 1",
    "brief: full",
)
SEEDS_OF_RUNS = (0, 1, 2)


class Stream:
    """Stored features of one data set."""

    def __init__(self, name: str) -> None:
        parts, self.n_experiences, self.epochs = STREAMS[name]
        path = Path(os.environ["AVALANCHE_VLM_DATA"]) / "clip_vitb32_features.npz"
        self.train, self.test, names, self.text = load(path, name, parts)
        self.name, self.names = name, unique(names)

    def benchmark(self, seed: int):
        """Return the stream in the class order of a seed."""
        stream = {"n_experiences": self.n_experiences, "seed": seed}
        return tensor_benchmark(self.train, self.test, class_names=self.names, **stream)


def memory_of(method: str, classes: int, seed: int) -> SeedBuffer:
    """Return the memory of a method."""
    make, per_class, arguments, _ = SEEDS[method]
    size = None if per_class is None else per_class * classes
    return SeedBuffer(size, make(seed=seed), seed=seed, **arguments)


def build(stream: Stream, method: str, seed: int, **arguments):
    """Return the strategy of a method."""
    text, backbone, classes = TextFeatureHead(stream.text), EmbeddingBackbone(512), len(stream.names)
    if method == "zero-shot":
        return ZeroShot(model=CLIPClassifier(backbone, text), **arguments)
    if method == "zero-shot + discriminant":
        head = GaussianDiscriminantHead(text, fusion_weight=FUSION[stream.name], mean_prior="none")
        return GaussianDiscriminant(model=CLIPClassifier(backbone, head), **arguments)
    head, adapter = AdaptedTextHead(text), ResidualAdapter()
    if method == "k-means, 4, + discriminant":
        head, adapter = (
            GaussianDiscriminantHead(head, fusion_weight=FUSION[stream.name], mean_prior="none"),
            None,
        )
    model = CLIPClassifier(backbone, head, image_adapter=adapter, class_names=stream.names)
    arguments |= {"model": model, "optimizer": AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)}
    arguments |= {"train_mb_size": 128, "train_epochs": stream.epochs}
    if method == "naive":
        return FineTune(**arguments)
    if method == "joint training":
        return host_baselines(memory_size=1, n_experiences=1)[method](**arguments)
    if method == "shared-covariance Gaussian":
        draws = PastGenerativeLatentReplayPlugin(SharedCovarianceGaussian(seed=seed), samples_per_class=32)
        return FineTune(plugins=[draws], **arguments)
    if method in SEEDS:
        return AutoSeed(buffer=memory_of(method, classes, seed), **SEEDS[method][3], **arguments)
    if method in REAL:
        size = REAL[method] * classes
        policy = ClassBalancedBuffer(max_size=size, adaptive_size=True)
        return FineTune(plugins=[ReplayPlugin(mem_size=size, storage_policy=policy)], **arguments)
    memory = memory_of("k-means, 4", classes, seed)
    if method.startswith("host Replay"):
        plugins = [ReplayPlugin(mem_size=memory.max_size, storage_policy=memory)]
        if method.endswith("EWC"):
            plugins += [LwFPlugin(alpha=0.1, temperature=2.0), EWCPlugin(ewc_lambda=1.0)]
        return Naive(plugins=plugins, criterion=LabelSpaceCrossEntropy("seen"), **arguments)
    other = (
        GaussianDiscriminantPlugin()
        if method.endswith("discriminant")
        else PastGenerativeLatentReplayPlugin(LowRankGaussian(rank=8, seed=seed), samples_per_class=32)
    )
    return FineTune(plugins=[other, FeatureReplayPlugin(memory)], **arguments)


def run(streams: dict, folder: Path, name: str, method: str, seed: int) -> None:
    """Train a method, and evaluate it after each experience."""
    if name not in streams:
        streams[name] = Stream(name)
    stream = streams[name]
    torch.manual_seed(seed)
    logger = report.ResultsLogger(folder / f"{name}.csv", method=method, benchmark=name, seed=seed)
    metrics = continual_metrics(spaces=("seen", "all", "experience"))
    evaluator = EvaluationPlugin(*metrics, MemoryMetric(), loggers=[logger])
    benchmark = stream.benchmark(seed)
    strategy = build(stream, method, seed, evaluator=evaluator, eval_mb_size=512)
    strategy.model.set_classes(class_names(benchmark))
    strategy.eval(benchmark.test_stream)
    for experience in [benchmark.train_stream] if method == "joint training" else benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        strategy.eval(benchmark.test_stream)


def main() -> None:
    """Run what the output folder does not have yet, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--orders", nargs="+", type=int, default=list(SEEDS_OF_RUNS))
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    report_only, folder = arguments.report, arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if report_only:
        write_report(folder, list(STREAMS), METHODS, Stream, memory_of)
        return
    runs = [
        (name, method, seed)
        for seed in arguments.orders
        for method in arguments.methods
        for name in arguments.streams
        if name != "imagenet" or method in ON_IMAGENET
    ]
    finish(runs, folder, partial(run, {}, folder))


if __name__ == "__main__":
    main()
