import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from avalanche_vlm.benchmarks import class_names, tensor_benchmark
from avalanche_vlm.text import ClassNames


@pytest.fixture
def build(embeddings, names):
    def make(**arguments):
        return tensor_benchmark(embeddings(), embeddings(first=100), class_names=names, **arguments)

    return make


def classes_of(stream):
    return [sorted(experience.classes_in_this_experience) for experience in stream]


def test_samples_have_the_shape_that_the_host_strategies_read(build):
    benchmark = build(n_experiences=3, task_labels=True)
    for index, experience in enumerate(benchmark.train_stream):
        assert experience.benchmark is benchmark
        assert experience.task_labels == [index]
        x, y, task = next(iter(DataLoader(experience.dataset, batch_size=5)))
        assert x.shape == (5, 7)
        assert x.dtype == torch.float32
        assert y.dtype == task.dtype == torch.int64
        assert set(task.tolist()) == {index}
    assert all(experience.task_labels == [0] for experience in build(n_experiences=3).train_stream)


@pytest.mark.parametrize("order", [None, [3, 0, 5, 1, 4, 2], [5, 4, 3, 2, 1, 0]])
def test_labels_are_never_remapped(build, names, order):
    benchmark = build(n_experiences=3, class_order=order)
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience, experience_classes in zip(stream, classes_of(benchmark.train_stream), strict=True):
            assert sorted(experience.dataset.targets.uniques) == experience_classes
            for x, y, _ in experience.dataset:
                assert x[:6].argmax() == y
                assert class_names(experience)[y] == names[int(x[:6].argmax())]


def test_classes_arrive_by_id_in_the_order_given_or_at_random(build):
    assert classes_of(build(n_experiences=3).train_stream) == [[0, 1], [2, 3], [4, 5]]
    given_order = build(n_experiences=2, class_order=[5, 0, 3, 1, 2, 4])
    assert (
        classes_of(given_order.train_stream) == classes_of(given_order.test_stream) == [[0, 3, 5], [1, 2, 4]]
    )
    orders = {str(classes_of(build(n_experiences=6, seed=seed).train_stream)) for seed in range(5)}
    assert len(orders) == 5


def test_a_seed_gives_the_host_s_order_and_leaves_the_global_state_alone(build, embeddings):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ours = build(n_experiences=6, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    data = TensorDataset(*embeddings())
    theirs = nc_benchmark(data, data, n_experiences=6, task_labels=False, seed=3)
    assert ours.classes_order == theirs.classes_order
    assert build(n_experiences=6, seed=3).classes_order == ours.classes_order


def test_unequal_experiences(build):
    benchmark = build(classes_per_experience=[3, 1, 2])
    assert classes_of(benchmark.train_stream) == [[0, 1, 2], [3], [4, 5]]
    assert benchmark.n_classes_per_exp == [3, 1, 2]


def test_an_order_may_leave_classes_out(build, names):
    benchmark = build(n_experiences=2, class_order=[4, 1])
    assert classes_of(benchmark.train_stream) == [[4], [1]]
    assert class_names(benchmark) == ClassNames(names)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_each_sample_of_each_class_of_the_order_comes_exactly_once(embeddings, data):
    class_count = data.draw(st.integers(1, 8))
    samples = data.draw(st.integers(1, 4))
    order = data.draw(st.permutations(range(class_count)))[: data.draw(st.integers(1, class_count))]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order) - 1)))) if len(order) > 1 else []
    counts = [end - start for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    x, y = embeddings(class_count, samples)
    shuffle = torch.tensor(data.draw(st.permutations(range(len(y)))))
    pair = (x[shuffle], y[shuffle])
    benchmark = tensor_benchmark(
        pair,
        pair,
        class_names=[f"class {index}" for index in range(class_count)],
        class_order=order,
        classes_per_experience=counts,
    )
    wanted = sorted(number for number, label in enumerate(y.tolist()) if label in order)
    for stream in (benchmark.train_stream, benchmark.test_stream):
        came = [int(x[-1]) for experience in stream for x, _, _ in experience.dataset]
        assert sorted(came) == wanted
        dealt = [sorted(experience.dataset.targets.uniques) for experience in stream]
        starts = [sum(counts[:index]) for index in range(len(counts))]
        assert dealt == [sorted(order[start : start + n]) for start, n in zip(starts, counts, strict=True)]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({}, ValueError, "`n_experiences` must be given if `classes_per_experience` is not.*got neither"),
        ({"n_experiences": 2, "classes_per_experience": [3, 3]}, ValueError, "`n_experiences`.*got both"),
        (
            {"n_experiences": 4},
            ValueError,
            r"`n_experiences` must be .*divides the 6 classes.*classes_per_experience=\[2, 2, 1, 1\]",
        ),
        ({"n_experiences": 7}, ValueError, "`n_experiences` must be a number that divides the 6 classes"),
        ({"n_experiences": 0}, ValueError, "`n_experiences` must be a whole number of at least 1"),
        ({"n_experiences": 2.0}, TypeError, "`n_experiences` must be a whole number"),
        (
            {"classes_per_experience": [3, 2]},
            ValueError,
            "`classes_per_experience`.*all 6 classes.*deals out 5",
        ),
        ({"classes_per_experience": [6, 0]}, ValueError, "`classes_per_experience`.*at least 1"),
        ({"classes_per_experience": 2}, TypeError, "`classes_per_experience` must be list or tuple"),
        ({"n_experiences": 1, "class_order": [0, 6]}, ValueError, r"`class_order`.*0 to 5.*the id \[6\]"),
        ({"n_experiences": 1, "class_order": [0, -1, 9]}, ValueError, r"`class_order`.*the ids \[-1, 9\]"),
        ({"n_experiences": 1, "class_order": [1, 0, 1]}, ValueError, r"`class_order`.*\[1\] more than once"),
        ({"n_experiences": 1, "class_order": []}, ValueError, "`class_order`.*got an empty list"),
        ({"n_experiences": 1, "class_order": [0.5]}, TypeError, "`class_order` must be a list of class ids"),
        (
            {"n_experiences": 1, "class_order": ["cat"]},
            TypeError,
            "`class_order` must be a list of class ids",
        ),
        ({"n_experiences": 1, "class_order": 3}, TypeError, "`class_order` must be a list of class ids"),
        ({"n_experiences": 1, "seed": -1}, ValueError, "`seed` must be a whole number"),
        ({"n_experiences": 1, "seed": "x"}, TypeError, "`seed` must be a whole number"),
        (
            {"n_experiences": 1, "seed": 1, "class_order": [0]},
            ValueError,
            "`seed` must be left out where `class_order`",
        ),
        ({"n_experiences": 1, "task_labels": 1}, TypeError, "`task_labels` must be bool"),
        ({"n_experiences": 1, "train_transform": 1}, TypeError, "`train_transform` must be a callable"),
        ({"n_experiences": 1, "eval_transform": "x"}, TypeError, "`eval_transform` must be a callable"),
        ({"n_experiences": 1, "n_experience": 1}, TypeError, "n_experience"),
    ],
)
def test_wrong_arguments_are_named(build, arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        build(**arguments)
