"""Runs of every kind, small enough for tests: how to build each, and what it ends with."""

import random
import sys
from pathlib import Path

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import CSVLogger, TextLogger
from avalanche.training import (
    AGEM,
    DER,
    ER_ACE,
    EWC,
    GEM,
    MAS,
    Cumulative,
    GDumb,
    LwF,
    Naive,
    Replay,
    SynapticIntelligence,
)
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
)
from avalanche.training.storage_policy import ClassBalancedBuffer, ParametricBuffer
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from avalanche_vlm.checkpointing import CheckpointPlugin
from avalanche_vlm.functional import WarmupCosine
from avalanche_vlm.logging import ResultsLogger
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CosineHead, LearnedContextHead, LoRA, ZeroShotHead
from avalanche_vlm.plugins import LabelSpaceCrossEntropy, StaticWeightConsolidationPlugin
from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    HeadTexts,
    ImageTextAlignment,
    InterpolatedTeacher,
    SumRegularizer,
    SyntheticPairs,
)
from avalanche_vlm.sources import LearnedClassPrompts
from avalanche_vlm.strategies import GIFT, ZSCL, FineTune, ZeroShot
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
from tiny_image_source import NAMES, TinyImageSource, union

EPOCHS = 2


def lora():
    return tiny_classifier(trainable=LoRA(rank=2, dropout=0.2))


def cosine():
    return tiny_classifier(CosineHead(ZeroShotHead()))


def host(kind, **own):
    """Return a case of a strategy of the host on a head that learns."""
    return lambda optimizer, arguments: build(kind, cosine(), optimizer, {**arguments, **own})


def build(kind, model, optimizer, arguments):
    arguments.setdefault("criterion", LabelSpaceCrossEntropy("seen"))
    return kind(model=model, optimizer=optimizer(model.parameters()), **arguments)


def with_plugins(*makers):
    def case(optimizer, arguments):
        plugins = [*(make() for make in makers), *arguments.pop("plugins")]
        return build(Naive, cosine(), optimizer, {**arguments, "plugins": plugins})

    return case


def with_schedule(optimizer, arguments):
    model = lora()
    made = optimizer(model.parameters())
    schedule = LRSchedulerPlugin(CosineAnnealingLR(made, T_max=3), reset_scheduler=False, reset_lr=False)
    arguments["plugins"] = [schedule, *arguments["plugins"]]
    return FineTune(model=model, optimizer=made, **arguments)


def with_iterations(optimizer, arguments):
    # Two batches an epoch: the third is cut.
    del arguments["train_epochs"]
    model = lora()
    made = optimizer(model.parameters())
    schedule = LRSchedulerPlugin(
        LambdaLR(made, WarmupCosine(warmup=2, total=5)), step_granularity="iteration", reset_lr=False
    )
    arguments["plugins"] = [schedule, *arguments["plugins"]]
    return FineTune(model=model, optimizer=made, train_iterations=5, accumulate_batches=2, **arguments)


def gift(optimizer, arguments):
    model = tiny_classifier(trainable=LoRA(rank=2, dropout=0.2))
    own = {"images": TinyImageSource(), "prompts": union(), "images_per_experience": 9, "image_batch_size": 4}
    return GIFT(model=model, optimizer=optimizer(model.parameters()), **own, **arguments)


def zscl(optimizer, arguments):
    model = tiny_classifier(trainable="both")
    images = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    own = {"images": images, "texts": NAMES, "image_batch_size": 3, "texts_per_batch": 4, "ensemble_every": 2}
    return ZSCL(model=model, optimizer=optimizer(model.parameters()), **own, **arguments)


def held_prompts(optimizer, arguments):
    # The importance is taken over three batches, an epoch and a half.
    pairs = SyntheticPairs(TinyImageSource(), LearnedClassPrompts(), count=9, batch_size=4, texts=HeadTexts())
    terms = [CrossModalDistillation(pairs, InterpolatedTeacher()), ImageTextAlignment(pairs)]
    plugin = StaticWeightConsolidationPlugin(SumRegularizer(terms), batches=3)
    model = tiny_classifier(LearnedContextHead(context_length=2))
    return build(FineTune, model, optimizer, {**arguments, "plugins": [plugin, *arguments["plugins"]]})


def ours(make_model):
    return lambda optimizer, arguments: build(FineTune, make_model(), optimizer, arguments)


CASES = {
    "fine-tuning": ours(lambda: tiny_classifier(trainable="image")),
    "LoRA": ours(lora),
    "prompts": ours(lambda: tiny_classifier(LearnedContextHead(context_length=2))),
    "zero-shot": lambda optimizer, arguments: ZeroShot(model=cosine(), **arguments),
    "naive": host(Naive),
    "naive on LoRA": lambda optimizer, arguments: build(Naive, lora(), optimizer, arguments),
    "replay": host(Replay, mem_size=7),
    "replay, class-balanced": with_plugins(lambda: ReplayPlugin(7, storage_policy=ClassBalancedBuffer(7))),
    "replay, parametric": with_plugins(
        lambda: ReplayPlugin(7, storage_policy=ParametricBuffer(7, groupby="class"))
    ),
    "EWC, separate": host(EWC, ewc_lambda=10.0),
    "EWC, online": host(EWC, ewc_lambda=10.0, mode="online", decay_factor=0.5),
    "SI": host(SynapticIntelligence, si_lambda=1.0),
    "LwF": host(LwF, alpha=1.0, temperature=2.0),
    "LwF on LoRA": lambda o, a: build(LwF, lora(), o, {**a, "alpha": 1.0, "temperature": 2.0}),
    "MAS": host(MAS, lambda_reg=1.0),
    "DER": host(DER, mem_size=8, batch_size_mem=3, beta=0.5),
    "ER_ACE": host(ER_ACE, mem_size=8, batch_size_mem=3),
    "GDumb": host(GDumb, mem_size=8),
    "cumulative": host(Cumulative),
    "GEM": host(GEM, patterns_per_exp=4),
    "AGEM": host(AGEM, patterns_per_exp=4, sample_size=6),
    "learning-rate schedule": with_schedule,
    "iterations and warm-up": with_iterations,
    "GIFT": gift,
    "ZSCL": zscl,
    "prompts held": held_prompts,
    "LoRA, replay and LwF": lambda o, a: build(
        FineTune, lora(), o, {**a, "plugins": [ReplayPlugin(7), LwFPlugin(), *a["plugins"]]}
    ),
    "replay, LwF and EWC": with_plugins(lambda: ReplayPlugin(7), LwFPlugin, lambda: EWCPlugin(5.0)),
}
OPTIMIZERS = {
    "Adam": lambda parameters: Adam(parameters, lr=0.01),
    "SGD": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9),
}
INSIDE = (
    *("fine-tuning", "LoRA", "prompts", "learning-rate schedule", "LoRA, replay and LwF"),
    *("iterations and warm-up", "GIFT", "ZSCL", "prompts held"),
)
# Those whose experiences or epochs differ in length, and the one that trains nothing.
UNEVEN = {"cumulative", "GDumb", "zero-shot", "iterations and warm-up"}


def names():
    """Return what is run: every case with Adam, and with SGD those in which most parts have a state."""
    return [(case, "Adam") for case in CASES] + [(case, "SGD") for case in (*INSIDE, "EWC, online", "DER")]


def positions(case, optimizer):
    """Return after how many experiences a run is stopped; the rest of the product adds only time."""
    if optimizer == "SGD":
        return (2,)
    return (0, 1, 2) if case in INSIDE else (1 + list(CASES).index(case) % 2,)


def seed(number=0):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def make(case, optimizer, folder, *, plugins=(), epochs=EPOCHS, host_logs=True, benchmark=None, **arguments):
    """Return a strategy whose logs lie in a folder, and its benchmark."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    benchmark = tiny_benchmark() if benchmark is None else benchmark
    loggers = [ResultsLogger(folder / "results.csv", method=case, seed=0)]
    if host_logs:
        loggers += [TextLogger((folder / "log.txt").open("a")), CSVLogger(str(folder / "host"))]
    metrics = [
        *continual_metrics(),
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(experience=True),
        forgetting_metrics(experience=True, stream=True),
    ]
    evaluator = EvaluationPlugin(*metrics, loggers=loggers)
    common = {"train_mb_size": 4, "train_epochs": epochs, "eval_mb_size": 8, "evaluator": evaluator}
    common |= {"plugins": [*plugins], **arguments}
    seed()
    return CASES[case](OPTIMIZERS[optimizer], common), benchmark


def go_on(strategy, benchmark, start):
    """Train and evaluate the rest of the stream, as a user's script does."""
    if start == 0:
        strategy.eval(benchmark.test_stream)
    for experience in benchmark.train_stream[start:]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)


def outcome(strategy, folder):
    """Return all that two runs are compared by, as plain values and tensors."""
    model = strategy.model
    tensors = [*torch.nn.Module.named_parameters(model), *model.named_buffers()]
    evaluator = strategy.evaluator
    logs = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for pattern in ("*.csv", "*.txt", "host/*.csv")
        for path in sorted(Path(folder).glob(pattern))
    }
    return {
        "tensors": {name: tensor.detach() for name, tensor in tensors},
        "optimizer": strategy.optimizer.state_dict(),
        "metrics": {name: (list(x), list(y)) for name, (x, y) in evaluator.get_all_metrics().items()},
        "last": dict(evaluator.get_last_metrics()),
        "matrices": [m.matrix() for m in evaluator.metrics if hasattr(m, "matrix")],
        "clock": {name: value for name, value in vars(strategy.clock).items() if isinstance(value, int)},
        "random": torch.get_rng_state(),
        "logs": logs,
    }


def differences(first, second, where=""):
    """Return where two outcomes differ in any bit."""
    if isinstance(first, torch.Tensor):
        same = first.shape == second.shape and torch.equal(first.nan_to_num(), second.nan_to_num())
        return [] if same else [where]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{where}: {sorted(map(str, first.keys() ^ second.keys()))[:3]}"]
        return [line for key in first for line in differences(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{where}: {len(first)} and {len(second)}"]
        pairs = enumerate(zip(first, second, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{where}/{index}")]
    return (
        []
        if first == second or (first != first and second != second)
        else [f"{where}: {first} {second}"[:120]]
    )


def checkpointed(folder, **arguments):
    return CheckpointPlugin(Path(folder) / "checkpoints", **{"keep": 99, **arguments})
