"""GIFT taken apart on a stream that forgets: the small CLIP, fine-tuned in full on one domain after another.

    python benchmarks/gift_small_world.py --output results

Four data sets one after another, each with ten classes of its own: rendered objects that the small CLIP
never saw, in three styles that it never saw, and scikit-learn's digits. Both towers train, for 32 iterations
of 32 images a data set, by AdamW without weight decay, fresh in each experience, with a warm-up and a
cosine. Accuracy is taken inside each data set and over all classes in the same run.

The text-to-image model is the renderer. It would draw the classes perfectly, so it is held back: it draws
in another style than those of the stream, and one in five colours, textures, shapes and digits is not the
one of the caption. General names, in ImageNet's place, are the 320 objects that the small CLIP was trained
on. "real images" puts the real images of earlier data sets into the place of the drawn ones; replay is the
host's, with ten real images a class.

Every method has five seeds, of images, batches and draws. Strengths and learning rates are chosen by
`choose_hyperparameters` with the data sets in another order and validation images cut from the training
images; what a method does not choose it takes from the method that it varies. Runs that the output folder
has already are not repeated; several processes may share it, each with ``--methods`` of its own.

Writes ``gift_small_world.csv`` to the output folder; beside this script a short file of it, and from that
file and the choices alone ``gift_small_world.md`` and a picture.
"""

import argparse
import json
import logging
import math
import statistics
from functools import partial
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from matplotlib.figure import Figure
from rich.progress import Progress
from scipy.stats import t as student_t
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from avalanche_vlm import logging as report
from avalanche_vlm.benchmarks import class_names, small_world_and_digits_benchmark
from avalanche_vlm.functional import WarmupCosine
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, LoRA, OpenCLIPBackbone
from avalanche_vlm.plugins import (
    AdaptiveWeightConsolidationPlugin,
    LabelSpaceCrossEntropy,
    RegularizerPlugin,
    StaticWeightConsolidationPlugin,
)
from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    CurrentPairs,
    FeatureDistillation,
    ImageTextAlignment,
    ImageToTextDistillation,
    InitialTeacher,
    InterpolatedTeacher,
    PreviousWeightsPenalty,
    SumRegularizer,
    SyntheticPairs,
    TextToImageDistillation,
)
from avalanche_vlm.selection import choose_hyperparameters
from avalanche_vlm.sources import (
    GeneratedImages,
    ImageSource,
    LearnedClassPrompts,
    NamePrompts,
    PromptUnion,
    RenderedImageSource,
)
from avalanche_vlm.strategies import GIFT, ZSCL, FineTune, ZeroShot
from avalanche_vlm.world import HELD_OUT, TRAINED

SEEDS, SELECTION_SEEDS = (0, 1, 2, 3, 4), (100, 101)
COMBINATION_SEEDS = SEEDS[:3]
HERE = Path(__file__).parent
STYLES = ("sketch", "night", "mosaic")
ORDER, SELECTION_ORDER = (*STYLES, "digits"), ("mosaic", "digits", "sketch", "night")
ITERATIONS, BATCH, IMAGES = 32, 32, 400
DRAWN = {"style": "rain", "wrong_attribute_rate": 0.2}
GENERAL = [each.name for each in TRAINED]
BENCHMARK = "small world and digits"

ZERO_SHOT, TUNED, PENALTY = "zero-shot", "fine-tuning", "l2 to previous weights"
TUNED_FAST, DISTILLED_SLOW = "fine-tuning at distillation's rate", "distillation at fine-tuning's rate"
DISTILLED, ALIGNED, FULL = "distillation", "distillation + alignment", "GIFT"
CONSOLIDATED, STATIC = "distillation + AWC", "GIFT, static importance"
ROWS_ONLY, COLUMNS_ONLY, FEATURES = "image-only", "text-only", "features"
INITIAL, MIXED, HALF = "initial teacher", "interpolated teacher, 0.2", "interpolated teacher, 0.5"
CURRENT, REFERENCE = "new-task images", "ZSCL"
REAL, REPLAY = "GIFT, real images", "host Replay"
# Whether captions that are wrong are what alignment suffers from: every image is what it is said to be.
FAITHFUL = {
    "distillation, faithful images": DISTILLED,
    "distillation + alignment, faithful images": ALIGNED,
}
LORA, GIFT_LORA = "fine-tuning, LoRA", "GIFT, LoRA"
GIFT_REPLAY, ALIGNMENT_ONLY = "GIFT beside host Replay", "alignment + AWC"

STUDY = (
    *(ZERO_SHOT, TUNED, TUNED_FAST, PENALTY, DISTILLED_SLOW, DISTILLED, ALIGNED, FULL, CONSOLIDATED, STATIC),
    *(ROWS_ONLY, COLUMNS_ONLY, FEATURES, INITIAL, MIXED, HALF, CURRENT, REFERENCE, REAL, REPLAY),
)
COMBINATIONS = (LORA, GIFT_LORA, GIFT_REPLAY, ALIGNMENT_ONLY, *FAITHFUL)
RATES = (1e-4, 3e-4, 1e-3)
GRIDS = {
    TUNED: [{"lr": rate} for rate in (1e-5, 3e-5, *RATES)],
    DISTILLED: [*({"lr": rate, "alpha": 1.0} for rate in RATES), {"lr": 3e-4, "alpha": 3.0}],
    PENALTY: [
        *({"lr": rate, "penalty": weight} for rate in RATES[:2] for weight in (1.0, 10.0)),
        *({"lr": rate, "penalty": 0.1} for rate in RATES[1:]),
    ],
    ALIGNED: [{"beta": 0.25}, {"beta": 1.0}],
    FULL: [{"consolidation": strength} for strength in (0.3, 1.0, 3.0)],
    FEATURES: [{"alpha": strength} for strength in (3.0, 30.0, 300.0)],
    REFERENCE: [{"alpha": 1.0, "penalty": 0.1}, {"alpha": 1.0, "penalty": 1.0}],
    REPLAY: [{"lr": rate} for rate in RATES],
    LORA: [{"lr": 1e-3}, {"lr": 3e-3}],
}
# What a method takes from others before its own choice, the later ones first to be overruled.
TAKEN = {
    TUNED: (),
    PENALTY: (),
    DISTILLED: (),
    LORA: (),
    REPLAY: (),
    TUNED_FAST: (DISTILLED,),
    DISTILLED_SLOW: (DISTILLED, TUNED),
    ALIGNED: (DISTILLED,),
    FULL: (DISTILLED, ALIGNED),
    FEATURES: (DISTILLED, ALIGNED),
    REFERENCE: (DISTILLED,),
    GIFT_LORA: (DISTILLED, ALIGNED, FULL, LORA),
}


class RealImages(ImageSource):
    """The real training images of some classes, in the place of drawn ones; other prompts are drawn."""

    def __init__(self, images: dict[str, torch.Tensor]) -> None:
        self.images = images
        self.others = RenderedImageSource(**DRAWN)

    def describe(self) -> dict:
        """Return what tells the source from others."""
        return {"kind": "RealImages", "prompts": len(self.images)}

    def _sample(self, prompts: list[str], seeds: list[int]) -> GeneratedImages:
        made = [
            self.images[prompt][seed % len(self.images[prompt])]
            if prompt in self.images
            else self.others.sample([prompt], [seed]).images[0]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return GeneratedImages(torch.stack(made), prompts)


def make_benchmark(seed: int, order: tuple[str, ...] | None = None):
    """Return the stream of a seed: seeds of selection have the data sets in another order."""
    transform = OpenCLIPBackbone("small-clip").eval_transform
    return small_world_and_digits_benchmark(
        styles=STYLES,
        order=order or (SELECTION_ORDER if seed in SELECTION_SEEDS else ORDER),
        image_seed=seed,
        objects=HELD_OUT[: 10 * len(STYLES)],
        train_transform=transform,
        eval_transform=transform,
    )


def real_images(benchmark) -> RealImages:
    """Return the training images of all classes, by the sentence about them."""
    names, by_class = class_names(benchmark), {}
    for experience in benchmark.train_stream:
        data = experience.dataset.replace_current_transform_group((None, None))
        for index, label in enumerate(data.targets):
            by_class.setdefault(f"a photo of a {names[int(label)]}.", []).append(data[index][0])
    return RealImages({prompt: torch.stack(images) for prompt, images in by_class.items()})


def regularizer(method: str, seed: int, settings: dict):
    """Return the plugin of a method that is no strategy of its own, or None."""
    if method in (TUNED, TUNED_FAST, REPLAY, LORA):
        return None
    if method == PENALTY:
        return RegularizerPlugin(PreviousWeightsPenalty(), settings["penalty"])
    drawn = {**DRAWN, "wrong_attribute_rate": 0.0} if method in FAITHFUL else DRAWN
    method = FAITHFUL.get(method, method)
    images = RenderedImageSource(**drawn)
    pairs = SyntheticPairs(images, prompts(), count=IMAGES, batch_size=BATCH, seed=seed)
    if method == CURRENT:
        return RegularizerPlugin(CrossModalDistillation(CurrentPairs()), settings["alpha"])
    if method == ALIGNMENT_ONLY:
        strength = {"consolidation_weight": settings["consolidation"]}
        return AdaptiveWeightConsolidationPlugin(
            ImageTextAlignment(pairs), regularizer_weight=settings["beta"], **strength
        )
    kinds = {ROWS_ONLY: ImageToTextDistillation, COLUMNS_ONLY: TextToImageDistillation}
    kinds[FEATURES] = FeatureDistillation
    teachers = {INITIAL: InitialTeacher, MIXED: partial(InterpolatedTeacher, 0.2)}
    teachers[HALF] = partial(InterpolatedTeacher, 0.5)
    teacher = teachers[method]() if method in teachers else None
    distillation = kinds.get(method, CrossModalDistillation)(pairs, teacher)
    if method in (DISTILLED, DISTILLED_SLOW):
        return RegularizerPlugin(distillation, settings["alpha"])
    if method == CONSOLIDATED:
        return AdaptiveWeightConsolidationPlugin(
            distillation,
            regularizer_weight=settings["alpha"],
            consolidation_weight=settings["consolidation"],
        )
    both = SumRegularizer([distillation, ImageTextAlignment(pairs)], [settings["alpha"], settings["beta"]])
    if method == STATIC:
        return StaticWeightConsolidationPlugin(
            both, consolidation_weight=settings["consolidation"], batches=10
        )
    return RegularizerPlugin(both)


def prompts() -> PromptUnion:
    """Return general names and the classes learned so far."""
    return PromptUnion([NamePrompts(GENERAL), LearnedClassPrompts()])


def build(method: str, benchmark, seed: int, settings: dict, **arguments):
    """Return the strategy of a method."""
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    low_rank = method in (LORA, GIFT_LORA)
    model = CLIPClassifier(
        backbone,
        class_names=class_names(benchmark),
        trainable="nothing" if method == ZERO_SHOT else LoRA(rank=8, seed=seed) if low_rank else "both",
    )
    arguments |= {"model": model, "eval_mb_size": 256}
    if method == ZERO_SHOT:
        return ZeroShot(**arguments)
    optimizer = AdamW(model.parameters(), lr=settings["lr"], weight_decay=0.0)
    schedule = LambdaLR(optimizer, WarmupCosine(warmup=ITERATIONS // 10, total=ITERATIONS))
    plugins = [LRSchedulerPlugin(schedule, step_granularity="iteration", reset_lr=False)]
    if method in (REPLAY, GIFT_REPLAY):
        size = 10 * len(class_names(benchmark))
        plugins.append(ReplayPlugin(size, storage_policy=ClassBalancedBuffer(size)))
    # Replayed classes of other data sets are told apart from those of their own data set by it alone.
    space = "seen" if method in (REPLAY, GIFT_REPLAY) else "experience"
    arguments |= {
        "optimizer": optimizer,
        "plugins": plugins,
        "train_mb_size": BATCH,
        "train_iterations": ITERATIONS,
        "criterion": LabelSpaceCrossEntropy(space, label_smoothing=0.2),
    }
    if method == REFERENCE:
        images = RenderedImageSource(**DRAWN).sample(
            [f"a photo of a {name}." for name in GENERAL], range(1000 * seed, 1000 * seed + len(GENERAL))
        )
        return ZSCL(
            images=images.images,
            texts=[f"a photo of a {name}." for name in GENERAL],
            image_batch_size=BATCH,
            distillation_weight=settings["alpha"],
            penalty_weight=settings["penalty"],
            ensemble_every=ITERATIONS // 10,
            seed=seed,
            **arguments,
        )
    if method in (FULL, REAL, GIFT_LORA, GIFT_REPLAY):
        return GIFT(
            images=real_images(benchmark) if method == REAL else RenderedImageSource(**DRAWN),
            prompts=prompts(),
            images_per_experience=IMAGES,
            image_batch_size=BATCH,
            distillation_weight=settings["alpha"],
            alignment_weight=settings["beta"],
            consolidation_weight=settings["consolidation"],
            seed=seed,
            **arguments,
        )
    own = regularizer(method, seed, settings)
    arguments["plugins"] = plugins if own is None else [*plugins, own]
    return FineTune(**arguments)


def run(method: str, benchmark, seed: int, settings: dict, test: str, loggers: list):
    """Train a method, evaluate it after each experience on the stream ``test``, and return its metrics."""
    torch.manual_seed(seed)
    metrics = continual_metrics(spaces=("dataset", "all"))
    evaluator = EvaluationPlugin(*metrics, loggers=loggers)
    strategy = build(method, benchmark, seed, settings, evaluator=evaluator)
    evaluated = getattr(benchmark, f"{test}_stream")
    strategy.eval(evaluated)
    for experience in benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        strategy.eval(evaluated)
    return metrics


def settings_of(method: str, folder: Path) -> dict:
    """Return the settings of a method: those of the methods that it varies, and its own choice."""
    settings: dict = {}
    for other in TAKEN.get(method, (DISTILLED, ALIGNED, FULL)):
        settings |= settings_of(other, folder) if other not in GRIDS else choice_of(other, folder)["best"]
    return settings | (choice_of(method, folder)["best"] if method in GRIDS else {})


def choice_of(method: str, folder: Path) -> dict:
    """Return the choice of a method, made now if the folder does not have it."""
    path = folder / f"chosen {method}.json"
    if path.exists():
        return json.loads(path.read_text())
    taken: dict = {}
    for other in TAKEN[method]:
        taken |= choice_of(other, folder)["best"]

    def train_and_score(benchmark, *, seed: int, **own: float) -> float:
        metrics = run(method, benchmark, seed, taken | own, "valid", [])
        return metrics[0].summary("valid")["average_accuracy"]

    choice = choose_hyperparameters(
        GRIDS[method],
        make_benchmark=make_benchmark,
        train_and_score=train_and_score,
        selection_seeds=SELECTION_SEEDS,
        reported_seeds=SEEDS,
        validation_fraction=0.25,
    ).describe()
    path.write_text(json.dumps(choice, indent=1))
    return choice


def by_seed(rows: list, metric: str, space: str) -> dict:
    """Return the last values of a metric by method and seed, in percent."""
    found: dict = {}
    for row in rows:
        if row.metric == metric and row.space == space and row.after_experience == len(ORDER):
            found.setdefault(row.method, {})[row.seed] = 100 * row.value
    return found


def paired(of: dict, method: str, base: str) -> tuple[float, float]:
    """Return the mean difference to another method with equal seeds, and half its 95 % interval."""
    differences = [value - of[base][seed] for seed, value in of[method].items() if seed in of[base]]
    count = len(differences)
    half = student_t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return statistics.fmean(differences), float(half)


MEASURES = (("Transfer", "transfer"), ("Average", "average_accuracy"), ("Last", "last_accuracy"))


def summary_table(rows: list, methods: tuple[str, ...], base: str) -> str:
    """Return means in both spaces, and what a method has over another in the same seeds."""
    measures = [(head, by_seed(rows, metric, "dataset")) for head, metric in MEASURES]
    over_all = [(head, by_seed(rows, metric, "all")) for head, metric in MEASURES]
    lines = [
        f"| method | seeds | Transfer | Average | Last | Transfer over {base} | Last over {base} | "
        "all classes: Transfer | Average | Last |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in methods:
        if method not in measures[0][1]:
            continue
        cells = [str(len(measures[0][1][method]))]
        cells += [_mean(of[method]) for _, of in measures]
        for _, of in (measures[0], measures[2]):
            cells.append("" if method == base else "{:+.1f} ± {:.1f}".format(*paired(of, method, base)))
        cells += [_mean(of[method]) for _, of in over_all]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: dict) -> str:
    numbers = list(values.values())
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.1f}{spread}"


# What is compared with what, as in the tables of the paper.
COMPARED = (
    (DISTILLED, TUNED),
    (DISTILLED, TUNED_FAST),
    (DISTILLED_SLOW, TUNED),
    (ALIGNED, DISTILLED),
    tuple(FAITHFUL)[::-1],
    (FULL, ALIGNED),
    (CONSOLIDATED, DISTILLED),
    (STATIC, FULL),
    (ALIGNED, ROWS_ONLY),
    (ALIGNED, COLUMNS_ONLY),
    (ALIGNED, FEATURES),
    (ALIGNED, INITIAL),
    (ALIGNED, MIXED),
    (ALIGNED, HALF),
    (FULL, REFERENCE),
    (FULL, PENALTY),
    (DISTILLED, CURRENT),
    (REAL, FULL),
    (REPLAY, FULL),
)


def differences_table(rows: list) -> str:
    """Return paired differences of what the paper compares."""
    measures = [by_seed(rows, metric, "dataset") for _, metric in MEASURES]
    lines = ["| first | second | Transfer | Average | Last |", "|---|---|---|---|---|"]
    for first, second in COMPARED:
        if first in measures[0] and second in measures[0]:
            cells = ["{:+.1f} ± {:.1f}".format(*paired(of, first, second)) for of in measures]
            lines.append(f"| {first} | {second} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def save_picture(rows: list) -> None:
    """Draw Transfer and Last of all methods: a dot a seed, a bar the mean."""
    methods = [method for method in STUDY if method in by_seed(rows, "transfer", "dataset")]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (head, metric) in zip(panels, (MEASURES[0], MEASURES[2]), strict=True):
        of = by_seed(rows, metric, "dataset")
        for height, method in enumerate(reversed(methods)):
            values = list(of[method].values())
            colour = "C1" if method in (DISTILLED, ALIGNED, FULL) else "0.35"
            axes.plot(values, [height] * len(values), "o", color=colour, alpha=0.45, markersize=5)
            mean = statistics.fmean(values)
            axes.plot([mean], [height], "|", color=colour, markersize=16, markeredgewidth=2.5)
        axes.set(xlabel=f"{head} (%)", yticks=range(len(methods)), yticklabels=methods[::-1])
        axes.grid(axis="x", color="#E5E5E5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    report.save_figure(figure, HERE / "gift_small_world.png")


def write_tables(results: Path, folder: Path) -> None:
    """Write the committed table, picture and short file."""
    rows = report.read_results(results)
    # A run that was stopped has been repeated: its rows are those of an earlier id.
    finished = set((folder / "finished.txt").read_text().splitlines())
    ids = {(row.method, row.seed): row.run for row in rows}
    wanted = {metric for _, metric in MEASURES} | {"forgetting"}
    kept = [
        row
        for row in rows
        if f"{row.method}/{row.seed}" in finished
        and row.run == ids[row.method, row.seed]
        and row.metric in wanted
        and row.after_experience == len(ORDER)
    ]
    short = HERE / "gift_small_world.csv"
    short.unlink(missing_ok=True)
    report.write_results(short, kept)
    lines = ""
    for path in sorted(folder.glob("chosen *.json")):
        choice = json.loads(path.read_text())
        scores = ", ".join(f"{each['mean']:.3f}" for each in choice["candidates"])
        lines += f"| {path.stem.removeprefix('chosen ')} | {choice['best']} | {scores} |\n"
    notes = HERE / "gift_small_world_notes.md"
    (HERE / "gift_small_world.md").write_text(
        "# GIFT on a stream that forgets, with the small CLIP\n\nWritten by "
        "`benchmarks/gift_small_world.py`, from `gift_small_world.csv`. Percent, mean ± standard deviation "
        f"over {len(SEEDS)} seeds; accuracies inside each data set, and over all classes in the same run. "
        "Differences are paired by seed, with their 95 % intervals.\n\n"
        + (notes.read_text() + "\n" if notes.exists() else "")
        + "![Transfer and Last of every method](gift_small_world.png)\n\n"
        f"{summary_table(kept, STUDY, TUNED)}\nThe comparisons of the paper, first less second:\n\n"
        f"{differences_table(kept)}\nCombinations, {len(COMBINATION_SEEDS)} seeds:\n\n"
        f"{summary_table(kept, COMBINATIONS, TUNED)}\nChosen by validation on the order "
        f"{', '.join(SELECTION_ORDER)} with the seeds {SELECTION_SEEDS}, by Average inside each data set; "
        f"scores in the order of the candidates:\n\n| method | chosen | scores |\n|---|---|---|\n{lines}"
    )
    save_picture(kept)


def main() -> None:
    """Run what the output folder does not have yet, then write the tables."""
    parser = argparse.ArgumentParser(description="GIFT on a stream that forgets.")
    every = [*STUDY, *COMBINATIONS]
    parser.add_argument("--methods", nargs="+", default=every, choices=every)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    results, finished = folder / "gift_small_world.csv", folder / "finished.txt"
    runs = [
        (method, seed)
        for method in arguments.methods
        for seed in arguments.seeds
        if method in STUDY or seed in COMBINATION_SEEDS
    ]
    with Progress() as progress:
        task = progress.add_task("runs", total=len(runs))
        for method, seed in runs:
            progress.update(task, description=f"{method}, {seed}")
            done = set(finished.read_text().splitlines()) if finished.exists() else set()
            if f"{method}/{seed}" not in done:
                settings = {} if method == ZERO_SHOT else settings_of(method, folder)
                logger = report.ResultsLogger(
                    results, method=method, benchmark=BENCHMARK, seed=seed, settings={"chosen": settings}
                )
                run(method, make_benchmark(seed), seed, settings, "test", [logger])
                with finished.open("a") as file:
                    file.write(f"{method}/{seed}\n")
            progress.advance(task)
    done = set(finished.read_text().splitlines())
    if all(f"{method}/{seed}" in done for method in STUDY for seed in SEEDS):
        write_tables(results, folder)


if __name__ == "__main__":
    main()
