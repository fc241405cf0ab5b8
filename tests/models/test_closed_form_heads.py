"""What every head in closed form keeps, the equations of two of them, and the random projection."""

import copy
import pickle

import numpy as np
import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from torch.optim import SGD

from avalanche_vlm.functional.exact_sums import UNIT, rounded_unit_rows
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    LogLinearFusion,
    NearestClassMeanHead,
    ProbabilityMixture,
    RandomProjection,
    RidgeRegressionHead,
    TextFeatureHead,
    TopKRescoring,
    ZeroShotHead,
)
from avalanche_vlm.models.random_projection import _cosine_of_turns
from avalanche_vlm.plugins import ClosedFormPlugin
from avalanche_vlm.strategies import ClosedForm, FineTune
from avalanche_vlm.testing import (
    TINY_CLASSES,
    TinyBackbone,
    check_modes,
    check_resumable,
    check_seeded,
    tiny_benchmark,
    tiny_classifier,
)
from avalanche_vlm.testing.running import differing, run, snapshot
from avalanche_vlm.text import ClassNames

GIVEN = LogLinearFusion(0.5)
HEADS = {
    "discriminant": lambda first=None, fusion_weight=GIVEN: GaussianDiscriminantHead(
        first, fusion_weight=fusion_weight
    ),
    "discriminant without prior": lambda first=None, fusion_weight=GIVEN: GaussianDiscriminantHead(
        first, fusion_weight=fusion_weight, mean_prior="none", prior="counts"
    ),
    "ridge": lambda first=None, fusion_weight=GIVEN: RidgeRegressionHead(first, fusion_weight=fusion_weight),
    "ridge of relu": lambda first=None, fusion_weight=GIVEN: RidgeRegressionHead(
        first, projection=RandomProjection(33, seed=1), fusion_weight=fusion_weight
    ),
    "ridge of cosine": lambda first=None, fusion_weight=GIVEN: RidgeRegressionHead(
        first, projection=RandomProjection(33, activation="cosine"), fusion_weight=fusion_weight
    ),
    "class means": lambda first=None, fusion_weight=GIVEN: NearestClassMeanHead(
        first, fusion_weight=fusion_weight
    ),
    "class means as they are": lambda first=None, fusion_weight=GIVEN: NearestClassMeanHead(
        first, normalise_first=False, fusion_weight=fusion_weight
    ),
}
EVERY = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
EMBEDDED = tiny_benchmark(embedded=tiny_classifier())
TEXT = torch.randn(6, 16, generator=torch.Generator().manual_seed(9))


def rows(count=60, seed=0, classes=6):
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, 16, generator=draw), torch.randint(0, classes, (count,), generator=draw)


def sums(head):
    own = (*head._BY_CLASS, *head._SHARED)
    return {name: getattr(head, name) for name in own}


def same_sums(one, other):
    return all(torch.equal(tensor, sums(other)[name]) for name, tensor in sums(one).items())


def classifier(make, **arguments):
    head = make(TextFeatureHead(TEXT), **arguments)
    return CLIPClassifier(EmbeddingBackbone(16), head, class_names=TINY_CLASSES).eval()


def fitted(make, **arguments):
    model = classifier(make, **arguments)
    model.head.update(*rows())
    return model


def cut(order, draw):
    """Return pieces of an order, some of them of one row, some empty."""
    ends = torch.randint(0, len(order) + 1, (5,), generator=draw).sort().values.tolist()
    return [order[a:b] for a, b in zip([0, *ends], [*ends, len(order)], strict=True)]


@EVERY
@torch.no_grad()
def test_any_order_split_and_merge_is_the_same_to_the_last_bit(make):
    x, y = rows()
    whole, probe = fitted(make), rows(seed=5)[0]
    expected = whole(probe)
    assert whole.head.counts.tolist() == y.bincount(minlength=6).tolist()
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        models = [classifier(make) for _ in range(3)]
        for piece in cut(torch.randperm(len(y), generator=draw), draw):
            model = models[int(torch.randint(0, 3, (), generator=draw))]
            model.head.update(x[piece], y[piece])
            model(probe)  # solved in between, which must not matter
        order = torch.randperm(3, generator=draw).tolist()
        model = models[order[0]]
        for other in order[1:]:
            model.head.merge(models[other].head)
        assert same_sums(model.head, whole.head), seed
        assert torch.equal(model(probe), expected), seed


@EVERY
@torch.no_grad()
def test_classes_without_rows_keep_their_probability(make):
    model, zero_shot = classifier(make), classifier(lambda first, **_: first)
    (x, y), probe = rows(classes=4), rows(seed=5)[0]
    assert torch.equal(model(probe), zero_shot(probe))
    model.head.update(x[:0], y[:0])
    assert torch.equal(model(probe), zero_shot(probe))
    model.head.update(x, y)
    assert torch.equal(model(probe)[:, 4:], zero_shot(probe)[:, 4:])
    torch.testing.assert_close(model(probe).softmax(dim=1)[:, 4:], zero_shot(probe).softmax(dim=1)[:, 4:])
    assert not torch.allclose(model(probe)[:, :4], zero_shot(probe)[:, :4], atol=1e-2)


@EVERY
@torch.no_grad()
def test_weight_zero_is_the_first_head_bit_for_bit(make):
    x, zero_shot = rows(seed=5)[0], classifier(lambda first, **_: first)
    for rule in (0, LogLinearFusion(0), ProbabilityMixture(0), TopKRescoring(3, 0)):
        assert torch.equal(fitted(make, fusion_weight=rule)(x), zero_shot(x))


@EVERY
@torch.no_grad()
def test_rows_of_one_class_and_of_no_length_are_finite(make):
    model = classifier(make)
    model.head.update(torch.zeros(2, 16), torch.tensor([2, 2]))
    assert model(rows()[0]).isfinite().all()
    model.head.update(torch.ones(1, 16), torch.tensor([2]))
    assert model(rows()[0]).isfinite().all()
    assert model(torch.zeros(1, 16)).isfinite().all()


@EVERY
@torch.no_grad()
def test_heads_of_other_names_kinds_and_arguments_are_not_merged(make):
    head = fitted(make).head
    before = {name: tensor.clone() for name, tensor in sums(head).items()}
    other = make()
    other.set_classes(ClassNames(["a", "b"]), TinyBackbone())
    with pytest.raises(ValueError, match="`other` must be .* the same class names"):
        head.merge(other)
    with pytest.raises(TypeError, match="`other`"):
        head.merge(ZeroShotHead())
    assert all(torch.equal(before[name], tensor) for name, tensor in sums(head).items())


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (
            lambda z, p=p: RidgeRegressionHead(z, projection=p),
            lambda z, q=q: RidgeRegressionHead(z, projection=q),
        )
        for p, q in [
            (RandomProjection(16), None),
            (RandomProjection(16), RandomProjection(16, seed=1)),
            (RandomProjection(16), RandomProjection(17)),
            (RandomProjection(16, activation="cosine"), RandomProjection(16)),
        ]
    ]
    + [(NearestClassMeanHead, lambda z: NearestClassMeanHead(z, normalise_first=False))],
)
def test_sums_of_other_features_are_not_merged(one, another):
    with pytest.raises(ValueError, match="`other` must be a head with the same arguments"):
        fitted(one).head.merge(fitted(another).head)


@EVERY
@torch.no_grad()
def test_names_that_are_added_keep_the_sums_and_others_start_anew(make):
    head = make()
    backbone = TinyBackbone()
    head.set_classes(ClassNames(TINY_CLASSES), backbone)
    head.update(*rows())
    more, (x, y) = ClassNames([*TINY_CLASSES, "elk"]), rows(seed=1)
    head.set_classes(more, backbone)
    head.update(x, y + 1)
    fresh = make()
    fresh.set_classes(more, backbone)
    fresh.update(*rows())
    fresh.update(x, y + 1)
    assert same_sums(head, fresh)
    assert len(head.counts) == 7
    head.set_classes(ClassNames(["one", "two"]), backbone)
    assert not any(tensor.any() for tensor in sums(head).values())
    assert len(head.counts) == 2


@EVERY
@torch.no_grad()
def test_other_precision_leaves_the_sums_alone(make):
    model = fitted(make)
    before = {name: tensor.clone() for name, tensor in sums(model.head).items()}
    for change in ("half", "double", "bfloat16", "float"):
        getattr(model.head, change)()
        for name, tensor in sums(model.head).items():
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name])
    # The zero-shot part is rounded, and the logit scale exact in every precision.
    found, expected = (m.head.second_scores(m.backbone, rows()[0], None) for m in (model, fitted(make)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(rows()[0]).isfinite().all()


@EVERY
@torch.no_grad()
def test_saved_and_read_again(make, tmp_path):
    probe = rows(seed=5)[0]
    for index, rule in enumerate((0.7, LogLinearFusion(1.0, 0.5), ProbabilityMixture(0.4), TopKRescoring(2))):
        model = fitted(make, fusion_weight=rule)
        model.save_pretrained(str(tmp_path / f"{index}"))
        read = CLIPClassifier.from_pretrained(str(tmp_path / f"{index}")).eval()
        assert torch.equal(read(probe), model(probe))
        assert read.head.config() == model.head.config()
        read.head.update(*rows(seed=1))
        model.head.update(*rows(seed=1))
        assert torch.equal(read(probe), model(probe))


@EVERY
@torch.no_grad()
def test_copies_pickles_and_state_dicts_have_the_sums(make):
    model, probe = fitted(make), rows(seed=5)[0]
    expected = model(probe)
    assert not any("drawn" in name or "projection" in name for name in model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(probe), expected)
        other.head.update(*rows(seed=1))
        assert not torch.equal(other(probe), expected)
    assert torch.equal(model(probe), expected)
    loaded = classifier(make)
    loaded(probe)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(probe), expected)


@EVERY
@torch.no_grad()
def test_each_fault_of_rows_is_named_and_adds_nothing(make):
    head, (x, y) = fitted(make).head, rows(4)
    before = {name: tensor.clone() for name, tensor in sums(head).items()}
    for name, wrong in {
        "embeddings": ([[1.0]], y),
        "embeddings`.*shape": (x[:, :3], y),
        "embeddings`.*finite": (x / 0, y),
        "labels": (x, y.float()),
        "labels`.*one for each": (x, y[:2]),
        "labels`.*in 0..5": (x, y + 6),
    }.items():
        with pytest.raises((TypeError, ValueError), match=f"`{name}"):
            head.update(*wrong)
    assert all(torch.equal(before[name], tensor) for name, tensor in sums(head).items())
    with pytest.raises(RuntimeError, match="no names yet"):
        make().update(x, y)


# With strategies


def build(make, **arguments):
    model = tiny_classifier(make(ZeroShotHead()))
    return ClosedForm(model=model, **{"eval_mb_size": 5, "evaluator": None, **arguments})


@EVERY
def test_a_stream_ends_in_the_sums_of_all_its_rows(make):
    x = torch.stack([x for experience in EMBEDDED.train_stream for x, _, _ in experience.dataset])
    y = torch.tensor([y for experience in EMBEDDED.train_stream for _, y, _ in experience.dataset])
    whole = tiny_classifier(make(ZeroShotHead()))
    whole.head.update(x, y)
    for n_experiences, epochs in ((1, 3), (3, 1)):
        strategy = build(make, train_epochs=epochs, train_mb_size=5)
        run(strategy, tiny_benchmark(embedded=tiny_classifier(), n_experiences=n_experiences))
        assert same_sums(strategy.model.head, whole.head)
        assert strategy.model.head.counts.sum() == len(y)


@EVERY
def test_beside_replay_only_rows_of_the_experience_count(make):
    alone = build(make)
    run(alone, EMBEDDED)
    for order in (1, -1):
        plugins = [ClosedFormPlugin(), ReplayPlugin(mem_size=8)][::order]
        model = tiny_classifier(make(CosineHead(ZeroShotHead())))
        optimizer = SGD(model.parameters(), lr=0.1)
        run(FineTune(model=model, optimizer=optimizer, plugins=plugins, evaluator=None), EMBEDDED)
        assert same_sums(model.head, alone.model.head)


@EVERY
def test_laws(make):
    check_seeded(lambda: tiny_classifier(make(ZeroShotHead())))
    model = fitted(make)
    check_modes(lambda: model(rows()[0]), [model])
    strategy = build(make)
    before = snapshot(strategy.model)
    after = run(strategy, EMBEDDED)
    own = {f"head.{name}" for name in sums(strategy.model.head)}
    assert set(differing(before, after)) <= own | {"classes_seen"}

    def trains():
        model = tiny_classifier(make(CosineHead(ZeroShotHead())))
        arguments = {"plugins": [ClosedFormPlugin()], "train_mb_size": 4, "evaluator": None}
        return FineTune(model=model, optimizer=SGD(model.parameters(), lr=0.1), **arguments)

    check_resumable(trains, EMBEDDED)


# Each its own


@torch.no_grad()
def test_the_regression_is_that_of_its_equation():
    for projection in (None, RandomProjection(33), RandomProjection(33, activation="cosine")):
        head = RidgeRegressionHead(
            TextFeatureHead(TEXT), projection=projection, ridge=0.3, scale=7.0, fusion_weight=1
        )
        head.set_classes(ClassNames(TINY_CLASSES), EmbeddingBackbone(16))
        x, y = rows(classes=5)
        head.update(x, y)
        probe = rows(seed=5)[0]
        classes, found = head.second_scores(EmbeddingBackbone(16), probe, None)
        h, p = (each.double() / each.double().norm(dim=1, keepdim=True) for each in (x, probe))
        if projection is not None:
            h, p = projection(h), projection(p)
        ridge = 0.3 * float(h.square().sum()) / h.shape[1]
        stacked = np.concatenate([h.numpy(), np.sqrt(ridge) * np.eye(h.shape[1])])
        targets = np.concatenate([np.eye(5)[y.numpy()], np.zeros((h.shape[1], 5))])
        expected = 7.0 * p.numpy() @ np.linalg.lstsq(stacked, targets, rcond=None)[0]
        assert classes.tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


@pytest.mark.parametrize(("name", "value"), [("ridge", 5.0), ("scale", 3.0), ("fusion_weight", 2.0)])
@torch.no_grad()
def test_a_setting_changed_after_use_counts_at_once(name, value):
    make = HEADS["ridge of relu"]
    model, probe = fitted(make), rows(seed=5)[0]
    before = model(probe)
    setattr(model.head, name, value)
    fresh = fitted(make)
    setattr(fresh.head, name, value)
    assert not torch.allclose(model(probe), before, atol=1e-3)
    assert torch.equal(model(probe), fresh(probe))


@pytest.mark.parametrize("normalise_first", [True, False])
@torch.no_grad()
def test_scores_of_means_are_cosines(normalise_first):
    model = CLIPClassifier(
        EmbeddingBackbone(16, logit_scale=20.0),
        NearestClassMeanHead(TextFeatureHead(TEXT), normalise_first=normalise_first),
        class_names=TINY_CLASSES,
    )
    x, y = rows(classes=5)
    model.head.update(x, y)
    probe = rows(seed=5)[0]
    classes, scores = model.head.second_scores(model.backbone, probe, None)
    for column, c in enumerate(classes.tolist()):
        own = [row / row.norm() if normalise_first else row for row in x[y == c].double()]
        mean = sum(own) / len(own)
        for index, row in enumerate(probe.double()):
            cosine = float(row @ mean / (row.norm() * mean.norm()))
            assert float(scores[index, column]) == pytest.approx(20 * cosine, abs=2e-3)


def test_embeddings_too_large_for_an_exact_sum_are_refused():
    head = classifier(lambda z: NearestClassMeanHead(z, normalise_first=False)).head
    head.update(torch.full((1, 16), 1024.0), torch.tensor([0]))
    with pytest.raises(
        ValueError, match=r"`embeddings` must be of entries up to 1024; got 1025.*normalise_first"
    ):
        head.update(torch.full((1, 16), 1025.0), torch.tensor([0]))


# The projection


def test_a_projection_is_its_equation():
    x = rows()[0].double()
    x = x / x.norm(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(3)
    w, phase = torch.randn(16, 40, generator=generator), torch.rand(40, generator=generator)
    relu = RandomProjection(40, seed=3)(x)
    scale = (x @ w.double()).relu().max() / relu.max()
    assert float(torch.log2(scale).round()) == pytest.approx(float(torch.log2(scale)), abs=1e-4)
    torch.testing.assert_close(
        relu * 2 ** torch.log2(scale).round(), (x @ w.double()).relu(), atol=1e-3, rtol=0
    )
    found = RandomProjection(40, 3, "cosine", bandwidth=0.7)(x)
    angles = 0.7 * (x @ w.double()) + 2 * torch.pi * phase.double()
    torch.testing.assert_close(found, (2 / 40) ** 0.5 * angles.cos(), atol=1e-4, rtol=0)


def test_cosine_features_come_near_the_gaussian_kernel():
    x = rows()[0].double()
    x = x / x.norm(dim=1, keepdim=True)
    h = RandomProjection(20000, activation="cosine", bandwidth=0.8)(x)
    torch.testing.assert_close(h @ h.T, torch.exp(-0.32 * torch.cdist(x, x) ** 2), atol=0.04, rtol=0)


@pytest.mark.parametrize("activation", ["relu", "cosine"])
@pytest.mark.parametrize("inputs", [1, 3, 16, 512])
def test_features_are_bounded_and_do_not_depend_on_the_batch(activation, inputs):
    projection = RandomProjection(70, seed=2, activation=activation)
    draw = torch.Generator().manual_seed(0)
    weights = projection.weights(inputs)[0]
    # The rows of the largest features are those of the direction of a column.
    x = rounded_unit_rows(torch.cat([torch.randn(37, inputs, generator=draw), weights.T]))
    assert torch.equal(weights / UNIT, (weights / UNIT).round())
    h = projection(x)
    assert h.abs().max() <= 1
    for size in (1, 2, 7):
        assert torch.equal(torch.cat([projection(part) for part in x.split(size)]), h)
    order = torch.randperm(inputs, generator=draw)
    exact = x @ weights.double()
    assert torch.equal(x[:, order] @ weights.double()[order], exact)


def test_a_projection_is_of_its_seed_alone():
    x = rounded_unit_rows(rows()[0])
    first = RandomProjection(20)
    assert torch.equal(first(x), RandomProjection(20)(x))
    assert not torch.equal(first(x), RandomProjection(20, seed=1)(x))
    narrow = first(x[:, :5])  # another width of rows draws anew, and back
    assert torch.equal(narrow, RandomProjection(20)(x[:, :5]))
    assert torch.equal(first(x), RandomProjection(20)(x))
    assert first == RandomProjection(**first.config())
    assert hash(first) == hash(RandomProjection(20))
    assert first != RandomProjection(20, activation="cosine")
    assert repr(first) == "RandomProjection(width=20, seed=0, activation='relu', bandwidth=1.0)"
    assert pickle.loads(pickle.dumps(first))._drawn is None


def test_the_cosine_is_one():
    turns = torch.linspace(-40, 40, 100001, dtype=torch.float64)
    torch.testing.assert_close(_cosine_of_turns(turns), (2 * torch.pi * turns).cos(), atol=2e-13, rtol=0)


def test_a_projection_beyond_its_bound_is_refused():
    with pytest.raises(ValueError, match="`width` must be at most 65536"):
        RandomProjection(65537)
