"""The methods that `gift_small_world.py` compares, and the stream that it compares them on."""

from functools import partial

import torch
from avalanche.training.plugins import LRSchedulerPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from avalanche_vlm.benchmarks import class_names, small_world_and_digits_benchmark
from avalanche_vlm.functional import WarmupCosine
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
FEWER_SEEDS = SEEDS[:3]
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
ROWS_ONLY, COLUMNS_ONLY, FEATURES = "images to texts", "texts to images", "features"
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
# Those whose seeds are fewer; the table says how many there are.
COMBINATIONS = (LORA, GIFT_LORA, GIFT_REPLAY, ALIGNMENT_ONLY, *FAITHFUL)
FEWER = (STATIC, FEATURES, INITIAL, MIXED, HALF, CURRENT, REPLAY, *COMBINATIONS)
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
    FEATURES: [{"alpha": 128 * strength} for strength in (3.0, 30.0, 300.0)],  # a mean over 128 dimensions
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
