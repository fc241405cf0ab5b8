"""After CGIL has run on real features, nothing that its strategy can reach is one of them."""

import gc
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np
import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from torch.optim import AdamW

from avalanche_vlm.benchmarks import class_names, tensor_benchmark
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.sources import LowRankGaussian, SharedCovarianceGaussian
from avalanche_vlm.strategies import CGIL
from avalanche_vlm.testing.generators import check_no_features

WIDTH = 512


@pytest.fixture(scope="module")
def caltech(real_data):
    """Return (x, y) for training and the text features of Caltech-101's classes that have text."""
    with np.load(real_data / "clip_vitb32_features.npz", allow_pickle=False) as data:
        text = torch.from_numpy(data["caltech101/text"]).float()
        kept = text.ne(0).any(dim=1)
        x = torch.cat([torch.from_numpy(data[f"caltech101/{part}_x"]).float() for part in ("train", "val")])
        y = torch.cat([torch.from_numpy(data[f"caltech101/{part}_y"]).long() for part in ("train", "val")])
    return (x[kept[y]], (kept.cumsum(0) - 1)[y[kept[y]]]), text[kept]


def trained(caltech, generator, plugins=()):
    pair, text = caltech
    names = [f"class {index}" for index in range(len(text))]
    benchmark = tensor_benchmark(pair, pair, class_names=names, n_experiences=7, seed=0)
    head = CosineHead(TextFeatureHead(text))
    model = CLIPClassifier(EmbeddingBackbone(WIDTH), head, class_names=class_names(benchmark))
    strategy = CGIL(
        model=model,
        optimizer=AdamW(model.parameters(), lr=1e-3, weight_decay=0.0),
        generator=generator,
        samples_per_class=16,
        batch_samples_per_class=4,
        plugins=plugins,
        evaluator=None,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return strategy


def rows_within_reach(thing):
    """Return as rows (N, WIDTH), float64, every array that can be reached from an object by references."""
    found, waiting, met = [], [thing], {id(thing)}
    while waiting:
        current = waiting.pop()
        if issubclass(type(current), (torch.Tensor, np.ndarray)):
            found.append(torch.as_tensor(current).detach())
        if isinstance(current, FunctionType):  # by its globals, all modules could be reached
            others = [current.__closure__, current.__defaults__, current.__dict__]
        else:
            others = gc.get_referents(current)
        for other in others:
            # Modules and classes belong to the interpreter, not to this strategy.
            if id(other) not in met and not isinstance(other, (ModuleType, type, BuiltinFunctionType)):
                met.add(id(other))
                waiting.append(other)
    wide = [each for each in found if each.is_floating_point() and each.numel() and not each.numel() % WIDTH]
    return torch.cat([each.double().reshape(-1, WIDTH) for each in wide])


def nearest(rows, real):
    return min(float(torch.cdist(part, real).min()) for part in rows.split(2048))


def distances(strategy, features):
    """Return how near a reachable row comes to a feature, and how near two features are to each other.

    Rows are compared as they are, and scaled to the length of the features, which is 1.
    """
    real = features.double()
    rows = rows_within_reach(strategy)
    rows = torch.cat([rows, torch.nn.functional.normalize(rows, dim=1)])
    return nearest(rows, real), float(torch.pdist(real).min())


@pytest.mark.parametrize("kind", [LowRankGaussian, SharedCovarianceGaussian])
def test_no_real_feature_is_kept(caltech, kind):
    generator = kind()
    strategy = trained(caltech, generator)
    (features, labels), _ = caltech
    to_feature, between_features = distances(strategy, features)
    assert to_feature > between_features > 0.01
    check_no_features(generator, features, labels)


def test_a_memory_of_real_features_would_be_found(caltech):
    strategy = trained(caltech, LowRankGaussian(), [ReplayPlugin(mem_size=70)])
    assert distances(strategy, caltech[0][0])[0] < 1e-6
