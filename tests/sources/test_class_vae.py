import pytest
import torch
from torch import nn

from avalanche_vlm.sources.batched_layers import (
    BatchedBatchNorm,
    BatchedLinear,
    flat_weights,
    initialise,
    load_flat_weights,
)
from avalanche_vlm.sources.class_vae import ClassVAE
from avalanche_vlm.sources.fitting import grouped_rows, normalisation, shared_normalisation
from avalanche_vlm.sources.vae_networks import (
    VAEDecoder,
    VAEEncoder,
    code_divergence,
    drawn_code,
    mean_of_rows,
    negative_log_likelihood,
)
from avalanche_vlm.testing import check_documented, check_latent_generator
from tests.reference.vae_loops import PlainVAE, divergence, likelihood_loss, normalised


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def padded(classes):
    widest = max(map(len, classes))
    return torch.stack([torch.cat([c, c[-1:].expand(widest - len(c), -1)]) for c in classes])


def low_rank_classes(counts, width=24, rank=3, noise=0.1, seed=0):
    """Features whose variance lies in few directions, around means of their own."""
    g = generator(seed)
    features = [
        torch.randn(width, generator=g)
        + torch.randn(count, rank, generator=g) @ torch.randn(rank, width, generator=g)
        + noise * torch.randn(count, width, generator=g)
        for count in counts
    ]
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.cat(features), labels


# Layers


def test_linear_and_batch_norm_equal_one_network_after_another():
    linear, norm = BatchedLinear(3, 4, 5, dtype=torch.float64), BatchedBatchNorm(3, 5, dtype=torch.float64)
    initialise(linear, [generator(k) for k in range(3)])
    with torch.no_grad():
        norm.weight.normal_(generator=generator(7))
        norm.bias.normal_(generator=generator(8))
    x = torch.randn(3, 6, 4, generator=generator(1), dtype=torch.float64)
    counts = [6, 4, 2]
    inside = torch.arange(6) < torch.tensor(counts)[:, None]
    y = norm(linear(x), inside)
    for k, count in enumerate(counts):
        plain, plain_norm = nn.Linear(4, 5).double(), nn.BatchNorm1d(5).double()
        with torch.no_grad():
            plain.weight.copy_(linear.weight[k].T)
            plain.bias.copy_(linear.bias[k, 0])
            plain_norm.weight.copy_(norm.weight[k, 0])
            plain_norm.bias.copy_(norm.bias[k, 0])
        torch.testing.assert_close(y[k, :count], plain_norm(plain(x[k, :count])))


def test_batch_norm_of_one_row_is_finite():
    norm = BatchedBatchNorm(1, 3)
    y = norm(torch.full((1, 1, 3), 5.0), torch.ones(1, 1, dtype=torch.bool))
    assert torch.equal(y, norm.bias)


def test_padded_rows_have_no_part_and_do_not_overflow():
    norm = BatchedBatchNorm(1, 3)
    x = torch.tensor([[[1.0, 2.0, 3.0], [1e30, -1e30, 1e30]]])
    inside = torch.tensor([[True, False]])
    assert torch.equal(norm(x, inside), norm.bias.expand(1, 2, 3))


def test_a_network_starts_the_same_among_others_and_alone():
    many, one = BatchedLinear(3, 7, 5), BatchedLinear(1, 7, 5)
    initialise(many, [generator(k) for k in range(3)])
    initialise(one, [generator(2)])
    assert torch.equal(many.weight[2:], one.weight)
    assert torch.equal(many.bias[2:], one.bias)
    assert 0.9 * 7**-0.5 < float(many.weight.detach().abs().max()) <= 7**-0.5


def test_flat_weights_come_back():
    network, other = VAEDecoder(2, 3, 4, 5), VAEDecoder(2, 3, 4, 5)
    initialise(network, [generator(0), generator(1)])
    flat = flat_weights(network)
    assert flat.shape == (2, 3 * 4 + 4 + 4 * 4 + 4 + 4 * 5 + 5)
    load_flat_weights(other, flat)
    x = torch.randn(2, 6, 3, generator=generator(3))
    assert torch.equal(network(x), other(x))


def test_grouped_rows_give_each_row_once_to_its_component():
    components = torch.randint(5, (40,), generator=generator()) * 3
    seen = torch.zeros(40, dtype=torch.int64)
    for members, rows, inside in grouped_rows(components, components_at_once=2, rows_at_once=4):
        assert len(members) <= 2
        assert rows.shape[1] <= 4
        assert torch.equal(components[rows], members[:, None].expand_as(rows))
        seen.index_add_(0, rows[inside], torch.ones_like(rows[inside]))
    assert torch.equal(seen, torch.ones_like(seen))


# Terms of the loss


def test_terms_equal_loops():
    g = generator()
    mean, log_variance, x, decoded = (
        torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(4)
    )
    log_scale = torch.randn(4, generator=g, dtype=torch.float64)
    kl = code_divergence(mean, log_variance)
    unit = negative_log_likelihood(x, decoded)
    scaled = negative_log_likelihood(x, decoded, log_scale)
    for k in range(2):
        for i in range(3):
            torch.testing.assert_close(kl[k, i], divergence(mean[k, i], log_variance[k, i]))
            torch.testing.assert_close(unit[k, i], likelihood_loss(x[k, i], decoded[k, i]))
            torch.testing.assert_close(scaled[k, i], likelihood_loss(x[k, i], decoded[k, i], log_scale))
    normal = torch.distributions.Normal(decoded, log_scale.exp().expand_as(decoded))
    torch.testing.assert_close(scaled, -normal.log_prob(x).sum(dim=-1))


def test_the_noise_of_a_code_is_what_its_name_says():
    mean, log_variance, noise = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([0.5])
    one = torch.tensor(1.0)
    assert drawn_code(mean, log_variance, noise, "deviation") == 1 + 0.5 * one.exp()
    assert drawn_code(mean, log_variance, noise, "variance") == 1 + 0.5 * (2 * one).exp()


def test_normalisation_equals_loops_and_ignores_padding():
    classes = [torch.randn(n, 5, generator=generator(n), dtype=torch.float64) for n in (4, 9, 1)]
    classes[1][:, 2] = 3.0
    shift, scale = normalisation(padded(classes), torch.tensor([4, 9, 1]))
    for k, samples in enumerate(classes):
        torch.testing.assert_close((samples - shift[k]) / scale[k], normalised(samples))


def test_shared_scales_are_never_small_beside_each_other():
    x = torch.randn(50, 4, generator=generator())
    x[:, 1] = 2.0
    shift, scale = shared_normalisation(x)
    torch.testing.assert_close(shift, x.mean(dim=0))
    torch.testing.assert_close(scale[[0, 2, 3]], x[:, [0, 2, 3]].std(dim=0, correction=0))
    assert float(scale[1]) > 0.05
    assert float(shared_normalisation(torch.full((1, 4), 3.0))[1].min()) == 3.0
    assert float(shared_normalisation(torch.zeros(1, 4))[1].min()) > 0


# Training


def batches_of(counts, batch_size, latent, passes, seed):
    """Return the padded batches of all classes, and those (rows, noise) of each."""
    g, widest = generator(seed), max(counts)
    steps, alone = [], [[] for _ in counts]
    for _ in range(passes):
        orders = [torch.randperm(count, generator=g) for count in counts]
        for start in range(0, widest, batch_size):
            width = min(batch_size, widest - start)
            rows = torch.zeros(len(counts), width, dtype=torch.int64)
            inside = torch.zeros(len(counts), width, dtype=torch.bool)
            noise = torch.randn(len(counts), width, latent, generator=g, dtype=torch.float64)
            for k, order in enumerate(orders):
                mine = order[start : start + batch_size]
                rows[k, : len(mine)], inside[k, : len(mine)] = mine, True
                alone[k].append((mine, noise[k, : len(mine)]))
            steps.append((rows, noise, inside))
    return steps, alone


@pytest.mark.parametrize("noise_scale", ["deviation", "variance"])
def test_training_side_by_side_equals_plain_ones(monkeypatch, noise_scale):
    width, hidden, latent, counts, passes = 4, 5, 2, [6, 8, 7], 10
    classes = [
        torch.randn(n, width, generator=generator(n), dtype=torch.float64) * (k + 1) + k
        for k, n in enumerate(counts)
    ]
    steps, alone = batches_of(counts, 4, latent, passes, seed=5)
    monkeypatch.setattr(ClassVAE, "_batches", lambda self, *args: iter(steps))
    vae = ClassVAE(
        passes=passes, batch_size=4, hidden=hidden, latent=latent, learning_rate=0.01, noise_scale=noise_scale
    )
    taken = []
    decoders, _, _ = vae._fit_group(
        padded(classes), torch.tensor(counts), [generator(k) for k in range(3)], lambda: taken.append(1)
    )
    assert len(taken) == 2 * passes
    for k, samples in enumerate(classes):
        encoder = VAEEncoder(1, width, hidden, latent, dtype=torch.float64)
        decoder = VAEDecoder(1, latent, hidden, width, dtype=torch.float64)
        start = generator(k)
        initialise(encoder, [start])
        initialise(decoder, [start])
        plain = PlainVAE(width, hidden, latent)
        ours = [m for net in (encoder, decoder) for m in net.modules() if isinstance(m, BatchedLinear)]
        with torch.no_grad():
            for mine, theirs in zip(ours, plain.linears(), strict=True):
                theirs.weight.copy_(mine.weight[0].T)
                theirs.bias.copy_(mine.bias[0, 0])
        before = flat_weights(decoder)[0]
        official = noise_scale == "variance"
        plain.train(samples, alone[k], rate=0.01, first_cycle=1, steps_per_pass=2, official=official)
        after = [
            part for m in plain.linears()[3:] for part in (m.weight.detach().T.flatten(), m.bias.detach())
        ]
        torch.testing.assert_close(decoders[k], torch.cat(after), rtol=1e-6, atol=1e-8)
        assert (decoders[k] - before).abs().mean() > 0.005


def test_loss_and_gradients_of_a_step_equal_plain_ones():
    width, hidden, latent, counts = 4, 6, 2, [3, 5]
    networks = [PlainVAE(width, hidden, latent) for _ in counts]
    encoder = VAEEncoder(2, width, hidden, latent, dtype=torch.float64)
    decoder = VAEDecoder(2, latent, hidden, width, dtype=torch.float64)
    initialise(encoder, [generator(1), generator(2)])
    initialise(decoder, [generator(3), generator(4)])
    ours = [m for net in (encoder, decoder) for m in net.modules() if isinstance(m, BatchedLinear)]
    x = torch.randn(2, 5, width, generator=generator(5), dtype=torch.float64)
    noise = torch.randn(2, 5, latent, generator=generator(6), dtype=torch.float64)
    inside = torch.arange(5) < torch.tensor(counts)[:, None]
    mean, log_variance = encoder(x, inside)
    decoded = decoder(drawn_code(mean, log_variance, noise, "deviation"))
    losses = mean_of_rows(negative_log_likelihood(x, decoded) + code_divergence(mean, log_variance), inside)
    losses.sum().backward()
    for k, (count, plain) in enumerate(zip(counts, networks, strict=True)):
        with torch.no_grad():
            for mine, theirs in zip(ours, plain.linears(), strict=True):
                theirs.weight.copy_(mine.weight[k].T)
                theirs.bias.copy_(mine.bias[k, 0])
        loss = plain.loss(x[k, :count], noise[k, :count], official=False)
        torch.testing.assert_close(losses[k], loss)
        weights = [m.weight for m in plain.linears()]
        for mine, gradient in zip(ours, torch.autograd.grad(loss, weights), strict=True):
            torch.testing.assert_close(mine.weight.grad[k], gradient.T)


def test_batches_are_passes_over_each_class():
    vae = ClassVAE(passes=20, batch_size=4, latent=2)
    counts = torch.tensor([6, 8])
    generators = [generator(k) for k in range(2)]
    batches = list(vae._batches(counts, 2, generators, torch.float32))
    assert len(batches) == 40
    orders = set()
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        rows, noise, inside = (torch.cat(pair, dim=1) for pair in zip(first, second, strict=True))
        for k, count in enumerate(counts.tolist()):
            assert sorted(rows[k][inside[k]].tolist()) == list(range(count))
            assert noise[k][inside[k]].unique().numel() == 2 * count
        orders.add(tuple(rows[1].tolist()))
    assert len(orders) > 15


@pytest.mark.parametrize("counts", [[3, 9, 5, 4, 1, 12], [4, 4, 4]])
def test_classes_do_not_influence_each_other(counts):
    features, labels = low_rank_classes(counts, width=6)
    arguments = {"passes": 4, "batch_size": 4, "hidden": 8, "latent": 3}
    together, alone = ClassVAE(**arguments), ClassVAE(classes_at_once=1, **arguments)
    together.fit(features, labels)
    alone.fit(features, labels)
    torch.testing.assert_close(together.decoder, alone.decoder, rtol=1e-4, atol=1e-6)
    # Other features of the last class: the others stay, and it does not.
    other = ClassVAE(**arguments)
    other.fit(torch.where((labels == len(counts) - 1)[:, None], features**2, features), labels)
    torch.testing.assert_close(other.decoder[:-1], together.decoder[:-1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(other.decoder[-1], together.decoder[-1], rtol=1e-4, atol=1e-6)


def test_number_of_steps_is_that_of_each_class_alone():
    vae = ClassVAE(batch_size=4, classes_at_once=2)
    counts = torch.tensor([9, 4, 1, 12, 5, 2, 10])
    groups = [sorted(counts[group].tolist()) for group in vae._groups(counts)]
    # What is left over after full batches is not read if it is a single row: 5 is as 4, 9 as 8.
    assert groups == [[1, 2], [4, 5], [9], [10, 12]]


@pytest.mark.parametrize("batch_size", [2, 4, 7])
@pytest.mark.parametrize("beside", [0, 1])
def test_no_batch_has_a_single_row(batch_size, beside):
    vae = ClassVAE(passes=40, batch_size=batch_size, latent=2)
    count = 3 * batch_size + 1
    counts = torch.tensor([count, count - 1][: 1 + beside])
    assert len(vae._groups(counts)) == 1
    generators = [generator(k) for k in range(len(counts))]
    batches = list(vae._batches(counts, 3, generators, torch.float32))
    assert len(batches) == 3 * 40
    assert all(inside[0].all() and len(inside[0]) == batch_size for _, _, inside in batches)
    read = [torch.cat([rows[0] for rows, _, _ in batches[first : first + 3]]) for first in range(0, 120, 3)]
    assert all(len(rows.unique()) == count - 1 for rows in read)
    # Another one stays out in each pass, so that all are seen.
    left_out = {(set(range(count)) - set(rows.tolist())).pop() for rows in read}
    assert len(left_out) > count / 2


def test_a_last_row_alone_takes_no_step_of_a_plain_network():
    width, hidden, latent, count, passes = 4, 5, 2, 9, 6
    samples = torch.randn(count, width, generator=generator(1), dtype=torch.float64)
    vae = ClassVAE(passes=passes, batch_size=4, hidden=hidden, latent=latent, learning_rate=0.01)
    counts = torch.tensor([count])
    decoder = vae._fit_group(samples[None], counts, [generator(2)], lambda: None)[0][0]
    # The same random numbers once more: those of the start, and then those of the batches.
    start = generator(2)
    encoder = VAEEncoder(1, width, hidden, latent, dtype=torch.float64)
    first = VAEDecoder(1, latent, hidden, width, dtype=torch.float64)
    initialise(encoder, [start])
    initialise(first, [start])
    plain = PlainVAE(width, hidden, latent)
    ours = [m for net in (encoder, first) for m in net.modules() if isinstance(m, BatchedLinear)]
    with torch.no_grad():
        for mine, theirs in zip(ours, plain.linears(), strict=True):
            theirs.weight.copy_(mine.weight[0].T)
            theirs.bias.copy_(mine.bias[0, 0])
    ahead = 8  # passes whose numbers are drawn at once, at two steps a pass
    keys = torch.rand(ahead, count, generator=start)
    noise = torch.randn(ahead, count, latent, generator=start, dtype=torch.float64)
    batches = []
    for order, drawn in zip(keys[:passes].argsort(dim=1), noise, strict=False):
        for begin in range(0, count, 4):
            rows = order[begin : begin + 4]
            if len(rows) > 1:  # the rule
                batches.append((rows, drawn[begin : begin + 4]))
    assert len(batches) == 2 * passes
    plain.train(samples, batches, rate=0.01, first_cycle=1, steps_per_pass=2)
    after = [p for m in plain.linears()[3:] for p in (m.weight.detach().T.flatten(), m.bias.detach())]
    torch.testing.assert_close(decoder, torch.cat(after), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batch_size", [8, 16])
def test_one_more_sample_than_full_batches_does_not_narrow_the_draws(batch_size):
    spreads, (whole, _) = [], low_rank_classes([4 * batch_size + 1], width=6)
    for features in (whole[:-1], whole):
        # The same class five times, from five starts, because one network's spread is a matter of luck too.
        vae = ClassVAE(passes=120, batch_size=batch_size, hidden=32, latent=4, learning_rate=3e-3)
        vae.fit(features.repeat(5, 1), torch.arange(5).repeat_interleave(len(features)))
        drawn, _ = vae.sample([0, 1, 2, 3, 4], 300)
        spreads.append(float((drawn.unflatten(0, (5, 300)).std(dim=1) / features.std(dim=0)).mean()))
    assert spreads[1] == pytest.approx(spreads[0], rel=0.1), spreads


def test_batches_of_one_are_refused():
    with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 2"):
        ClassVAE(batch_size=1)


# Draws


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_laws(dtype):
    check_documented(ClassVAE)
    check_latent_generator(
        lambda: ClassVAE(passes=30, hidden=16, latent=4, learning_rate=5e-3, dtype=dtype, seed=3)
    )


def test_draws_have_the_statistics_of_the_features():
    features, labels = low_rank_classes([60, 40, 80])
    vae = ClassVAE(passes=200, hidden=32, latent=8, learning_rate=5e-3, batch_size=64)
    vae.fit(features, labels)
    drawn, drawn_labels = vae.sample(range(3), 400)
    for c in range(3):
        real, ours = features[labels == c], drawn[drawn_labels == c]
        assert torch.cosine_similarity(real.mean(dim=0), ours.mean(dim=0), dim=0) > 0.95
        ratio = ours.std(dim=0) / real.std(dim=0)
        assert 0.75 < float(ratio.median()) < 1.25
        assert float(((ratio - 1).abs() < 0.25).float().mean()) > 0.8


def test_a_draw_is_decoded_and_put_back_to_scale():
    features, labels = low_rank_classes([5, 7], width=6)
    vae = ClassVAE(passes=2, hidden=8, latent=3)
    vae.fit(features, labels)
    components = torch.tensor([1, 0, 1, 1])
    state = vae.state_dict()
    drawn = vae._sample(components)
    vae.load_state_dict(state)
    codes = torch.randn(4, 3, generator=vae._generator)
    for code, component, row in zip(codes, components, drawn, strict=True):
        weights = vae.decoder[component].split([24, 8, 64, 8, 48, 6])
        h = torch.nn.functional.leaky_relu(code @ weights[0].view(3, 8) + weights[1], 0.2)
        h = torch.nn.functional.leaky_relu(h @ weights[2].view(8, 8) + weights[3], 0.2)
        decoded = h @ weights[4].view(8, 6) + weights[5]
        torch.testing.assert_close(row, vae.shift[component] + vae.scale[component] * decoded)


def test_observation_noise_is_that_of_the_likelihood():
    features, labels = low_rank_classes([30], width=6)
    plain, noisy = (ClassVAE(passes=2, hidden=8, latent=3, observation_noise=noise) for noise in (0.0, 1.0))
    for vae in (plain, noisy):
        vae.fit(features, labels)
    components = torch.zeros(4000, dtype=torch.int64)
    noise = (noisy._sample(components) - plain._sample(components)) / plain.scale
    torch.testing.assert_close(noise.std(dim=0), torch.ones(6), rtol=0.05, atol=0)
    torch.testing.assert_close(noise.mean(dim=0), torch.zeros(6), rtol=0, atol=0.07)


def test_single_samples_and_constant_dimensions_stay_finite():
    features, labels = low_rank_classes([1, 65, 2], width=6)
    features[:, 3] = 7.0
    for dtype in ("float32", "float16"):
        vae = ClassVAE(passes=3, hidden=8, latent=3, dtype=dtype)
        vae.fit(features, labels)
        drawn, drawn_labels = vae.sample([0, 1, 2], 5)
        assert drawn.isfinite().all()
        torch.testing.assert_close(drawn[:, 3], torch.full((15,), 7.0), rtol=1e-4, atol=0)
        single = features[labels == 0].expand(5, -1)
        torch.testing.assert_close(drawn[drawn_labels == 0], single, rtol=1e-3, atol=1e-3)


def test_the_seed_decides_and_half_precision_is_near():
    features, labels = low_rank_classes([20, 30], width=6)

    def draw(**arguments):
        vae = ClassVAE(passes=3, hidden=8, latent=3, **arguments)
        with torch.inference_mode():
            vae.fit(features, labels)
            return vae, vae.sample([1, 0], 9)[0]

    (vae, first), (_, again), (_, other) = draw(), draw(), draw(seed=1)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    half, near = draw(dtype="float16")
    torch.testing.assert_close(near, first, rtol=0, atol=0.05)
    assert half.decoder.dtype == half.scale.dtype == torch.float16
    ids = 2 * 2 * 8
    assert vae.nbytes - ids == 2 * (half.nbytes - ids)
    assert not hasattr(vae, "encoder")


def test_global_random_numbers_are_left_alone():
    features, labels = low_rank_classes([4, 5], width=6)
    before = torch.get_rng_state()
    vae = ClassVAE(passes=2, hidden=8, latent=3)
    vae.fit(features, labels)
    vae.sample([0, 1], 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("passes", 0),
        ("batch_size", 0),
        ("hidden", 0),
        ("latent", 1.5),
        ("learning_rate", 0.0),
        ("noise_scale", "official"),
        ("observation_noise", -1.0),
        ("classes_at_once", 0),
        ("dtype", "float8"),
        ("seed", -1),
    ],
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        ClassVAE(**{argument: value})
