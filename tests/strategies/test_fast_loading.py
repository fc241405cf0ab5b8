"""Batches that are indexed at once are the host's batches, bit for bit, or are not indexed."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, as_classification_dataset
from avalanche.benchmarks.utils.data_loader import (
    GroupBalancedDataLoader,
    MultiDatasetDataLoader,
    ReplayDataLoader,
    TaskBalancedDataLoader,
)
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.training import Naive
from avalanche.training.plugins import LwFPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ParametricBuffer
from torch.optim import SGD
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from avalanche_vlm.benchmarks import LabelledTensors, tensor_benchmark
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.plugins import FastLoadingPlugin, LabelSpaceCrossEntropy
from avalanche_vlm.plugins.fast_loader import FastLoader, fast_loader
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing.running import differing, run

CLASSES, WIDTH = 6, 5
NAMES = [f"class {index}" for index in range(CLASSES)]


def tensors(count=60, seed=0):
    x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(count) % CLASSES


@pytest.fixture(scope="module")
def embedded():
    return tensor_benchmark(tensors(), tensors(seed=1), class_names=NAMES, n_experiences=3)


def epochs(loader, count=2):
    """Return all batches of some epochs, with random numbers drawn in between, and one at the end."""
    torch.manual_seed(0)
    if getattr(loader, "generator", None) is not None:
        loader.generator.manual_seed(0)
    drawn = []
    for _ in range(count):
        for batch in loader:
            drawn += [*batch, torch.rand(1)]
    return [*drawn, torch.rand(1)]


def assert_same_batches(loader):
    fast = fast_loader(loader)
    assert isinstance(fast, FastLoader)
    assert len(fast) == len(loader)
    assert fast_loader(fast) is fast
    theirs, ours = epochs(loader), epochs(fast)
    assert len(theirs) == len(ours) > 4
    for expected, found in zip(theirs, ours, strict=True):
        assert expected.dtype == found.dtype
        assert expected.stride() == found.stride()
        assert torch.equal(expected, found)


# Batches.


def test_the_hosts_loaders(embedded):
    first, second = (experience.dataset.train() for experience in embedded.train_stream[:2])
    assert_same_batches(TaskBalancedDataLoader(first, batch_size=7, shuffle=True))
    assert_same_batches(DataLoader(first, batch_size=7, shuffle=True, drop_last=True))
    assert_same_batches(DataLoader(first, batch_size=7, shuffle=True, generator=torch.Generator()))
    assert_same_batches(
        GroupBalancedDataLoader([first, second.subset([1, 2, 9])], batch_size=8, shuffle=True)
    )
    replay = partial(ReplayDataLoader, first, second.subset(range(3)), batch_size=8, batch_size_mem=5)
    assert_same_batches(replay(oversample_small_tasks=True, shuffle=True))  # the memory is cycled through
    assert_same_batches(replay(oversample_small_tasks=False, shuffle=True))


@pytest.mark.parametrize("task_labels", [True, False])
def test_tasks_are_balanced_as_before(task_labels):
    x, y = tensors()
    benchmark = tensor_benchmark(
        (x, y), (x, y), class_names=NAMES, n_experiences=3, task_labels=task_labels, seed=3
    )
    joined = benchmark.train_stream[2].dataset.concat(benchmark.train_stream[0].dataset)
    assert_same_batches(
        TaskBalancedDataLoader(joined, batch_size=8, oversample_small_groups=True, shuffle=True)
    )


def test_the_label_map_of_the_host_is_applied():
    x, y = tensors()
    data = TensorDataset(x, y)
    benchmark = nc_benchmark(
        data, data, n_experiences=3, task_labels=True, seed=1, class_ids_from_zero_in_each_exp=True
    )
    dataset = benchmark.train_stream[1].dataset.train()
    assert {dataset[index][1] for index in range(len(dataset))} == {0, 1}
    assert_same_batches(TaskBalancedDataLoader(dataset, batch_size=8, shuffle=True))


def test_experiences_without_task_labels():
    x, y = tensors()
    halves = [
        as_classification_dataset(LabelledTensors(x[rows], y[rows])) for rows in (slice(30), slice(30, 60))
    ]
    benchmark = benchmark_from_datasets(train=halves, test=halves)
    assert_same_batches(DataLoader(benchmark.train_stream[1].dataset.train(), batch_size=7, shuffle=True))


def test_several_leaves_under_subsets_and_concatenations_of_torch_and_the_host():
    x, y = tensors()
    leaves = [LabelledTensors(x, y), LabelledTensors(x + 1, y), LabelledTensors(x + 2, y)]
    nested = ConcatDataset([Subset(leaves[0], [5, 3, 9]), leaves[1], Subset(leaves[2], range(8))])
    assert_same_batches(DataLoader(nested, batch_size=4, shuffle=True))
    host = AvalancheDataset([nested]).subset([1, 0, 40, 70, 66, 3]).concat(AvalancheDataset([leaves[1]]))
    assert_same_batches(DataLoader(host, batch_size=4, shuffle=True))
    pair = [AvalancheDataset([leaf]).subset(range(20)) for leaf in leaves]
    assert_same_batches(MultiDatasetDataLoader(pair, [2, 3, 4], oversample_small_datasets=True))


def test_subsets_that_count_from_the_end():
    leaves = [LabelledTensors(*tensors(seed=seed)) for seed in range(2)]
    for dataset, rows in ((leaves[0], [-1, 3, -60, -2]), (ConcatDataset(leaves), [-1, 3, -60, -61, -120])):
        assert_same_batches(DataLoader(Subset(dataset, rows), batch_size=1))


def test_labels_that_a_user_changed_in_one_place_only():
    for name in ("y", "targets"):
        data = LabelledTensors(*tensors())
        getattr(data, name)[7] = 5
        assert data[7][1] != int(data.y[7])
        loader = DataLoader(data, batch_size=7)
        assert fast_loader(loader) is loader
        assert_same_batches(DataLoader(Subset(data, range(8, 60)), batch_size=7))


def test_pinned_memory_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loader = DataLoader(LabelledTensors(*tensors()), batch_size=20, pin_memory=True)
    fast = fast_loader(loader)
    assert isinstance(fast, FastLoader)
    assert [len(x) for x, _ in fast] == [20, 20, 20]


def test_images_as_bytes_and_in_another_memory_order():
    y = torch.arange(12) % CLASSES
    images = torch.randint(256, (12, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for x in (images, images.float().contiguous(memory_format=torch.channels_last)):
        loader = DataLoader(TensorDataset(x, y), batch_size=5)
        for expected, found in zip(loader, fast_loader(loader), strict=True):
            assert torch.equal(expected[0], found[0])
            assert expected[0].stride() == found[0].stride()


def test_data_on_disk_are_indexed_there(tmp_path):
    mapped = np.memmap(tmp_path / "x", dtype=np.float32, mode="w+", shape=(60, WIDTH))
    mapped[:] = tensors()[0].numpy()
    leaf = LabelledTensors(torch.from_numpy(mapped), tensors()[1])
    assert leaf.x.data_ptr() == mapped.ctypes.data
    loader = DataLoader(leaf, batch_size=7, shuffle=True)
    assert_same_batches(loader)
    assert fast_loader(loader)._samples._inputs[0].data_ptr() == mapped.ctypes.data


def test_the_loader_answers_for_the_one_behind_it(embedded):
    loader = TaskBalancedDataLoader(embedded.train_stream[0].dataset, batch_size=4)
    fast = fast_loader(loader)
    assert fast.datasets is loader.datasets
    assert fast.batch_sizes == [4]
    with pytest.raises(AttributeError, match="nothing"):
        _ = fast.nothing


# What is left to the host.


class Noisy(Dataset):
    """Rows of tensors, and sometimes not."""

    def __init__(self, draw):
        self.x, self.y = tensors()
        self.draw = draw

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index] + (1.0 if self.draw() < 0.001 else 0.0), int(self.y[index])


class Scaled(LabelledTensors.__mro__[1]):
    """Looks like a data set of tensors, and is not."""

    def __init__(self):
        self.x, self.y = tensors()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return 2 * self.x[index], int(self.y[index])


class NoisyLabels(Scaled):
    """Returns another label for a few samples, which no sample of samples would find."""

    flipped = (13, 57, 58)

    def __getitem__(self, index):
        return self.x[index], (int(self.y[index]) + (index in self.flipped)) % CLASSES


class Doubled(FlatData):
    """A node of the host's tree that does more than to hand samples on."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x * (1 + (index == 13)), y


class HardCoded(Scaled):
    """Draws by a function that is no attribute, and hardly ever changes anything."""

    def __getitem__(self, index):
        return self.x[index] + (1.0 if HardCoded.draw() < 0.001 else 0.0), int(self.y[index])


@pytest.mark.parametrize(
    "draw", [lambda: float(torch.rand(1)), random.random, np.random.rand], ids=["torch", "python", "numpy"]
)
def test_a_data_set_that_draws_keeps_its_loader_and_its_random_numbers(draw, monkeypatch):
    monkeypatch.setattr(HardCoded, "draw", staticmethod(draw), raising=False)
    for dataset in (Noisy(draw), HardCoded()):
        loader = DataLoader(dataset, batch_size=4)
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        assert fast_loader(loader) is loader
        after = draw()
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        assert after == draw()


def host_dataset(**arguments):
    return as_classification_dataset(LabelledTensors(*tensors()), **arguments)


def rarely_another():
    generator = random.Random(0)
    return lambda y: (y + (generator.random() < 0.02)) % CLASSES


def left_alone():
    x, y = tensors()
    plain, dataset = TensorDataset(x, y), host_dataset()
    logits = DataAttribute(list(x), name="logits", use_in_getitem=True)
    ffcv = TensorDataset(x, y)
    ffcv.ffcv_info = ()
    return {
        "transform of x": DataLoader(host_dataset(transform_groups={"train": (torch.neg, None)}), 4),
        "transform of the pair": DataLoader(
            AvalancheDataset([plain], transform_groups={"train": lambda x: -x}), 4
        ),
        "random transform of y": DataLoader(
            host_dataset(transform_groups={"train": (None, lambda y: y + int(torch.randint(2, ())))}), 4
        ),
        "changed x": DataLoader(Scaled(), 4),
        "a few other labels": DataLoader(NoisyLabels(), 4),
        "a few other labels, under the host": DataLoader(
            AvalancheDataset([NoisyLabels()]).subset(range(50)), 4
        ),
        "a transform of y with a generator of its own": DataLoader(
            host_dataset(transform_groups={"train": (None, rarely_another())}), 4
        ),
        "a node of another class": DataLoader(Doubled([plain]), 4),
        "an index beyond the data": DataLoader(Subset(plain, [0, 60]), 4),
        "an index before the data": DataLoader(Subset(plain, [0, -61]), 4),
        "attribute that is no number": DataLoader(AvalancheDataset([plain], data_attributes=[logits]), 4),
        "three parts": DataLoader(TensorDataset(x, y, y), 4),
        "no labels": DataLoader(TensorDataset(x), 4),
        "gradient": DataLoader(TensorDataset(x.clone().requires_grad_(), y), 4),
        "labels as numbers and as tensors": DataLoader(ConcatDataset([plain, LabelledTensors(x, y)]), 4),
        "two widths": DataLoader(ConcatDataset([plain, TensorDataset(x[:, :2], y)]), 4),
        "two types": DataLoader(ConcatDataset([plain, TensorDataset(x.double(), y)]), 4),
        "list": DataLoader(list(zip(x, y, strict=True)), 4),
        "ffcv": DataLoader(ffcv, 4),
        "empty": DataLoader(dataset.subset([]), 4),
        "workers": DataLoader(plain, 4, num_workers=1),
        "collate function": DataLoader(plain, 4, collate_fn=list),
        "no batches": DataLoader(plain, batch_size=None),
        "no loader": [[x, y]],
    }


@pytest.mark.parametrize("name", left_alone())
def test_what_is_not_as_expected_keeps_its_loader(name):
    loader = left_alone()[name]
    assert fast_loader(loader) is loader


def test_a_loader_of_another_class_keeps_its_batches(embedded):
    class Reversed(TaskBalancedDataLoader):
        def __iter__(self):
            return reversed(list(super().__iter__()))

    class Own(DataLoader):
        pass

    dataset = embedded.train_stream[0].dataset
    for loader in (Reversed(dataset, batch_size=4), Own(dataset, batch_size=4)):
        assert fast_loader(loader) is loader


# Strategies.


def strategy(kind=FineTune, plugins=(), **arguments):
    head = TextFeatureHead(torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(2)))
    model = CLIPClassifier(EmbeddingBackbone(WIDTH), CosineHead(head), class_names=NAMES)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    if kind is Naive:
        arguments |= {"criterion": LabelSpaceCrossEntropy("seen"), "eval_mb_size": 8}
    return kind(
        model=model,
        optimizer=optimizer,
        plugins=[*plugins],
        train_mb_size=8,
        train_epochs=2,
        evaluator=None,
        **arguments,
    )


PLUGINS = {
    "none": list,
    "replay": lambda: [ReplayPlugin(12)],
    "small memory batches": lambda: [ReplayPlugin(12, batch_size_mem=3)],
    "memory smaller than its batch": lambda: [ReplayPlugin(3)],
    "balanced over tasks": lambda: [ReplayPlugin(12, batch_size_mem=4, task_balanced_dataloader=True)],
    "class-balanced": lambda: [ReplayPlugin(12, storage_policy=ClassBalancedBuffer(12))],
    "parametric": lambda: [ReplayPlugin(12, storage_policy=ParametricBuffer(12, groupby="class"))],
    "replay, LwF": lambda: [ReplayPlugin(12), LwFPlugin(1.0, 2.0)],
    "LwF, replay": lambda: [LwFPlugin(1.0, 2.0), ReplayPlugin(12)],
}


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("task_labels", [False, True])
def test_weights_are_bit_identical_with_the_hosts_loader(name, task_labels):
    benchmark = tensor_benchmark(
        tensors(), tensors(), class_names=NAMES, n_experiences=3, task_labels=task_labels
    )
    make = PLUGINS[name]

    def trained(*args, **kwargs):
        random.seed(0)  # the host's parametric buffer draws from Python's generator
        return run(strategy(*args, **kwargs), benchmark)

    stock = trained(Naive, make())
    assert not differing(stock, trained(plugins=make()))
    assert not differing(stock, trained(plugins=make(), fast_loading=False))
    for plugins in ([*make(), FastLoadingPlugin()], [FastLoadingPlugin(), *make()]):
        assert not differing(stock, trained(Naive, plugins))


class Watching(ReplayPlugin):
    """Notes what kind of loader batches come from."""

    def __init__(self):
        super().__init__(12)
        self.kinds = set()

    def before_training_iteration(self, strategy, **kwargs):
        self.kinds.add(type(strategy.dataloader))

    def before_eval_iteration(self, strategy, **kwargs):
        self.kinds.add(("eval", type(strategy.dataloader)))


@pytest.mark.parametrize(
    ("kind", "arguments", "fast"),
    [(FineTune, {}, True), (FineTune, {"fast_loading": False}, False), (Naive, {}, False)],
)
def test_batches_come_from_the_fast_loader_unless_switched_off(embedded, kind, arguments, fast):
    plugin = Watching()
    run(strategy(kind, [plugin], **arguments), embedded)
    assert ({FastLoader, ("eval", FastLoader)} == plugin.kinds) == fast
    plugin = Watching()
    run(strategy(Naive, [FastLoadingPlugin(), plugin]), embedded)
    assert plugin.kinds == {FastLoader, ("eval", FastLoader)}


def test_a_loader_that_a_plugin_sets_before_an_epoch_is_used(embedded):
    class Reversed(Watching):
        def before_training_epoch(self, strategy, **kwargs):
            strategy.dataloader = DataLoader(strategy.adapted_dataset.subset(range(3)), batch_size=1)

        def after_training_epoch(self, strategy, **kwargs):
            self.kinds.add(strategy.clock.train_epoch_iterations)

    plugin = Reversed()
    run(strategy(plugins=[plugin]), embedded)
    assert plugin.kinds == {FastLoader, ("eval", FastLoader), 3}


def test_periodic_evaluation_inside_training(embedded):
    def trained(**arguments):
        return run(strategy(eval_every=1, peval_mode="iteration", **arguments), embedded)

    assert not differing(trained(), trained(fast_loading=False))


def test_a_wrong_switch_is_named():
    with pytest.raises(TypeError, match="fast_loading"):
        strategy(fast_loading="yes")
