from collections import Counter

import pytest
import torch
from avalanche.benchmarks import (
    CLScenario,
    CLStream,
    EagerCLStream,
    benchmark_from_datasets,
    benchmark_with_validation_stream,
    class_incremental_benchmark,
    nc_benchmark,
    split_online_stream,
    with_classes_timeline,
)
from avalanche.benchmarks.scenarios.deprecated.generic_benchmark_creation import (
    LazyStreamDefinition,
    create_lazy_generic_benchmark,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training import Naive
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_vlm.benchmarks import (
    class_names,
    domain_benchmark,
    multi_dataset_benchmark,
    tensor_benchmark,
    with_class_names,
    with_validation_stream,
)
from avalanche_vlm.text import ClassNames

PER_CLASS = 8


@pytest.fixture
def pair(embeddings):
    return embeddings(samples_per_class=PER_CLASS)


def dataset_of_host(pair):
    data = TensorDataset(*pair)
    data.targets = pair[1].tolist()
    return data


def class_incremental(pair, names):
    order = [5, 0, 1, 4, 2, 3]
    return tensor_benchmark(pair, pair, class_names=names, n_experiences=3, class_order=order)


def with_task_labels(pair, names):
    return tensor_benchmark(pair, pair, class_names=names, n_experiences=3, task_labels=True)


def domains(pair, names):
    other = (pair[0] + 1, pair[1])
    parts = {"plain": (pair, pair), "shifted": (other, other)}
    return domain_benchmark(parts, class_names=names, task_labels=True)


def several_datasets(pair, names):
    x, y = pair
    low, high = (x[y < 3], y[y < 3]), (x[y >= 3], y[y >= 3] - 3)
    return multi_dataset_benchmark({"a": (low, low, names[:3]), "b": (high, high, names[3:])})


def host_new_classes(pair, names):
    data = dataset_of_host(pair)
    return with_class_names(nc_benchmark(data, data, n_experiences=3, task_labels=False, seed=1), names)


def host_class_incremental(pair, names):
    parts = {title: as_classification_dataset(dataset_of_host(pair)) for title in ("train", "test")}
    plain = class_incremental_benchmark(parts, num_experiences=3, seed=1)
    return with_class_names(with_classes_timeline(plain), names)


def host_from_datasets(pair, names):
    data = as_classification_dataset(dataset_of_host(pair))
    return with_class_names(benchmark_from_datasets(train=[data, data], test=[data]), names)


# The host says so of its own streams when it splits them.
pytestmark = pytest.mark.filterwarnings("ignore:stream generator will be converted:UserWarning")

SHAPES = [
    class_incremental,
    with_task_labels,
    domains,
    several_datasets,
    host_new_classes,
    host_class_incremental,
    host_from_datasets,
]


def rows(experience):
    """Return the samples by their number, which is the last entry of x."""
    return [int(experience.dataset[i][0][-1]) for i in range(len(experience.dataset))]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_share_of_each_class_moves_and_nothing_is_lost(shape, pair, names):
    benchmark = shape(pair, names)
    split = with_validation_stream(benchmark, fraction=0.25, seed=3)
    assert type(split) is type(benchmark)
    assert list(split.streams) == [*benchmark.streams, "valid"]
    assert len(split.valid_stream) == len(split.train_stream) == len(benchmark.train_stream)
    for whole, train, valid in zip(
        benchmark.train_stream, split.train_stream, split.valid_stream, strict=True
    ):
        classes = set(map(int, whole.dataset.targets))
        assert Counter(map(int, valid.dataset.targets)) == dict.fromkeys(classes, 2)
        assert Counter(map(int, train.dataset.targets)) == dict.fromkeys(classes, PER_CLASS - 2)
        assert sorted(rows(train) + rows(valid)) == sorted(rows(whole))
        assert len(valid.dataset[0]) == len(whole.dataset[0])  # with its task label


@pytest.mark.parametrize("shape", SHAPES)
def test_what_experiences_say_of_themselves_is_kept(shape, pair, names):
    benchmark = shape(pair, names)
    split = with_validation_stream(benchmark, fraction=0.25)
    assert split.streams["test"] is split.test_stream is benchmark.test_stream
    for index, whole in enumerate(benchmark.train_stream):
        for stream in (split.train_stream, split.valid_stream):
            part = stream[index]
            for attribute in ("classes_in_this_experience", "classes_seen_so_far", "task_labels"):
                assert getattr(part, attribute, None) == getattr(whole, attribute, None)
            assert part.current_experience == index
            assert part.origin_stream.name == stream.name
            assert (
                class_names(part) == class_names(benchmark) == ClassNames(names, class_names(part).datasets)
            )
            assert part.dataset[0][2:] == whole.dataset[0][2:]


def test_the_benchmark_itself_is_left_alone(pair, names):
    benchmark = class_incremental(pair, names)
    before = [rows(experience) for experience in benchmark.train_stream]
    split = with_validation_stream(benchmark)
    assert [rows(experience) for experience in benchmark.train_stream] == before
    assert not hasattr(benchmark, "valid_stream")
    for experience, own in zip(split.train_stream, split.train_exps_patterns_assignment, strict=True):
        assert [int(split.original_train_dataset[i][0][-1]) for i in own] == rows(experience)


def test_the_seed_decides_and_the_global_state_is_left_alone(pair, names):
    def draw(seed):
        split = with_validation_stream(class_incremental(pair, names), fraction=0.25, seed=seed)
        return [rows(experience) for experience in split.valid_stream]

    before = torch.get_rng_state()
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_domains_lend_the_same_pictures(pair, names):
    split = with_validation_stream(domains(pair, names))
    plain, shifted = (rows(experience) for experience in split.valid_stream)
    assert [row + 1 for row in plain] == shifted


def test_validation_uses_the_eval_transform(pair, names):
    transforms = {"train_transform": lambda x: x + 1000, "eval_transform": lambda x: x}
    builders = [
        tensor_benchmark(pair, pair, class_names=names, n_experiences=2, **transforms),
        domain_benchmark({"one": (pair, pair)}, class_names=names, **transforms),
    ]
    for benchmark in builders:
        split = with_validation_stream(benchmark)
        assert min(rows(split.train_stream[0])) >= 1000
        assert max(rows(split.valid_stream[0])) < 1000
        assert max(rows(split.test_stream[0])) < 1000
        assert min(int(x[-1]) for x, *_ in split.valid_stream[0].dataset.train()) >= 1000


@pytest.mark.parametrize(("fraction", "taken"), [(0.01, 1), (0.3, 2), (0.99, 7)])
def test_each_part_has_at_least_one_sample_of_a_class(fraction, taken, pair, names):
    split = with_validation_stream(class_incremental(pair, names), fraction=fraction)
    counts = Counter(int(label) for e in split.valid_stream for label in e.dataset.targets)
    assert counts == dict.fromkeys(range(6), taken)


def test_a_class_with_a_single_sample_stays_in_train(pair, names):
    x, y = pair
    kept = (y != 4) | (torch.arange(len(y)) == y.tolist().index(4))
    split = with_validation_stream(
        tensor_benchmark((x[kept], y[kept]), pair, class_names=names, n_experiences=2)
    )
    train, valid = split.train_stream[1], split.valid_stream[1]
    assert Counter(map(int, train.dataset.targets))[4] == 1
    assert set(map(int, valid.dataset.targets)) == {3, 5}


def test_an_experience_of_single_samples_is_refused(embeddings, names):
    pair = embeddings(samples_per_class=1)
    benchmark = tensor_benchmark(pair, pair, class_names=names, n_experiences=2)
    with pytest.raises(ValueError, match="benchmark.*two samples.*experience 0 with 3 samples of 3 classes"):
        with_validation_stream(benchmark)


def test_two_validation_streams_of_different_names(pair, names):
    once = with_validation_stream(class_incremental(pair, names))
    twice = with_validation_stream(once, name="calibration")
    assert twice.valid_stream is once.valid_stream
    taken = rows(once.valid_stream[0]) + rows(twice.calibration_stream[0]) + rows(twice.train_stream[0])
    assert len(set(taken)) == 2 * PER_CLASS


def test_a_strategy_trains_and_is_validated(pair, names):
    split = with_validation_stream(domains(pair, names), fraction=0.5)
    model = nn.Linear(7, 6)
    strategy = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), evaluator=None)
    for experience in split.train_stream:
        strategy.train(experience)
        strategy.eval(split.valid_stream)
    assert strategy.clock.train_iterations == 2 * 6 * PER_CLASS // 2


def test_the_hosts_own_split_validates_on_one_class(pair, names):
    """Experiences of the host are sorted by class, and it takes their last samples."""
    benchmark = class_incremental(pair, names)
    host = benchmark_with_validation_stream(benchmark, 0.2)
    ours = with_validation_stream(benchmark, fraction=0.2)
    assert {len(set(map(int, e.dataset.targets))) for e in host.valid_stream} == {1}
    assert {len(set(map(int, e.dataset.targets))) for e in ours.valid_stream} == {2}


def test_streams_that_have_not_arrived_are_refused(pair, names):
    benchmark = class_incremental(pair, names)
    stream = split_online_stream(benchmark.train_stream, experience_size=4, seed=0)
    with pytest.raises(ValueError, match="benchmark.*train_online.*first"):
        with_validation_stream(CLScenario([stream, benchmark.test_stream]))
    generated = CLStream("train", iter(list(stream)))
    with pytest.raises(ValueError, match="benchmark.*on demand.*first"):
        with_validation_stream(CLScenario([generated, benchmark.test_stream]))
    listed = EagerCLStream("train", list(stream))
    with pytest.raises(ValueError, match="benchmark.*whole experiences.*online"):
        with_validation_stream(CLScenario([listed, benchmark.test_stream]))
    datasets = [experience.dataset for experience in benchmark.train_stream]
    lazy = create_lazy_generic_benchmark(
        train_generator=LazyStreamDefinition((d for d in datasets), 3, [0] * 3),
        test_generator=LazyStreamDefinition((d for d in datasets), 3, [0] * 3),
    )
    with pytest.raises(ValueError, match="benchmark.*on demand"):
        with_validation_stream(lazy)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"fraction": 0}, ValueError),
        ({"fraction": 1}, ValueError),
        ({"fraction": "some"}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": 0.5}, TypeError),
        ({"name": 3}, TypeError),
        ({"name": "test"}, ValueError),
        ({"name": "not a name"}, ValueError),
    ],
)
def test_wrong_arguments_are_named(arguments, error, pair, names):
    with pytest.raises(error, match=f"`{next(iter(arguments))}`"):
        with_validation_stream(class_incremental(pair, names), **arguments)


def test_other_things_than_benchmarks_are_refused(pair, names):
    with pytest.raises(TypeError, match="`benchmark`"):
        with_validation_stream(class_incremental(pair, names).train_stream)
    only_test = CLScenario([class_incremental(pair, names).test_stream])
    with pytest.raises(ValueError, match="`benchmark`.*train stream"):
        with_validation_stream(only_test)
