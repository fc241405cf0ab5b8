"""Auto-Seed: a memory of a few kilobytes in place of samples.

    python examples/auto_seed.py [--smoke]

Images of a small rendered world are embedded once. A stream of ten experiences is then learned by two small
adapters: without a memory, with seeds, and by the host's Naive with its own ReplayPlugin and the same seeds,
or with real embeddings in as many bytes. Writes the table, the curves, and a picture of the memory.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from rich import print as show
from rich.progress import track

from avalanche_vlm import logging as report
from avalanche_vlm.benchmarks import class_names, small_world_benchmark
from avalanche_vlm.embedding import embed
from avalanche_vlm.memory import SeedBuffer
from avalanche_vlm.metrics import MemoryMetric, continual_metrics
from avalanche_vlm.models import AdaptedTextHead, CLIPClassifier, OpenCLIPBackbone, ResidualAdapter
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import AutoSeed, FineTune

METHODS = ("no memory", "Auto-Seed", "Replay of seeds", "Replay of embeddings")


def build(
    method: str, model: CLIPClassifier, seeds: SeedBuffer, arguments: argparse.Namespace, metrics: list
):
    """Return a strategy; all have the same model, optimizer and batches."""
    common = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0),
        "train_mb_size": 64,
        "eval_mb_size": 256,
        "train_epochs": 1 if arguments.smoke else arguments.epochs,
        "evaluator": EvaluationPlugin(*metrics, loggers=[]),
    }
    if method == "no memory":
        return FineTune(**common)
    if method == "Auto-Seed":
        return AutoSeed(buffer=seeds, replay_batch_size=64, **common)
    policy, size = seeds, seeds.max_size
    if method == "Replay of embeddings":  # a pair of seeds has as many bytes as half of one of these floats
        size = seeds.max_size // 2
        policy = ClassBalancedBuffer(max_size=size, adaptive_size=True)
    replay = ReplayPlugin(mem_size=size, storage_policy=policy)
    return Naive(plugins=[replay], criterion=LabelSpaceCrossEntropy("seen"), **common)


def main() -> None:
    """Run the four and write what they did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiences", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    logging.captureWarnings(True)  # the host's notes on its own next version
    arguments.output.mkdir(parents=True, exist_ok=True)
    (results := arguments.output / "results.csv").unlink(missing_ok=True)
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    transforms = {"train_transform": backbone.eval_transform, "eval_transform": backbone.eval_transform}
    count = 4 if arguments.smoke else 30
    images = small_world_benchmark(n_experiences=arguments.experiences, train_per_class=count, **transforms)
    with tempfile.TemporaryDirectory() as cache:
        benchmark = embed(images, backbone, cache_dir=cache)
        for method in METHODS:
            torch.manual_seed(arguments.seed)
            model = CLIPClassifier(backbone, AdaptedTextHead(), image_adapter=ResidualAdapter())
            model.set_classes(class_names(benchmark))
            metrics = continual_metrics(spaces=("seen",))
            seeds = SeedBuffer(max_size=2 * len(model.class_names), seed=arguments.seed)
            strategy = build(method, model, seeds, arguments, [*metrics, MemoryMetric()])
            strategy.eval(benchmark.test_stream)
            for experience in track(benchmark.train_stream, description=f"{method:20}"):
                strategy.train(experience)
                strategy.eval(benchmark.test_stream)
            report.write_results(results, report.result_rows(metrics, method=method, seed=arguments.seed))
            if method == "Auto-Seed":
                real = [(x, y) for experience in benchmark.train_stream for x, y, *_ in experience.dataset]
                x, y = torch.stack([pair[0] for pair in real]), torch.tensor([int(pair[1]) for pair in real])
                figure = report.plot_seeds(seeds.visual, seeds.labels, x, y, class_names=model.class_names)
                report.save_figure(figure, arguments.output / "seeds.png")
                show(report.seed_table(seeds.visual, seeds.labels, x, y))
    show(report.results_table(results, title="small-clip on small-world"))
    curves = report.plot_accuracy_over_experiences(results)
    report.save_figure(curves, arguments.output / "accuracy_over_experiences.png")


if __name__ == "__main__":
    main()
