"""A memory of seeds: its size and balance, its distance from real features, and its place in the host."""

import copy
import io
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from avalanche_vlm.benchmarks import LabelledTensors, tensor_benchmark
from avalanche_vlm.memory import (
    ClassMeanSeeds,
    GeneratedSeeds,
    HerdingPruning,
    KCentrePruning,
    KMeansSeeds,
    RandomSeeds,
    SeedBuffer,
    SigmaPointSeeds,
)
from avalanche_vlm.models import CLIPClassifier, EmbeddingBackbone, ResidualAdapter, TextFeatureHead
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.plugins.fast_loader import FastLoader
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import check_composes, tiny_benchmark, tiny_classifier
from avalanche_vlm.testing.running import differing, run

CLASSES, WIDTH = 6, 16
NAMES = [f"class {index}" for index in range(CLASSES)]
CENTRES = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(7))


def features_of(classes, per_class=8, seed=0, width=WIDTH):
    """Return features (N, D), of lengths around 4, around a centre of each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(list(classes)).repeat_interleave(per_class)
    centres = CENTRES if width == WIDTH else torch.randn(40, width, generator=generator)
    return centres[labels] + 0.5 * torch.randn(len(labels), width, generator=generator), labels


def classifier(seed=0):
    text = F.normalize(torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)
    return CLIPClassifier(
        EmbeddingBackbone(WIDTH, logit_scale=10.0),
        TextFeatureHead(text),
        class_names=NAMES,
        image_adapter=ResidualAdapter(),
    )


def embedded(n_experiences=3, per_class=8, **arguments):
    train, test = features_of(range(CLASSES), per_class), features_of(range(CLASSES), per_class, seed=1)
    return tensor_benchmark(train, test, class_names=NAMES, n_experiences=n_experiences, **arguments)


# Size and balance.


@settings(max_examples=40, deadline=None)
@given(
    experiences=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True), max_size=5),
    size=st.integers(1, 20),
    seeds=st.integers(1, 5),
    pruning=st.sampled_from([None, KCentrePruning(), HerdingPruning()]),
)
def test_at_most_k_seeds_and_each_class_at_most_its_share(experiences, size, seeds, pruning):
    buffer, arrived = SeedBuffer(size, RandomSeeds(seeds), pruning=pruning), []
    for number, classes in enumerate(experiences):
        arrived += [each for each in classes if each not in arrived]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            buffer.update_from_features(None, *features_of(classes, per_class=3, seed=number))
        assert len(buffer) <= size
        counts = buffer.labels.bincount(minlength=8)
        assert set(buffer.classes) <= set(arrived)
        if len(arrived) <= size:
            assert counts.max() <= math.ceil(size / len(arrived))
            assert set(buffer.classes) == set(arrived)
            share = min(seeds, size // len(arrived))
            assert all(counts[each] >= share for each in arrived)
            assert not caught
        else:
            assert counts.max() == 1
            assert len(buffer) == size
        columns = ("counts", "spreads", "lengths", "visual")
        assert {len(getattr(buffer, name)) for name in columns} == {len(buffer)}


def test_more_classes_than_seeds_are_told_of():
    buffer = SeedBuffer(2, KMeansSeeds(2))
    with pytest.warns(UserWarning, match="`max_size` is 2, and there are 3 classes"):
        buffer.update_from_features(None, *features_of([0, 1, 2]))
    assert buffer.labels.tolist() == [0, 1]


def test_a_pruned_seed_is_taken_over_and_without_a_limit_all_stay():
    buffer, free = SeedBuffer(3, KMeansSeeds(4)), SeedBuffer(None, KMeansSeeds(4))
    for each in (buffer, free):
        each.update_from_features(None, *features_of([0]))
    assert buffer.counts.sum() == free.counts.sum() == 8
    assert (len(buffer), len(free)) == (3, 4)
    free.update_from_features(None, *features_of([0], seed=1))
    assert len(free) == 8


@pytest.mark.parametrize("new_size", [2, 5, None])
def test_resize_prunes_at_once(new_size):
    buffer = SeedBuffer(8, KMeansSeeds(4))
    buffer.update_from_features(None, *features_of([0, 1]))
    drawn = buffer.buffer
    buffer.resize(None, new_size)
    assert (buffer.max_size, len(buffer)) == (new_size, new_size or 8)
    assert buffer.buffer is not drawn
    with pytest.raises(ValueError, match="`new_size`"):
        buffer.resize(None, 0)


def test_a_state_is_not_changed_by_what_comes_later():
    buffer = seeds(size=None)
    buffer.update_from_features(None, *features_of([0, 1]))
    state = buffer.state_dict()
    kept = copy.deepcopy(state)
    buffer.resize(None, 4)
    buffer.move(lambda features, labels: 2 * features)
    buffer.update_from_features(None, *features_of([2]))
    for name in ("labels", "counts", "spreads", "lengths"):
        assert torch.equal(state[name], kept[name])
    assert torch.equal(state["visual"]["values"], kept["visual"]["values"])
    assert sum(buffer.counts.tolist()) == 24


# Distance from real features.


def bounds_by_the_loop(features, labels):
    """For each class the largest cosine of one of its features with any other that is no copy."""
    unit, largest = F.normalize(features.double(), dim=1).tolist(), {}
    for i, x in enumerate(unit):
        nearest = 0.5
        others = [sum(a * b for a, b in zip(x, z, strict=True)) for j, z in enumerate(unit) if j != i]
        others = [value for value in others if value <= 1 - 1e-5]
        nearest = max(others) if others else 0.5
        label = int(labels[i])
        largest[label] = max(largest.get(label, -1.0), nearest)
    return unit, largest


def assert_apart(buffer, features, labels):
    unit, largest = bounds_by_the_loop(features, labels)
    for seed in buffer.visual.double().tolist():
        length = math.sqrt(sum(a * a for a in seed))
        for x, label in zip(unit, labels.tolist(), strict=True):
            cosine = sum(a * b for a, b in zip(seed, x, strict=True)) / length
            assert cosine <= max(largest[label], 0.005)
    for x in (features, F.normalize(features, dim=1)):
        assert not bool((buffer.visual[:, None] == x[None]).all(dim=2).any())


SOURCES = {
    "k-means": lambda: KMeansSeeds(4),
    "class means": ClassMeanSeeds,
    "sigma points": SigmaPointSeeds,
    "as many as features": lambda: KMeansSeeds(8),
    "generated": lambda: GeneratedSeeds(4, steps=2),
}


@pytest.mark.parametrize("dtype", ["int8", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("source", SOURCES)
def test_no_seed_is_nearer_to_a_feature_than_features_come_to_each_other(source, dtype):
    several, one = features_of([0, 1, 2], per_class=8, width=64), features_of([3], per_class=1, width=64)
    features, labels = (torch.cat(pair) for pair in zip(several, one, strict=True))
    head = TextFeatureHead(F.normalize(features_of(range(6), 1, seed=9, width=64)[0], dim=1))
    model = CLIPClassifier(EmbeddingBackbone(64), head, class_names=NAMES)
    buffer = SeedBuffer(None, SOURCES[source](), dtype=dtype)
    buffer.update_from_features(model, features, labels)
    assert set(buffer.classes) == {0, 1, 2, 3}
    assert_apart(buffer, features, labels)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_single_sample_and_its_copies_are_not_kept(copies, dtype):
    x, y = features_of([2], per_class=1, width=64)
    buffer = SeedBuffer(8, KMeansSeeds(4), dtype=dtype)
    buffer.update_from_features(None, x.expand(copies, -1), y.expand(copies))
    assert buffer.classes == [2]
    assert float((buffer.visual @ F.normalize(x, dim=1).T).max()) <= 0.5
    assert bool(buffer.sample(3, torch.Generator()).visual.isfinite().all())


def test_a_class_that_cannot_be_kept_apart_is_told_of():
    angles = torch.linspace(0, 2 * math.pi, 41)[:-1]
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    buffer = SeedBuffer(8, KMeansSeeds(40))
    with pytest.warns(UserWarning, match=r"No seed of the classes \[5\]"):
        buffer.update_from_features(None, x, torch.full((40,), 5))
    assert len(buffer) == 0
    assert len(buffer.buffer) == 0


# Draws.


def test_draws_have_the_length_and_the_deviation_of_what_a_seed_stands_for():
    x, y = features_of([0, 1], per_class=10)
    buffer = SeedBuffer(None, ClassMeanSeeds(), dtype="float32", jitter=0.5)
    buffer.update_from_features(None, x, y)
    draw = buffer.sample(40_000, torch.Generator().manual_seed(0))
    for label in (0, 1):
        own = [row.double() for row, each in zip(x, y, strict=True) if each == label]
        length = sum(float(row.norm()) for row in own) / len(own)
        unit = [row / row.norm() for row in own]
        mean = sum(unit) / torch.stack(unit).sum(dim=0).norm()
        deviation = math.sqrt(sum(float((row - mean).square().sum()) for row in unit) / len(own) / WIDTH)
        drawn = draw.visual[draw.labels == label].double()
        assert len(drawn) / 40_000 == pytest.approx(0.5, abs=0.02)
        torch.testing.assert_close(
            drawn.norm(dim=1), torch.full((len(drawn),), length).double(), atol=1e-4, rtol=0
        )
        # Twice as many, drawn anew.
        seed, noise = buffer.visual[label].double(), torch.Generator().manual_seed(5)
        around = seed + 0.5 * deviation * torch.randn(40_000, WIDTH, generator=noise, dtype=torch.float64)
        around = length * around / around.norm(dim=1, keepdim=True)
        torch.testing.assert_close(drawn.mean(dim=0), around.mean(dim=0), atol=0.03, rtol=0)
        torch.testing.assert_close(drawn.std(dim=0), around.std(dim=0), atol=0, rtol=0.04)


def test_draws_are_balanced_among_classes_and_within_one_by_what_seeds_stand_for():
    buffer = SeedBuffer(None, KMeansSeeds(4))
    buffer.update_from_features(None, *features_of([0, 1], per_class=20))
    buffer.update_from_features(None, *features_of([0, 5], per_class=5, seed=1))
    draw = buffer.sample(30_000, torch.Generator().manual_seed(0))
    assert torch.equal(draw.labels, buffer.labels[draw.rows])
    for label in (0, 1, 5):
        own = (buffer.labels == label).nonzero().flatten()
        counts = buffer.counts[own]
        found = torch.tensor([int((draw.rows == row).sum()) for row in own]) / 10_000
        torch.testing.assert_close(found, counts / counts.sum(), atol=0.02, rtol=0)
    assert buffer.buffer.targets.count == {0: 32, 1: 32, 5: 32}


def test_without_jitter_draws_are_seeds_and_without_a_number_each_is_there_once():
    buffer = SeedBuffer(None, KMeansSeeds(4), jitter=0)
    plain = SeedBuffer(None, KMeansSeeds(4), samples_per_class=None)
    for each in (buffer, plain):
        each.update_from_features(None, *features_of([0, 1]))
    draw = buffer.sample(50, torch.Generator())
    assert torch.equal(draw.visual, buffer.visual[draw.rows] * buffer.lengths[draw.rows, None])
    assert len(plain.buffer) == len(plain) == 8
    for row in range(8):
        assert torch.equal(plain.buffer[row][0], plain.visual[row] * plain.lengths[row])


def test_an_empty_memory_has_nothing_to_draw_and_a_number_below_one_is_refused():
    buffer = SeedBuffer()
    assert len(buffer) == len(buffer.buffer) == 0
    with pytest.raises(ValueError, match="`count` must be drawn from a memory that has seeds.*Train"):
        buffer.sample(1, torch.Generator())
    buffer = SeedBuffer(8, KMeansSeeds(2))
    buffer.update_from_features(None, *features_of([0]))
    with pytest.raises(ValueError, match="`count`"):
        buffer.sample(0, torch.Generator())
    with pytest.raises(ValueError, match="`buffer`"):
        buffer.buffer = buffer.buffer


@pytest.mark.parametrize("fault", ["ints", "labels", "width", "nan", "none"])
def test_wrong_features_are_refused(fault):
    buffer = SeedBuffer(8, KMeansSeeds(2))
    x, y = features_of([0])
    buffer.update_from_features(None, x, y)
    wrong = {
        "ints": (x.long(), y),
        "labels": (x, y[:-1]),
        "width": (x[:, :-1], y),
        "nan": (x * math.nan, y),
        "none": (x[:0], y[:0]),
    }[fault]
    with pytest.raises((TypeError, ValueError), match="`features`|`labels`"):
        buffer.update_from_features(None, *wrong)


# Samples.


def streams():
    x, y = features_of(range(CLASSES), per_class=3)
    halves = [as_classification_dataset(LabelledTensors(x[y % 2 == k], y[y % 2 == k])) for k in (0, 1)]
    whole = as_classification_dataset(LabelledTensors(x, y))
    return {
        "tensor_benchmark": embedded(per_class=3),
        "with tasks": embedded(per_class=3, task_labels=True),
        "in float64": tensor_benchmark((x.double(), y), (x.double(), y), class_names=NAMES, n_experiences=3),
        "benchmark_from_datasets": benchmark_from_datasets(train=halves, test=halves),
        "class_incremental_benchmark": class_incremental_benchmark(
            {"train": whole, "test": whole}, num_experiences=3
        ),
    }


@pytest.mark.parametrize("name", list(streams()))
def test_samples_have_the_form_of_the_stream_and_are_mixed_with_it(name):
    stream = streams()[name].train_stream
    buffer = SeedBuffer(12, KMeansSeeds(2))
    tasks = {}
    for experience in stream:
        buffer.post_adapt(SimpleNamespace(), experience)
        dataset = experience.dataset
        expected, found = dataset[0], buffer.buffer[0]
        assert len(expected) == len(found)
        assert [type(part) for part in expected] == [type(part) for part in found]
        assert expected[0].dtype == found[0].dtype
        assert expected[0].shape == found[0].shape
        tasks |= {int(s[1]): int(s[2]) for s in dataset if len(s) > 2}
        assert all(int(sample[2]) == tasks[int(sample[1])] for sample in buffer.buffer if len(sample) > 2)
        both = torch.utils.data.DataLoader(
            dataset.concat(buffer.buffer), batch_size=len(dataset) + len(buffer.buffer)
        )
        assert len(next(iter(both))[1]) == len(dataset) + len(buffer.buffer)


# In the host.


class Loaders(SupervisedPlugin):
    """Notes which loaders a strategy trains with."""

    def __init__(self):
        super().__init__()
        self.kinds = []

    def before_training_iteration(self, strategy, *args, **kwargs):
        self.kinds.append(type(strategy.dataloader))


def seeds(size=24, source=None, **arguments):
    return SeedBuffer(size, KMeansSeeds(4) if source is None else source, **arguments)


def replay(buffer):
    return ReplayPlugin(mem_size=buffer.max_size, storage_policy=buffer)


def naive(plugins, model=None, kind=Naive, **arguments):
    if model is None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Linear(WIDTH, CLASSES)
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        plugins=plugins,
        train_mb_size=8,
        train_epochs=4,
        evaluator=None,
        **arguments,
    )


def trained(strategy, benchmark):
    run(strategy, benchmark)
    return strategy.model


def accuracies(make, source=None, common=3.0, n_experiences=3):
    """Return the last accuracy without a memory and with one; features have something in common."""
    pairs = [(x + common, y) for x, y in (features_of(range(CLASSES), seed=seed) for seed in (0, 1))]
    benchmark = tensor_benchmark(*pairs, class_names=NAMES, n_experiences=n_experiences)
    for plugins in ([], [replay(seeds(source=source))]):
        model = trained(make(plugins), benchmark).eval()
        with torch.no_grad():
            yield float((model(pairs[1][0]).argmax(dim=1) == pairs[1][1]).float().mean())


def test_replay_of_seeds_beats_no_replay_under_the_hosts_naive():
    without, with_seeds = accuracies(naive)
    assert with_seeds > without + 0.3


def test_generated_seeds_beat_no_replay_under_the_hosts_naive():
    def make(plugins):
        model = classifier()
        optimizer = AdamW(model.parameters(), lr=3e-2)
        return Naive(
            model=model,
            optimizer=optimizer,
            plugins=plugins,
            criterion=LabelSpaceCrossEntropy("seen"),
            train_mb_size=8,
            train_epochs=8,
            evaluator=None,
        )

    without, with_seeds = accuracies(make, GeneratedSeeds(4, steps=5), 0.0, 6)
    assert with_seeds > without + 0.15


def test_beside_the_hosts_plugins():
    plugins = {
        "seeds": lambda: replay(seeds()),
        "LwF": lambda: LwFPlugin(alpha=1.0, temperature=2.0),
        "EWC": lambda: EWCPlugin(ewc_lambda=10.0),
    }
    check_composes(lambda chosen: naive(chosen), plugins, embedded(per_class=4))


@pytest.mark.parametrize("task_labels", [False, True])
def test_fast_loading_gives_the_same_run(task_labels):
    benchmark, found = embedded(task_labels=task_labels), {}
    for fast in (True, False):
        loaders = Loaders()
        strategy = naive([replay(seeds()), loaders], classifier(), FineTune, fast_loading=fast)
        found[fast] = run(strategy, benchmark)
        assert all((kind is FastLoader) == fast for kind in loaders.kinds)
        assert len(loaders.kinds) > 6
    assert not differing(found[True], found[False])
    assert differing(found[True], run(naive([], classifier(), FineTune), benchmark))


def test_images_are_refused_with_the_way_out():
    model = tiny_classifier(image_adapter=ResidualAdapter())
    strategy = naive([replay(seeds())], model)
    with pytest.raises(ValueError, match=r"samples \(3, 8, 8\).*FeatureReplayPlugin"):
        strategy.train(tiny_benchmark().train_stream[0])


# What is kept.


def stored(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("update_every", [1, 20])
@pytest.mark.parametrize("source", ["k-means", "generated"])
@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_a_memory_goes_on_from_its_state(source, update_every, dtype):
    model = classifier()

    def make():
        return SeedBuffer(10, SOURCES[source](), update_every=update_every, dtype=dtype, seed=3)

    experiences = list(embedded(task_labels=True).train_stream)
    whole, first, second = make(), make(), make()
    for buffer in (whole, first):
        for experience in experiences[:2]:
            buffer.post_adapt(SimpleNamespace(model=model), experience)
    second.load_state_dict(stored(first.state_dict()))
    assert second.nbytes == first.nbytes
    for buffer in (whole, second):
        buffer.post_adapt(SimpleNamespace(model=model), experiences[2])
        buffer.flush(model)
    for name in ("visual", "labels", "counts", "spreads", "lengths", "textual"):
        ours, theirs = getattr(whole, name), getattr(second, name)
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert len(whole.buffer) == len(second.buffer) > 0
    for ours, theirs in zip(whole.buffer, second.buffer, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]


def test_a_state_is_not_that_of_the_memory_that_it_came_from():
    first, second = seeds(), seeds()
    first.update_from_features(None, *features_of([0, 1]))
    second.load_state_dict(first.state_dict())
    before = first.visual, first.labels.clone(), first.counts.clone()
    second.update_from_features(None, *features_of([0, 2, 3], per_class=40, seed=2))
    second.resize(None, 4)
    assert all(
        torch.equal(*pair) for pair in zip(before, (first.visual, first.labels, first.counts), strict=True)
    )


def test_states_of_other_things_are_refused():
    buffer = seeds()
    buffer.update_from_features(None, *features_of([0]))
    with pytest.raises(ValueError, match="seeds kept as float16"):
        seeds(dtype="float16").load_state_dict(buffer.state_dict())
    with pytest.raises(ValueError, match="that of a SeedBuffer"):
        seeds().load_state_dict({"labels": buffer.labels})
    with pytest.raises(ValueError, match="that of a GeneratedSeeds"):
        SeedBuffer().load_state_dict(buffer.state_dict())


def test_features_wait_until_there_are_enough():
    buffer = seeds(update_every=20)
    x, y = features_of([0, 1])
    buffer.update_from_features(None, x, y)
    assert len(buffer) == buffer.updates == 0
    assert buffer.nbytes >= x.nbytes + y.nbytes
    with pytest.raises(ValueError, match=r"`features` must be of shape \(N, 16\)"):
        buffer.update_from_features(None, x[:, 1:], y)
    buffer.update_from_features(None, *features_of([2], seed=1))
    assert (buffer.classes, buffer.updates) == ([0, 1, 2], 1)
    buffer.update_from_features(None, *features_of([4], seed=1))
    buffer.flush(None)
    assert buffer.classes == [0, 1, 2, 4]
    updates = buffer.updates
    buffer.flush(None)
    assert buffer.updates == updates
    at_once = seeds()
    at_once.update_from_features(
        None, *(torch.cat(pair) for pair in zip((x, y), features_of([2], seed=1), strict=True))
    )
    assert torch.equal(at_once.visual, buffer.visual[buffer.labels < 3])


@pytest.mark.parametrize(
    ("dtype", "row"), [("int8", 4 + WIDTH), ("float16", 2 * WIDTH), ("float32", 4 * WIDTH)]
)
def test_bytes_are_those_of_the_tensors(dtype, row):
    model = classifier()
    buffer = SeedBuffer(10, GeneratedSeeds(4, steps=0), dtype=dtype, update_every=10)
    buffer.update_from_features(model, *features_of([0, 1]))
    buffer.update_from_features(model, *features_of([2], per_class=3))
    numbers = 8 + 3 * 4  # a label, how many, how far, how long
    assert buffer.nbytes == 8 * (2 * row + numbers) + 3 * (4 * WIDTH + 8)
    network = SeedBuffer(10, GeneratedSeeds(4, steps=1, meta_rate=0.5), dtype=dtype)
    network.update_from_features(model, *features_of([0, 1]))
    weights = sum(each.nbytes for each in network.source.network.parameters())
    assert network.nbytes == 8 * (2 * row + numbers) + weights


def test_moved_seeds_take_the_place_of_the_old():
    buffer = seeds(dtype="float32")
    buffer.move(lambda x, y: x)  # nothing to move
    buffer.update_from_features(None, *features_of([0, 1]))
    before, lengths = buffer.visual * buffer.lengths[:, None], buffer.lengths
    buffer.move(lambda x, y: 2 * x + y[:, None])
    expected = 2 * before + buffer.labels[:, None]
    torch.testing.assert_close(buffer.visual * buffer.lengths[:, None], expected)
    assert not torch.equal(buffer.lengths, lengths)
