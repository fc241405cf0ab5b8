"""Where seeds come from: each source against the loops that its equations say."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_vlm.memory import (
    ClassMeanSeeds,
    GeneratedSeeds,
    GradientCondition,
    KMeansSeeds,
    NoiseCondition,
    RandomSeeds,
    SeedGenerator,
    SigmaPointSeeds,
)
from avalanche_vlm.models import (
    AdaptedTextHead,
    CLIPClassifier,
    EmbeddingBackbone,
    ImageConditionedPromptHead,
    ResidualAdapter,
    TextFeatureHead,
)
from avalanche_vlm.testing import check_modes, tiny_classifier

WIDTH, NAMES = 12, list("abcdefg")


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def features_of(classes=(1, 3, 6), per_class=8, seed=0, spread=0.5):
    labels = torch.tensor(classes).repeat_interleave(per_class)
    noise = torch.randn(len(labels), WIDTH, generator=torch.Generator().manual_seed(seed))
    return F.normalize(unit(7, WIDTH, seed=5)[labels] + spread * noise / WIDTH**0.5, dim=1), labels


def classifier(image_adapter=True, head=None):
    text = TextFeatureHead(unit(7, WIDTH, seed=8))
    model = CLIPClassifier(
        EmbeddingBackbone(WIDTH, logit_scale=20.0),
        text if head is None else head(text),
        class_names=NAMES,
        image_adapter=ResidualAdapter() if image_adapter else None,
    )
    with torch.no_grad():  # adapters that have learned something
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def shuffled(x, y):
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(3))
    return x[order], y[order]


# Those that ask no model.


def test_class_means_are_means_on_the_sphere():
    x, y = shuffled(*features_of())
    found = ClassMeanSeeds().make(None, x, y)
    assert found.labels.tolist() == [1, 3, 6]
    assert found.textual is None
    for label, seed in zip(found.labels, found.visual, strict=True):
        total = sum(row.double() for row, own in zip(x, y, strict=True) if own == label)
        torch.testing.assert_close(seed.double(), total / total.norm(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 3])
def test_k_means_are_the_centres_of_what_lies_nearest_to_them(count):
    x, y = shuffled(*features_of(per_class=20))
    found = KMeansSeeds(count).make(None, x, y)
    assert found.labels.tolist() == [label for label in (1, 3, 6) for _ in range(count)]
    for label in (1, 3, 6):
        own, seeds = x[y == label].double(), found.visual[found.labels == label].double()
        nearest = [max(range(count), key=lambda k: float(row @ seeds[k])) for row in own]
        for k in range(count):
            total = sum(row for row, each in zip(own, nearest, strict=True) if each == k)
            # Centres before the normalisation divide the features a little otherwise.
            assert float(seeds[k] @ total / total.norm()) > 0.97
    assert torch.equal(found.visual, KMeansSeeds(count).make(None, x, y).visual)


def test_groups_of_separate_features_are_found():
    centres = unit(3, WIDTH)
    x = F.normalize(centres.repeat(10, 1) + 0.01 * unit(30, WIDTH, seed=1), dim=1)
    found = KMeansSeeds(3).make(None, x, torch.zeros(30, dtype=torch.int64)).visual
    assert (found @ centres.T).amax(dim=0).min() > 0.999


def test_no_more_seeds_than_different_features():
    x = unit(2, WIDTH)[[0, 0, 1, 0]]
    found = KMeansSeeds(4).make(None, torch.cat([x, unit(1, WIDTH, seed=4)]), torch.tensor([2, 2, 2, 2, 5]))
    assert found.labels.tolist() == [2, 2, 5]


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_sigma_points_have_the_mean_and_the_leading_covariance(rank):
    generator = torch.Generator().manual_seed(0)
    mean = unit(1, WIDTH).double()
    scales = torch.tensor([2.0**-each for each in range(WIDTH)], dtype=torch.float64)
    offsets = 1e-2 * scales * torch.randn(9, WIDTH, generator=generator, dtype=torch.float64)
    offsets = offsets - (offsets @ mean.T) * mean  # tangent to the sphere, where its bend does not count
    x = F.normalize(mean + offsets, dim=1)
    seeds = SigmaPointSeeds(rank).make(None, x, torch.zeros(9, dtype=torch.int64)).visual
    assert seeds.shape == (2 * rank, WIDTH)
    centre = sum(x) / 9
    torch.testing.assert_close(sum(seeds) / len(seeds), centre, atol=1e-3, rtol=0)
    covariance = sum(torch.outer(row - centre, row - centre) for row in x) / 9
    values, vectors = torch.linalg.eigh(covariance)
    leading = sum(values[-k] * torch.outer(vectors[:, -k], vectors[:, -k]) for k in range(1, rank + 1))
    middle = sum(seeds) / len(seeds)
    found = sum(torch.outer(row - middle, row - middle) for row in seeds) / len(seeds)
    torch.testing.assert_close(found, leading, atol=2e-2 * float(values[-1]), rtol=0)


def test_sigma_points_of_few_features_are_few():
    x = unit(4, WIDTH)
    found = SigmaPointSeeds(3).make(None, x, torch.tensor([4, 4, 2, 4]))
    assert found.labels.tolist() == [2, 4, 4, 4, 4]
    assert torch.equal(found.visual[0], x[2])


def test_random_seeds_are_spread_over_the_sphere_and_go_on_from_their_state():
    x, y = features_of()
    source = RandomSeeds(2000, seed=4)
    found = source.make(None, x, y)
    assert found.labels.bincount().tolist() == [0, 2000, 0, 2000, 0, 0, 2000]
    torch.testing.assert_close(found.visual.norm(dim=1), torch.ones(6000))
    assert found.visual.mean(dim=0).norm() < 0.05
    torch.testing.assert_close(
        found.visual.T @ found.visual / 6000, torch.eye(WIDTH) / WIDTH, atol=6e-3, rtol=0
    )
    other = RandomSeeds(2000)
    other.load_state_dict(source.state_dict())
    assert torch.equal(other.make(None, x, y).visual, source.make(None, x, y).visual)
    with pytest.raises(ValueError, match="that of a RandomSeeds"):
        other.load_state_dict({})


# Conditions.


def conditions(condition, seeds=4, per_class=8, spread=0.5):
    x, y = features_of(per_class=per_class, spread=spread)
    positions = torch.searchsorted(torch.tensor([1, 3, 6]), y)
    weights = unit(3, WIDTH, seed=6)
    return x, positions, weights, condition(x, positions, weights, 20.0, seeds, torch.Generator())


@pytest.mark.parametrize("groups", [None, 1, 2, 3])
def test_conditions_are_gradients_of_groups_in_turn(groups):
    x, positions, weights, found = conditions(GradientCondition(temperature=2.0, groups=groups))
    sizes, used = groups or 4, found.group_of
    assert found.values.shape == (3, 4, 2 * WIDTH)
    assert used.tolist() == [-1] * 24 if sizes == 1 else set(used.tolist()) == set(range(sizes))
    w = weights.double().requires_grad_()
    for position in range(3):
        for place in range(4):
            mask = positions == position
            rows = x[mask & (used == place % sizes)] if sizes > 1 else x[mask]
            own = rows.double().requires_grad_()
            loss = F.cross_entropy(10.0 * own @ w.T, torch.full((len(own),), position))
            of_text, of_images = torch.autograd.grad(loss, [w, own])
            expected = [F.normalize(-of_text[position], dim=0), F.normalize(-of_images.sum(dim=0), dim=0)]
            torch.testing.assert_close(
                found.values[position, place].double(), torch.cat(expected), atol=1e-5, rtol=0
            )


def test_noise_is_told_of_no_feature():
    first, second = (conditions(NoiseCondition(), spread=spread)[-1] for spread in (0.1, 2.0))
    assert torch.equal(first.values, second.values)
    assert set(first.group_of.tolist()) == {-1}
    torch.testing.assert_close(first.values.reshape(3, 4, 2, WIDTH).norm(dim=3), torch.ones(3, 4, 2))


# Those that a network makes.


def made(model=None, validation=None, pair=None, **arguments):
    source = GeneratedSeeds(3, **arguments)
    x, y = shuffled(*features_of()) if pair is None else pair
    return source, source.make(classifier() if model is None else model, x, y, validation)


def test_without_steps_seeds_are_gradients_of_groups_and_texts():
    model, condition = classifier(head=lambda text: AdaptedTextHead(text)), GradientCondition()
    source, found = made(model, steps=0, condition=condition)
    x, y = shuffled(*features_of())
    classes, positions = y.unique(return_inverse=True)
    with torch.no_grad():
        weights = F.normalize(model.head(model.backbone, classes), dim=1)
        frozen = F.normalize(model.head.frozen_text(model.backbone, classes), dim=1)
    scale = float(model.backbone.logit_scale)
    given = condition(x, positions, weights, scale, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.visual, given.values[..., :WIDTH].flatten(0, 1))
    torch.testing.assert_close(found.textual, frozen.repeat_interleave(3, dim=0))
    assert found.labels.tolist() == [1, 1, 1, 3, 3, 3, 6, 6, 6]
    assert not found.visual.requires_grad
    assert source.network is None
    assert source.nbytes == 0


def definition_by_the_loop(found, x, y, text, group_of):
    near, texts = 0.0, 0.0
    for row, label, group in zip(x, y, group_of, strict=True):
        own = found.visual[found.labels == label]
        cosines = [float(row @ seed) for seed in own]
        near += (1 - (sum(cosines) / len(cosines) if group < 0 else cosines[group])) / len(x)
    for seed, label in zip(found.textual, found.labels, strict=True):
        texts += (1 - float(seed @ text[label])) / len(found.textual)
    return near + texts


@pytest.mark.parametrize("condition", [NoiseCondition(), GradientCondition(temperature=1.0, groups=1)])
def test_steps_bring_seeds_nearer_to_what_they_stand_for(condition):
    x, y = features_of()
    losses = []
    for steps in (0, 10, 60):
        _, found = made(steps=steps, condition=condition, pair=(x, y))
        losses.append(definition_by_the_loop(found, x, y, unit(7, WIDTH, seed=8), [-1] * len(x)))
    assert losses[0] > losses[1] > losses[2]


def test_the_loss_of_the_definition_is_that_of_the_loop():
    source, (x, y), model = GeneratedSeeds(3), features_of(), classifier()
    experience = source._experience(model, x, y, None)
    assert set(experience.group_of.tolist()) == {0, 1, 2}
    visual, textual = unit(3, 3, WIDTH, seed=1), unit(3, 3, WIDTH, seed=2)
    labels = torch.tensor([1, 3, 6]).repeat_interleave(3)
    found = type(ClassMeanSeeds().make(None, x, y))(visual.flatten(0, 1), labels, textual.flatten(0, 1))
    expected = definition_by_the_loop(found, x, y, unit(7, WIDTH, seed=8), experience.group_of.tolist())
    assert float(source._loss(experience, visual, textual)) == pytest.approx(2 * expected, rel=1e-5)


def test_terms_of_gradients_are_those_of_the_equations():
    x, y = features_of()
    held_out, model = features_of(seed=9, per_class=2), classifier()
    classes, positions = torch.tensor([1, 3, 6]), torch.searchsorted(torch.tensor([1, 3, 6]), y)
    visual = unit(3, 3, WIDTH, seed=1)
    seeds, own = visual.flatten(0, 1), torch.arange(3).repeat_interleave(3)
    parameters = list(model.parameters())

    def gradients(features, right):
        return torch.autograd.grad(F.cross_entropy(model(features)[:, classes], right), parameters)

    of_seeds, wanted = gradients(seeds, own), gradients(x, positions)
    cosines = [float((a * b).sum() / a.norm() / b.norm()) for a, b in zip(of_seeds, wanted, strict=True)]
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, step in zip(parameters, of_seeds, strict=True):
            parameter.sub_(0.5 * step)
        right = torch.searchsorted(classes, held_out[1])
        outer = float(F.cross_entropy(model(held_out[0])[:, classes], right))
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    for weights, expected in (((1.0, 0.0), 1 - sum(cosines) / len(cosines)), ((0.0, 1.0), outer)):
        source = GeneratedSeeds(
            3, definition_weight=0, matching_weight=weights[0], outer_weight=weights[1], inner_rate=0.5
        )
        experience = source._experience(model, x, y, held_out)
        assert float(source._loss(experience, visual, visual).detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("extra", ["contrast_weight", "matching_weight", "outer_weight"])
@pytest.mark.parametrize("adapter", ["image", "text", "both"])
def test_each_term_changes_the_seeds(extra, adapter):
    held_out = features_of(seed=9, per_class=2)

    def make(**arguments):
        head = None if adapter == "image" else AdaptedTextHead
        return made(classifier(adapter != "text", head), held_out, steps=5, **arguments)[1]

    plain, found = make(), make(**{extra: 5.0})
    assert bool(found.visual.isfinite().all())
    assert not torch.equal(plain.visual, found.visual)
    torch.testing.assert_close(found.visual.norm(dim=1), torch.ones(9))


def test_the_outer_term_is_left_out_without_samples_held_out():
    plain = made(steps=3)[1]
    for validation in (None, (unit(4, WIDTH), torch.tensor([0, 2, 4, 5]))):
        found = made(validation=validation, steps=3, outer_weight=5.0)[1]
        assert torch.equal(found.visual, plain.visual)


TERMS = {"contrast_weight": 1.0, "matching_weight": 1.0, "outer_weight": 1.0}


@pytest.mark.parametrize("tower", ["embeddings", "tower of text"])
def test_the_model_is_left_as_found(tower):
    model = classifier() if tower == "embeddings" else tiny_classifier(trainable="text")
    width = WIDTH if tower == "embeddings" else 16
    x, y = unit(12, width), torch.arange(12) % 3
    gradients = []
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
        gradients.append(parameter.grad)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def call():
        GeneratedSeeds(2, steps=2, **TERMS).make(model, x, y, (x, y))

    check_modes(call, [model])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert parameter.grad is gradient
        assert bool((gradient == 1).all())


def test_a_caller_in_inference_mode_gets_the_same_seeds():
    model, expected = classifier(), made(steps=3, validation=features_of(seed=9), **TERMS)[1]
    with torch.inference_mode():
        pair, held_out = shuffled(*features_of()), features_of(seed=9)
        found = made(model, held_out, pair, steps=3, **TERMS)[1]
    assert torch.equal(found.visual.clone(), expected.visual)
    assert torch.equal(found.textual.clone(), expected.textual)


def weights_of(source):
    return [parameter.detach().clone() for parameter in source.network.parameters()]


def test_the_network_trains_in_as_many_experiences_as_it_may():
    model, source = classifier(), GeneratedSeeds(3, steps=3, meta_rate=1.0, trained_experiences=1)
    source.make(model, *features_of())
    after_one = weights_of(source)
    started = SeedGenerator(WIDTH, 3)
    assert not torch.equal(after_one[-1], list(started.parameters())[-1])
    source.make(model, *features_of(classes=(0, 2)))
    assert all(map(torch.equal, weights_of(source), after_one))
    free = GeneratedSeeds(3, steps=3, meta_rate=1.0)
    for classes in ((1, 3, 6), (0, 2)):
        free.make(model, *features_of(classes=classes))
    assert not torch.equal(weights_of(free)[-1], after_one[-1])


@pytest.mark.parametrize("trained", [0, 1])
def test_without_training_seeds_are_their_conditions(trained):
    model = classifier()
    source = GeneratedSeeds(3, steps=3, trained_experiences=trained)
    reference = GeneratedSeeds(3, steps=0)
    for number, classes in enumerate(((1, 3, 6), (0, 2))):
        pair = features_of(classes=classes)
        ours, theirs = (each.make(model, *pair).visual for each in (source, reference))
        assert torch.equal(ours, theirs) == (number >= trained)


def test_the_network_begins_the_next_experience_between_start_and_end():
    start, (half, whole) = SeedGenerator(WIDTH, 3), (made(steps=3, meta_rate=rate)[0] for rate in (0.5, 1.0))
    for first, middle, last in zip(start.parameters(), weights_of(half), weights_of(whole), strict=True):
        torch.testing.assert_close(middle, (first + last) / 2)
    assert not torch.equal(weights_of(half)[-1], weights_of(whole)[-1])
    assert made(steps=3)[0].network is None


@pytest.mark.parametrize("meta_rate", [0.0, 0.5])
def test_a_source_goes_on_from_its_state(meta_rate):
    model = classifier()

    def make():
        return GeneratedSeeds(
            3, steps=2, meta_rate=meta_rate, trained_experiences=2, condition=NoiseCondition(), seed=3
        )

    first, second = make(), make()
    first.make(model, *features_of())
    second.load_state_dict(first.state_dict())
    assert first.nbytes == second.nbytes
    assert (first.nbytes > 0) == (meta_rate > 0)
    for classes in ((0, 2), (4, 5)):
        pair = features_of(classes=classes)
        ours, theirs = first.make(model, *pair), second.make(model, *pair)
        assert torch.equal(ours.visual, theirs.visual)
        assert torch.equal(ours.textual, theirs.textual)
    with pytest.raises(ValueError, match="that of a GeneratedSeeds"):
        second.load_state_dict(KMeansSeeds().state_dict())


def test_a_state_of_a_network_of_other_sizes_is_refused_by_both():
    first, other = GeneratedSeeds(3, steps=1, meta_rate=0.5), GeneratedSeeds(2, meta_rate=0.5, hidden=16)
    first.make(classifier(), *features_of())
    with pytest.raises(ValueError, match="of 2 seeds and width 16; got one of 3 seeds and width 128"):
        other.load_state_dict(first.state_dict())


def test_models_that_have_no_gradients_of_seeds_are_refused():
    pair = features_of()
    with pytest.raises(TypeError, match="`model`.*KMeansSeeds"):
        GeneratedSeeds().make(nn.Linear(WIDTH, 7), *pair)
    model = CLIPClassifier(EmbeddingBackbone(WIDTH), TextFeatureHead(unit(7, WIDTH)), class_names=NAMES)
    with pytest.raises(ValueError, match="`matching_weight` must be 0 where nothing trains"):
        GeneratedSeeds(matching_weight=1.0).make(model, *pair)
    model = tiny_classifier(ImageConditionedPromptHead(reduction=4))
    with pytest.raises(ValueError, match="ImageConditionedPromptHead"):
        GeneratedSeeds().make(model, unit(4, 16), torch.zeros(4, dtype=torch.int64))


def test_the_network_starts_as_its_conditions_and_its_seed_decides():
    given, text = unit(3, 2, 2 * 8), unit(3, 8, seed=1)
    network = SeedGenerator(8, 2, seed=4)
    visual, textual = network(given, text)
    torch.testing.assert_close(visual, F.normalize(given[..., :8], dim=2))
    torch.testing.assert_close(textual, text[:, None].expand(3, 2, 8))
    again, other = SeedGenerator(8, 2, seed=4), SeedGenerator(8, 2, seed=5)
    assert torch.equal(network.codes, again.codes)
    assert not torch.equal(network.codes, other.codes)
    assert math.isclose(network.text_step, 0.3)
