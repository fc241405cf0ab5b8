"""The strategies of the host run on every shape of benchmark that is built here."""

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from avalanche.training.supervised import (
    AGEM,
    DER,
    ER_ACE,
    EWC,
    GEM,
    MIR,
    Cumulative,
    FromScratchTraining,
    GDumb,
    ICaRL,
    JointTraining,
    LwF,
    Naive,
    Replay,
    SynapticIntelligence,
)
from torch import nn

from avalanche_vlm.benchmarks import domain_benchmark, multi_dataset_benchmark, tensor_benchmark

# The host calls what it has deprecated itself, finds no logger where none is wanted, and its
# synaptic intelligence multiplies arrays with tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated function:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

STRATEGIES = {
    "Naive": (Naive, {}),
    "Replay": (Replay, {"mem_size": 10}),
    "Replay by class": (
        Naive,
        {"plugins": lambda: [ReplayPlugin(10, storage_policy=ClassBalancedBuffer(10))]},
    ),
    "EWC": (EWC, {"ewc_lambda": 1.0}),
    "LwF": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "SI": (SynapticIntelligence, {"si_lambda": 1.0}),
    "GDumb": (GDumb, {"mem_size": 10}),
    "GEM": (GEM, {"patterns_per_exp": 4}),
    "AGEM": (AGEM, {"patterns_per_exp": 4, "sample_size": 4}),
    "DER": (DER, {"mem_size": 10, "batch_size_mem": 4}),
    "ER-ACE": (ER_ACE, {"mem_size": 10, "batch_size_mem": 4}),
    "MIR": (MIR, {"mem_size": 10, "subsample": 4, "batch_size_mem": 4}),
    "Cumulative": (Cumulative, {}),
    "FromScratch": (FromScratchTraining, {}),
    "Joint": (JointTraining, {}),
}


def class_incremental(pair, task_labels):
    names = [f"class {index}" for index in range(6)]
    return tensor_benchmark(pair, pair, class_names=names, n_experiences=2, task_labels=task_labels)


def domain_incremental(pair, task_labels):
    names = [f"class {index}" for index in range(6)]
    shifted = (pair[0] + 1, pair[1])
    return domain_benchmark(
        {"plain": (pair, pair), "shifted": (shifted, shifted)}, class_names=names, task_labels=task_labels
    )


def several_datasets(pair, task_labels):
    x, y = pair
    low, high = (x[y < 3], y[y < 3]), (x[y >= 3], y[y >= 3] - 3)
    parts = {"low": (low, low, ["a", "b", "c"]), "high": (high, high, ["d", "e", "f"])}
    return multi_dataset_benchmark(parts, task_labels=task_labels)


@pytest.mark.parametrize("task_labels", [False, True], ids=["one task", "task labels"])
@pytest.mark.parametrize("shape", [class_incremental, domain_incremental, several_datasets])
@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_of_the_host_run(name, shape, task_labels, embeddings):
    benchmark = shape(embeddings(), task_labels)
    strategy_class, arguments = STRATEGIES[name]
    arguments = {key: value() if callable(value) else value for key, value in arguments.items()}
    torch.manual_seed(0)
    model = nn.Linear(7, 6)
    before = model.weight.detach().clone()
    strategy = strategy_class(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=1,
        eval_mb_size=16,
        evaluator=EvaluationPlugin(
            accuracy_metrics(stream=True), forgetting_metrics(experience=True), loggers=[]
        ),
        **arguments,
    )
    if name == "Joint":
        strategy.train(benchmark.train_stream)
    else:
        for experience in benchmark.train_stream:
            strategy.train(experience)
    results = strategy.eval(benchmark.test_stream)
    assert any(key.startswith("Top1_Acc_Stream") for key in results)
    assert not torch.equal(strategy.model.weight, before)
    assert bool(torch.isfinite(strategy.model.weight).all())


@pytest.mark.parametrize("shape", [class_incremental, several_datasets])
def test_icarl_runs_where_classes_are_new(shape, embeddings):
    # It reads the class counts of an `nc_benchmark`, which a domain-incremental stream has not.
    benchmark = shape(embeddings(), False)
    features, classifier = nn.Linear(7, 5), nn.Linear(5, 6)
    strategy = ICaRL(
        feature_extractor=features,
        classifier=classifier,
        optimizer=torch.optim.SGD([*features.parameters(), *classifier.parameters()], lr=0.01),
        memory_size=12,
        buffer_transform=None,
        fixed_memory=True,
        train_mb_size=16,
        eval_mb_size=16,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert any(key.startswith("Top1_Acc_Stream") for key in strategy.eval(benchmark.test_stream))
