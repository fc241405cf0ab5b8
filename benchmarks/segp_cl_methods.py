"""The methods that `segp_cl_streams.py` compares, and the streams that it compares them on."""

import random

import torch
from avalanche.training import JointTraining
from avalanche.training.plugins import LRSchedulerPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from avalanche_vlm.benchmarks import (
    class_names,
    small_world_and_digits_benchmark,
    small_world_sequence_benchmark,
)
from avalanche_vlm.functional import WarmupCosine
from avalanche_vlm.models import CLIPClassifier, DualPathHead, LoRA, OpenCLIPBackbone, ZeroShotHead
from avalanche_vlm.plugins import (
    AdaptiveWeightConsolidationPlugin,
    AdversarialAnchorDistillationPlugin,
    LabelSpaceCrossEntropy,
    PrototypePlugin,
    PrototypeTransferPlugin,
    RegularizerPlugin,
)
from avalanche_vlm.regularizers import (
    AdversarialAnchors,
    AnchorDistillation,
    CurrentPairs,
    ReferencePairs,
    SyntheticPairs,
    TextGeometry,
)
from avalanche_vlm.sources import LearnedClassPrompts, NamePrompts, PromptUnion, RenderedImageSource
from avalanche_vlm.strategies import FineTune, SeGPCL, ZeroShot
from avalanche_vlm.text import ClassNames
from avalanche_vlm.world import HELD_OUT, TRAINED, render

SEEDS, SELECTION_SEEDS = (0, 1, 2, 3, 4), (100, 101)
FEWER_SEEDS = SEEDS[:3]
STYLES = ("sketch", "night", "mosaic", "rain", "negative")
ELSEWHERE = ("photo", "fog")  # styles that no experience has, of objects that no experience has
RANK, BATCH, EPOCHS, ANCHORS = 32, 32, 3, 16
PER_CLASS = {"train_per_class": 30, "test_per_class": 10}
SMALL_WORLD, DIGITS = "small world, five styles", "digits and styles"
STREAMS = (SMALL_WORLD, DIGITS)

ZERO_SHOT, TUNED, JOINT = "zero-shot", "LoRA fine-tuning", "joint training"
SAME_RATE = "LoRA fine-tuning at ACGD's rate"
SLOW = "+ ACGD at fine-tuning's rate"
KEPT, SHAPED, STALE, FULL = "+ ACGD", "+ ACGD + TSGR", "+ ACGD + TSGR + dual path, stale", "SeGP-CL"
TUNED_STALE, TUNED_MOVED = "LoRA + dual path, stale", "LoRA + dual path, transferred"
CURRENT, SEEDS_ONLY = "distillation on new-task images", "distillation on seeds"
SYNTHETIC, REFERENCE = "distillation on synthetic images", "distillation on reference images"
TEXT_ONLY = "SeGP-CL, text target only"
SOFT = "+ ACGD, temperature and weight of the paper"
HELD, FULL_REPLAY, REPLAY, FULL_LWF = (
    "+ ACGD inside AWC",
    "SeGP-CL beside host Replay",
    "host Replay",
    "SeGP-CL beside host LwF",
)
HALF, QUARTER, BF16 = "SeGP-CL, 8 anchors a step", "SeGP-CL, 4 anchors a step", "SeGP-CL, bf16"
STUDY = (
    *(ZERO_SHOT, TUNED, SAME_RATE, SLOW, KEPT, SHAPED, STALE, FULL, TUNED_STALE, TUNED_MOVED),
    *(CURRENT, SEEDS_ONLY, SYNTHETIC, REFERENCE, TEXT_ONLY, SOFT),
    *(HELD, FULL_LWF, REPLAY, FULL_REPLAY, HALF, QUARTER, BF16, JOINT),
)
MAIN = STUDY[:10]
FEWER = STUDY[10:]
RATES = (3e-4, 1e-3, 3e-3)
GRIDS = {
    TUNED: [{"lr": rate} for rate in RATES],
    KEPT: [
        *({"lr": 3e-3, "kept": weight, "tau": tau} for weight, tau in ((0.1, 2.0), (0.1, 5.0), (0.3, 2.0))),
        *({"lr": 1e-3, "kept": weight, "tau": tau} for weight, tau in ((0.1, 2.0), (0.3, 5.0), (1.0, 20.0))),
    ],
    SHAPED: [{"shaped": weight} for weight in (0.1, 1.0)],
}
# What a method takes before its own choice.
TAKEN = {TUNED: (), TUNED_STALE: (TUNED,), TUNED_MOVED: (TUNED,), JOINT: (TUNED,), REPLAY: (TUNED,)}
TAKEN |= dict.fromkeys((KEPT, SAME_RATE, SHAPED, CURRENT, SEEDS_ONLY, SYNTHETIC, REFERENCE), (KEPT,))
TAKEN |= dict.fromkeys((SOFT, HELD), (KEPT,))
TAKEN[SLOW] = (KEPT, TUNED)  # of the two learning rates the later counts
DRAWN = {"style": "blur", "wrong_attribute_rate": 0.2}


def make_benchmark(stream: str, seed: int):
    """Return a stream with the order of data sets and of objects that belongs to a seed."""
    transform = OpenCLIPBackbone("small-clip").eval_transform
    images = {**PER_CLASS, "image_seed": seed, "train_transform": transform, "eval_transform": transform}
    draw = random.Random(seed)
    if stream == SMALL_WORLD:
        styles, objects = draw.sample(STYLES, len(STYLES)), draw.sample(HELD_OUT[:40], 40)
        return small_world_sequence_benchmark(
            styles=styles, objects=objects, n_experiences_per_dataset=2, **images
        )
    styles, objects = STYLES[:3], draw.sample(HELD_OUT[:30], 30)
    order = draw.sample((*styles, "digits"), 4)
    return small_world_and_digits_benchmark(styles=styles, objects=objects, order=order, **images)


def elsewhere() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return images, labels and names of objects and styles that no experience has."""
    objects = HELD_OUT[40:60]
    labels = torch.arange(len(objects)).repeat_interleave(10)
    generator = torch.Generator().manual_seed(0)
    pictures = [
        render([objects[label] for label in labels.tolist()], style=style, generator=generator)
        for style in ELSEWHERE
    ]
    return torch.cat(pictures), labels.repeat(len(ELSEWHERE)), [each.name for each in objects]


@torch.no_grad()
def accuracy_elsewhere(model: CLIPClassifier) -> float:
    """Return the zero-shot accuracy on them, among their own names."""
    images, labels, names = elsewhere()
    backbone, head = model.backbone, ZeroShotHead()
    model.eval()
    head.set_classes(ClassNames(names), backbone)
    x = torch.stack([model.eval_transform(image) for image in images])
    logits = torch.cat([head.logits(backbone, backbone.encode_image(part)) for part in x.split(256)])
    return float((logits.argmax(dim=1) == labels).float().mean())


def general_prompts() -> list[str]:
    """Return sentences about the objects that the small CLIP was trained on."""
    return [f"a photo of a {each.name}." for each in TRAINED]


def source(method: str, seed: int):
    """Return the images that a method distils on."""
    if method == CURRENT:
        return CurrentPairs()
    if method == SYNTHETIC:
        prompts = PromptUnion([NamePrompts([each.name for each in TRAINED]), LearnedClassPrompts()])
        images = RenderedImageSource(**DRAWN)
        return SyntheticPairs(images, prompts, count=200, batch_size=ANCHORS, seed=seed)
    if method == REFERENCE:
        images = RenderedImageSource(style="photo").sample(general_prompts(), range(len(TRAINED)))
        return ReferencePairs(images.images, general_prompts(), batch_size=ANCHORS, seed=seed)
    sizes = {HALF: ANCHORS // 2, QUARTER: ANCHORS // 4}
    return AdversarialAnchors(
        seeds_per_class=3,
        steps=0 if method == SEEDS_ONLY else 5,
        step_size=3e-3,
        visual_weight=0.0 if method == TEXT_ONLY else 1.0,
        batch_size=sizes.get(method, ANCHORS),
        seed=seed,
    )


def parts(method: str, seed: int, settings: dict, size: int) -> list:
    """Return the plugins of a method under fine-tuning."""
    if method in (TUNED, SAME_RATE):
        return []
    if method == REPLAY:
        return [ReplayPlugin(size, storage_policy=ClassBalancedBuffer(size))]
    if method == TUNED_STALE:
        return [PrototypePlugin()]
    images = source(method, seed)
    if method == TUNED_MOVED:
        return [PrototypeTransferPlugin(images)]
    if method == SOFT:
        return [AdversarialAnchorDistillationPlugin(images)]
    distillation = AnchorDistillation(images, temperature=settings["tau"])
    if method == HELD:
        weights = {"regularizer_weight": settings["kept"], "consolidation_weight": 1.0}
        return [AdaptiveWeightConsolidationPlugin(distillation, **weights)]
    own = [RegularizerPlugin(distillation, settings["kept"])]
    if method in (SHAPED, STALE):
        own.append(RegularizerPlugin(TextGeometry(), settings["shaped"]))
    return [*own, PrototypePlugin()] if method == STALE else own


def build(method: str, stream: str, benchmark, seed: int, settings: dict, **arguments):
    """Return the strategy of a method."""
    names = class_names(benchmark)
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    fused = method in (STALE, TUNED_STALE, TUNED_MOVED) or method.startswith(FULL)
    trainable = "nothing" if method == ZERO_SHOT else LoRA(rank=RANK, factors=("B",), seed=seed)
    model = CLIPClassifier(
        backbone, DualPathHead() if fused else None, class_names=names, trainable=trainable
    )
    arguments |= {"model": model, "eval_mb_size": 256}
    if method == ZERO_SHOT:
        return ZeroShot(**arguments)
    optimizer = AdamW(model.parameters(), lr=settings["lr"], weight_decay=0.0)
    arguments |= {"optimizer": optimizer, "train_mb_size": BATCH}
    if method == JOINT:
        criterion = LabelSpaceCrossEntropy("seen")
        return JointTraining(criterion=criterion, train_epochs=2 * EPOCHS, **arguments)
    largest = max(len(each.dataset) for each in benchmark.train_stream)
    iterations = EPOCHS * -(-largest // BATCH)
    schedule = LRSchedulerPlugin(
        LambdaLR(optimizer, WarmupCosine(0, iterations)), step_granularity="iteration", reset_lr=False
    )
    size = 5 * len(names)
    arguments["train_iterations"] = iterations
    plugins = [schedule]
    if method in (FULL_REPLAY, FULL_LWF):
        own = ReplayPlugin(size, storage_policy=ClassBalancedBuffer(size))
        plugins.append(own if method == FULL_REPLAY else LwFPlugin(alpha=1.0, temperature=2.0))
    # Replayed classes are told apart from the others only where all classes seen compete.
    space = "seen" if method in (REPLAY, FULL_REPLAY) else "experience"
    arguments |= {"criterion": LabelSpaceCrossEntropy(space), "text_space": "seen"}
    if method.startswith(FULL):
        return SeGPCL(
            anchors=source(method, seed),
            distillation_weight=settings["kept"],
            distillation_temperature=settings["tau"],
            geometry_weight=settings["shaped"],
            precision="bf16" if method == BF16 else "fp32",
            plugins=plugins,
            **arguments,
        )
    return FineTune(plugins=[*plugins, *parts(method, seed, settings, size)], **arguments)
