"""SeGP-CL: low-rank updates of both towers, held by adversarial anchors between old and new classes.

The default runs offline: the small CLIP on rendered objects, two experiences in each of three styles. Before
the last experience it draws anchors and says where they land. Full size, on a data set of setting A:

    python segp_cl.py --setting cifar100 --root data --device cuda
"""

import argparse
import logging
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
from rich import print as show
from rich.progress import track

from avalanche_vlm import benchmarks, presets
from avalanche_vlm import logging as report
from avalanche_vlm.functional import WarmupCosine
from avalanche_vlm.metrics import SemanticDriftMetric, continual_metrics
from avalanche_vlm.models import CLIPClassifier, DualPathHead, LoRA, OpenCLIPBackbone
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.regularizers import AdversarialAnchors
from avalanche_vlm.strategies import FineTune, SeGPCL, ZeroShot
from avalanche_vlm.world import HELD_OUT


def published(arguments: argparse.Namespace) -> tuple:
    """Return stream, model, optimizer, anchors and arguments of the published setting."""
    setting = presets.segp_cl_setting(arguments.setting)
    backbone = setting.stream.backbone()
    transforms = dict.fromkeys(("train_transform", "eval_transform"), backbone.eval_transform)
    benchmark = setting.stream.benchmark(arguments.root, download=True, **transforms)
    model = setting.model(benchmarks.class_names(benchmark), backbone=backbone)
    optimizer = setting.optimizer(model)
    own = setting.strategy_arguments() | {"plugins": setting.plugins(optimizer)}
    return benchmark, model, optimizer, setting.anchors(), own


def offline(arguments: argparse.Namespace) -> tuple:
    """Return the same for the small world; weight and temperature of the paper are for OpenAI's model."""
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    transforms = dict.fromkeys(("train_transform", "eval_transform"), backbone.eval_transform)
    count, test, train, steps = (12, 2, 4, 2) if arguments.smoke else (30, 10, 30, 15)
    size = {"objects": HELD_OUT[:count], "test_per_class": test, "train_per_class": train}
    stream = {"styles": ["sketch", "night", "mosaic"], "n_experiences_per_dataset": 2, **transforms}
    benchmark = benchmarks.small_world_sequence_benchmark(**stream, **size)
    names, trainable = benchmarks.class_names(benchmark), LoRA(rank=32, factors=("B",))
    model = CLIPClassifier(backbone, DualPathHead(), class_names=names, trainable=trainable)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, WarmupCosine(0, steps))
    plugins = [LRSchedulerPlugin(schedule, step_granularity="iteration", reset_lr=False)]
    anchors = AdversarialAnchors(seeds_per_class=3, steps=5, step_size=3e-3, batch_size=16)
    own = {"distillation_weight": 0.1, "distillation_temperature": 2.0, "plugins": plugins}
    return benchmark, model, optimizer, anchors, own | {"train_mb_size": 32, "train_iterations": steps}


def main() -> None:
    """Run three methods and write what they did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--setting", help="a data set of setting A; none for the small world")
    parser.add_argument("--root", default="data", help="where data sets are")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that everything runs")
    arguments = parser.parse_args()
    logging.captureWarnings(True)  # the host's notes on its own next version
    arguments.output.mkdir(parents=True, exist_ok=True)
    (results := arguments.output / "results.csv").unlink(missing_ok=True)
    for method in ("zero-shot", "LoRA fine-tuning", "SeGP-CL"):
        torch.manual_seed(0)
        benchmark, model, optimizer, anchors, own = (published if arguments.setting else offline)(arguments)
        metrics = [*continual_metrics(spaces=("seen", "all")), SemanticDriftMetric()]
        logger = report.ResultsLogger(results, method=method, seed=0)
        evaluator = EvaluationPlugin(metrics, loggers=[logger])
        common = {"model": model, "device": arguments.device, "evaluator": evaluator, "eval_mb_size": 128}
        if method == "SeGP-CL":
            strategy = SeGPCL(optimizer=optimizer, anchors=anchors, **own, **common)
        elif method == "zero-shot":
            strategy = ZeroShot(**common)
        else:
            own = {name: value for name, value in own.items() if name.startswith(("train_", "plugins"))}
            criterion = LabelSpaceCrossEntropy("experience")
            strategy = FineTune(optimizer=optimizer, criterion=criterion, **own, **common)
        strategy.eval(benchmark.test_stream)
        for experience in track(benchmark.train_stream, description=f"{method:16}"):
            if method == "SeGP-CL" and experience.current_experience > 0:
                made = anchors.make(model, experience, model.classes_seen.nonzero().flatten())
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
    show(report.anchor_table(made, model.class_names))
    drawn = report.plot_anchors(made, model.class_names, space=model.backbone.pixel_space)
    report.save_figure(drawn, arguments.output / "anchors.png")
    report.save_figure(report.plot_semantic_drift(results), arguments.output / "drift.png")
    show(report.results_table(results, columns=report.CLASS_INCREMENTAL_COLUMNS, title="SeGP-CL"))


if __name__ == "__main__":
    main()
