"""Features that a memory keeps while the image tower trains: moved along, or refused."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch.nn import functional as F
from torch.optim import SGD

from avalanche_vlm.models import LoRA
from avalanche_vlm.plugins import DriftCompensator, GenerativeLatentReplayPlugin, LabelSpaceCrossEntropy
from avalanche_vlm.regularizers import AdversarialAnchors, CurrentPairs, SyntheticPairs
from avalanche_vlm.sources import ClassMean, NamePrompts
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from tests.reference.tiny_image_source import NAMES, TinyImageSource

BENCHMARK = tiny_benchmark()


class FeatureMemory(SupervisedPlugin):
    """Keeps embeddings of every class and replays them through the head: what a buffer of seeds does."""

    def __init__(self, compensator=None):
        super().__init__()
        self.compensator = compensator
        self.features, self.labels, self.images = torch.zeros(0, 16), torch.zeros(0, dtype=torch.int64), []

    def before_training_exp(self, strategy, *args, **kwargs):
        if self.compensator is not None:
            self.compensator.begin(strategy)

    def before_backward(self, strategy, *args, **kwargs):
        if len(self.labels):
            logits = strategy.model.logits_from_embeddings(self.features)
            strategy.loss = strategy.loss + F.cross_entropy(logits, self.labels)

    @torch.no_grad()
    def after_training_exp(self, strategy, *args, **kwargs):
        if self.compensator is not None:
            self.compensator.end(strategy)
            self.features = self.compensator.moved(self.features, self.labels)
        data = strategy.experience.dataset.eval()
        images = torch.stack([data[i][0] for i in range(len(data))])
        self.images.append(images)  # only to measure against
        self.features = torch.cat([self.features, strategy.model.eval().encode(images)])
        self.labels = torch.cat([self.labels, torch.tensor([int(data[i][1]) for i in range(len(data))])])


def trained(memory, trainable="both", experiences=2):
    torch.manual_seed(0)
    model = tiny_classifier(trainable=trainable)
    strategy = FineTune(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01 if trainable == "both" else 0.1),
        criterion=LabelSpaceCrossEntropy("experience"),
        plugins=[memory],
        train_mb_size=4,
        train_epochs=2,
        evaluator=None,
    )
    for experience in list(BENCHMARK.train_stream)[:experiences]:
        strategy.train(experience)
    return strategy


def staleness(strategy, memory):
    """How far features of the first experience are from what the tower says of their images now."""
    with torch.no_grad():
        now = strategy.model.eval().encode(memory.images[0])
    return float((memory.features[: len(now)] - now).norm(dim=1).mean())


PROBES = {
    "anchors": lambda: AdversarialAnchors(seeds_per_class=3),
    "seeds": lambda: AdversarialAnchors(seeds_per_class=3, steps=0),
    "synthetic": lambda: SyntheticPairs(TinyImageSource(), NamePrompts(NAMES), count=16, batch_size=4),
}


# Where drift differs from image to image, probes near the new classes say little of the old ones: anchors do
# not bring the features of a tiny random model nearer under LoRA.
@pytest.mark.parametrize(
    ("name", "trainable"), [*((name, "both") for name in PROBES), ("synthetic", LoRA(rank=4))]
)
def test_a_memory_of_features_follows_the_tower(name, trainable):
    left, moved = FeatureMemory(), FeatureMemory(DriftCompensator(PROBES[name]()))
    stale = staleness(trained(left, trainable), left)
    followed = staleness(trained(moved, trainable), moved)
    assert stale > 1e-3
    assert followed < 0.9 * stale


def test_what_is_kept_does_not_move_where_the_tower_does_not():
    compensator = DriftCompensator(PROBES["synthetic"]())
    memory = FeatureMemory(compensator)
    strategy = trained(memory, "text", experiences=1)
    kept = memory.features.clone()
    assert compensator.moved(kept, memory.labels) is kept
    strategy.train(BENCHMARK.train_stream[1])
    assert torch.equal(memory.features[: len(kept)], kept)


def test_probes_that_change_are_refused_and_so_is_replay_without_a_compensator():
    with pytest.raises(ValueError, match="`probes` must be images that stay the same.*CurrentPairs"):
        trained(FeatureMemory(DriftCompensator(CurrentPairs())))
    model = tiny_classifier(trainable=LoRA(rank=2))
    plugins = [GenerativeLatentReplayPlugin(ClassMean())]
    strategy = FineTune(
        model=model, optimizer=SGD(model.parameters(), lr=0.1), plugins=plugins, evaluator=None
    )
    with pytest.raises(ValueError, match="image tower trains: embeddings fitted in one experience"):
        strategy.train(BENCHMARK.train_stream[0])


@pytest.mark.parametrize(
    ("argument", "value"), [("probes", 3), ("visual_space", "pixels"), ("temperature", 0)]
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        DriftCompensator(**{argument: value})


def test_its_state_is_that_of_its_probes():
    compensator = DriftCompensator(PROBES["anchors"]())
    trained(FeatureMemory(compensator), experiences=1)
    other = DriftCompensator(PROBES["anchors"]())
    other.load_state_dict(compensator.state_dict())
    assert other.nbytes == compensator.nbytes == 6
    assert torch.equal(other.probes.learned.state_dict()["noted"], torch.tensor([1, 1, 0, 0, 0, 0]).bool())
