"""Replay from a memory of embeddings: on images and on embeddings, and the two terms on it."""

import math

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin
from torch.optim import SGD

from avalanche_vlm.memory import GeneratedSeeds, KMeansSeeds, SeedBuffer, SeedSource
from avalanche_vlm.models import (
    AdaptedTextHead,
    CosineHead,
    LearnedContextHead,
    LinearHead,
    LoRA,
    ResidualAdapter,
    ZeroShotHead,
)
from avalanche_vlm.plugins import DriftCompensator, FeatureReplayPlugin, RegularizerPlugin
from avalanche_vlm.regularizers import FeatureReplay, SeedConsistency, SyntheticPairs
from avalanche_vlm.sources import NamePrompts
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import check_zero_weight, tiny_benchmark, tiny_classifier
from avalanche_vlm.testing.running import differing, run
from tests.reference.tiny_image_source import NAMES, TinyImageSource

IMAGES = tiny_benchmark()
EMBEDDED = tiny_benchmark(embedded=tiny_classifier())


def adapters(**arguments):
    return tiny_classifier(AdaptedTextHead(), image_adapter=ResidualAdapter(), **arguments)


def seeds(source=None, size=12, **arguments):
    return SeedBuffer(size, KMeansSeeds(2) if source is None else source, **arguments)


def fine_tune(plugins, model=None, epochs=2):
    model = adapters() if model is None else model
    optimizer = SGD(model.parameters(), lr=0.1)
    return FineTune(
        model=model,
        optimizer=optimizer,
        plugins=plugins,
        train_mb_size=4,
        train_epochs=epochs,
        evaluator=None,
    )


def filled(source=None, **arguments):
    """Return a memory of the classes 0, 2, 3 and 5."""
    buffer = seeds(source, **arguments)
    generator = torch.Generator().manual_seed(2)
    y = torch.tensor([0, 2, 3, 5]).repeat(6)
    buffer.update_from_features(adapters(), torch.randn(24, 16, generator=generator), y)
    return buffer


def moved(model, seen=(0, 2, 3, 5)):
    """Return a model whose adapters have learned something, and which has seen some classes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.classes_seen[list(seen)] = True
    model.head.adapt(model.classes_seen)
    return model


# In training.


@pytest.mark.parametrize("source", ["k-means", "generated"])
def test_a_stream_of_images_makes_the_seeds_of_its_embeddings(source):
    ends, buffers = [], []
    for benchmark in (IMAGES, EMBEDDED):
        buffers.append(seeds(KMeansSeeds(2) if source == "k-means" else GeneratedSeeds(2, steps=2)))
        ends.append(run(fine_tune([FeatureReplayPlugin(buffers[-1], batch_size=16)]), benchmark))
    ours, theirs = buffers
    assert ours.classes == theirs.classes == list(range(6))
    assert torch.equal(ours.labels, theirs.labels)
    torch.testing.assert_close(ours.visual, theirs.visual, atol=0.02, rtol=0)
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], atol=1e-3, rtol=1e-3)
    assert differing(ends[1], run(fine_tune([]), EMBEDDED))


def test_a_trained_image_tower_is_refused_without_a_compensator():
    for trainable in ("image", LoRA(rank=2)):
        strategy = fine_tune([FeatureReplayPlugin(seeds())], tiny_classifier(trainable=trainable))
        with pytest.raises(ValueError, match=r"image tower trains"):
            strategy.train(IMAGES.train_stream[0])


def compensator():
    return DriftCompensator(SyntheticPairs(TinyImageSource(), NamePrompts(NAMES), count=16, batch_size=4))


def test_with_a_compensator_seeds_follow_the_tower():
    buffer = seeds(dtype="float32", size=None)
    plugin = FeatureReplayPlugin(buffer, drift_compensator=compensator())
    strategy = fine_tune([plugin], tiny_classifier(trainable="both"))
    strategy.optimizer.param_groups[0]["lr"] = 0.01
    stream = list(IMAGES.train_stream)
    strategy.train(stream[0])
    before, images = buffer.visual, torch.stack([x for x, *_ in stream[0].dataset])
    labels = torch.tensor([int(y) for _, y, *_ in stream[0].dataset])
    strategy.train(stream[1])
    after = buffer.visual[: len(before)]
    assert not torch.equal(before, after)
    with torch.no_grad():
        now = strategy.model.eval().encode(images)

    def off(found):
        own = [torch.nn.functional.normalize(now[labels == c].mean(dim=0), dim=0) for c in (0, 1)]
        return sum(float(1 - v @ own[c]) for v, c in zip(found, buffer.labels.tolist(), strict=False))

    assert off(after) < off(before)
    assert plugin.nbytes == buffer.nbytes + plugin.drift_compensator.nbytes


def test_a_compensator_beside_an_image_adapter_is_refused():
    strategy = fine_tune([FeatureReplayPlugin(seeds(), drift_compensator=compensator())])
    with pytest.raises(ValueError, match="`drift_compensator`"):
        strategy.train(IMAGES.train_stream[0])


def test_a_memory_that_two_plugins_keep_is_refused():
    buffer = seeds()
    for other in (FeatureReplayPlugin(buffer), ReplayPlugin(mem_size=12, storage_policy=buffer)):
        strategy = fine_tune([FeatureReplayPlugin(buffer), other])
        with pytest.raises(ValueError, match="`plugins`.*one memory in FeatureReplayPlugin and"):
            strategy.train(EMBEDDED.train_stream[0])
    run(fine_tune([FeatureReplayPlugin(seeds()), FeatureReplayPlugin(seeds())]), EMBEDDED)


class Spy(SeedSource):
    """Notes what it is asked to make seeds of, and what was held out."""

    def __init__(self):
        super().__init__()
        self.given, self.inner = [], KMeansSeeds(2)

    def make(self, model, features, labels, validation=None):
        self.given.append((features, labels, validation))
        return self.inner.make(model, features, labels)


class Sizes(SupervisedPlugin):
    """Notes what is trained on."""

    def __init__(self):
        super().__init__()
        self.trained = []

    def before_forward(self, strategy, *args, **kwargs):
        self.trained.append(strategy.mb_x.clone())


def test_samples_held_out_are_not_trained_on_and_the_rest_is():
    source, sizes = Spy(), Sizes()
    plugin = FeatureReplayPlugin(seeds(source), validation_fraction=0.25)
    strategy = fine_tune([plugin, sizes], epochs=1)
    for experience in EMBEDDED.train_stream:
        strategy.train(experience)
        features, labels, (held_x, held_y) = source.given[-1]
        trained = torch.cat(sizes.trained)
        sizes.trained.clear()
        x = torch.stack([x for x, *_ in experience.dataset])
        unit = torch.nn.functional.normalize(x, dim=1)
        assert (len(trained), len(features), len(held_x)) == (6, 6, 2)
        assert labels.bincount().max() == 3
        assert sorted(held_y.tolist()) == sorted(experience.classes_in_this_experience)
        assert not bool((held_x[:, None] == features[None]).all(dim=2).any())
        every = torch.cat([features, held_x])
        torch.testing.assert_close(every[every[:, 0].argsort()], unit[unit[:, 0].argsort()])
        rows = {tuple(row) for row in torch.nn.functional.normalize(trained, dim=1).tolist()}
        assert rows == {tuple(row) for row in features.tolist()}


class Shortens(SupervisedPlugin):
    def after_train_dataset_adaptation(self, strategy, *args, **kwargs):
        strategy.adapted_dataset = strategy.adapted_dataset.subset([0, 1, 2])


def test_samples_to_hold_out_after_another_plugin_has_changed_them_are_refused():
    strategy = fine_tune([Shortens(), FeatureReplayPlugin(seeds(), validation_fraction=0.25)])
    with pytest.raises(ValueError, match="`validation_fraction` must be 0 where another plugin"):
        strategy.train(EMBEDDED.train_stream[0])


def test_with_weight_zero_nothing_changes_and_nothing_is_kept():
    buffer = seeds()
    check_zero_weight(fine_tune, lambda: FeatureReplayPlugin(buffer, 0.0, validation_fraction=0.25), EMBEDDED)
    assert len(buffer) == 0


# The two terms.

HEADS = {
    "adapted text": AdaptedTextHead,
    "context": lambda: LearnedContextHead(context_length=2),
    "cosine": lambda: CosineHead(ZeroShotHead()),
    "linear": lambda: LinearHead(ZeroShotHead()),
}


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_replay_is_the_cross_entropy_over_classes_seen(head, adapter):
    buffer, seen = filled(), (0, 2, 3, 4, 5)
    model = moved(tiny_classifier(HEADS[head](), image_adapter=ResidualAdapter() if adapter else None), seen)
    term = FeatureReplay(buffer, batch_size=20, seed=4)
    assert term.is_active
    found = term(model, torch.zeros(1, 16), torch.zeros(1), torch.zeros(1, 6))
    draw = buffer.sample(20, torch.Generator().manual_seed(4))
    with torch.no_grad():
        logits = model.logits_from_embeddings(draw.visual).double().tolist()
    expected = 0.0
    for row, label in zip(logits, draw.labels.tolist(), strict=True):
        expected += (math.log(sum(math.exp(row[c]) for c in seen)) - row[label]) / 20
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
    again = FeatureReplay(buffer, batch_size=20)
    again.load_state_dict(term.state_dict())
    assert torch.equal(*(each(model, draw.visual, None, None) for each in (term, again)))


def contrast(anchors, others, labels):
    """Of two lists of rows with the same classes, at temperature 0.1."""
    total = 0.0
    for a, label in zip(anchors, labels, strict=True):
        logits = [float(a @ b / a.norm() / b.norm()) / 0.1 for b in others]
        partition = math.log(sum(map(math.exp, logits)))
        right = [value for value, own in zip(logits, labels, strict=True) if own == label]
        total += (partition - sum(right) / len(right)) / len(anchors)
    return total


@pytest.mark.parametrize("source", [KMeansSeeds(2), GeneratedSeeds(2, steps=1)])
def test_consistency_is_the_contrast_of_both_halves(source):
    buffer, model = filled(source), moved(adapters())
    found = SeedConsistency(buffer, batch_size=9, seed=4)(model, torch.zeros(1, 16), None, None)
    draw = buffer.sample(9, torch.Generator().manual_seed(4))
    with torch.no_grad():
        text = buffer.textual_rows(draw.rows)
        if text is None:
            text = model.head.text(model.backbone, draw.labels)
        visual, textual = model.image_adapter(draw.visual).double(), model.head.adapter(text).double()
    labels = draw.labels.tolist()
    expected = (contrast(visual, textual, labels) + contrast(textual, visual, labels)) / 2
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


def test_consistency_that_nothing_has_an_influence_on_is_refused():
    buffer = seeds(GeneratedSeeds(2, steps=0))
    plugins = [FeatureReplayPlugin(buffer), RegularizerPlugin(SeedConsistency(buffer))]
    strategy = fine_tune(plugins, tiny_classifier(LearnedContextHead(context_length=2)))
    strategy.train(EMBEDDED.train_stream[0])
    with pytest.raises(ValueError, match="SeedConsistency, which none has.*image_adapter"):
        strategy.train(EMBEDDED.train_stream[1])


def test_a_plugin_goes_on_from_its_state():
    first, second = (
        FeatureReplayPlugin(seeds(dtype="float32"), drift_compensator=compensator()) for _ in range(2)
    )
    fine_tune([first], tiny_classifier(trainable="both")).train(IMAGES.train_stream[0])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.buffer.visual, second.buffer.visual)
    assert first.nbytes == second.nbytes
