"""Every method through images: rendered objects in five styles, which come one after another.

    python benchmarks/compare_images.py --output results

20 objects that the small CLIP never saw, in five styles that it never saw, one experience of four objects a
style, 30 images a class to train on and 10 to test; styles and objects in an order that belongs to the seed.
Three epochs in batches of 32 by AdamW without weight decay, fresh in each experience. Each method trains what
its paper trains: LoRA of rank 32 in both towers, of which B trains ("LoRA", SeGP-CL, and Avalanche's
methods); both towers whole (GIFT, ZSCL, "whole towers"); prompts (CGIL); two adapters (Auto-Seed); nothing
(closed form). Memories hold five images or seeds a class.

Learning rates, or the strengths of EWC, MAS, SI, LwF and DER at a rate of 0.001, are chosen by
`choose_hyperparameters` on an order that is not reported, with validation images cut from the training
images, for the Last accuracy. The weights of GIFT, ZSCL and SeGP-CL are those that were chosen for
``gift_small_world.md`` and ``segp_cl_streams.md``. A combination takes the learning rate of the first of its
parts. The output folder keeps choices and runs; the same command goes on.

Copies tables and pictures beside this script: ``compare_images.md`` and ``compare_images_*.png``.
"""

import argparse
import logging
import random
from functools import partial
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from rich.progress import track
from segp_cl_methods import ANCHORS, DRAWN, STYLES
from study import copy_comparison, kept_choice
from torch.optim import AdamW

from avalanche_vlm.benchmarks import small_world_sequence_benchmark
from avalanche_vlm.comparison import Setup, compare, grid, write_comparison
from avalanche_vlm.memory import GeneratedSeeds, KMeansSeeds, SeedBuffer
from avalanche_vlm.metrics import AccuracyMatrixMetric
from avalanche_vlm.models import (
    AdaptedTextHead,
    DualPathHead,
    GaussianDiscriminantHead,
    HybridPromptHead,
    LoRA,
    OpenCLIPBackbone,
    ResidualAdapter,
)
from avalanche_vlm.plugins import (
    AdaptiveWeightConsolidationPlugin,
    LabelSpaceCrossEntropy,
    PrototypeTransferPlugin,
)
from avalanche_vlm.regularizers import AdversarialAnchors, AnchorDistillation
from avalanche_vlm.sources import (
    LearnedClassPrompts,
    LowRankGaussian,
    NamePrompts,
    PromptUnion,
    RenderedImageSource,
)
from avalanche_vlm.strategies import (
    CGIL,
    GIFT,
    ZSCL,
    AutoSeed,
    FineTune,
    GaussianDiscriminant,
    SeGPCL,
    ZeroShot,
    host_baselines,
)
from avalanche_vlm.world import HELD_OUT, TRAINED

SEEDS, SELECTION_SEED = (0, 1, 2), 100
NAME = "small world, five styles"
PER_CLASS, RATES = 5, (3e-4, 1e-3, 3e-3)
GENERAL = [each.name for each in TRAINED]


def make_benchmark(seed: int):
    """Return the stream with the styles and objects in the order of a seed."""
    transform = OpenCLIPBackbone("small-clip").eval_transform
    draw = random.Random(seed)
    return small_world_sequence_benchmark(
        styles=draw.sample(STYLES, len(STYLES)),
        objects=draw.sample(HELD_OUT[:20], 20),
        image_seed=seed,
        train_per_class=30,
        test_per_class=10,
        train_transform=transform,
        eval_transform=transform,
    )


def prepare(seed: int) -> Setup:
    """Return that stream, and the model."""
    return Setup(
        benchmark=make_benchmark(seed),
        backbone=OpenCLIPBackbone("small-clip", pretrained="small-world"),
        seed=seed,
        train_arguments={"reset_optimizer_state": True},
    )


def learner(setup, evaluator, lr, head=None, space="seen", trainable=None, **arguments) -> dict:
    """Return the arguments that all have that train; LoRA unless something else does."""
    trainable = LoRA(rank=32, factors=("B",), seed=setup.seed) if trainable is None else trainable
    model = setup.model(head, trainable=trainable, **arguments)
    return {
        "model": model,
        "optimizer": AdamW(model.parameters(), lr=lr, weight_decay=0.0),
        "criterion": LabelSpaceCrossEntropy(space),
        "train_mb_size": 32,
        "train_epochs": 3,
        "eval_mb_size": 256,
        "evaluator": evaluator,
    }


def size_of(setup) -> int:
    """Return how many images or seeds a memory holds."""
    return PER_CLASS * setup.benchmark.n_classes


def zero_shot(setup, evaluator):
    """Train nothing."""
    return ZeroShot(model=setup.model(), eval_mb_size=256, evaluator=evaluator)


def closed_form(setup, evaluator, weight):
    """Fuse zero-shot with a Gaussian discriminant; train nothing."""
    model = setup.model(GaussianDiscriminantHead(fusion_weight=weight, mean_prior="none"))
    return GaussianDiscriminant(model=model, eval_mb_size=256, evaluator=evaluator)


def host(setup, evaluator, method, lr=1e-3, **strength):
    """Return one of Avalanche's own methods."""
    builders = host_baselines(memory_size=size_of(setup), n_experiences=len(setup.benchmark.train_stream))
    return builders[method](**learner(setup, evaluator, lr), **strength)


def fine_tuning(setup, evaluator, lr, whole=False):
    """Train on each experience, among its own classes, and keep nothing."""
    trainable = "both" if whole else None
    return FineTune(**learner(setup, evaluator, lr, space="experience", trainable=trainable))


def cgil(setup, evaluator, lr):
    """Train hybrid prompts on draws of generators."""
    generator = LowRankGaussian(rank=8, seed=setup.seed)
    own = {"generator": generator, "samples_per_class": 64, "batch_samples_per_class": 8}
    return CGIL(**own, **learner(setup, evaluator, lr, HybridPromptHead(), trainable="nothing"))


def auto_seed(setup, evaluator, lr, source):
    """Replay seeds beside two adapters."""
    buffer = SeedBuffer(size_of(setup), source(PER_CLASS, seed=setup.seed), seed=setup.seed)
    adapters = {"head": AdaptedTextHead(), "image_adapter": ResidualAdapter(), "trainable": "nothing"}
    return AutoSeed(buffer=buffer, **learner(setup, evaluator, lr, **adapters))


def gift(setup, evaluator, lr, whole=True, replay=False):
    """Distil on rendered images, which stand for a text-to-image model."""
    pairs = {"images": RenderedImageSource(**DRAWN), "images_per_experience": 200}
    pairs |= {"prompts": PromptUnion([NamePrompts(GENERAL), LearnedClassPrompts()]), "image_batch_size": 32}
    weights = {"distillation_weight": 1.0, "alignment_weight": 1.0, "consolidation_weight": 1.0}
    space = "seen" if replay else "experience"
    common = learner(setup, evaluator, lr, space=space, trainable="both" if whole else None)
    plugins = [ReplayPlugin(size_of(setup))] if replay else []
    return GIFT(seed=setup.seed, plugins=plugins, **pairs, **weights, **common)


def zscl(setup, evaluator, lr):
    """Distil on pictures of the world that the small CLIP was trained on."""
    texts = [f"a photo of a {name}." for name in GENERAL]
    images = RenderedImageSource(style="photo").sample(texts, range(len(texts))).images
    own = {"image_batch_size": 32, "distillation_weight": 1.0, "penalty_weight": 0.1, "ensemble_every": 4}
    common = learner(setup, evaluator, lr, space="experience", trainable="both")
    return ZSCL(images=images, texts=texts, seed=setup.seed, **own, **common)


def anchors_of(setup) -> AdversarialAnchors:
    """Return the anchors of a run."""
    return AdversarialAnchors(seeds_per_class=3, steps=5, step_size=3e-3, batch_size=ANCHORS, seed=setup.seed)


def segp_cl(setup, evaluator, lr, replay=False):
    """Distil on anchors, hold the geometry of text, move prototypes."""
    weights = {"distillation_weight": 0.3, "distillation_temperature": 5.0, "geometry_weight": 1.0}
    common = learner(setup, evaluator, lr, DualPathHead(), space="seen" if replay else "experience")
    plugins = [ReplayPlugin(size_of(setup))] if replay else []
    return SeGPCL(anchors=anchors_of(setup), plugins=plugins, **weights, **common)


def anchors_in_awc(setup, evaluator, lr):
    """Put GIFT's consolidation around SeGP-CL's distillation."""
    term = AnchorDistillation(anchors_of(setup), temperature=5.0)
    held = AdaptiveWeightConsolidationPlugin(term, regularizer_weight=0.3, consolidation_weight=1.0)
    return FineTune(plugins=[held], **learner(setup, evaluator, lr, space="experience"))


def replay_on_two_paths(setup, evaluator, lr):
    """Put SeGP-CL's prototypes beside Avalanche's replay."""
    plugins = [PrototypeTransferPlugin(AdversarialAnchors(steps=0)), ReplayPlugin(size_of(setup))]
    return FineTune(plugins=plugins, **learner(setup, evaluator, lr, DualPathHead()))


def rates(*values: float) -> list[dict]:
    """Return candidates that differ in the learning rate."""
    return [{"lr": value} for value in values or RATES]


def strengths(argument: str, *values: float) -> list[dict]:
    """Return candidates that differ in the strength."""
    return [{"lr": 1e-3, argument: value} for value in values]


# What a method is, and what it chooses from.
METHODS = {
    "zero-shot": (zero_shot, [{}]),
    "closed form": (closed_form, [{"weight": weight} for weight in (1.0, 10.0, 100.0)]),
    "CGIL": (cgil, rates(1e-3, 3e-3, 1e-2)),
    "Auto-Seed": (partial(auto_seed, source=GeneratedSeeds), rates()),
    "Auto-Seed, k-means": (partial(auto_seed, source=KMeansSeeds), rates()),
    "GIFT": (gift, rates(1e-4, 3e-4, 1e-3)),
    "ZSCL": (zscl, rates(1e-4, 3e-4, 1e-3)),
    "whole towers": (partial(fine_tuning, whole=True), rates(3e-5, 1e-4, 3e-4)),
    "SeGP-CL": (segp_cl, rates()),
    "LoRA": (fine_tuning, rates()),
    "GIFT with LoRA": (partial(gift, whole=False), rates()),
    "EWC": (partial(host, method="EWC"), strengths("ewc_lambda", 1e2, 1e4, 1e6)),
    "MAS": (partial(host, method="MAS"), strengths("lambda_reg", 0.01, 0.1, 1.0)),
    "SI": (partial(host, method="SI"), strengths("si_lambda", 1.0, 1e2, 1e4)),
    "LwF": (partial(host, method="LwF"), strengths("alpha", 1.0, 10.0, 100.0)),
    "DER": (partial(host, method="DER"), strengths("alpha", 0.1, 0.5, 2.0)),
    **{
        name: (partial(host, method=name), rates())
        for name in ("naive", "AGEM", "GDumb", "ER-ACE", "replay", "cumulative", "joint training")
    },
}
# Of two parts, the learning rate of the method that is named.
COMBINED = {
    "SeGP-CL + replay": (partial(segp_cl, replay=True), "SeGP-CL"),
    "GIFT with LoRA + replay": (partial(gift, whole=False, replay=True), "GIFT with LoRA"),
    "anchors inside AWC": (anchors_in_awc, "SeGP-CL"),
    "replay + two paths": (replay_on_two_paths, "replay"),
}


def choose(method: str, folder: Path) -> dict:
    """Return the settings of a method, chosen now unless the folder has the choice."""
    build, candidates = METHODS[method]
    if len(candidates) == 1:
        return candidates[0]

    def train_and_score(benchmark, *, seed: int, **settings: float) -> float:
        torch.manual_seed(seed)
        accuracy = AccuracyMatrixMetric("seen")
        backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
        setup = Setup(benchmark=benchmark, backbone=backbone, seed=seed)
        strategy = build(setup, EvaluationPlugin(accuracy, loggers=[]), **settings)
        pieces = [benchmark.train_stream] if method == "joint training" else list(benchmark.train_stream)
        strategy.eval(benchmark.valid_stream)
        for experience in pieces:
            strategy.train(experience, reset_optimizer_state=True)
        strategy.eval(benchmark.valid_stream)
        return accuracy.summary("valid")["last_accuracy"]

    return kept_choice(
        folder / f"chosen {method}.json",
        candidates,
        make_benchmark=make_benchmark,
        train_and_score=train_and_score,
        selection_seeds=[SELECTION_SEED],
        reported_seeds=list(SEEDS),
        validation_fraction=0.2,
    )["best"]


def main() -> None:
    """Choose what is not chosen, make the runs that the folder does not have, and the tables of all."""
    parser = argparse.ArgumentParser(description="Methods on images.")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    chosen = {name: choose(name, arguments.output) for name in track(METHODS, description="choices")}
    methods = {name: partial(build, **chosen[name]) for name, (build, _) in METHODS.items()}
    methods |= {name: partial(build, lr=chosen[of]["lr"]) for name, (build, of) in COMBINED.items()}
    runs = grid(methods, {NAME: prepare}, arguments.seeds)
    compare(runs, arguments.output, processes=arguments.processes)
    title = "Everything through images, three orders"
    copy_comparison(write_comparison(runs, arguments.output, title=title), Path(__file__))
    with Path(__file__).with_suffix(".md").open("a") as page:
        page.write(
            "\nChosen by validation on an order that is not reported:\n\n| method | chosen |\n|---|---|\n"
        )
        page.writelines(f"| {name} | {settings} |\n" for name, settings in chosen.items() if settings)


if __name__ == "__main__":
    main()
