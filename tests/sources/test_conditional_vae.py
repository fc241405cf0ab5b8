import copy

import pytest
import torch

from avalanche_vlm.sources.batched_layers import flat_weights
from avalanche_vlm.sources.conditional_vae import ConditionalVAE
from avalanche_vlm.testing import check_documented, check_latent_generator
from tests.reference.vae_loops import divergence, likelihood_loss

SMALL = {"passes": 3, "hidden": 8, "latent": 3, "condition_dim": 4}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def classes_of(count, ids, width=12, seed=0):
    """Classes with means of their own and three common directions of variance."""
    g = generator(100)
    means, directions = 2 * torch.randn(20, width, generator=g), torch.randn(3, width, generator=g)
    g = generator(seed)
    labels = torch.tensor(list(ids)).repeat_interleave(count)
    within = torch.randn(len(labels), 3, generator=g) @ directions
    return means[labels] + within + 0.2 * torch.randn(len(labels), width, generator=g), labels


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_laws(dtype):
    check_documented(ConditionalVAE)
    check_latent_generator(
        lambda: ConditionalVAE(
            passes=80, hidden=32, latent=4, condition_dim=8, learning_rate=2e-2, dtype=dtype, seed=3
        )
    )


def test_the_bound_equals_loops():
    vae = ConditionalVAE(**SMALL)
    features, labels = classes_of(5, [0, 1], width=6)
    vae.fit(features, labels)
    encoder, decoder, log_scale = vae._networks(6)
    x, condition = torch.randn(4, 6, generator=generator(1)), torch.randn(4, 4, generator=generator(2))
    state = vae._generator.get_state()
    bound = vae._bound(encoder, decoder, log_scale, x, condition)
    vae._generator.set_state(state)
    noise = torch.randn(1, 4, 3, generator=vae._generator)[0].double()
    mean, log_variance = encoder(torch.cat([x, condition], 1)[None], torch.ones(1, 4, dtype=torch.bool))
    mean, log_variance = mean[0].detach().double(), log_variance[0].detach().double()
    total = 0.0
    for i in range(4):
        code = mean[i] + noise[i] * torch.exp(log_variance[i] / 2)
        decoded = decoder(torch.cat([code.float(), condition[i]])[None, None])[0, 0].detach().double()
        total += likelihood_loss(x[i].double(), decoded, log_scale.detach().double())
        total += divergence(mean[i], log_variance[i])
    torch.testing.assert_close(bound.detach().double(), total / 4, rtol=1e-5, atol=1e-5)


def test_a_replayed_draw_has_its_code():
    vae = ConditionalVAE(**SMALL, batch_size=4000)
    features, labels = classes_of(5, [0, 1], width=6)
    vae.fit(features, labels)
    decoder = vae._loaded_decoder(6)
    codes, drawn = vae._replayed(decoder)
    residual = (drawn - decoder(codes)[0].detach()) / vae.log_scale.exp()
    torch.testing.assert_close(residual.std(dim=0), torch.ones(6), rtol=0.06, atol=0)
    torch.testing.assert_close(codes[0, :, :3].std(dim=0), torch.ones(3), rtol=0.06, atol=0)
    rows = {tuple(row) for row in codes[0, :, 3:].tolist()}
    assert rows == {tuple(row) for row in vae.embedding.tolist()}


def fitted(**arguments):
    vae = ConditionalVAE(**{"passes": 150, "hidden": 32, "latent": 4, "condition_dim": 8, **arguments})
    for first in (0, 3):
        vae.fit(*classes_of(60, range(first, first + 3), seed=first))
    return vae


def test_draws_have_the_statistics_of_all_classes_after_two_experiences():
    vae = fitted(learning_rate=5e-3)
    features, labels = classes_of(60, range(6), seed=9)
    drawn, drawn_labels = vae.sample(range(6), 300)
    for c in range(6):
        real, ours = features[labels == c], drawn[drawn_labels == c]
        assert torch.cosine_similarity(real.mean(dim=0), ours.mean(dim=0), dim=0) > 0.95
        assert 0.75 < float((ours.std(dim=0) / real.std(dim=0)).median()) < 1.25


def test_without_replay_the_first_classes_are_lost(monkeypatch):
    def error_of_first(vae):
        drawn, drawn_labels = vae.sample(range(3), 200)
        features, labels = classes_of(60, range(3), seed=9)
        return sum(
            float((drawn[drawn_labels == c].mean(0) - features[labels == c].mean(0)).norm()) for c in range(3)
        )

    kept = error_of_first(fitted(learning_rate=5e-3))

    def no_replay(self, decoder):
        codes = torch.randn(1, 4, 12, generator=self._generator)
        # Draws that ask nothing of the decoder: they are what it gives.
        return codes, self._current(codes)

    trained = {}
    networks = ConditionalVAE._networks

    def remembered(self, width):
        trained["networks"] = networks(self, width)
        return trained["networks"]

    monkeypatch.setattr(ConditionalVAE, "_networks", remembered)
    monkeypatch.setattr(
        ConditionalVAE,
        "_current",
        lambda self, codes: trained["networks"][1](codes)[0].detach(),
        raising=False,
    )
    monkeypatch.setattr(ConditionalVAE, "_replayed", no_replay)
    assert error_of_first(fitted(learning_rate=5e-3)) > 3 * kept


def test_a_class_costs_its_vector_and_earlier_vectors_stay():
    vae = ConditionalVAE(**SMALL)
    vae.fit(*classes_of(5, [0, 1]))
    size, first = vae.nbytes, vae.embedding.clone()
    vae.fit(*classes_of(5, [2, 3, 4]))
    assert vae.nbytes - size == 3 * (4 * 4 + 2 * 8)
    assert torch.equal(vae.embedding[:2], first)


def test_what_is_constant_at_first_may_vary_later():
    vae = ConditionalVAE(**SMALL)
    features, labels = classes_of(6, [0, 1], width=6)
    features[:, 2] = 1.0
    vae.fit(features[:1], labels[:1])
    vae.fit(features, labels)
    vae.fit(*classes_of(6, [2, 3], width=6))
    assert vae.sample(range(4), 50)[0].isfinite().all()
    assert float(vae.sample(range(4), 50)[0].abs().max()) < 100


def test_the_seed_decides_in_inference_mode_too():
    def draw(seed):
        vae = ConditionalVAE(**SMALL, seed=seed)
        with torch.inference_mode():
            vae.fit(*classes_of(5, [0, 1]))
            vae.fit(*classes_of(5, [2, 3]))
            return vae.sample([3, 0], 4)[0]

    before = torch.get_rng_state()
    first = draw(0)
    assert torch.equal(first, draw(0))
    assert not torch.allclose(first, draw(1))
    assert torch.equal(before, torch.get_rng_state())


def test_an_interrupted_fit_resumes_from_its_state():
    vae = ConditionalVAE(**SMALL)
    vae.fit(*classes_of(5, [0, 1]))
    other = ConditionalVAE(**SMALL)
    other.load_state_dict(copy.deepcopy(vae.state_dict()))
    for each in (vae, other):
        each.fit(*classes_of(5, [2]))
    assert torch.equal(vae.decoder, other.decoder)
    assert torch.equal(flat_weights(vae._loaded_decoder(12)), vae.decoder)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("passes", 0),
        ("batch_size", 0),
        ("hidden", 0),
        ("latent", 0),
        ("condition_dim", 0),
        ("learning_rate", -1.0),
        ("dtype", "int8"),
        ("seed", 0.5),
    ],
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        ConditionalVAE(**{argument: value})
