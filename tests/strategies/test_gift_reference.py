"""GIFT beside a plain loop of it, from the same batches."""

import sys
from pathlib import Path

import torch
from avalanche.core import SupervisedPlugin
from torch.nn import functional as F
from torch.optim import SGD

from avalanche_vlm.regularizers import SyntheticPairs
from avalanche_vlm.sources import GeneratedImages, ImageSource, NamePrompts
from avalanche_vlm.strategies import GIFT
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from tests.reference.double_precision import in_double

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))
from gift_reference import PlainGIFT


class Noise(ImageSource):
    """Random pixels."""

    def _sample(self, prompts, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pixels = [torch.randint(256, (3, 8, 8), generator=each, dtype=torch.uint8) for each in generators]
        return GeneratedImages(torch.stack(pixels), prompts)

    def describe(self):
        return {}


class Batches(SupervisedPlugin):
    """Keeps what a strategy trained on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_forward(self, strategy, *args, **kwargs):
        resting = strategy._resting_text
        resting._weights = resting._weights.double()  # they are taken in float32

    def after_training_iteration(self, strategy, *args, **kwargs):
        self.seen.append((strategy.mb_x.clone(), strategy.mb_y.clone()))


def test_gift_equals_the_plain_loop(monkeypatch):
    experience = tiny_benchmark().train_stream[0]
    model, batches, pairs = in_double(tiny_classifier(trainable="both")), Batches(), []
    drawn = SyntheticPairs.batch

    def kept(self, *arguments):
        pairs.append(drawn(self, *arguments))
        return pairs[-1]

    monkeypatch.setattr(SyntheticPairs, "batch", kept)
    strategy = GIFT(
        model=model,
        optimizer=SGD(model.parameters(), lr=2e-3),
        images=Noise(),
        prompts=NamePrompts(["red circle", "blue square", "cat"]),  # few, so that captions recur
        images_per_experience=20,
        image_batch_size=8,
        train_mb_size=4,
        train_epochs=3,
        plugins=[batches],
        evaluator=None,
    )
    strategy.train(experience)

    plain = in_double(tiny_classifier(trainable="both")).train()
    start = [parameter.detach().clone() for parameter in plain.parameters()]
    loop = PlainGIFT(plain, SGD(plain.parameters(), lr=2e-3))
    loop.begin()
    columns = torch.tensor(sorted(experience.classes_in_this_experience))
    for (x, y), batch in zip(batches.seen, pairs, strict=True):

        def task_loss(x=x, y=y):
            targets = torch.searchsorted(columns, y)
            return F.cross_entropy(plain(x)[:, columns], targets, label_smoothing=0.2)

        value, penalty = loop.step(task_loss, batch.images, batch.texts[batch.text_of], batch.text_of)

    assert len(pairs) == 6
    assert value > 0
    assert penalty > 0
    for name, parameter in model.named_parameters():
        expected = dict(plain.named_parameters())[name]
        # Importances amplify the last digits of a gradient: the two are 5e-14 apart, in float32 1e-4.
        torch.testing.assert_close(parameter, expected, atol=1e-9, rtol=0, msg=lambda m, n=name: n + m)
    moved = max(float((a.detach() - b).abs().max()) for a, b in zip(plain.parameters(), start, strict=True))
    assert moved > 1e-3
