"""What plugins hold, against counts made by hand."""

import collections
import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.training import Cumulative, JointTraining, LwF, Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from PIL import Image
from torch import nn
from torch.optim import SGD
from torch.utils.data import Dataset, TensorDataset
from torchvision import transforms

from avalanche_vlm.logging import ResultsLogger, read_results
from avalanche_vlm.metrics import MemoryMetric, stored_bytes
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

WEIGHTS = 4 * (5 * 6 + 6)  # bytes of the model below


@pytest.fixture(scope="module")
def benchmark():
    x, y = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6).repeat(4)
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return nc_benchmark(data, data, n_experiences=3, task_labels=False, shuffle=False)


def make(*plugins, kind=Naive, metrics=(), loggers=(), model=None, **arguments):
    model = nn.Linear(5, 6) if model is None else model
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=4,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers)),
        **arguments,
    )


def storages(part):
    """Memory of the tensors that a storage policy keeps beside its data sets."""
    return sum(group._buffer_weights.untyped_storage().nbytes() for group in part.buffer_groups.values())


def test_replay_holds_samples(benchmark):
    policy = ClassBalancedBuffer(max_size=6)
    strategy = make(ReplayPlugin(mem_size=6, storage_policy=policy))
    for experience in benchmark.train_stream:
        strategy.train(experience)
        # Five floats, and two whole numbers: the class and the task.
        expected = len(policy.buffer) * (5 * 4 + 8 + 8) + storages(policy)
        assert stored_bytes(strategy) == {"ReplayPlugin": expected, "total": expected}
    assert len(policy.buffer) == 6


def test_ewc_holds_weights_and_importances(benchmark):
    strategy = make(EWCPlugin(1.0), EWCPlugin(1.0, mode="online", decay_factor=0.5))
    for number, experience in enumerate(benchmark.train_stream, start=1):
        strategy.train(experience)
        every, last = number * 2 * WEIGHTS, 2 * WEIGHTS
        assert stored_bytes(strategy) == {"EWCPlugin": every, "EWCPlugin 2": last, "total": every + last}


def test_lwf_holds_a_copy_of_the_model(benchmark):
    for strategy in (make(LwFPlugin()), make(kind=LwF, alpha=1.0, temperature=2.0)):
        assert stored_bytes(strategy) == {"LwFPlugin": 0, "total": 0}
        strategy.train(benchmark.train_stream[0])
        assert stored_bytes(strategy) == {"LwFPlugin": WEIGHTS, "total": WEIGHTS}


def test_the_copy_of_a_classifier_is_counted_whole():
    benchmark = tiny_benchmark()
    strategy = make(LwFPlugin(), model=tiny_classifier(trainable="image"))
    strategy.train(benchmark.train_stream[0])
    teacher = strategy.plugins[0].lwf.prev_model
    tensors = [*nn.Module.named_parameters(teacher), *teacher.named_buffers()]
    assert stored_bytes(strategy)["LwFPlugin"] >= sum(tensor.nbytes for _, tensor in tensors) > 0


class Part:
    def __init__(self, nbytes):
        self.nbytes = nbytes
        self.tensor = torch.zeros(1000)


class Holder(SupervisedPlugin):
    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)


@dataclass
class Record:
    tensor: torch.Tensor


class Slotted:
    __slots__ = ()


def test_what_a_part_says_itself_counts():
    plugin = Holder(part=Part(123), parts=[Part(1), {"a": Part(2)}])
    assert stored_bytes(make(plugin)) == {"Holder": 126, "total": 126}
    plugin.nbytes = 7
    assert stored_bytes(make(plugin)) == {"Holder": 7, "total": 7}


def test_what_is_searched():
    tensor = torch.zeros(10)
    array = np.zeros(6, dtype=np.int16)
    held = {
        "tensor": tensor,
        "view": tensor[:3],
        "part of a larger one": torch.zeros(100)[:1],
        "array": array,
        "view of the array": array[2:],
        "record": Record(torch.zeros(2, dtype=torch.float64)),
        "nested": [({"a": [torch.zeros(3, dtype=torch.bool)]},), collections.deque([torch.zeros(1)])],
        "module": nn.Linear(2, 3),
        "sparse": torch.eye(2).to_sparse().coalesce(),
        "picture": Image.new("RGB", (4, 5)),
        "meta": torch.empty(1000, device="meta"),
        "others": [None, 3, "text", len, torch, Slotted(), int],
    }
    plugin = Holder(**held)
    plugin.itself = plugin
    expected = 40 + 400 + 12 + 16 + 3 + 4 + 4 * (2 * 3 + 3) + 2 * 4 + 60
    assert stored_bytes(make(plugin)) == {"Holder": expected, "total": expected}


def test_what_belongs_to_the_strategy_is_not_counted(benchmark):
    plugin = Holder()
    strategy = make(plugin, metrics=[MemoryMetric()])
    strategy.train(benchmark.train_stream[0])
    plugin.strategy, plugin.model, plugin.optimizer = strategy, strategy.model, strategy.optimizer
    plugin.weights = [parameter.data.view(-1) for parameter in strategy.model.parameters()]
    plugin.momentum = [state["momentum_buffer"] for state in strategy.optimizer.state.values()]
    plugin.experience, plugin.stream = benchmark.train_stream[0], benchmark.train_stream
    plugin.evaluator = strategy.evaluator
    assert stored_bytes(strategy) == {"Holder": 0, "total": 0}
    plugin.copy = copy.deepcopy(strategy.model)
    assert stored_bytes(strategy) == {"Holder": WEIGHTS, "total": WEIGHTS}


def test_what_two_share_counts_once_in_the_total():
    shared, part = torch.zeros(8), Part(5)
    strategy = make(Holder(a=shared, part=part), Holder(b=shared, part=part, c=torch.zeros(1)))
    assert stored_bytes(strategy) == {"Holder": 37, "Holder 2": 41, "total": 41}


def test_a_policy_of_the_strategy_itself_counts(benchmark):
    strategy = make()
    strategy.storage_policy = ClassBalancedBuffer(max_size=4)
    strategy.storage_policy.post_adapt(strategy, benchmark.train_stream[0])
    expected = 4 * 36 + storages(strategy.storage_policy)
    assert stored_bytes(strategy) == {"storage_policy": expected, "total": expected}


def test_the_data_that_cumulative_keeps_count(benchmark):
    strategy = make(kind=Cumulative)
    for number, experience in enumerate(benchmark.train_stream, start=1):
        strategy.train(experience)
        expected = number * 8 * (5 * 4 + 8 + 8)
        assert stored_bytes(strategy) == {"dataset": expected, "total": expected}


def test_the_criterion_and_what_is_trained_on_do_not_count():
    benchmark = tiny_benchmark()
    model = tiny_classifier(trainable="image")
    strategy = Naive(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        criterion=LabelSpaceCrossEntropy("seen"),
        evaluator=EvaluationPlugin(loggers=[ResultsLogger("never written.csv")]),
    )
    strategy.adapted_dataset = benchmark.train_stream[0].dataset
    strategy._criterion.columns = torch.arange(6)
    assert strategy._criterion in strategy.plugins
    assert stored_bytes(strategy) == {"total": 0}


class Pictures(Dataset):
    targets = (0, 1, 0, 1)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Image.new("RGB", (9, 7)), self.targets[index]


def test_pictures_count_before_transforms():
    grow = transforms.Compose([transforms.Resize(224), transforms.ToTensor()])
    data = as_classification_dataset(
        Pictures(), transform_groups={"train": (grow, None), "eval": (grow, None)}
    )
    assert data[0][0].shape[0] == 3
    for dataset in (data, data.eval(), data.subset([0, 2, 3]).concat(data.subset([1]))):
        assert stored_bytes(make(Holder(data=dataset)))["Holder"] == 4 * (9 * 7 * 3 + 8)
    plain = AvalancheDataset([Pictures()], data_attributes=[DataAttribute([1, 2, 3, 4], "extra")])
    assert stored_bytes(make(Holder(data=plain)))["Holder"] == 4 * (9 * 7 * 3 + 8)
    assert stored_bytes(make(Holder(data=plain.subset([]))))["Holder"] == 0


def test_the_metric_logs_after_each_experience(benchmark, tmp_path):
    path = tmp_path / "results.csv"
    metric = MemoryMetric()
    strategy = make(LwFPlugin(), Holder(a=torch.zeros(1)), metrics=[metric], loggers=[ResultsLogger(path)])
    for experience in benchmark.train_stream:
        last = strategy.train(experience)
        assert last["StoredBytes/LwFPlugin"] == WEIGHTS
        assert last["StoredBytes"] == WEIGHTS + 4
    assert metric.result() == {"LwFPlugin": WEIGHTS, "Holder": 4, "total": WEIGHTS + 4}
    rows = [(row.metric, row.stream, row.after_experience, row.value) for row in read_results(path)]
    assert rows == [
        (name, "train", after, value)
        for after in (1, 2, 3)
        for name, value in (
            ("stored_bytes/LwFPlugin", WEIGHTS),
            ("stored_bytes/Holder", 4),
            ("stored_bytes", WEIGHTS + 4),
        )
    ]
    other = MemoryMetric()
    other.load_state_dict(metric.state_dict())
    assert other.result() == metric.result()
    metric.reset()
    assert metric.result() == {}


def test_joint_training_is_measured(benchmark, tmp_path):
    path = tmp_path / "results.csv"
    strategy = make(kind=JointTraining, metrics=[MemoryMetric()], loggers=[ResultsLogger(path)])
    strategy.train(benchmark.train_stream)
    assert [(row.metric, row.after_experience, row.value) for row in read_results(path)] == [
        ("stored_bytes", 3, 0)
    ]
