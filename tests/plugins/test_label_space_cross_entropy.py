import copy
import math

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training import MIR, JointTraining, Naive, Replay
from avalanche.training.plugins import EvaluationPlugin
from torch.nn import functional as F
from torch.optim import SGD

from avalanche_vlm.functional import LABEL_SPACES, label_space_cross_entropy
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier


class Recording(LabelSpaceCrossEntropy):
    """Keeps what it was asked in training."""

    def __init__(self, space):
        super().__init__(space)
        self.calls = []

    def forward(self, logits, targets):
        loss = super().forward(logits, targets)
        self.calls.append((logits.detach().clone(), targets.clone(), loss.detach().clone()))
        return loss


@pytest.mark.parametrize(
    ("space", "after_two"),
    [("seen", [0, 1, 2, 3]), ("experience", [2, 3]), ("all", range(6)), ("dataset", range(6))],
)
def test_in_a_stock_strategy_the_space_is_that_of_the_experience(space, after_two):
    model, benchmark, criterion = tiny_classifier(trainable="image"), tiny_benchmark(), Recording(space)
    strategy = Naive(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        criterion=criterion,
        train_mb_size=4,
        evaluator=None,
    )
    strategy.train(benchmark.train_stream[0])
    criterion.calls.clear()
    strategy.train(benchmark.train_stream[1])
    for logits, targets, loss in criterion.calls:
        columns = torch.tensor(list(after_two))
        expected = F.cross_entropy(logits[:, columns].double(), torch.searchsorted(columns, targets))
        assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def test_replayed_labels_outside_the_space_keep_a_finite_loss():
    model, benchmark, criterion = (
        tiny_classifier(trainable="image"),
        tiny_benchmark(),
        Recording("experience"),
    )
    strategy = Replay(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        criterion=criterion,
        mem_size=6,
        train_mb_size=4,
        evaluator=None,
    )
    for experience in benchmark.train_stream:
        criterion.calls.clear()
        strategy.train(experience)
    replayed = [(targets, loss) for _, targets, loss in criterion.calls if (targets < 4).any()]
    assert replayed
    assert all(bool(loss.isfinite()) for _, loss in replayed)


@pytest.mark.parametrize("space", LABEL_SPACES)
def test_the_evaluation_loss_does_not_depend_on_the_batch(space):
    model, benchmark = tiny_classifier(trainable="image"), tiny_benchmark()
    model.train()
    model.adaptation(benchmark.train_stream[0])
    found = []
    for size in (1, 2, 3, 7, 64):
        strategy = Naive(
            model=model,
            optimizer=SGD(model.parameters(), lr=0.01),
            criterion=LabelSpaceCrossEntropy(space, label_smoothing=0.1),
            eval_mb_size=size,
            evaluator=EvaluationPlugin(loss_metrics(experience=True, stream=True), loggers=[]),
        )
        found.append(strategy.eval(benchmark.test_stream))
    for values in found[1:]:
        assert values == pytest.approx(found[0], abs=1e-5, nan_ok=True)
    # Of what was never seen there is no loss; least of all one of 0.
    defined = [math.isfinite(value) for name, value in found[0].items() if "Exp00" in name]
    assert defined == [True, space != "seen", space != "seen"]


def test_a_sample_outside_the_space_makes_the_mean_nan():
    criterion = LabelSpaceCrossEntropy("seen")
    logits, targets = torch.randn(3, 6), torch.tensor([0, 4, 1])
    criterion._columns = torch.tensor([0, 1])
    assert criterion(logits, targets).isfinite()  # in training the 4 joins
    criterion._in_evaluation = True
    assert criterion(logits, targets).isnan()
    criterion.reduction = "none"
    assert criterion(logits, targets).isnan().tolist() == [False, True, False]


def test_outside_a_strategy():
    logits, targets = torch.randn(4, 6), torch.tensor([0, 1, 2, 5])
    assert torch.equal(LabelSpaceCrossEntropy("all")(logits, targets), F.cross_entropy(logits, targets))
    with pytest.raises(RuntimeError, match="learns its classes from the strategy"):
        LabelSpaceCrossEntropy("seen")(logits, targets)


def test_a_copy_goes_on_with_the_same_space():
    criterion = LabelSpaceCrossEntropy("experience", label_smoothing=0.1)
    criterion._columns = torch.tensor([1, 2])
    logits, targets = torch.randn(4, 6), torch.tensor([1, 2, 1, 2])
    expected = label_space_cross_entropy(logits, targets, torch.tensor([1, 2]), label_smoothing=0.1)
    assert torch.equal(copy.deepcopy(criterion)(logits, targets), expected)


def test_a_model_that_does_not_know_what_the_space_needs_is_named():
    model = torch.nn.Linear(16, 6)
    benchmark = tiny_benchmark(embedded=tiny_classifier())
    strategy = Naive(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        criterion=LabelSpaceCrossEntropy("seen"),
        evaluator=None,
    )
    with pytest.raises(TypeError, match="classes_seen"):
        strategy.train(benchmark.train_stream[0])


def test_a_periodic_evaluation_does_not_change_the_space_of_training():
    model, benchmark, criterion = (
        tiny_classifier(trainable="image"),
        tiny_benchmark(),
        Recording("experience"),
    )
    strategy = Naive(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        criterion=criterion,
        train_mb_size=8,
        train_epochs=3,
        eval_every=1,
        evaluator=None,
    )
    columns = []

    class Look(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            columns.append(criterion._columns.tolist())

    strategy.plugins.append(Look())
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    assert columns == [[0, 1]] * 3


@pytest.mark.parametrize("space", ["experience", "seen", "dataset"])
def test_joint_training_counts_the_classes_of_the_whole_stream(space):
    model, benchmark, criterion = tiny_classifier(trainable="image"), tiny_benchmark(), Recording(space)
    strategy = JointTraining(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        criterion=criterion,
        train_mb_size=8,
        evaluator=None,
    )
    strategy.train(benchmark.train_stream)
    for logits, targets, loss in criterion.calls:
        assert float(loss) == pytest.approx(float(F.cross_entropy(logits.double(), targets)), abs=1e-5)


def test_the_hosts_mir_sets_the_reduction():
    model, benchmark = tiny_classifier(trainable="image"), tiny_benchmark()
    strategy = MIR(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        criterion=LabelSpaceCrossEntropy("seen"),
        mem_size=8,
        subsample=8,
        batch_size_mem=4,
        train_mb_size=4,
        evaluator=None,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert strategy._criterion.reduction == "mean"
