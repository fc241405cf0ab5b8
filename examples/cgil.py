"""CGIL: hybrid prompts aligned with synthetic embeddings, beside methods with and without training.

The default runs offline: the small CLIP on rendered objects. Full size, with images encoded once:

    python cgil.py --backbone ViT-L-14 --pretrained openai --dataset cifar100 --cache cache --device cuda
"""

import argparse
import logging
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from rich import print as show
from rich.progress import track

from avalanche_vlm import logging as report
from avalanche_vlm import models
from avalanche_vlm.benchmarks import class_names, known_benchmark, small_world_benchmark
from avalanche_vlm.embedding import embed
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone
from avalanche_vlm.sources import LowRankGaussian
from avalanche_vlm.strategies import CGIL, FineTune, GaussianDiscriminant, ZeroShot

HEADS = {
    "zero-shot": models.ZeroShotHead,
    "naive fine-tuning": models.HybridPromptHead,
    "Gaussian discriminant": lambda: models.GaussianDiscriminantHead(fusion_weight=10.0, mean_prior="none"),
    "CGIL": models.HybridPromptHead,
}


def build_benchmark(arguments: argparse.Namespace, backbone: OpenCLIPBackbone):
    """Return a benchmark of images that knows its class names, or of their embeddings."""
    stream = {"train_transform": backbone.eval_transform, "eval_transform": backbone.eval_transform}
    stream |= {"n_experiences": arguments.experiences, "seed": arguments.seed}
    if arguments.dataset == "small-world":
        images = {"train_per_class": 4, "test_per_class": 2} if arguments.smoke else {}
        benchmark = small_world_benchmark(**images, **stream)
    else:
        benchmark = known_benchmark(arguments.dataset, arguments.root, download=True, **stream)
    own = {"cache_dir": arguments.cache, "device": arguments.device}
    return benchmark if arguments.cache is None else embed(benchmark, backbone, **own)


def build_strategy(method: str, model: CLIPClassifier, arguments: argparse.Namespace, metrics: list):
    """Return a strategy; those that train have the same prompts and the same optimizer."""
    evaluator = EvaluationPlugin(*metrics, loggers=[])
    common = {"model": model, "eval_mb_size": 128, "device": arguments.device, "evaluator": evaluator}
    if method == "zero-shot":
        return ZeroShot(**common)
    if method == "Gaussian discriminant":
        return GaussianDiscriminant(**common)
    common["optimizer"] = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.0)
    common["train_epochs"] = 1 if arguments.smoke else arguments.epochs
    if method == "naive fine-tuning":
        return FineTune(train_mb_size=32, **common)
    common["generator"] = LowRankGaussian(rank=8, seed=arguments.seed)
    return CGIL(samples_per_class=64, batch_samples_per_class=8, **common)


def main() -> None:
    """Run the four methods and write what they did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="small-clip", help="a model name of open_clip")
    parser.add_argument("--pretrained", default="small-world", help="a tag of open_clip, or a file")
    parser.add_argument("--dataset", default="small-world", help="small-world, cifar10 or cifar100")
    parser.add_argument("--root", default="data", help="where torchvision keeps its data sets")
    parser.add_argument("--cache", type=Path, help="folder of embeddings; without it images are encoded anew")
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that everything runs")
    arguments = parser.parse_args()
    logging.captureWarnings(True)  # the host's notes on its own next version
    arguments.output.mkdir(parents=True, exist_ok=True)
    (results := arguments.output / "results.csv").unlink(missing_ok=True)
    backbone = OpenCLIPBackbone(arguments.backbone, pretrained=arguments.pretrained)
    benchmark = build_benchmark(arguments, backbone)
    for method, head in HEADS.items():
        torch.manual_seed(arguments.seed)
        model = CLIPClassifier(backbone, head(), class_names=class_names(benchmark))
        metrics = continual_metrics(spaces=("seen", "all"))
        strategy = build_strategy(method, model, arguments, metrics)
        strategy.eval(benchmark.test_stream)
        for experience in track(benchmark.train_stream, description=f"{method:22}"):
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
        report.write_results(results, report.result_rows(metrics, method=method, seed=arguments.seed))
    show(report.results_table(results, title=f"{arguments.backbone} on {arguments.dataset}"))
    curves = report.plot_accuracy_over_experiences(results)
    report.save_figure(curves, arguments.output / "accuracy_over_experiences.png")


if __name__ == "__main__":
    main()
