"""The host's baselines on a `CLIPClassifier` reach what a plain loop of the same method reaches.

Two shapes of benchmark: class-incremental, where heads grow, label spaces and class-balanced memories
change, and a class is never seen again; and domain-incremental, where no class is ever new, so that all
of that is idle and a memory meets classes that it holds already. Several data sets in one stream would
be the first shape again.

Rows marked exact draw the same batches as the loop from the same seed and end in the same weights; the
others draw their memories and batches in another order and are compared by the mean over seeds.
"""

import importlib.util
import inspect
import random
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    ReplayPlugin,
)
from avalanche.training.plugins import GDumbPlugin as HostGDumbPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ParametricBuffer
from avalanche.training.supervised import (
    AGEM,
    DER,
    ER_ACE,
    EWC,
    MAS,
    BiC,
    Cumulative,
    GDumb,
    JointTraining,
    LwF,
    Naive,
    Replay,
    StreamingLDA,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from avalanche_vlm.benchmarks import class_names, domain_benchmark, tensor_benchmark
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, LoRA, TextFeatureHead
from avalanche_vlm.plugins import GDumbPlugin, LabelSpaceCrossEntropy, SynapticIntelligencePlugin
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from avalanche_vlm.testing.running import differing, run, snapshot

# Tests are no package, so the loops are read by their path.
_spec = importlib.util.spec_from_file_location(
    "host_loops", Path(__file__).parents[1] / "reference" / "host_loops.py"
)
loops = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(loops)

CLASSES, WIDTH, SCALE, MEMORY = 8, 24, 10.0, 64


def directions(count, seed):
    return F.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def clusters(means, per_class, noise, seed):
    """Return embeddings around class means on the sphere, and labels."""
    y = torch.arange(CLASSES).repeat_interleave(per_class)
    sample = torch.randn(len(y), WIDTH, generator=torch.Generator().manual_seed(seed))
    return F.normalize(means[y] + noise * sample / WIDTH**0.5, dim=1), y


# A direction that all classes share makes the latest classes win; text is a blurred hint.
MEANS = F.normalize(1.5 * directions(1, 0) + directions(CLASSES, 1), dim=1)
TEXT = F.normalize(MEANS + 1.5 * directions(CLASSES, 2), dim=1)
NAMES = [f"class {index}" for index in range(CLASSES)]


@lru_cache
def class_incremental():
    train, test = clusters(MEANS, 20, 0.8, 3), clusters(MEANS, 50, 0.8, 4)
    return tensor_benchmark(train, test, class_names=NAMES, n_experiences=4)


@lru_cache
def domain_incremental():
    domains = {}
    for index in range(3):
        means = F.normalize(0.4 * MEANS + directions(CLASSES, 10 + index), dim=1)
        domains[str(index)] = (
            clusters(means, 10, 0.7, 20 + index),
            clusters(means, 50, 0.7, 30 + index),
        )
    return domain_benchmark(domains, class_names=NAMES)


def arrays(stream):
    """Return the (x, y) of each experience, in the host's order."""
    samples = [[(x, int(y)) for x, y, *_ in experience.dataset] for experience in stream]
    return [(torch.stack([x for x, _ in each]), torch.tensor([y for _, y in each])) for each in samples]


def replay_by_class(policy, **arguments):
    return {"plugins": [ReplayPlugin(MEMORY, storage_policy=policy(MEMORY, **arguments))]}


class Row(NamedTuple):
    """One strategy of the host (its arguments made afresh by a function) and its loop."""

    kind: type
    arguments: Any
    loop: Any
    loop_arguments: dict
    exact: bool = True
    settings: Any = loops.Run(rate=0.3, batch_size=8, epochs=8, scale=SCALE, seed=0)


# EWC and MAS take the gradients of batches for those of samples, so a batch is a sample here.
BY_SAMPLE = loops.Run(rate=0.3 / 8, batch_size=1, epochs=4, scale=SCALE, seed=0)
MEMORY_OF = {"memory_size": MEMORY}
ROWS = {
    "Naive": Row(Naive, dict, loops.naive, {}),
    "Cumulative": Row(Cumulative, dict, loops.cumulative, {}),
    "JointTraining": Row(JointTraining, dict, loops.joint, {}),
    "EWC": Row(EWC, lambda: {"ewc_lambda": 50.0}, loops.ewc, {"strength": 50.0}, settings=BY_SAMPLE),
    "MAS": Row(
        MAS,
        lambda: {"lambda_reg": 0.03, "alpha": 0.5},
        loops.mas,
        {"strength": 0.03, "alpha": 0.5},
        settings=BY_SAMPLE,
    ),
    "LwF": Row(
        LwF, lambda: {"alpha": 20.0, "temperature": 2.0}, loops.lwf, {"strength": 20.0, "temperature": 2.0}
    ),
    "SI, mended": Row(
        Naive,
        lambda: {"plugins": [SynapticIntelligencePlugin(si_lambda=200.0)]},
        loops.si,
        {"strength": 200.0},
    ),
    "GDumb": Row(GDumb, lambda: {"mem_size": MEMORY}, loops.gdumb, MEMORY_OF),
    # Once they have a memory, DER and ER-ACE compute cross-entropies of their own, over all classes.
    "ER-ACE": Row(
        ER_ACE,
        lambda: {"mem_size": MEMORY, "batch_size_mem": 8, "criterion": LabelSpaceCrossEntropy("all")},
        loops.er_ace,
        MEMORY_OF | {"batch_size_memory": 8},
    ),
    "DER": Row(
        DER,
        lambda: {"mem_size": MEMORY, "alpha": 0.05, "beta": 0.5, "criterion": LabelSpaceCrossEntropy("all")},
        loops.der,
        MEMORY_OF | {"alpha": 0.05, "beta": 0.5},
        exact=False,
    ),
    "Replay": Row(
        Replay, lambda: {"mem_size": MEMORY}, loops.replay, MEMORY_OF | {"by_class": False}, exact=False
    ),
    "Replay, class-balanced": Row(
        Naive,
        lambda: replay_by_class(ClassBalancedBuffer),
        loops.replay,
        MEMORY_OF | {"by_class": True},
        exact=False,
    ),
    "Replay, parametric": Row(
        Naive,
        lambda: replay_by_class(ParametricBuffer, groupby="class"),
        loops.replay,
        MEMORY_OF | {"by_class": True, "redraw": True},
        exact=False,
    ),
    # The host goes round its memory in stored order, which is random only if it left samples out.
    "AGEM": Row(
        AGEM,
        lambda: {"patterns_per_exp": 30, "sample_size": 80},
        loops.agem,
        {"patterns": 30, "sample_size": 80},
        exact=False,
    ),
}


def accuracy_of(strategy, benchmark):
    """Return the mean over experiences of the host's accuracy, which is among all classes."""
    results = strategy.eval(benchmark.test_stream)
    values = [value for name, value in results.items() if name.startswith("Top1_Acc_Exp")]
    assert len(values) == len(benchmark.test_stream)
    return sum(values) / len(values)


def train_host(row, benchmark, seed):
    """Train a strategy of the host and return its weights and final accuracy.

    Exact rows are evaluated after each experience, which must change nothing.
    """
    backbone = EmbeddingBackbone(WIDTH, logit_scale=SCALE)
    head = CosineHead(TextFeatureHead(TEXT))
    model = CLIPClassifier(backbone, head, class_names=class_names(benchmark))
    strategy = row.kind(
        **{
            "model": model,
            "optimizer": SGD(model.parameters(), lr=row.settings.rate),
            "criterion": LabelSpaceCrossEntropy("seen"),
            "train_mb_size": row.settings.batch_size,
            "train_epochs": row.settings.epochs,
            "eval_mb_size": 400,
            "evaluator": EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
            **row.arguments(),
        }
    )
    # The host draws from the global generators; AGEM and the parametric memory from Python's.
    state = random.getstate()
    random.seed(seed)
    parts = [benchmark.train_stream] if row.kind is JointTraining else benchmark.train_stream
    with torch.random.fork_rng(devices=[]):
        for index, experience in enumerate(parts):
            torch.manual_seed(seed + index)
            strategy.train(experience)
            if row.exact:
                accuracy_of(strategy, benchmark)
        accuracy = accuracy_of(strategy, benchmark)
    random.setstate(state)
    return strategy.model.head.weight.detach(), accuracy


@lru_cache
def naive_accuracy(shape, settings, seed):
    return train_host(ROWS["Naive"]._replace(settings=settings, exact=False), shape(), seed)[1]


@pytest.mark.parametrize("shape", [class_incremental, domain_incremental])
@pytest.mark.parametrize("name", ROWS)
def test_the_host_reaches_what_a_plain_loop_reaches(name, shape):
    row, benchmark = ROWS[name], shape()
    train, test = arrays(benchmark.train_stream), arrays(benchmark.test_stream)
    host, loop, naive = [], [], []
    for seed in [0] if row.exact else range(0, 600, 100):
        weight, accuracy = train_host(row, benchmark, seed)
        settings = row.settings._replace(seed=seed)
        with torch.random.fork_rng(devices=[]):
            expected = row.loop(settings, TEXT.clone(), train, **row.loop_arguments)
        if row.exact:
            torch.testing.assert_close(weight, expected, rtol=0, atol=2e-5)
        host.append(100 * accuracy)
        loop.append(100 * loops.accuracy(settings, expected, test))
        naive.append(100 * naive_accuracy(shape, row.settings, seed))
    host, loop, naive = (sum(values) / len(values) for values in (host, loop, naive))
    assert abs(host - loop) < (0.3 if row.exact else 1)
    if name != "Naive":
        assert abs(host - naive) > 2


@pytest.mark.parametrize("shape", [class_incremental, domain_incremental])
def test_streaming_lda_takes_embeddings_as_they_are(shape):
    """It needs a module that gives features: the identity on embeddings, the image tower on images.

    A `CLIPClassifier` gives logits: given itself, it would make a discriminant of logits.
    """
    benchmark = shape()
    strategy = StreamingLDA(
        slda_model=nn.Identity(),
        criterion=nn.CrossEntropyLoss(),
        input_size=WIDTH,
        num_classes=CLASSES,
        shrinkage_param=1e-2,
        train_mb_size=8,
        eval_mb_size=400,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    host = 100 * accuracy_of(strategy, benchmark)
    weight, bias = loops.slda(arrays(benchmark.train_stream), CLASSES, shrinkage=1e-2)
    hits = [(x @ weight.T + bias).argmax(dim=1) == y for x, y in arrays(benchmark.test_stream)]
    loop = 100 * sum(float(hit.float().mean()) for hit in hits) / len(hits)
    assert abs(host - loop) < 1
    assert abs(host - 100 * naive_accuracy(shape, ROWS["Naive"].settings, 0)) > 2


def test_importances_of_ewc_depend_on_the_batch_size():
    """The host squares the gradient of a batch, where the Fisher information squares those of samples.

    So a strength that suits one batch size is far too small for a larger one.
    """
    x, y = arrays(class_incremental().train_stream)[0]
    weight = TEXT.clone().requires_grad_()
    losses = [
        loops.cross_entropy(SCALE * F.normalize(a[None]) @ F.normalize(weight).T, b[None], y.unique())
        for a, b in zip(x, y, strict=True)
    ]
    gradients = torch.stack([loops.gradient(loss, weight) for loss in losses])

    def importances(batch_size):
        model = CLIPClassifier(
            EmbeddingBackbone(WIDTH, logit_scale=SCALE), CosineHead(TextFeatureHead(TEXT)), class_names=NAMES
        )
        plugin = EWCPlugin(ewc_lambda=1.0)
        strategy = Naive(
            model=model,
            optimizer=SGD(model.parameters(), lr=0.0),
            criterion=LabelSpaceCrossEntropy("seen"),
            train_mb_size=batch_size,
            plugins=[plugin],
            evaluator=None,
        )
        strategy.train(class_incremental().train_stream[0])
        return plugin.importances[0]["head.weight"].data

    torch.testing.assert_close(importances(1), gradients.square().mean(dim=0))
    torch.testing.assert_close(importances(len(x)), gradients.mean(dim=0).square())
    assert importances(1).sum() > 3 * importances(len(x)).sum()


def gdumb_columns(plugin, *, evaluates):
    """Return how many classes count as seen in each experience of GDumb."""
    benchmark = class_incremental()
    model = CLIPClassifier(
        EmbeddingBackbone(WIDTH, logit_scale=SCALE), CosineHead(TextFeatureHead(TEXT)), class_names=NAMES
    )
    strategy = Naive(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        train_mb_size=8,
        eval_mb_size=400,
        plugins=[plugin],
        evaluator=None,
    )
    counts = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        counts.append(int(strategy.model.classes_seen.sum()))
        if evaluates:
            strategy.eval(benchmark.test_stream)
    return counts


def test_gdumb_takes_evaluated_classes_for_seen_ones():
    """The host adapts GDumb's fresh model to eval experiences too, in train mode, and trains copies of it.

    So after an evaluation of the whole test stream the label space "seen" has all classes; the end of
    the stream is the same. `GDumbPlugin` of this package leaves that step out.
    """
    assert gdumb_columns(HostGDumbPlugin(MEMORY), evaluates=False) == [2, 4, 6, 8]
    assert gdumb_columns(HostGDumbPlugin(MEMORY), evaluates=True) == [2, 8, 8, 8]
    assert gdumb_columns(GDumbPlugin(MEMORY), evaluates=True) == [2, 4, 6, 8]


@pytest.mark.skipif(
    "verbose" in inspect.signature(torch.optim.lr_scheduler.MultiStepLR).parameters,
    reason="this version of torch still takes what BiC passes",
)
def test_bic_does_not_run_on_this_torch():
    """It passes an argument to a scheduler of torch that has been removed there."""
    model = tiny_classifier(trainable=LoRA(rank=2))
    strategy = BiC(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        criterion=LabelSpaceCrossEntropy("seen"),
        mem_size=12,
        train_mb_size=4,
        evaluator=None,
    )
    benchmark = tiny_benchmark()
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(TypeError, match="verbose"):
        strategy.train(benchmark.train_stream[1])


SMALL_MEMORY = {"mem_size": 6}
IMAGE_ROWS = {
    "Naive": (Naive, dict),
    "Cumulative": (Cumulative, dict),
    "JointTraining": (JointTraining, dict),
    "EWC": (EWC, lambda: {"ewc_lambda": 1.0}),
    "MAS": (MAS, lambda: {"lambda_reg": 0.1}),
    "LwF": (LwF, lambda: {"alpha": 1.0, "temperature": 2.0}),
    "SI, mended": (Naive, lambda: {"plugins": [SynapticIntelligencePlugin(si_lambda=1.0)]}),
    "GDumb": (GDumb, lambda: SMALL_MEMORY),
    "ER-ACE": (ER_ACE, lambda: SMALL_MEMORY | {"batch_size_mem": 4}),
    "DER": (DER, lambda: SMALL_MEMORY | {"batch_size_mem": 4}),
    "Replay": (Replay, lambda: SMALL_MEMORY),
    "Replay, class-balanced": (
        Naive,
        lambda: {"plugins": [ReplayPlugin(6, storage_policy=ClassBalancedBuffer(6))]},
    ),
    "Replay, parametric": (
        Naive,
        lambda: {"plugins": [ReplayPlugin(6, storage_policy=ParametricBuffer(6, groupby="class"))]},
    ),
    "AGEM": (AGEM, lambda: {"patterns_per_exp": 4, "sample_size": 4}),
}


def test_every_row_also_runs_through_images():
    assert IMAGE_ROWS.keys() == ROWS.keys()


@pytest.mark.parametrize("name", IMAGE_ROWS)
def test_through_images_only_what_trains_is_trained(name):
    kind, arguments = IMAGE_ROWS[name]
    model = tiny_classifier(trainable=LoRA(rank=2))
    strategy = kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        criterion=LabelSpaceCrossEntropy("seen"),
        train_mb_size=4,
        eval_mb_size=24,
        evaluator=None,
        **arguments(),
    )
    trained = {name for name, p in nn.Module.named_parameters(model) if p.requires_grad}
    before = snapshot(model)
    # Joint training takes everything at once.
    after = run(strategy, tiny_benchmark(n_experiences=1 if kind is JointTraining else 3))
    changed = set(differing(before, after)) - {"classes_seen"}
    assert changed
    assert changed <= trained
    assert all(bool(after[name].isfinite().all()) for name in trained)
    held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in nn.Module.parameters(strategy.model) if p.requires_grad}


def test_streaming_lda_takes_the_image_tower():
    model, benchmark = tiny_classifier(), tiny_benchmark()
    before = snapshot(model)
    strategy = StreamingLDA(
        slda_model=model.backbone.image_tower,
        criterion=nn.CrossEntropyLoss(),
        input_size=model.backbone.embed_dim,
        num_classes=6,
        train_mb_size=4,
        eval_mb_size=24,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert accuracy_of(strategy, benchmark) > 0.8
    assert not differing(before, snapshot(model))
    images = benchmark.test_stream[0].dataset[0][0][None]
    torch.testing.assert_close(model.backbone.image_tower(images), model.encode(images))
