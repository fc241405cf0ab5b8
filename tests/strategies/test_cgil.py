"""CGIL: its optimizer, its laws, prompts through images, and accuracy on real features."""

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import AdamW

from avalanche_vlm.benchmarks import class_names, tensor_benchmark
from avalanche_vlm.functional import last_accuracy
from avalanche_vlm.metrics import AccuracyMatrixMetric
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, TextFeatureHead, ZeroShotHead
from avalanche_vlm.models.hybrid_prompt_head import HybridPromptHead
from avalanche_vlm.plugins import GenerativeLatentReplayPlugin
from avalanche_vlm.sources import DiagonalGaussian, LowRankGaussian
from avalanche_vlm.sources.class_vae import ClassVAE
from avalanche_vlm.strategies import CGIL, FineTune
from avalanche_vlm.testing import (
    check_frozen,
    check_repeatable,
    check_resumable,
    tiny_benchmark,
    tiny_classifier,
)
from avalanche_vlm.testing.running import differing, run, snapshot

IMAGES = tiny_benchmark()


def build(plugins=(), head=HybridPromptHead, generator=None, kind=CGIL, **arguments):
    model = tiny_classifier(head())
    own = {"generator": generator or DiagonalGaussian(), "samples_per_class": 4} if kind is CGIL else {}
    return kind(
        model=model,
        optimizer=AdamW(model.parameters(), lr=1e-2, weight_decay=0.0),
        plugins=[*plugins],
        evaluator=None,
        **own,
        **{"train_mb_size": 8, **arguments},
    )


def test_it_is_the_plugin_and_a_fresh_optimizer():
    ends = []
    for make in (
        lambda: build(head=lambda: CosineHead(ZeroShotHead())),
        lambda: build(
            [GenerativeLatentReplayPlugin(DiagonalGaussian(), samples_per_class=4)],
            head=lambda: CosineHead(ZeroShotHead()),
            kind=FineTune,
        ),
    ):
        torch.manual_seed(0)
        strategy = make()
        for experience in IMAGES.train_stream:
            strategy.train(experience, reset_optimizer_state=True)
        ends.append(strategy.model.head.weight.detach())
    assert torch.equal(*ends)


def test_the_optimizer_starts_anew_in_each_experience():
    strategy = build(head=lambda: CosineHead(ZeroShotHead()))
    for number, experience in enumerate(IMAGES.train_stream):
        strategy.train(experience)
        steps = {int(state["step"]) for state in strategy.optimizer.state.values()}
        assert steps == {number + 1}  # 8, 16 and 24 samples in batches of 8


def test_defaults_are_those_of_the_paper_but_for_the_generator():
    model = tiny_classifier(HybridPromptHead())
    strategy = CGIL(model=model, optimizer=AdamW(model.parameters()), evaluator=None)
    plugin = strategy.plugins[0]
    assert (strategy.train_mb_size, plugin.samples_per_class, plugin.batch_samples_per_class) == (
        128,
        256,
        None,
    )
    assert isinstance(plugin.generator, LowRankGaussian)
    assert plugin.generator.rank == 8
    other = CGIL(model=model, optimizer=AdamW(model.parameters()), evaluator=None)
    assert other.plugins[0].generator is not plugin.generator


def test_laws():
    check_frozen(lambda: build(head=lambda: CosineHead(ZeroShotHead())), IMAGES)
    strategy = build()
    before, trained = snapshot(strategy.model), {name for name, _ in strategy.model.named_parameters()}
    changed = set(differing(before, run(strategy, IMAGES)))
    assert changed <= trained | {"classes_seen", "head.classes_seen"}
    assert {"head.context.0.vectors", "head.context.1.network.0.weight"} <= changed
    check_repeatable(build, IMAGES)
    check_resumable(build, IMAGES)


def test_the_papers_parts_run_together():
    strategy = build(generator=ClassVAE(passes=1, hidden=4, latent=2, noise_scale="variance"))
    before = run(build(), IMAGES)
    after = run(strategy, IMAGES)
    assert differing(before, after)
    assert strategy.plugins[0].generator.classes == list(range(6))


@pytest.mark.parametrize("kind", [HybridPromptHead, lambda: CosineHead(ZeroShotHead())])
def test_replay_holds_what_fine_tuning_forgets(kind):
    """On images of clear classes: with synthetic embeddings the first classes stay known."""
    benchmark = tiny_benchmark(per_class=12)
    accuracies = {}
    for strategy in (CGIL, FineTune):
        torch.manual_seed(0)
        metric = AccuracyMatrixMetric("seen")
        model = tiny_classifier(kind())
        own = {"samples_per_class": 24, "train_mb_size": 24} if strategy is CGIL else {"train_mb_size": 6}
        trained = strategy(
            model=model,
            optimizer=AdamW(model.parameters(), lr=0.02, weight_decay=0.0),
            train_epochs=12,
            eval_mb_size=64,
            evaluator=EvaluationPlugin(metric),
            **own,
        )
        for experience in benchmark.train_stream:
            trained.train(experience)
        trained.eval(benchmark.test_stream)
        accuracies[strategy] = float(last_accuracy(metric.matrix(), metric.counts()))
    assert accuracies[CGIL] > accuracies[FineTune] + 0.15, accuracies


def test_each_wrong_argument_is_named():
    model = tiny_classifier(HybridPromptHead())
    valid = {"model": model, "optimizer": AdamW(model.parameters())}
    for name, wrong in {
        "model": nn.Linear(2, 2),
        "optimizer": 3,
        "generator": "vae",
        "samples_per_class": 0,
        "batch_samples_per_class": 0,
        "plugins": 3,
    }.items():
        with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
            CGIL(**{**valid, name: wrong})


def test_on_real_features(real_data):
    """Caltech-101 over 7 experiences; 30 epochs over 128 draws give 96.7, as these shorter ones should."""
    with np.load(real_data / "clip_vitb32_features.npz", allow_pickle=False) as data:
        text = torch.from_numpy(data["caltech101/text"]).float()
        kept = text.ne(0).any(dim=1)
        new_id = kept.cumsum(0) - 1

        def part(*names):
            x = torch.cat([torch.from_numpy(data[f"caltech101/{p}_x"]).float() for p in names])
            y = torch.cat([torch.from_numpy(data[f"caltech101/{p}_y"]).long() for p in names])
            return x[kept[y]], new_id[y[kept[y]]]

        train, test = part("train", "val"), part("test")
    names = [f"class {index}" for index in range(int(kept.sum()))]
    benchmark = tensor_benchmark(train, test, class_names=names, n_experiences=7, seed=0)
    head = CosineHead(TextFeatureHead(text[kept]))
    model = CLIPClassifier(EmbeddingBackbone(512), head, class_names=class_names(benchmark))
    metric = AccuracyMatrixMetric("seen")
    torch.manual_seed(0)
    strategy = CGIL(
        model=model,
        optimizer=AdamW(model.parameters(), lr=2e-3, weight_decay=0.0),
        samples_per_class=32,
        batch_samples_per_class=4,
        train_epochs=10,
        eval_mb_size=512,
        evaluator=EvaluationPlugin(metric),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    assert 100 * float(last_accuracy(metric.matrix(), metric.counts())) == pytest.approx(96.7, abs=1.0)
    assert strategy.plugins[0].nbytes < 70 * 20_000
