"""Generators on features of photographs: what they draw is like what they were fitted to."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as nnF

from avalanche_vlm.sources import (
    ClassMean,
    DiagonalGaussian,
    FullGaussian,
    GaussianMixture,
    LowRankGaussian,
    SharedCovarianceGaussian,
)
from avalanche_vlm.testing import check_no_features


@pytest.fixture(scope="module")
def features(real_data):
    """Return the features and labels of the training rows of the classes that have text."""
    with np.load(real_data / "clip_vitb32_features.npz", allow_pickle=False) as data:
        kept = torch.from_numpy(data["caltech101/text"]).float().ne(0).any(dim=1)
        parts = ("train", "val")
        x = torch.cat([torch.from_numpy(data[f"caltech101/{part}_x"]).float() for part in parts])
        y = torch.cat([torch.from_numpy(data[f"caltech101/{part}_y"]).long() for part in parts])
    return x[kept[y]], y[kept[y]]


def moments(rows, labels):
    """Return the mean and the standard deviation of each class, labels ascending."""
    parts = [rows[labels == label] for label in labels.unique()]
    return torch.stack([p.mean(0) for p in parts]), torch.stack([p.std(0) for p in parts])


@pytest.mark.parametrize(
    "make",
    [
        ClassMean,
        DiagonalGaussian,
        FullGaussian,
        LowRankGaussian,
        partial(LowRankGaussian, residual=1.0),
        SharedCovarianceGaussian,
        GaussianMixture,
    ],
)
def test_draws_have_the_statistics_of_the_class(features, make):
    generator = make(dtype="float16")
    generator.fit(*features)
    models_spread = isinstance(generator, (DiagonalGaussian, FullGaussian, GaussianMixture))
    means, deviations = moments(*features)
    drawn = generator.sample(generator.classes, 1024 if models_spread else 128)
    drawn_means, drawn_deviations = moments(*drawn)
    assert len(means) == 70
    assert nnF.cosine_similarity(means, drawn_means, dim=1).min() > 0.95
    if models_spread:
        # There are 35,840 ratios; of 1024 draws each has a standard error of 2 %, and more in mixtures.
        assert (drawn_deviations / deviations - 1).abs().max() < 0.25
    check_no_features(generator, *features)


def test_streaming_on_real_features(features):
    x, y = features
    at_once, streaming = SharedCovarianceGaussian(), SharedCovarianceGaussian()
    at_once.fit(x, y)
    classes = y.unique()[torch.randperm(70, generator=torch.Generator().manual_seed(0))]
    for part in classes.split(10):
        here = torch.isin(y, part)
        streaming.fit(x[here], y[here])
    error = (streaming.covariance - at_once.covariance).abs().max() / at_once.covariance.abs().max()
    assert error < 1e-6
