"""Five methods on one class-incremental stream: a table, a CSV file and two pictures.

The default runs offline on the CPU: the small CLIP of the package on rendered objects. Full size:

    python quickstart.py --backbone ViT-B-16 --pretrained openai --dataset cifar100 --device cuda
"""

import argparse
import logging
from pathlib import Path

import torch
from avalanche.logging import TextLogger
from avalanche.training import JointTraining, LwF, Replay
from avalanche.training.plugins import EvaluationPlugin
from rich import print as show
from rich.progress import track

from avalanche_vlm import logging as report
from avalanche_vlm.benchmarks import class_names, known_benchmark, small_world_benchmark
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, LoRA, OpenCLIPBackbone
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune, ZeroShot

METHODS = ("zero-shot", "naive fine-tuning", "LwF", "replay", "joint training")


def build_benchmark(arguments: argparse.Namespace, model: CLIPClassifier):
    """Return a benchmark that knows its class names, preprocessed as the model wants it."""
    stream = {"train_transform": model.train_transform, "eval_transform": model.eval_transform}
    stream |= {"n_experiences": arguments.experiences, "seed": arguments.seed}
    if arguments.dataset == "small-world":
        images = {"train_per_class": 2, "test_per_class": 2} if arguments.smoke else {}
        return small_world_benchmark(**images, **stream)
    return known_benchmark(arguments.dataset, arguments.root, download=True, **stream)


def build_strategy(method: str, model: CLIPClassifier, arguments: argparse.Namespace, metrics: list):
    """Return a strategy of ours or of the host; all of them take the same classifier."""
    log = TextLogger((arguments.output / "log.txt").open("a"))
    common = {"model": model, "train_mb_size": 32, "eval_mb_size": 128, "device": arguments.device}
    common["evaluator"] = EvaluationPlugin(*metrics, loggers=[log])
    common["criterion"] = LabelSpaceCrossEntropy("seen")
    if method == "zero-shot":
        return ZeroShot(**common)
    common["optimizer"] = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
    common["train_epochs"] = 1 if arguments.smoke else arguments.epochs
    if method == "naive fine-tuning":
        return FineTune(**common)
    if method == "LwF":
        return LwF(alpha=5.0, temperature=2.0, **common)
    if method == "replay":
        return Replay(mem_size=5 * len(model.class_names), **common)
    return JointTraining(**common)


def main() -> None:
    """Run the five methods and write what they did."""
    parser = argparse.ArgumentParser(description="Five methods on one class-incremental stream.")
    parser.add_argument("--backbone", default="small-clip", help="a model name of open_clip")
    parser.add_argument("--pretrained", default="small-world", help="a tag of open_clip or a file of weights")
    parser.add_argument("--dataset", default="small-world", help="small-world, cifar10 or cifar100")
    parser.add_argument("--root", default="data", help="where torchvision keeps its data sets")
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that everything runs")
    arguments = parser.parse_args()
    logging.captureWarnings(True)  # the host's notes on its own next version
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = arguments.output / "results.csv"
    results.unlink(missing_ok=True)
    for method in METHODS:
        torch.manual_seed(arguments.seed)
        backbone = OpenCLIPBackbone(arguments.backbone, pretrained=arguments.pretrained)
        model = CLIPClassifier(backbone, trainable=LoRA(rank=8))
        benchmark = build_benchmark(arguments, model)
        model.set_classes(class_names(benchmark))
        metrics = continual_metrics(spaces=("seen", "all"))
        strategy = build_strategy(method, model, arguments, metrics)
        strategy.eval(benchmark.test_stream)
        whole = [benchmark.train_stream] if method == "joint training" else benchmark.train_stream
        for experience in track(whole, description=f"{method:17}"):
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
        report.write_results(results, report.result_rows(metrics, method=method, seed=arguments.seed))
    show(report.results_table(results, title=f"{arguments.backbone} on {arguments.dataset}"))
    curves = report.plot_accuracy_over_experiences(results)
    matrices = report.plot_accuracy_matrices(results, space="all")
    report.save_figure(curves, arguments.output / "accuracy_over_experiences.png")
    report.save_figure(matrices, arguments.output / "accuracy_matrices.png")
    show(f"Table, pictures and log are in {arguments.output}: results.csv, accuracy_*.png, log.txt")


if __name__ == "__main__":
    main()
