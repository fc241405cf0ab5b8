"""GIFT: full fine-tuning over several domains, held by images that are generated from what is known.

The default runs offline: the small CLIP on rendered objects and digits, and a renderer in the place of the
text-to-image model. Full size, on data sets of torchvision, with images that are kept in a folder:

    python gift.py --backbone ViT-B-16 --pretrained openai --datasets dtd eurosat mnist --device cuda \
        --pipeline stable-diffusion-v1-5/stable-diffusion-v1-5 --lr 1e-5 --iterations 1000
"""

import argparse
import logging
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from rich import print as show
from rich.progress import track

from avalanche_vlm import benchmarks, sources
from avalanche_vlm import logging as report
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import GIFT, FineTune, ZeroShot
from avalanche_vlm.world import TRAINED


def build_benchmark(arguments: argparse.Namespace, backbone: OpenCLIPBackbone):
    """Return one experience for each data set."""
    stream = {"train_transform": backbone.eval_transform, "eval_transform": backbone.eval_transform}
    if arguments.datasets:
        stream["download"] = True
        return benchmarks.known_sequence_benchmark(arguments.datasets, arguments.root, **stream)
    images = {"train_per_class": 4, "test_per_class": 2} if arguments.smoke else {}
    order = ["sketch", "night", "digits"]
    return benchmarks.small_world_and_digits_benchmark(order=order, **images, **stream)


def build_strategy(method: str, model: CLIPClassifier, arguments: argparse.Namespace, metrics: list):
    """Return a strategy; those that train have the same optimizer and number of iterations."""
    evaluator = EvaluationPlugin(*metrics, loggers=[])
    common = {"model": model, "eval_mb_size": 128, "device": arguments.device, "evaluator": evaluator}
    if method == "zero-shot":
        return ZeroShot(**common)
    common["optimizer"] = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.0)
    common["train_iterations"] = 2 if arguments.smoke else arguments.iterations
    common["train_mb_size"] = 8 if arguments.smoke else arguments.batch
    if method == "fine-tuning":
        return FineTune(criterion=LabelSpaceCrossEntropy("experience", label_smoothing=0.2), **common)
    if arguments.pipeline is None:
        images, general = sources.RenderedImageSource(style="rain"), [each.name for each in TRAINED]
        pools = [sources.NamePrompts(general), sources.LearnedClassPrompts()]
    else:
        drawn = sources.DiffusionImageSource(arguments.pipeline, device=arguments.device, dtype="float16")
        images = sources.StoredImageSource(arguments.output / "images", drawn)
        pools = [sources.ImageNetPrompts(), sources.LearnedClassPrompts()]
    common["image_batch_size"] = common["train_mb_size"]
    common["images_per_experience"] = 8 if arguments.smoke else 1000
    return GIFT(images=images, prompts=sources.PromptUnion(pools), **common)


def main() -> None:
    """Run three methods and write what they did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="small-clip", help="a model name of open_clip")
    parser.add_argument("--pretrained", default="small-world", help="a tag of open_clip, or a file")
    parser.add_argument("--datasets", nargs="+", help="data sets of torchvision; none for the small world")
    parser.add_argument("--root", default="data", help="where torchvision keeps its data sets")
    parser.add_argument("--pipeline", help="a text-to-image pipeline of diffusers, or a folder")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--iterations", type=int, default=40, help="for each data set")
    parser.add_argument("--batch", type=int, default=32, help="real images, and as many generated ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that everything runs")
    arguments = parser.parse_args()
    logging.captureWarnings(True)  # the host's notes on its own next version
    arguments.output.mkdir(parents=True, exist_ok=True)
    (results := arguments.output / "results.csv").unlink(missing_ok=True)
    for method in ("zero-shot", "fine-tuning", "GIFT"):
        torch.manual_seed(0)
        backbone = OpenCLIPBackbone(arguments.backbone, pretrained=arguments.pretrained)
        benchmark = build_benchmark(arguments, backbone)
        names = benchmarks.class_names(benchmark)
        trainable = "nothing" if method == "zero-shot" else "both"
        model = CLIPClassifier(backbone, class_names=names, trainable=trainable)
        metrics = continual_metrics(spaces=("dataset", "all"))
        strategy = build_strategy(method, model, arguments, metrics)
        strategy.eval(benchmark.test_stream)
        for experience in track(benchmark.train_stream, description=f"{method:12}"):
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
        report.write_results(results, report.result_rows(metrics, method=method, seed=0))
    show(report.results_table(results, columns=report.MTIL_COLUMNS, title=arguments.backbone))
    matrices = report.plot_accuracy_matrices(results, space="dataset")
    report.save_figure(matrices, arguments.output / "matrices.png")


if __name__ == "__main__":
    main()
