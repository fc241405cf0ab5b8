"""What GIFT costs: a step with adaptive weight consolidation beside the same step without it, and memory.

    python benchmarks/gift_cost.py

Time: strategies with the same batches of real and synthetic images take turns of a few iterations in one
process, so that all meet the same load; an iteration is timed from callback to callback, and ratios are
those of medians. Batches are small at the size of ViT-B-32 (4 real and 4 synthetic images), where the
arithmetic on the weights, the same for every batch size, weighs most. The plain version is
`tests/reference/gift_reference.py`: a teacher of its own that is asked at every step, an anchor of its own,
and two backward passes. Memory: the largest resident size of a process of its own that makes a few steps,
less that after imports. One thread, random weights for ViT-B-32. Writes ``gift_cost.md`` beside this file.
Needs ``fork``, so Linux or macOS.
"""

import argparse
import contextlib
import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from stopwatch import Stopwatch
from torch.optim import AdamW

from avalanche_vlm.benchmarks import class_names, small_world_and_digits_benchmark
from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone
from avalanche_vlm.plugins import (
    AdaptiveWeightConsolidationPlugin,
    LabelSpaceCrossEntropy,
    RegularizerPlugin,
    StaticWeightConsolidationPlugin,
)
from avalanche_vlm.presets import mtil
from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    ImageTextAlignment,
    SumRegularizer,
    SyntheticPairs,
)
from avalanche_vlm.sources import NamePrompts, RenderedImageSource
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.world import TRAINED

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "reference"))

# Model, real and synthetic images of a batch, iterations of a turn, turns.
SIZES = {"small-clip": (32, 8, 6), "ViT-B-32": (4, 3, 3)}
WITHOUT, WITH, STATIC = "distillation + alignment", "the same with AWC", "with static importance"
TUNED, PLAIN = "fine-tuning alone", "plain version of AWC"


def make_model(size: str) -> tuple:
    """Return a classifier whose towers train, and one experience for it."""
    torch.manual_seed(0)
    backbone = OpenCLIPBackbone(size, pretrained="small-world" if size == "small-clip" else None)
    transform = {"train_transform": backbone.eval_transform, "eval_transform": backbone.eval_transform}
    benchmark = small_world_and_digits_benchmark(
        styles=("sketch",), order=["sketch"], train_per_class=5, test_per_class=1, **transform
    )
    model = CLIPClassifier(backbone, class_names=class_names(benchmark), trainable="both")
    return model, benchmark.train_stream[0]


def make_pairs(batch: int) -> SyntheticPairs:
    """Return pairs of general names and what the renderer makes of them."""
    names = [each.name for each in TRAINED]
    return SyntheticPairs(RenderedImageSource(style="rain"), NamePrompts(names), count=64, batch_size=batch)


def plugin_of(kind: str, batch: int) -> list:
    """Return the plugins of a variant."""
    pairs = make_pairs(batch)
    both = SumRegularizer([CrossModalDistillation(pairs), ImageTextAlignment(pairs)], [1.0, 0.25])
    kinds = {
        TUNED: lambda: [],
        WITHOUT: lambda: [RegularizerPlugin(both)],
        WITH: lambda: [AdaptiveWeightConsolidationPlugin(both)],
        STATIC: lambda: [StaticWeightConsolidationPlugin(both)],
    }
    return kinds[kind]()


class Ours:
    """A strategy of the package, trained a few iterations at a time."""

    def __init__(self, kind: str, size: str) -> None:
        batch, iterations, _ = SIZES[size]
        model, self.experience = make_model(size)
        self.watch = Stopwatch()
        self.strategy = FineTune(
            model=model,
            optimizer=AdamW(model.parameters(), lr=1e-5, weight_decay=0.0),
            criterion=LabelSpaceCrossEntropy("experience", label_smoothing=0.2),
            train_mb_size=batch,
            train_iterations=iterations,
            plugins=[*plugin_of(kind, batch), self.watch],
            evaluator=None,
        )

    def turn(self) -> list[float]:
        """Return the seconds of each iteration but the first."""
        self.watch.seconds = []
        self.strategy.train(self.experience)
        return self.watch.seconds[1:]


class Plain:
    """The plain version on the same batches."""

    def __init__(self, size: str) -> None:
        from gift_reference import PlainGIFT

        batch, self.iterations, _ = SIZES[size]
        self.model, experience = make_model(size)
        optimizer = AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.0)
        self.plain = PlainGIFT(self.model, optimizer)
        pairs = make_pairs(batch)
        drawn = pairs.prompts.prompts(self.model)[:batch]
        made = pairs.images.sample([each.text for each in drawn], range(batch))
        self.images = torch.stack([self.model.eval_transform(image) for image in made.images])
        self.tokens = self.model.backbone.tokenize(made.captions)
        self.captions = torch.arange(batch)
        data = experience.dataset
        self.x = torch.stack([data[index][0] for index in range(batch)])
        self.y = torch.tensor([int(data[index][1]) for index in range(batch)])
        self.columns = torch.tensor(sorted(experience.classes_in_this_experience))

    def turn(self) -> list[float]:
        """Return the seconds of each iteration but the first."""
        self.model.train()
        self.plain.begin()
        seconds = []
        for _ in range(self.iterations):
            began = time.perf_counter()
            self.plain.step(self.task_loss, self.images, self.tokens, self.captions)
            seconds.append(time.perf_counter() - began)
        return seconds[1:]

    def task_loss(self):
        """Return the loss of the task."""
        logits = self.model(self.x)[:, self.columns]
        targets = torch.searchsorted(self.columns, self.y)
        return torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.2)


def make(kind: str, size: str):
    """Return a variant."""
    return Plain(size) if kind == PLAIN else Ours(kind, size)


def timed(size: str) -> dict:
    """Return the median seconds of an iteration of each variant, taken in turns."""
    variants = {kind: make(kind, size) for kind in (TUNED, WITHOUT, WITH, STATIC, PLAIN)}
    seconds: dict = {kind: [] for kind in variants}
    for variant in variants.values():
        variant.turn()
    for turn in range(SIZES[size][2]):
        # In another order each time, so that none always follows the same other.
        for kind in sorted(variants, key=lambda kind: (hash((turn, len(kind))), kind)):
            seconds[kind] += variants[kind].turn()
    return {kind: statistics.median(each) for kind, each in seconds.items()}


def _peak(kind: str, size: str, sender) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    make(kind, size).turn()
    sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peak(kind: str, size: str) -> float:
    """Return the largest resident size, in MiB over that after imports, of a process that makes a turn."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(kind, size, sender))
    process.start()
    found = receiver.recv()
    process.join()
    return found


def _text_cost(space: str, sender) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    setting = mtil("I")
    model = CLIPClassifier(
        OpenCLIPBackbone("ViT-B-32"), setting.head(), class_names=setting.class_names(), trainable="both"
    ).train()
    x, seconds = torch.rand(8, 3, 224, 224), []
    own = torch.arange(100)  # the classes of Aircraft
    with torch.no_grad():
        others = model.head(model.backbone).detach()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        began = time.perf_counter()
        rest = model.head.encoding_only(own, others) if space == "experience" else contextlib.nullcontext()
        with rest:
            model(x)[:, own].logsumexp(dim=1).sum().backward()
        seconds.append(time.perf_counter() - began)
    peak_size = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    sender.send((statistics.median(seconds[1:]), peak_size))


def text_cost(space: str) -> tuple[float, float]:
    """Return seconds and MiB of the forward and backward pass with the names of MTIL."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_text_cost, args=(space, sender))
    process.start()
    found = receiver.recv()
    process.join()
    return found


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="What GIFT costs.")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    sizes = parser.parse_args().sizes
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kinds = (TUNED, WITHOUT, WITH, STATIC, PLAIN)
    lines = [
        "# What GIFT costs",
        "",
        "Written by `benchmarks/gift_cost.py`; ratios compare within one run, one thread.",
        "",
        "| model | step | median, ms | over the step without AWC | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for size in sizes:
        memory = {kind: peak(kind, size) for kind in (WITHOUT, WITH, PLAIN)}
        seconds = timed(size)
        for kind in kinds:
            ratio = seconds[kind] / seconds[WITHOUT]
            held = f"{memory[kind]:,.0f}" if kind in memory else ""
            lines.append(f"| {size} | {kind} | {1000 * seconds[kind]:,.0f} | {ratio:.2f} | {held} |")
        (HERE / "gift_cost.md").write_text("\n".join(lines) + "\n")
    if "ViT-B-32" in sizes:
        (every, every_size), (own, own_size) = text_cost("all"), text_cost("experience")
        lines += [
            "",
            "Names of MTIL, ViT-B-32, 8 images, forward and backward of both towers: with all 1,201 names "
            f"{every:.2f} s and {every_size:,.0f} MiB over the model; with the 100 of Aircraft "
            f"(`text_space`) {own:.2f} s and {own_size:,.0f} MiB, {every / own:.1f} times as fast.",
        ]
        (HERE / "gift_cost.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
