import pickle

import pytest
import torch
from avalanche.benchmarks import (
    CLScenario,
    CLStream,
    EagerCLStream,
    benchmark_from_datasets,
    benchmark_with_validation_stream,
    class_incremental_benchmark,
    data_incremental_benchmark,
    nc_benchmark,
    ni_benchmark,
    split_online_stream,
    split_validation_class_balanced,
    task_incremental_benchmark,
    with_classes_timeline,
)
from avalanche.benchmarks.scenarios.deprecated.generic_benchmark_creation import (
    LazyStreamDefinition,
    create_lazy_generic_benchmark,
)
from avalanche.benchmarks.utils import (
    as_classification_dataset,
    as_taskaware_classification_dataset,
    concat_datasets,
)
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExperienceBalancedBuffer,
    ParametricBuffer,
    RandomExemplarsSelectionStrategy,
    ReservoirSamplingBuffer,
)
from torch.utils.data import TensorDataset

from avalanche_vlm.benchmarks import class_names, tensor_benchmark, with_class_names
from avalanche_vlm.benchmarks.class_names import name_dataset
from avalanche_vlm.text import ClassNames

# The host's validation splitter says so of its own streams.
pytestmark = pytest.mark.filterwarnings("ignore:stream generator will be converted:UserWarning")


@pytest.fixture
def benchmark(embeddings, names):
    return tensor_benchmark(embeddings(), embeddings(), class_names=names, n_experiences=3)


@pytest.mark.parametrize(
    "source",
    [
        lambda benchmark: benchmark,
        lambda benchmark: benchmark.train_stream,
        lambda benchmark: benchmark.test_stream,
        lambda benchmark: benchmark.train_stream[1:],
        lambda benchmark: benchmark.train_stream[2],
        lambda benchmark: benchmark.train_stream[2].train(),
        lambda benchmark: benchmark.train_stream[2].eval(),
        lambda benchmark: benchmark.train_stream[2].dataset,
        lambda benchmark: benchmark.original_train_dataset,
    ],
    ids=["benchmark", "train", "test", "slice", "experience", "masked", "eval", "dataset", "origin"],
)
def test_every_part_of_a_benchmark_knows_all_names(benchmark, names, source):
    assert class_names(source(benchmark)) == ClassNames(names)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: data.subset([3]),
        lambda data: data.subset(torch.tensor([1, 2])),
        lambda data: data.subset([1]).concat(data.subset([0, 2])),
        lambda data: concat_datasets([data, data.subset([0])]),
        lambda data: data.train().eval(),
        lambda data: data.freeze_transforms(),
        lambda data: data.replace_current_transform_group(None),
        lambda data: data.task_set[0],
        lambda data: as_classification_dataset(data),
        lambda data: as_taskaware_classification_dataset(data),
        lambda data: data.update_data_attribute("other", [0] * len(data)),
        lambda data: pickle.loads(pickle.dumps(data)),
    ],
    ids=[
        "subset",
        "tensor subset",
        "concat",
        "concat_datasets",
        "transforms",
        "freeze",
        "replace",
        "task set",
        "as classification",
        "as task-aware",
        "other attribute",
        "pickle",
    ],
)
def test_names_survive_the_operations_of_a_data_set(benchmark, names, wrap):
    wrapped = wrap(benchmark.train_stream[1].dataset)
    assert class_names(wrapped) == ClassNames(names)
    assert len(wrapped[0]) == 3


def balanced_half(data):
    return split_validation_class_balanced(0.5, data)


def online(benchmark):
    stream = split_online_stream(benchmark.train_stream, experience_size=3, seed=0)
    return CLScenario([stream, benchmark.test_stream])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda benchmark: benchmark_with_validation_stream(benchmark, 0.25, shuffle=True, seed=0),
        lambda benchmark: benchmark_with_validation_stream(benchmark, split_strategy=balanced_half),
        online,
        lambda benchmark: online(benchmark_with_validation_stream(benchmark, 0.25, seed=0)),
        lambda benchmark: data_incremental_benchmark(benchmark, experience_size=3),
        lambda benchmark: with_classes_timeline(benchmark),
        lambda benchmark: task_incremental_benchmark(benchmark, reset_task_labels=True),
    ],
    ids=[
        "validation",
        "balanced validation",
        "online",
        "validation online",
        "data incremental",
        "timeline",
        "task incremental",
    ],
)
def test_names_survive_the_wrappers_of_a_benchmark(benchmark, names, wrap):
    wrapped = wrap(benchmark)
    assert class_names(wrapped) == ClassNames(names)
    for stream in wrapped.streams.values():
        experiences = list(stream)
        assert experiences
        assert all(class_names(experience) == ClassNames(names) for experience in experiences)
        # Looking has not consumed anything.
        assert class_names(stream) == ClassNames(names)
        assert len(list(stream)) == len(experiences)


@pytest.mark.parametrize(
    "buffer",
    [
        ReservoirSamplingBuffer(5),
        ClassBalancedBuffer(7),
        ExperienceBalancedBuffer(7),
        ParametricBuffer(7, groupby="class", selection_strategy=RandomExemplarsSelectionStrategy()),
        ParametricBuffer(7, groupby=None, selection_strategy=RandomExemplarsSelectionStrategy()),
    ],
    ids=["reservoir", "class", "experience", "parametric by class", "parametric"],
)
def test_names_survive_in_replay_buffers(benchmark, names, buffer):
    for experience in benchmark.train_stream:
        buffer.post_adapt(None, experience)
        assert class_names(buffer.buffer) == ClassNames(names)
        assert len(buffer.buffer[0]) == 3
    buffer.resize(None, 3)
    assert class_names(buffer.buffer) == ClassNames(names)


def test_the_answer_costs_one_look(benchmark, monkeypatch):
    data = benchmark.train_stream[0].dataset.subset([0, 1, 2]).concat(benchmark.train_stream[1].dataset)
    looked = []
    attribute = type(data.class_names)
    original = attribute.__getitem__
    monkeypatch.setattr(
        attribute, "__getitem__", lambda self, index: looked.append(index) or original(self, index)
    )
    class_names(data)
    assert len(looked) <= 2


def test_empty_experiences_are_passed_over(benchmark, names):
    data = benchmark.train_stream[0].dataset
    stream = benchmark_from_datasets(train=[data.subset([]), data])
    assert class_names(stream) == ClassNames(names)


def test_without_names_the_error_says_what_to_do(embeddings):
    data = TensorDataset(*embeddings())
    plain = nc_benchmark(data, data, n_experiences=2, task_labels=False)
    with pytest.raises(
        ValueError, match=r"`source` must be .*NCScenario without names.*with_class_names.*set_classes"
    ):
        class_names(plain)


@pytest.mark.parametrize("source", [3, "cat", ["cat"], None, TensorDataset(torch.eye(2))])
def test_other_things_are_refused(source):
    with pytest.raises(
        TypeError, match=r"`source` must be an Avalanche benchmark, stream, experience or data set"
    ):
        class_names(source)


def test_a_one_pass_stream_is_refused_and_left_alone(benchmark):
    stream = CLStream("train", iter(list(benchmark.train_stream)))
    with pytest.raises(ValueError, match=r"a stream that can be read twice.*one of its experiences"):
        class_names(stream)
    assert len(list(stream)) == 3


def test_data_with_different_names_are_refused(benchmark, embeddings):
    other = tensor_benchmark(embeddings(), embeddings(), class_names=list("abcdef"), n_experiences=1)
    joined = benchmark.train_stream[0].dataset.concat(other.train_stream[0].dataset)
    with pytest.raises(ValueError, match=r"one list of class names.*joined.*multi_dataset_benchmark"):
        class_names(joined)


def test_a_data_set_that_is_named_anew_forgets_its_old_names(benchmark):
    data = benchmark.train_stream[0].dataset
    new = ClassNames(list("abcdef"))
    renamed = name_dataset(data, new)
    assert class_names(renamed) == new
    assert class_names(renamed.subset([0]).concat(renamed)) == new
    assert class_names(concat_datasets([renamed, renamed])) == new
    assert class_names(data) != new


@pytest.fixture
def by_hand(embeddings):
    """Return benchmarks of each kind that the host can make of the same labelled data."""
    data = TensorDataset(*embeddings())
    data.targets = data.tensors[1]

    def lazily():
        for _ in range(2):
            yield as_taskaware_classification_dataset(labelled)

    labelled = nc_benchmark(data, data, 1, False).train_stream[0].dataset
    lazy = LazyStreamDefinition(lazily(), 2, [0, 0])
    eager = [as_classification_dataset(data), as_classification_dataset(data)]
    return {
        "nc": nc_benchmark(data, data, n_experiences=3, task_labels=True, seed=1),
        "ni": ni_benchmark(data, data, n_experiences=3, seed=1),
        "from datasets": benchmark_from_datasets(train=eager, test=eager),
        "class incremental": class_incremental_benchmark(
            {"train": eager[0], "test": eager[1]}, num_experiences=2
        ),
        "lazy": create_lazy_generic_benchmark(lazy, LazyStreamDefinition(lazily(), 2, [0, 0])),
    }


@pytest.mark.parametrize("kind", ["nc", "ni", "from datasets", "class incremental", "lazy"])
def test_a_benchmark_made_by_hand_can_be_named(by_hand, names, kind):
    plain = by_hand[kind]
    named = with_class_names(plain, names)
    assert type(named) is type(plain)
    assert list(named.streams) == list(plain.streams)
    for name, stream in named.streams.items():
        assert getattr(named, f"{name}_stream") is stream
        assert type(stream) is type(plain.streams[name])
        for index, experience in enumerate(stream):
            assert experience.current_experience == index
            assert experience.origin_stream is stream
            assert class_names(experience) == ClassNames(names)
    if kind != "lazy":
        with pytest.raises(ValueError, match=r"with_class_names"):
            class_names(plain)
        for old, new in zip(plain.train_stream, named.train_stream, strict=True):
            assert [str(sample) for sample in old.dataset] == [str(sample) for sample in new.dataset]
    if kind == "nc":
        experience = named.train_stream[1]
        assert experience.benchmark is named
        assert experience.classes_in_this_experience == plain.train_stream[1].classes_in_this_experience
        assert experience.task_labels == [1]
        assert named.n_classes_per_exp == [2, 2, 2]
        assert class_names(named.original_train_dataset) == ClassNames(names)
        assert class_names(with_class_names(named, list("abcdef")))[0] == "a"


def test_naming_leaves_the_slices_of_the_original_alone(by_hand, names):
    plain = by_hand["from datasets"]
    sliced = CLScenario([plain.train_stream[1:]])
    with_class_names(sliced, names)
    assert [experience.current_experience for experience in plain.train_stream] == [0, 1]


def test_an_online_stream_can_be_named(by_hand, names):
    stream = split_online_stream(by_hand["nc"].train_stream, experience_size=4)
    named = with_class_names(CLScenario([stream]), names)
    assert all(class_names(experience) == ClassNames(names) for experience in named.train_online_stream)


@pytest.mark.parametrize("kind", ["nc", "from datasets"])
@pytest.mark.parametrize("count", [4, 5, 7])
def test_a_wrong_count_of_names_is_refused(by_hand, kind, count):
    with pytest.raises(
        ValueError, match=rf"`names` must be 6 names, one for each class id.*got {count} names"
    ):
        with_class_names(by_hand[kind], list("abcdefgh")[:count])


def test_labels_of_a_lazy_stream_are_checked_when_they_come(by_hand):
    named = with_class_names(by_hand["lazy"], list("abcd"))
    with pytest.raises(ValueError, match=r"a name for every label.*labels 4, 5"):
        list(named.train_stream)


def test_only_labelled_benchmarks_can_be_named(by_hand, names):
    with pytest.raises(TypeError, match=r"`benchmark` must be an Avalanche benchmark; got NCStream"):
        with_class_names(by_hand["nc"].train_stream, names)
    from avalanche.benchmarks.utils import as_avalanche_dataset

    unlabelled = benchmark_from_datasets(
        train=[as_avalanche_dataset(torch.utils.data.TensorDataset(torch.eye(2)))]
    )
    with pytest.raises(ValueError, match=r"a benchmark with labelled data.*stream 'train'"):
        with_class_names(unlabelled, names)


def test_eager_streams_stay_eager(by_hand, names):
    assert isinstance(with_class_names(by_hand["from datasets"], names).train_stream, EagerCLStream)


@pytest.mark.parametrize("order", [[4, 0, 5, 2, 1, 3], [4, 0, 5, 2]], ids=["all", "some"])
def test_names_of_a_benchmark_whose_ids_the_host_has_numbered_anew(order, embeddings, names):
    x, y = embeddings()
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    arguments = {"n_experiences": 2, "task_labels": False, "fixed_class_order": order}
    plain = nc_benchmark(data, data, class_ids_from_zero_from_first_exp=True, **arguments)
    with pytest.raises(ValueError, match="`ids` must be given.*ids='original'.*ids='new'"):
        with_class_names(plain, names)
    for given, ids in ((names, "original"), ([names[old] for old in order], "new")):
        named = with_class_names(plain, given, ids=ids)
        for experience in (*named.train_stream, *named.test_stream):
            for row, label, *_ in experience.dataset:
                # A row says by itself which class of the data set it is.
                assert class_names(experience)[label] == names[int(row[: len(names)].argmax())]


def test_names_by_original_ids_are_those_of_the_whole_data_set(embeddings, names):
    x, y = embeddings()
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    plain = nc_benchmark(
        data, data, 2, task_labels=False, fixed_class_order=[4, 0], class_ids_from_zero_from_first_exp=True
    )
    with pytest.raises(ValueError, match="`names` must be 6 names.*of the data set.*got 2 names"):
        with_class_names(plain, names[:2], ids="original")
    with pytest.raises(ValueError, match="`names` must be 2 names.*got 6"):
        with_class_names(plain, names, ids="new")
    with pytest.raises(ValueError, match="`ids` must be .*original.*new"):
        with_class_names(plain, names, ids="old")


def test_ids_that_are_those_of_the_data_set_need_no_word(embeddings, names):
    x, y = embeddings()
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    plain = nc_benchmark(data, data, 2, task_labels=False, seed=3)
    for ids in (None, "original", "new"):
        assert class_names(with_class_names(plain, names, ids=ids)).names == tuple(names)


def test_an_id_with_another_meaning_in_each_experience_has_no_name(embeddings, names):
    data = TensorDataset(*embeddings())
    plain = nc_benchmark(data, data, 3, task_labels=True, seed=1, class_ids_from_zero_in_each_exp=True)
    with pytest.raises(ValueError, match="same class in every experience.*class_ids_from_zero_in_each_exp"):
        with_class_names(plain, names[:2])
