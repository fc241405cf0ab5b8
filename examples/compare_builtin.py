"""Avalanche's own baselines beside zero-shot on one stream: one file of results, a table, two pictures.

    python compare_builtin.py                                    # rendered images, offline
    python compare_builtin.py --stream setting-a:cifar100 --download --device cuda
    python compare_builtin.py --stream setting-b:aircraft --download --device cuda
    python compare_builtin.py --stream mtil:I --download --device cuda --methods zero-shot naive LwF

The last three are published settings (weights, prompts, order, splits); no strength is tuned for them.
"""

import argparse
import logging
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from rich import print as show
from rich.progress import track

from avalanche_vlm import logging as report
from avalanche_vlm import presets
from avalanche_vlm.benchmarks import class_names, small_world_benchmark
from avalanche_vlm.metrics import MemoryMetric, continual_metrics
from avalanche_vlm.models import CLIPClassifier, LoRA, OpenCLIPBackbone
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import ZeroShot, host_baselines
from avalanche_vlm.world import HELD_OUT

METHODS = ["zero-shot", *host_baselines(memory_size=1, n_experiences=1)]
PRESETS = {"setting-a": presets.setting_a, "setting-b": presets.setting_b, "mtil": presets.mtil}


def build(setting, seed: int, arguments: argparse.Namespace):
    """Return model and stream of a published setting, which brings its class order, or the small world's."""
    own = OpenCLIPBackbone("small-clip", pretrained="small-world") if setting is None else setting.backbone()
    model = CLIPClassifier(own, setting and setting.head(), trainable=LoRA(rank=8))
    transforms = {"train_transform": model.train_transform, "eval_transform": model.eval_transform}
    if setting is None:
        few = {"objects": HELD_OUT[:10], "train_per_class": 2, "test_per_class": 2}
        benchmark = small_world_benchmark(seed=seed, **(few if arguments.smoke else {}), **transforms)
    else:
        benchmark = setting.benchmark(arguments.root, download=arguments.download, **transforms)
    model.set_classes(class_names(benchmark))
    return model, benchmark


def main() -> None:
    """Run the methods one after another."""
    parser = argparse.ArgumentParser(description="Avalanche's baselines on one stream.")
    parser.add_argument("--stream", default="small-world", help="small-world, or a published setting")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--root", type=Path, default=Path("data"), help="where the data sets are")
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that everything runs")
    arguments = parser.parse_args()
    logging.captureWarnings(True)  # the host's notes on its own next version
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = arguments.output / "results.csv"
    for old in arguments.output.glob("results.*"):
        old.unlink()  # the logger appends
    preset, _, name = arguments.stream.partition(":")
    if preset not in PRESETS and preset != "small-world":
        parser.error(f"--stream: small-world or one of {', '.join(f'{key}:NAME' for key in PRESETS)}")
    setting = PRESETS[preset](name) if preset in PRESETS else None
    space = "dataset" if preset == "mtil" else "seen"

    for seed in arguments.seeds:
        for method in arguments.methods:
            torch.manual_seed(seed)
            model, benchmark = build(setting, seed, arguments)
            size = 5 * len(model.class_names)
            builders = host_baselines(memory_size=size, n_experiences=len(benchmark.train_stream))
            logger = report.ResultsLogger(results, method=method, benchmark=arguments.stream, seed=seed)
            metrics = [*continual_metrics(spaces=(space, "all")), MemoryMetric()]
            common = {"model": model, "train_mb_size": 32, "eval_mb_size": 128, "device": arguments.device}
            common |= {"evaluator": EvaluationPlugin(*metrics, loggers=[logger])}
            common |= {"criterion": LabelSpaceCrossEntropy(space)}
            if method != "zero-shot":
                common["optimizer"] = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
                common["train_epochs"] = 1 if arguments.smoke else arguments.epochs
            strategy = (builders | {"zero-shot": ZeroShot})[method](**common)
            strategy.eval(benchmark.test_stream)
            whole = [benchmark.train_stream] if method == "joint training" else benchmark.train_stream
            for experience in track(whole, description=f"{method:22} seed {seed}"):
                strategy.train(experience)
                strategy.eval(benchmark.test_stream)
    columns = report.MTIL_COLUMNS if preset == "mtil" else report.CLASS_INCREMENTAL_COLUMNS
    show(report.results_table(results, columns=columns, title=arguments.stream))
    curves = report.plot_accuracy_over_experiences(results, space=space)
    report.save_figure(curves, arguments.output / "accuracy_over_experiences.png")
    report.save_figure(report.plot_accuracy_matrices(results, space="all"), arguments.output / "matrices.png")


if __name__ == "__main__":
    main()
