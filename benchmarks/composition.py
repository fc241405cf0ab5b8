"""Every plugin and policy beside every other, and beside Avalanche's Replay, LwF, EWC and SI, on one stream.

    python benchmarks/composition.py --output results

The small world: 12 objects that the small CLIP never saw, in three experiences, 15 images a class to train on
and 20 to test; as images, and as their embeddings. LoRA of rank 8 trains in the text tower; the image tower
rests, so that latent replay and seeds can be beside distillation on images. Two epochs in batches of 16,
AdamW 3e-3. Strengths are such that each part has an effect, and not tuned: whether parts act side by side is
the question here, and not which pair is best. A part that asks for a head of its own gets it.

Laws, on a smaller stream of the same kind: each part alone changes the result of training; a pair,
in either order, ends in finite numbers and differs from each of its two parts alone. A pair that cannot make
sense says so in a sentence. The output folder keeps runs; the same command goes on.

Writes ``composition.md``, ``composition.csv`` and a heat map a stream beside this script.
"""

import argparse
import csv
import itertools
import json
import logging
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from matplotlib.figure import Figure
from torch.optim import AdamW

from avalanche_vlm import plugins as ours
from avalanche_vlm import regularizers as terms
from avalanche_vlm._processes import progress_line
from avalanche_vlm.benchmarks import small_world_benchmark
from avalanche_vlm.comparison import Setup, compare, grid
from avalanche_vlm.embedding import embed
from avalanche_vlm.logging import final_values, save_figure
from avalanche_vlm.memory import KMeansSeeds, SeedBuffer
from avalanche_vlm.models import DualPathHead, GaussianDiscriminantHead, LoRA, OpenCLIPBackbone, ZeroShotHead
from avalanche_vlm.sources import (
    LearnedClassPrompts,
    LowRankGaussian,
    NamePrompts,
    PromptUnion,
    RenderedImageSource,
)
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import composition
from avalanche_vlm.world import HELD_OUT, TRAINED

IMAGES, EMBEDDINGS = "images", "embeddings"
HERE = Path(__file__).parent


def pairs() -> terms.SyntheticPairs:
    """Return rendered images of general names and of the classes learned so far."""
    prompts = PromptUnion([NamePrompts([each.name for each in TRAINED[:40]]), LearnedClassPrompts()])
    return terms.SyntheticPairs(RenderedImageSource(style="rain"), prompts, count=48, batch_size=16)


def distillation() -> terms.CrossModalDistillation:
    """Return GIFT's distillation."""
    return terms.CrossModalDistillation(pairs())


def anchors() -> terms.AdversarialAnchors:
    """Return SeGP-CL's anchors."""
    return terms.AdversarialAnchors(seeds_per_class=1, steps=2, step_size=5e-3, batch_size=16)


def seeds() -> SeedBuffer:
    """Return a memory of seeds."""
    return SeedBuffer(max_size=48, source=KMeansSeeds(4))


PARTS = {
    "distillation": lambda: ours.RegularizerPlugin(distillation()),
    "adaptive consolidation": lambda: ours.AdaptiveWeightConsolidationPlugin(distillation()),
    "static consolidation": lambda: ours.StaticWeightConsolidationPlugin(distillation(), batches=3),
    "l2 to previous weights": lambda: ours.RegularizerPlugin(terms.PreviousWeightsPenalty(), weight=1.0),
    "weight ensemble": lambda: ours.WeightEnsemblePlugin(every=2),
    "anchors": lambda: ours.AdversarialAnchorDistillationPlugin(anchors(), weight=1.0),
    "text geometry": lambda: ours.RegularizerPlugin(terms.TextGeometry()),
    "prototypes": ours.PrototypePlugin,
    "moved prototypes": lambda: ours.PrototypeTransferPlugin(anchors()),
    "generators": lambda: ours.GenerativeLatentReplayPlugin(LowRankGaussian(rank=4), samples_per_class=16),
    "generators of the past": lambda: ours.PastGenerativeLatentReplayPlugin(
        LowRankGaussian(rank=4), samples_per_class=16
    ),
    "discriminant": ours.GaussianDiscriminantPlugin,
    "seeds": lambda: ours.FeatureReplayPlugin(seeds(), batch_size=32),
    "seeds in Replay": lambda: ReplayPlugin(mem_size=48, storage_policy=seeds()),
    "GDumb": lambda: ours.GDumbPlugin(48),
    "Replay": lambda: ReplayPlugin(mem_size=48),
    "LwF": lambda: LwFPlugin(alpha=1.0, temperature=2.0),
    "EWC": lambda: EWCPlugin(ewc_lambda=1e4),
    "SI": lambda: ours.SynapticIntelligencePlugin(1e3),
}
PROTOTYPES = ("prototypes", "moved prototypes")
NONE = "none"
NAMES = [NONE, *PARTS, *(f"{a} + {b}" for a, b in itertools.combinations(PARTS, 2))]


def prepare(seed: int, kind: str, cache: Path, few: bool = False) -> Setup:
    """Return the stream."""
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    transforms = dict.fromkeys(("train_transform", "eval_transform"), backbone.eval_transform)
    size = (
        {"train_per_class": 4, "test_per_class": 1} if few else {"train_per_class": 15, "test_per_class": 20}
    )
    benchmark = small_world_benchmark(objects=HELD_OUT[:12], n_experiences=3, seed=seed, **size, **transforms)
    if kind == EMBEDDINGS:
        benchmark = embed(benchmark, backbone, cache_dir=cache)
    return Setup(benchmark=benchmark, backbone=backbone, seed=seed)


def train_with(setup: Setup, evaluator, chosen: list, names: tuple[str, ...], epochs: int = 2) -> FineTune:
    """Return fine-tuning with some plugins, on the head that they ask for."""
    head = ZeroShotHead()
    if any(name in PROTOTYPES for name in names):
        head = DualPathHead(head, visual_space="embedding")
    if "discriminant" in names:
        head = GaussianDiscriminantHead(head, fusion_weight=1.0)
    model = setup.model(head, trainable=LoRA(rank=8, towers=("text",), seed=setup.seed))
    return FineTune(
        model=model,
        optimizer=AdamW(model.parameters(), lr=3e-3, weight_decay=0.0),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=256,
        plugins=chosen,
        evaluator=evaluator,
    )


def build(setup: Setup, evaluator, names: tuple[str, ...]) -> FineTune:
    """Return fine-tuning with the parts of these names."""
    return train_with(setup, evaluator, [PARTS[name]() for name in names], names)


def parts_of(name: str) -> tuple[str, ...]:
    """Return the parts that a method's name is made of."""
    return () if name == NONE else tuple(name.split(" + "))


def laws(kind: str, folder: Path) -> dict[str, str]:
    """Return what is wrong with each pair in any of its orders; kept in the folder."""
    path = folder / f"laws {kind}.json"
    if not path.exists():
        setup = prepare(0, kind, folder / "cache", few=True)
        others = {name: make for name, make in PARTS.items() if name != "discriminant"}
        with progress_line(f"laws, {kind}", 500, "runs") as line:

            def trained_on(head: str) -> Callable[[list], FineTune]:
                def make_strategy(chosen: list) -> FineTune:
                    line.advance()
                    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
                    return train_with(replace(setup, backbone=backbone), None, chosen, (head,), epochs=4)

                return make_strategy

            # One head for all that can be on it: parts that are not there add nothing to it.
            verdicts = composition(trained_on("prototypes"), others, setup.benchmark)
            for name, make in others.items():
                pair = {"discriminant": PARTS["discriminant"], name: make}
                verdicts |= composition(trained_on("discriminant"), pair, setup.benchmark)
        found: dict[str, list[str]] = {}
        for (first, second), verdict in verdicts.items():
            name = f"{first} + {second}" if f"{first} + {second}" in NAMES else f"{second} + {first}"
            words = f"refuses: {verdict.refusal}" if verdict.refusal else verdict.broken
            found.setdefault(name, []).append(words)
        path.write_text(json.dumps({name: sorted(set(each)) for name, each in found.items()}, indent=1))
    return {name: "; ".join(filter(None, each)) for name, each in json.loads(path.read_text()).items()}


def heat_map(kind: str, last: dict[str, float], broken: dict[str, str]) -> Figure:
    """Draw the Last accuracy of each pair; on the diagonal that of each part alone."""
    names = list(PARTS)
    grid_of = np.full((len(names), len(names)), np.nan)
    for (row, a), (column, b) in itertools.combinations_with_replacement(enumerate(names), 2):
        value = last.get(a if a == b else f"{a} + {b}", np.nan)
        grid_of[row, column] = grid_of[column, row] = value
    figure = Figure(figsize=(11, 10), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid_of, cmap="viridis", vmin=np.nanmin(grid_of), vmax=100)
    for row, column in itertools.product(range(len(names)), repeat=2):
        value = grid_of[row, column]
        pair = f"{names[min(row, column)]} + {names[max(row, column)]}"
        text = f"{value:.0f}" if value == value else "–"
        dark = value == value and value < (np.nanmin(grid_of) + 100) / 2
        colour = "white" if dark else "black"
        if row != column and value == value and broken.get(pair):
            text, colour = f"{text}!", "red"
        weight = "bold" if row == column else "normal"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour, fontweight=weight)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labelsize=9)
    axes.set_title(
        f"Last accuracy (%), stream of {kind}: pairs, and parts alone on the diagonal; without any part "
        f"{last[NONE]:.0f}; – refuses",
        fontsize=10,
        loc="left",
    )
    figure.colorbar(image, shrink=0.6, label="Last accuracy among the classes seen (%)")
    return figure


def write(folder: Path, outcomes: list, found: dict[str, dict[str, str]]) -> None:
    """Write the table, the page and the pictures."""
    values = final_values(folder, "last_accuracy", space="seen", stream="test")
    reasons = {(each.stream, each.method): each.reason for each in outcomes if each.state != "finished"}
    page = [
        "# Every part beside every other\n",
        f"Written by `benchmarks/{Path(__file__).name}`, which says what is compared.\n",
    ]
    with (HERE / "composition.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stream", "first", "second", "last_accuracy", "law", "refusal"])
        for kind in (IMAGES, EMBEDDINGS):
            last = {
                method: 100 * statistics.fmean(seeds_of.values())
                for (stream, method), seeds_of in values.items()
                if stream == kind and (kind, method) not in reasons
            }
            held, refused, unexplained = [], {}, []
            for name in NAMES:
                law, refusal = found[kind].get(name, ""), reasons.get((kind, name), "")
                first, second = (*parts_of(name), "", "")[:2]
                number = f"{last[name]:.1f}" if name in last else ""
                writer.writerow([kind, first, second, number, law, refusal])
                if not second:
                    continue
                if refusal:
                    refused.setdefault(refusal, []).append(name)
                elif law:
                    unexplained.append(f"- {name}: {law}")
                else:
                    held.append(name)
            count = len(held) + len(unexplained) + sum(map(len, refused.values()))
            page += [
                f"## Stream of {kind}\n",
                f"{count} pairs: {len(held)} keep the laws in both orders, {sum(map(len, refused.values()))} "
                f"refuse, {len(unexplained)} break a law.\n",
                *[f"- refuse: {', '.join(names)}. *{reason}*" for reason, names in refused.items()],
                *unexplained,
                f"\n![Last accuracy of pairs on {kind}](composition_{kind}.png)\n",
            ]
            save_figure(heat_map(kind, last, found[kind]), HERE / f"composition_{kind}.png")
    (HERE / "composition.md").write_text("\n".join(page))


def main() -> None:
    """Check the laws, train every pair, write what came out."""
    parser = argparse.ArgumentParser(description="Parts beside each other.")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    methods = {name: partial(build, names=parts_of(name)) for name in NAMES}
    streams = {
        kind: partial(prepare, kind=kind, cache=arguments.output / "cache") for kind in (IMAGES, EMBEDDINGS)
    }
    runs = grid(methods, streams, seeds=[0])
    outcomes = compare(runs, arguments.output, processes=arguments.processes, checkpoints=False)
    found = {kind: laws(kind, arguments.output) for kind in (IMAGES, EMBEDDINGS)}
    write(arguments.output, outcomes, found)


if __name__ == "__main__":
    main()
