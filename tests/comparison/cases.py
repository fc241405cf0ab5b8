"""Streams and methods that a comparison makes in a fraction of a second.

A test writes this file out as a user's script too: it imports nothing of the tests.
"""

from functools import partial

import torch
from avalanche.training import JointTraining
from torch.optim import SGD

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.comparison import Setup
from avalanche_vlm.models import CosineHead, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune, ZeroShot

NAMES = ["cat", "dog", "cow", "fox", "hen", "owl"]


def prepare(seed, spaces=("seen", "all"), n_experiences=3):
    generator = torch.Generator().manual_seed(seed)
    means, y = torch.randn(6, 8, generator=generator), torch.arange(6).repeat(4)
    pairs = [(means[y] + torch.randn(24, 8, generator=generator), y) for _ in range(2)]
    return Setup(
        benchmark=tensor_benchmark(*pairs, class_names=NAMES, n_experiences=n_experiences, seed=seed),
        backbone=EmbeddingBackbone(8, logit_scale=10.0),
        head=partial(TextFeatureHead, means + 0.5 * torch.randn(6, 8, generator=generator)),
        spaces=spaces,
        seed=seed,
    )


def zero_shot(setup, evaluator):
    return ZeroShot(model=setup.model(), evaluator=evaluator)


def fine_tune(setup, evaluator, plugins=(), rate=0.3, kind=FineTune):
    model = setup.model(CosineHead(setup.head()))
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate),
        criterion=LabelSpaceCrossEntropy(setup.spaces[0]),
        plugins=list(plugins),
        evaluator=evaluator,
        train_mb_size=4,
        eval_mb_size=24,
    )


joint = partial(fine_tune, kind=JointTraining)
