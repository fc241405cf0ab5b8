"""Plugins and what they are made of belong to one strategy: nothing of one run gets into another unseen."""

import copy

import pytest
from avalanche.training import Naive
from avalanche.training.plugins import ReplayPlugin
from torch.optim import SGD

from avalanche_vlm.memory import SeedBuffer
from avalanche_vlm.plugins import (
    AdaptiveWeightConsolidationPlugin,
    AdversarialAnchorDistillationPlugin,
    FeatureReplayPlugin,
    GDumbPlugin,
    GenerativeLatentReplayPlugin,
    LabelSpaceCrossEntropy,
    LearningRatesPlugin,
    MASPlugin,
    RegularizerPlugin,
    SynapticIntelligencePlugin,
)
from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    CurrentPairs,
    ImageTextAlignment,
    InitialTeacher,
    LastTeacher,
    PreviousWeightsPenalty,
    SumRegularizer,
    SyntheticPairs,
)
from avalanche_vlm.sources import DiagonalGaussian, NamePrompts, PromptUnion
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier
from tests.reference.tiny_image_source import TinyImageSource

IMAGES = tiny_benchmark(per_class=2)
EMBEDDINGS = tiny_benchmark(per_class=2, embedded=tiny_classifier())
PLUGINS = {
    "teacher": lambda: RegularizerPlugin(CrossModalDistillation(CurrentPairs())),
    "weights": lambda: RegularizerPlugin(PreviousWeightsPenalty()),
    "sum": lambda: RegularizerPlugin(SumRegularizer([PreviousWeightsPenalty()])),
    "consolidation": lambda: AdaptiveWeightConsolidationPlugin(CrossModalDistillation(CurrentPairs())),
    "anchors": AdversarialAnchorDistillationPlugin,
    "synaptic intelligence": lambda: SynapticIntelligencePlugin(1.0),
    "memory-aware synapses": MASPlugin,
    "memory of samples": lambda: GDumbPlugin(6),
}


def make(*plugins, kind=FineTune, trainable="both", **arguments):
    model = tiny_classifier(trainable=trainable)
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        criterion=LabelSpaceCrossEntropy("seen"),
        plugins=[*plugins],
        train_mb_size=4,
        evaluator=None,
        **arguments,
    )


@pytest.mark.parametrize("kind", [FineTune, Naive])
@pytest.mark.parametrize("make_plugin", PLUGINS.values(), ids=PLUGINS)
def test_a_plugin_refuses_a_second_strategy(make_plugin, kind):
    plugin = make_plugin()
    first = make(plugin, kind=kind)
    first.train(IMAGES.train_stream[0])
    second = make(plugin, kind=kind)
    message = rf"`plugins` must be .*a {type(plugin).__name__} that has served another strategy. Build new"
    with pytest.raises(ValueError, match=message):
        second.train(IMAGES.train_stream[0])
    assert second.clock.train_iterations == 0
    first.train(IMAGES.train_stream[1])
    make(copy.deepcopy(make_plugin()), kind=kind).train(IMAGES.train_stream[0])


def plugin_of_teacher(teacher):
    return RegularizerPlugin(SumRegularizer([CrossModalDistillation(CurrentPairs(), teacher=teacher)]))


def plugin_of_pairs(pairs):
    return RegularizerPlugin(ImageTextAlignment(pairs))


PARTS = {
    "teacher": (InitialTeacher, plugin_of_teacher),
    "pairs": (lambda: SyntheticPairs(TinyImageSource(), NamePrompts(TINY_CLASSES), count=4), plugin_of_pairs),
}


@pytest.mark.parametrize(("make_part", "make_plugin"), PARTS.values(), ids=PARTS)
def test_a_part_of_a_plugin_refuses_a_second_strategy(make_part, make_plugin):
    part = make_part()
    make(make_plugin(part)).train(IMAGES.train_stream[0])
    with pytest.raises(ValueError, match=f"a {type(part).__name__} that has served another strategy"):
        make(make_plugin(part)).train(IMAGES.train_stream[0])


def test_parts_that_two_plugins_of_one_strategy_share_are_theirs():
    teacher = LastTeacher()
    make(plugin_of_teacher(teacher), plugin_of_teacher(teacher)).train(IMAGES.train_stream[:2])


def test_a_training_that_was_refused_leaves_plugins_free():
    penalty = PreviousWeightsPenalty()
    plugin = RegularizerPlugin(penalty)
    refused = make(plugin, RegularizerPlugin(penalty))
    with pytest.raises(ValueError, match="Each adds its regularizer"):
        refused.train(IMAGES.train_stream[0])
    make(plugin).train(IMAGES.train_stream[0])


def test_what_keeps_nothing_may_serve_several():
    schedule = LearningRatesPlugin([0.1, 0.1, 0.1], lambda iteration: 1.0)
    images = TinyImageSource()
    prompts = PromptUnion([NamePrompts(TINY_CLASSES)])
    teacher, penalty = LastTeacher(), PreviousWeightsPenalty()  # of each experience anew
    for _ in range(2):
        pairs = plugin_of_pairs(SyntheticPairs(images, prompts, count=4))
        plugins = schedule, pairs, plugin_of_teacher(teacher), RegularizerPlugin(penalty)
        make(*plugins).train(IMAGES.train_stream[0])


def test_a_memory_refuses_a_second_strategy():
    buffer = SeedBuffer(12)
    make(FeatureReplayPlugin(buffer), trainable="text").train(EMBEDDINGS.train_stream[0])
    with pytest.raises(ValueError, match="a SeedBuffer that has served another strategy"):
        make(FeatureReplayPlugin(buffer), trainable="text").train(EMBEDDINGS.train_stream[0])
    buffer = SeedBuffer(12)
    make(ReplayPlugin(12, storage_policy=buffer), trainable="text").train(EMBEDDINGS.train_stream[0])
    with pytest.raises(ValueError, match="a SeedBuffer that has served another strategy"):
        make(ReplayPlugin(12, storage_policy=buffer), trainable="text").train(EMBEDDINGS.train_stream[0])
    generator = GenerativeLatentReplayPlugin(DiagonalGaussian(), samples_per_class=4)
    make(generator, trainable="text").train(EMBEDDINGS.train_stream[0])
    with pytest.raises(ValueError, match="a GenerativeLatentReplayPlugin that has served"):
        make(generator, trainable="text").train(EMBEDDINGS.train_stream[0])


def test_a_state_that_was_loaded_goes_on_in_another_strategy():
    plugin, other = RegularizerPlugin(PreviousWeightsPenalty()), RegularizerPlugin(PreviousWeightsPenalty())
    make(plugin).train(IMAGES.train_stream[0])
    other.load_state_dict(plugin.state_dict())
    make(other).train(IMAGES.train_stream[1])
