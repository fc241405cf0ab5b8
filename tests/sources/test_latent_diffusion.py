import math

import pytest
import torch
from torch.nn import functional as F

from avalanche_vlm.sources.latent_diffusion import Denoiser, LatentDiffusion, cosine_signal
from avalanche_vlm.testing import check_documented, check_latent_generator

SMALL = {"passes": 2, "hidden": 8, "diffusion_steps": 5}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def classes_of(count, ids, width=6, seed=0):
    g = generator(100)
    means, mixing = 2 * torch.randn(20, width, generator=g), torch.randn(width, width, generator=g)
    labels = torch.tensor(list(ids)).repeat_interleave(count)
    return means[labels] + torch.randn(len(labels), width, generator=generator(seed)) @ mixing, labels


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_laws(dtype):
    check_documented(LatentDiffusion)
    check_latent_generator(
        lambda: LatentDiffusion(passes=5, hidden=16, diffusion_steps=20, dtype=dtype, seed=3)
    )


def test_the_schedule_is_the_equation():
    signal = cosine_signal(10)
    for t in range(10):
        f = math.cos((t / 10 + 0.008) / 1.008 * math.pi / 2) ** 2
        assert float(signal[t]) == pytest.approx(f / math.cos(0.008 / 1.008 * math.pi / 2) ** 2)
    assert (signal.diff() < 0).all()
    assert 0 < float(signal[-1]) < 1e-4


class Exact:
    """The velocity of x ~ N(mean, scale²), in closed form."""

    def __init__(self, mean, scale, steps):
        self.mean, self.scale, self.signal = mean, scale, cosine_signal(steps)

    def __call__(self, x, time, conditions):
        a = float(self.signal[round(float(time[0]) * (len(self.signal) - 1))])
        variance = a * self.scale**2 + 1 - a
        clean = self.mean + a**0.5 * self.scale**2 / variance * (x - a**0.5 * self.mean)
        noise = (x - a**0.5 * clean) / (1 - a) ** 0.5
        return a**0.5 * noise - (1 - a) ** 0.5 * clean


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (2.0, 0.5), (-1.0, 1.5)])
def test_drawing_with_the_exact_velocity_gives_the_distribution(mean, scale):
    model = LatentDiffusion(diffusion_steps=100)
    x = model._denoised(Exact(mean, scale, 100), torch.zeros(5000, 4))
    assert float(x.mean()) == pytest.approx(mean, abs=0.05)
    assert float(x.std()) == pytest.approx(scale, rel=0.05)


def test_drawing_equals_the_posterior_of_the_paper():
    model, steps = LatentDiffusion(diffusion_steps=4), 4
    denoiser = Denoiser(3, 5, 1)
    denoiser.start(generator(1))
    torch.nn.init.normal_(denoiser.last.weight, generator=generator(2))
    conditions = torch.randn(2, 3, generator=generator(3))
    state = model._generator.get_state()
    drawn = model._denoised(denoiser, conditions)
    model._generator.set_state(state)
    signal = cosine_signal(steps)
    x = torch.randn(2, 3, generator=model._generator).double()
    for t in range(steps, 0, -1):
        a, b = float(signal[t]), float(signal[t - 1])
        alpha = a / b
        velocity = denoiser(x.float(), torch.full((2,), t / steps), conditions).detach().double()
        clean = math.sqrt(a) * x - math.sqrt(1 - a) * velocity
        # Equation 7 of Ho et al.
        mean = math.sqrt(b) * (1 - alpha) / (1 - a) * clean + math.sqrt(alpha) * (1 - b) / (1 - a) * x
        x = mean
        if t > 1:
            x = x + math.sqrt(1 - alpha) * torch.randn(2, 3, generator=model._generator).double()
    torch.testing.assert_close(drawn.double(), x, rtol=1e-3, atol=1e-3)


def test_untrained_it_draws_the_gaussian_of_all_classes():
    model = LatentDiffusion(passes=1, learning_rate=1e-12, hidden=8, diffusion_steps=20)
    parts = [classes_of(60, [0, 1]), classes_of(60, [2, 3], seed=1)]
    for part in parts:
        model.fit(*part)
    x, y = (torch.cat(pair) for pair in zip(*parts, strict=True))
    means = torch.stack([x[y == c].mean(dim=0) for c in range(4)])
    rest = x - means[y]
    covariance = rest.T @ rest / (240 - 4)
    drawn, labels = model.sample(range(4), 5000)
    torch.testing.assert_close(torch.cov((drawn - means[labels]).T), covariance, rtol=0.1, atol=0.15)
    torch.testing.assert_close(model.means, means)


def test_training_finds_what_is_not_normal():
    g = generator()
    sides = torch.randint(2, (400, 1), generator=g) * 2.0 - 1
    features = torch.cat([sides, torch.randn(400, 1, generator=g)], dim=1) + torch.tensor([3.0, 5.0])
    features[:, :1] += 0.1 * torch.randn(400, 1, generator=g)
    model = LatentDiffusion(passes=60, hidden=32, diffusion_steps=30, learning_rate=5e-3)
    model.fit(features, torch.zeros(400, dtype=torch.int64))
    drawn = model.sample([0], 1000)[0]
    # Of a normal variable of variance 1, 38 % are nearer than 0.5 to the mean.
    assert float(((drawn[:, 0] - 3).abs() < 0.5).float().mean()) < 0.25
    assert float(drawn[:, 0].std()) == pytest.approx(1, abs=0.2)


def test_a_class_costs_its_mean():
    model = LatentDiffusion(**SMALL)
    model.fit(*classes_of(5, [0, 1]))
    size = model.nbytes
    model.fit(*classes_of(5, [2, 3, 4]))
    assert model.nbytes - size == 3 * (6 * 4 + 2 * 8)


def test_earlier_classes_are_trained_on_by_centred_draws(monkeypatch):
    model = LatentDiffusion(**SMALL, draws_per_class=7)
    seen = []
    trained = LatentDiffusion._trained

    def recorded(self, x, conditions, denoiser):
        seen.append((x, conditions))
        return trained(self, x, conditions, denoiser)

    monkeypatch.setattr(LatentDiffusion, "_trained", recorded)
    first, second = classes_of(9, [0, 1]), classes_of(9, [5], seed=1)
    model.fit(*first)
    model.fit(*second)
    x, conditions = seen[1]
    assert len(x) == 9 + 2 * 7
    for part, component in ((slice(0, 9), 2), (slice(9, 16), 0), (slice(16, 23), 1)):
        torch.testing.assert_close(x[part].mean(dim=0), torch.zeros(6), rtol=0, atol=1e-4)
        assert float(x[part].std(dim=0).min()) > 0.05
        expected = F.layer_norm(model.means[component], (6,)).expand_as(conditions[part])
        torch.testing.assert_close(conditions[part], expected)


def test_single_samples_and_constant_dimensions_stay_finite():
    model = LatentDiffusion(**SMALL)
    features, labels = classes_of(4, [0, 1])
    features[:, 2] = 1.0
    for rows in (slice(0, 1), slice(0, 8)):
        model.fit(features[rows], labels[rows])
        drawn = model.sample(labels[rows].unique(), 20)[0]
        assert drawn.isfinite().all()
        assert float(drawn.abs().max()) < 100


def test_the_seed_decides_in_inference_mode_too():
    def draw(seed):
        model = LatentDiffusion(**SMALL, seed=seed)
        with torch.inference_mode():
            model.fit(*classes_of(5, [0, 1]))
            model.fit(*classes_of(5, [2, 3]))
            return model.sample([3, 0], 4)[0]

    before = torch.get_rng_state()
    first = draw(0)
    assert torch.equal(first, draw(0))
    assert not torch.allclose(first, draw(1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("passes", 0),
        ("batch_size", 0),
        ("hidden", 0),
        ("blocks", 0),
        ("diffusion_steps", 0),
        ("draws_per_class", 0),
        ("ridge", 0.0),
        ("learning_rate", float("nan")),
        ("dtype", "int8"),
        ("seed", -1),
    ],
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        LatentDiffusion(**{argument: value})
