"""Refusals come before anything is trained, and what they advise works with the plugins at hand.

Every pair and triple of parts that touch data, memories or heads is tried on images and on their embeddings.
Whatever refuses must do so before the first step, in a sentence with an advice; the advice is followed, by
code that knows what the sentence means, until the parts train together.
"""

import itertools
import re

import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from torch.optim import SGD

from avalanche_vlm import plugins as ours
from avalanche_vlm.memory import ClassMeanSeeds, SeedBuffer
from avalanche_vlm.models import DualPathHead, GaussianDiscriminantHead, LoRA, ZeroShotHead
from avalanche_vlm.regularizers import AdversarialAnchors
from avalanche_vlm.sources import DiagonalGaussian
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated function update")

PARTS = {
    "anchors": lambda: ours.AdversarialAnchorDistillationPlugin(anchors(), weight=1.0),
    "prototypes": ours.PrototypePlugin,
    "moved prototypes": lambda: ours.PrototypeTransferPlugin(anchors()),
    "generators": lambda: ours.GenerativeLatentReplayPlugin(DiagonalGaussian(), samples_per_class=4),
    "generators of the past": lambda: ours.PastGenerativeLatentReplayPlugin(
        DiagonalGaussian(), samples_per_class=4
    ),
    "discriminant": ours.GaussianDiscriminantPlugin,
    "seeds": lambda: ours.FeatureReplayPlugin(seeds(), batch_size=8),
    "seeds in Replay": lambda: ReplayPlugin(mem_size=12, storage_policy=seeds()),
    "GDumb": lambda: ours.GDumbPlugin(12),
    "Replay": lambda: ReplayPlugin(mem_size=12),
}
MODEL = tiny_classifier()
STREAMS = {
    "images": tiny_benchmark(n_experiences=2),
    "embeddings": tiny_benchmark(n_experiences=2, embedded=MODEL),
}


def anchors():
    return AdversarialAnchors(seeds_per_class=1, steps=1, step_size=5e-3, batch_size=8)


def seeds():
    return SeedBuffer(max_size=12, source=ClassMeanSeeds())


def train(names, stream):
    """Train with parts; return the refusal, and after how many steps it came."""
    head = ZeroShotHead()
    if any("prototypes" in name for name in names):
        head = DualPathHead(head, visual_space="embedding")
    if "discriminant" in names:
        head = GaussianDiscriminantHead(head)
    model = tiny_classifier(head, trainable=LoRA(rank=2, towers=("text",)))
    steps = 0
    try:
        strategy = FineTune(
            model=model,
            optimizer=SGD(model.parameters(), lr=0.01),
            train_mb_size=8,
            plugins=[PARTS[name]() for name in names],
            evaluator=None,
        )
        strategy.optimizer.register_step_post_hook(lambda *_: count())

        def count():
            nonlocal steps
            steps += 1

        for experience in STREAMS[stream].train_stream:
            strategy.train(experience)
    except (ValueError, TypeError) as error:
        return str(error), steps
    assert steps > 0
    assert all(bool(torch.isfinite(weight).all()) for weight in strategy.model.parameters())
    return None, steps


def without(names, *some):
    """Return the names without the last of those that are there."""
    last = [name for name in names if name in some][-1]
    return tuple(name for name in names if name != last)


def replaced(names, *some):
    """Return the names with a memory of features in place of the first of those that are there."""
    first = next(name for name in names if name in some)
    return tuple(dict.fromkeys("seeds" if name == first else name for name in names))


# A sentence's advice -> what it says to do with the names and the stream.
HOST_MEMORIES = ("Replay", "GDumb", "seeds in Replay")
ADVICE = {
    r"ReplayPlugin with .*Take FeatureReplayPlugin\(SeedBuffer\(\.\.\.\)\) in its place": (
        lambda names, stream: (replaced(names, "Replay"), stream)
    ),
    r"GDumbPlugin with .*Take FeatureReplayPlugin\(SeedBuffer\(\.\.\.\)\) in its place": (
        lambda names, stream: (replaced(names, "GDumb"), stream)
    ),
    r"For images take avalanche_vlm.plugins.FeatureReplayPlugin": (
        lambda names, stream: (replaced(names, "seeds in Replay"), stream)
    ),
    r"Train on the images and not on their embeddings": lambda names, stream: (names, "images"),
    r"one plugin that keeps prototypes": (
        lambda names, stream: (without(names, "prototypes", "moved prototypes"), stream)
    ),
    r"leave one of them out, with its plugin": lambda names, stream: (without(names, "discriminant"), stream),
    r"one plugin that replays from a generator.*take FineTune for another plugin": (
        lambda names, stream: (without(names, "generators", "generators of the past"), stream)
    ),
    r"without GDumb.*Leave one of them out": lambda names, stream: (without(names, "GDumb"), stream),
    r"at most one ReplayPlugin.*For a second memory take FeatureReplayPlugin": (
        lambda names, stream: (replaced(names, "seeds in Replay"), stream)
    ),
}
PAIRS = [*itertools.combinations(PARTS, 2)]
# Where two advices could send a user in a circle: a part that needs images, a generator, a memory.
TRIPLES = [
    (first, second, third)
    for first in ("anchors", "moved prototypes")
    for second in ("generators", "generators of the past", "discriminant")
    for third in HOST_MEMORIES
    if (first, second) != ("moved prototypes", "discriminant")
]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("names", [*PAIRS, *TRIPLES], ids=" + ".join)
def test_a_refusal_is_early_and_its_advice_works(names, stream):
    tried = [(names if stream == "images" else names[::-1], stream)]
    while True:
        refusal, steps = train(*tried[-1])
        if refusal is None:
            break
        assert steps == 0, f"{tried[-1]} trained {steps} steps before: {refusal}"
        meant = [follow for words, follow in ADVICE.items() if re.search(words, refusal)]
        assert len(meant) == 1, f"{tried[-1]}: nobody knows what to do about: {refusal}"
        following = meant[0](*tried[-1])
        assert following not in tried, f"{tried} goes in a circle: {refusal}"
        tried.append(following)
