"""The table of the host's baselines: each runs, keeps the memory asked for, and takes its arguments."""

import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from torch.optim import SGD

from avalanche_vlm.metrics import stored_bytes
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import host_baselines
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from avalanche_vlm.testing.running import differing, snapshot

NAMES = list(host_baselines(memory_size=4, n_experiences=3))
HOLDING = {"AGEM", "GDumb", "DER", "ER-ACE", "replay", "replay, class-balanced", "replay, parametric"}


def train(name, plugins=(), **arguments):
    torch.manual_seed(0)
    benchmark = tiny_benchmark()
    model = tiny_classifier(trainable="image")
    build = host_baselines(memory_size=4, n_experiences=len(benchmark.train_stream))[name]
    strategy = build(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        train_mb_size=4,
        eval_mb_size=4,
        train_epochs=2,
        plugins=[*plugins],
        evaluator=None,
        **arguments,
    )
    for experience in [benchmark.train_stream] if name == "joint training" else benchmark.train_stream:
        strategy.train(experience)
    return strategy


@pytest.mark.parametrize("name", [name for name in NAMES if name != "naive"])
def test_each_differs_from_naive_training(name):
    # Strengths have to show on tiny images.
    arguments = {"EWC": {"ewc_lambda": 1e3}, "SI": {"si_lambda": 1e6}}.get(name, {})
    strategy = train(name, **arguments)
    assert isinstance(strategy._criterion, LabelSpaceCrossEntropy)
    assert differing(snapshot(strategy.model), snapshot(train("naive").model))


@pytest.mark.parametrize("name", sorted(HOLDING))
def test_memories_hold_as_much_as_was_asked_for(name):
    strategy = train(name)
    held = []
    for part in [strategy, *strategy.plugins]:
        if hasattr(part, "storage_policy"):
            held.append(len(part.storage_policy.buffer))
        elif hasattr(part, "patterns_per_experience"):  # AGEM
            held.append(sum(len(buffer) for buffer in part.buffers))
    # AGEM keeps a whole number of samples of each experience.
    assert held == [3 if name == "AGEM" else 4]


def test_the_criterion_and_the_plugins_of_the_caller_are_kept():
    criterion, memory = LabelSpaceCrossEntropy("all"), ReplayPlugin(mem_size=2)
    for name in ("GDumb", "SI", "replay, class-balanced", "EWC"):
        plugins = [memory]
        strategy = train(name, plugins, criterion=criterion)
        assert strategy._criterion is criterion
        assert strategy.plugins[0] is memory
        assert plugins == [memory]
    assert stored_bytes(strategy)


@pytest.mark.parametrize("argument", ["memory_size", "n_experiences"])
def test_wrong_counts_are_named(argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        host_baselines(**({"memory_size": 4, "n_experiences": 3} | {argument: 0}))
