"""Methods × streams × seeds: one table with paired intervals, pictures, time and memory.

    python compare.py --processes 2       # rendered images and their embeddings, offline
    python compare.py --streams setting-a:cifar100 --device cuda
    python compare.py --streams mtil:I --device cuda --methods zero-shot naive LwF

The last two are published settings (weights and data are downloaded; no strength is tuned). Each run is a
process of its own. Stopped at any moment, the same command goes on; an error ends one run alone.
"""

import argparse
import logging
import sys
from functools import partial
from pathlib import Path

from avalanche.training.plugins import LwFPlugin
from rich import print as show
from torch.optim import AdamW

from avalanche_vlm import models, presets, strategies
from avalanche_vlm.benchmarks import small_world_benchmark
from avalanche_vlm.comparison import Setup, compare, grid, write_comparison
from avalanche_vlm.embedding import embed
from avalanche_vlm.logging import CLASS_INCREMENTAL_COLUMNS, MTIL_COLUMNS, results_table
from avalanche_vlm.memory import KMeansSeeds, SeedBuffer
from avalanche_vlm.plugins import FeatureReplayPlugin, LabelSpaceCrossEntropy
from avalanche_vlm.sources import LowRankGaussian

METHODS = ["zero-shot", "closed form", "CGIL", "seeds", "seeds, LwF"]
METHODS += strategies.host_baselines(memory_size=1, n_experiences=1)
CLOSED_FORM = partial(models.GaussianDiscriminantHead, fusion_weight=10.0)


def prepare(seed: int, stream: str, device: str, cache: Path, smoke: bool) -> Setup:
    """Return a benchmark and the model that all methods begin with; published settings have one order."""
    kind, _, name = stream.partition(":")
    settings = {"setting-a": presets.setting_a, "setting-b": presets.setting_b, "mtil": presets.mtil}
    setting = settings[kind](name) if kind in settings else None
    backbone = setting.backbone() if setting else models.OpenCLIPBackbone("small-clip", "small-world")
    transforms = dict.fromkeys(("train_transform", "eval_transform"), backbone.eval_transform)
    own = {"backbone": backbone, "seed": seed, "device": device}
    if setting:
        own |= {"head": setting.head, "spaces": ("dataset" if kind == "mtil" else "seen", "all")}
        return Setup(benchmark=setting.benchmark("data", download=True, **transforms), **own)
    few = {"train_per_class": 4, "test_per_class": 2} if smoke else {}
    images = small_world_benchmark(seed=seed, **few, **transforms)
    return Setup(benchmark=embed(images, backbone, cache_dir=cache) if name == "embedded" else images, **own)


def build(setup: Setup, evaluator, method: str, epochs: int):
    """Return the strategy of a name: one of ours, one of Avalanche, or parts of both in one list."""
    own = {"zero-shot": setup.head, "CGIL": models.HybridPromptHead, "closed form": CLOSED_FORM}
    model = setup.model(own[method]() if method in own else models.CosineHead(setup.head()))
    common = {"model": model, "evaluator": evaluator, "eval_mb_size": 256, "device": setup.device}
    untrained = {"zero-shot": strategies.ZeroShot, "closed form": strategies.GaussianDiscriminant}
    if method in untrained:
        return untrained[method](**common)
    common |= {"optimizer": AdamW(model.parameters(), lr=3e-3), "train_mb_size": 32, "train_epochs": epochs}
    if method == "CGIL":
        return strategies.CGIL(generator=LowRankGaussian(rank=8), batch_samples_per_class=4, **common)
    common["criterion"] = LabelSpaceCrossEntropy(setup.spaces[0])
    size, length = 5 * len(model.class_names), len(setup.benchmark.train_stream)
    if method.startswith("seeds"):
        seeds = FeatureReplayPlugin(SeedBuffer(max_size=size, source=KMeansSeeds(5)))
        others = [LwFPlugin(alpha=5.0, temperature=2.0)] if method == "seeds, LwF" else []
        return strategies.FineTune(plugins=[seeds, *others], **common)
    return strategies.host_baselines(memory_size=size, n_experiences=length)[method](**common)


def main() -> None:
    """Make the runs that are missing, and write what all of them say."""
    parser = argparse.ArgumentParser(description="Methods on streams.")
    parser.add_argument("--streams", nargs="+", default=["small-world", "small-world:embedded"])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("comparison"))
    parser.add_argument("--smoke", action="store_true", help="few images, to see that everything runs")
    arguments = parser.parse_args()
    logging.captureWarnings(True)  # the host's notes on its own next version
    if arguments.smoke:
        arguments.streams, arguments.seeds = ["small-world:embedded"], [0]
    data = {"device": arguments.device, "cache": arguments.output / "cache", "smoke": arguments.smoke}
    learn = partial(build, epochs=1 if arguments.smoke else 5)
    methods = {name: partial(learn, method=name) for name in arguments.methods}
    streams = {name: partial(prepare, stream=name, **data) for name in arguments.streams}
    runs = grid(methods, streams, seeds=arguments.seeds)
    outcomes = compare(runs, arguments.output, processes=arguments.processes)
    page = write_comparison(runs, arguments.output)
    columns = MTIL_COLUMNS if "mtil:" in str(arguments.streams) else CLASS_INCREMENTAL_COLUMNS
    if any(each.state == "finished" for each in outcomes):
        show(results_table(arguments.output, columns=columns), f"More in {page}.")
    failed = {f"{each.method}, {each.stream}: {each.reason}" for each in outcomes if each.reason}
    sys.exit("\n".join(failed) or None)


if __name__ == "__main__":
    main()
