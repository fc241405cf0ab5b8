"""The laws hold for the generators, and catch the fakes."""

from functools import partial

import pytest
import torch

from avalanche_vlm.sources import (
    ClassMean,
    DiagonalGaussian,
    FullGaussian,
    GaussianMixture,
    LatentGenerator,
    LowRankGaussian,
    SharedCovarianceGaussian,
)
from avalanche_vlm.testing import LawBroken, check_documented, check_latent_generator, check_no_features


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "kind",
    [
        ClassMean,
        DiagonalGaussian,
        FullGaussian,
        LowRankGaussian,
        partial(LowRankGaussian, rank=3, residual=0.5),
        SharedCovarianceGaussian,
        partial(SharedCovarianceGaussian, ridge=0),
        GaussianMixture,
        partial(GaussianMixture, covariance="spherical", n_components=2),
    ],
)
def test_laws(kind, dtype):
    check_documented(getattr(kind, "func", kind))
    check_latent_generator(partial(kind, dtype=dtype, seed=3))


class Honest(LatentGenerator):
    """Means and deviations; the fakes below break one law each."""

    per_component = ("means", "deviations")

    def _fit(self, features, positions, counts):
        parts = [features[positions == k] for k in range(len(counts))]
        return {
            "means": torch.stack([part.mean(0) for part in parts]),
            "deviations": torch.stack([part.std(0, correction=0) for part in parts]),
        }

    def _sample(self, components):
        noise = torch.randn(len(components), self.embed_dim, generator=self._generator)
        return self.means[components].float() + noise * self.deviations[components].float()


class Global(Honest):
    def _sample(self, components):
        return super()._sample(components) + 0.01 * torch.randn(len(components), self.embed_dim)


class Unseeded(Honest):
    def _sample(self, components):
        other = torch.Generator()
        other.seed()
        return super()._sample(components) + 0.01 * torch.randn(1, generator=other)


class Writing(Honest):
    def fit(self, features, labels):
        super().fit(features, labels)
        features.zero_()


class Infinite(Honest):
    def _sample(self, components):
        return super()._sample(components) / (self.counts[components] > 1).float()[:, None]


class Biased(Honest):
    def _sample(self, components):
        return super()._sample(components) + 2


class Disordered(Honest):
    def _sample(self, components):
        return super()._sample(components.sort().values)


class Lending(Honest):
    """Hands out the tensor that it goes on with."""

    def _sample(self, components):
        drawn = super()._sample(components)
        if len(drawn) == len(self.means):
            self.means = drawn
        return drawn


class Lax(Honest):
    def fit(self, features, labels):
        super().fit(features.nan_to_num(), labels)


class Secretive(Honest):
    @property
    def nbytes(self):
        return 0


class Hoarding(Honest):
    def _fit(self, features, positions, counts):
        self._notes = {"of": [features.half()]}
        return super()._fit(features, positions, counts)


class Forgetful(Honest):
    """Draws a class from its last component only."""

    def _components_of(self, labels):
        last = {label: index for index, label in enumerate(self.labels.tolist())}
        return torch.tensor([last[label] for label in labels.tolist()])


class Amnesic(Honest):
    """Loads all but the state of its random numbers."""

    def load_state_dict(self, state):
        super().load_state_dict({**state, **({"generator": self._generator.get_state()} if state else {})})


class Switching(Honest):
    def sample(self, classes, count):
        torch.set_grad_enabled(True)
        return super().sample(classes, count)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Global, "global generator"),
        (Unseeded, "same seed differ"),
        (Writing, "arguments"),
        (Infinite, "not finite"),
        (Biased, "cosine"),
        (Disordered, "cosine|order"),
        (Lending, "changes the generator"),
        (Lax, "NaN is accepted"),
        (Secretive, "nbytes"),
        (Hoarding, r"_notes\.of\[0\].*copy"),
        (Forgetful, "not 0.75"),
        (Amnesic, "read from a file"),
        (Switching, "grad mode"),
    ],
)
def test_fakes_are_caught(kind, message):
    check_latent_generator(Honest)
    with pytest.raises(LawBroken, match=message):
        check_latent_generator(kind)
    torch.set_grad_enabled(True)


def test_a_mean_of_two_is_no_copy_and_small_classes_are_left_out():
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(8, dtype=torch.int64)
    generator = ClassMean()
    generator.means = (features[:1] + features[1:2]) / 2
    check_no_features(generator, features, labels)
    generator.means = features[3:4].bfloat16()
    with pytest.raises(LawBroken, match="means.*class 0"):
        check_no_features(generator, features, labels)
    check_no_features(generator, features[1:], labels[1:])
