"""What heads keep of data, against counts made by hand."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import SGD

from avalanche_vlm.functional.held_out import fusion_grid
from avalanche_vlm.logging import ResultsLogger, read_results
from avalanche_vlm.metrics import MemoryMetric, stored_bytes
from avalanche_vlm.models import (
    AdaptedTextHead,
    CLIPClassifier,
    ClosedFormHead,
    CosineHead,
    DualPathHead,
    EmbeddingBackbone,
    FusionRule,
    GaussianDiscriminantHead,
    HybridPromptHead,
    KeptBytes,
    LearnedContextHead,
    LinearHead,
    LogLinearFusion,
    TextFeatureHead,
    TextHead,
    ZeroShotHead,
)
from avalanche_vlm.plugins import PrototypePlugin
from avalanche_vlm.strategies import FineTune, GaussianDiscriminant
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from tests.metrics.test_memory import Holder

WIDTH, CLASSES = 16, 6  # of the tiny classifier
PAIRS = len(fusion_grid())
TABLE = 8 * (2 * PAIRS + PAIRS * PAIRS + 3)
IN_FOLDS = KeptBytes(4 * (8 + 8 * WIDTH), 4 * 8 * WIDTH * WIDTH + TABLE)  # for one class
IN_ONE = KeptBytes(8 + 8 * WIDTH, 8 * WIDTH * WIDTH + 24)
PROTOTYPE = 4 * WIDTH + 8
LEARNING = (  # what these know is weights and text
    ZeroShotHead,
    HybridPromptHead,
    AdaptedTextHead,
    lambda: LearnedContextHead(context_length=2),
    lambda: CosineHead(ZeroShotHead()),
    lambda: LinearHead(ZeroShotHead()),
    lambda: TextFeatureHead(torch.eye(CLASSES, WIDTH)),
)


def rows(*labels):
    features = torch.randn(len(labels), WIDTH, generator=torch.Generator().manual_seed(0))
    return features, torch.tensor(labels)


def strategy_of(model, *plugins):
    """What is read of a strategy."""
    if not any(parameter.requires_grad for parameter in nn.Module.parameters(model)):
        return SimpleNamespace(model=model, plugins=list(plugins))
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return Naive(model=model, optimizer=optimizer, plugins=list(plugins), evaluator=EvaluationPlugin())


@pytest.mark.parametrize("mean_prior", ["text", "classes", "none"])
@pytest.mark.parametrize(("weight", "one"), [(None, IN_FOLDS), (3.0, IN_ONE), (LogLinearFusion(1.0), IN_ONE)])
@pytest.mark.parametrize("labels", [(4,), (0, 5, 5, 5), tuple(range(CLASSES))])
def test_a_discriminant_keeps_sums_of_the_classes_that_have_rows(labels, weight, one, mean_prior):
    model = tiny_classifier(GaussianDiscriminantHead(fusion_weight=weight, mean_prior=mean_prior))
    head = model.head
    assert head.kept_bytes == KeptBytes(0, 0)
    head.update(*rows(*labels))
    head.settle(model.backbone)
    by_class = len(set(labels)) * one.by_class
    assert head.kept_bytes == KeptBytes(by_class, one.shared)
    assert stored_bytes(strategy_of(model)) == {
        "GaussianDiscriminantHead": by_class + one.shared,
        "GaussianDiscriminantHead/by_class": by_class,
        "GaussianDiscriminantHead/shared": one.shared,
        "total": by_class + one.shared,
    }


def test_at_the_size_of_clip():
    names = [str(number) for number in range(196)]
    head = GaussianDiscriminantHead(TextFeatureHead(torch.randn(196, 512)))
    model = CLIPClassifier(EmbeddingBackbone(512), head, class_names=names)
    features = torch.randn(400, 512, generator=torch.Generator().manual_seed(0))
    head.update(features, torch.arange(400) % 196)
    head.settle(model.backbone)
    assert head.kept_bytes == (196 * 4 * (8 + 8 * 512), 4 * 512 * 512 * 8 + TABLE)


def test_sums_are_the_tensors_that_a_saved_model_has():
    head = tiny_classifier(GaussianDiscriminantHead()).head
    head.update(*rows(*range(CLASSES)))
    head._waiting = []
    sums = {name: tensor for name, tensor in head.state_dict().items() if name != "text"}
    assert sum(head.kept_bytes) == sum(tensor.nbytes for tensor in sums.values())


def test_rows_that_wait_to_be_scored_count():
    model = tiny_classifier(GaussianDiscriminantHead())
    model.head.update(*rows(0, 1, 2))
    model.head.update(*rows(0, 1))
    assert model.head.kept_bytes == (3 * IN_FOLDS.by_class, IN_FOLDS.shared + 5 * (4 * WIDTH + 8 + 8))
    model.head.settle(model.backbone)
    assert model.head.kept_bytes == (3 * IN_FOLDS.by_class, IN_FOLDS.shared)


def test_names_that_follow_cost_nothing_until_they_have_rows():
    model = tiny_classifier(GaussianDiscriminantHead(fusion_weight=1.0))
    model.head.update(*rows(0, 1))
    before = model.head.kept_bytes
    model.set_classes([*model.class_names.names, "one more", "another"])
    assert model.head.kept_bytes == before == (2 * IN_ONE.by_class, IN_ONE.shared)
    model.head.update(*rows(7))
    assert model.head.kept_bytes == (3 * IN_ONE.by_class, IN_ONE.shared)


@pytest.mark.parametrize("space", ["raw", "embedding"])
def test_prototypes_count_for_the_classes_that_have_one(space):
    model = tiny_classifier(DualPathHead(visual_space=space))
    assert model.head.kept_bytes == (0, 0)
    size = 4 * model.head.prototypes.shape[1] + 8
    features = torch.randn(3, model.head.prototypes.shape[1])
    model.head.update(features, torch.tensor([1, 1, 3]))
    assert model.head.kept_bytes == (2 * size, 0)
    assert stored_bytes(strategy_of(model)) == {
        "DualPathHead": 2 * size,
        "DualPathHead/by_class": 2 * size,
        "DualPathHead/shared": 0,
        "total": 2 * size,
    }


@pytest.mark.parametrize("make", LEARNING)
def test_a_head_inside_that_keeps_nothing_adds_nothing(make):
    model = tiny_classifier(GaussianDiscriminantHead(make(), fusion_weight=1.0))
    model.head.update(*rows(0, 1, 2))
    assert model.head.kept_bytes == (3 * IN_ONE.by_class, IN_ONE.shared)
    assert stored_bytes(strategy_of(model))["total"] == 3 * IN_ONE.by_class + IN_ONE.shared


def test_a_head_inside_that_keeps_something_is_added():
    inner = DualPathHead(HybridPromptHead(), visual_space="embedding")
    model = tiny_classifier(GaussianDiscriminantHead(inner, fusion_weight=1.0))
    inner.update(*rows(0, 1))
    assert model.head.kept_bytes == (2 * PROTOTYPE, 0)
    model.head.update(*rows(3))
    assert model.head.kept_bytes == (2 * PROTOTYPE + IN_ONE.by_class, IN_ONE.shared)
    assert model.head.own_kept_bytes() == IN_ONE
    assert inner.kept_bytes == (2 * PROTOTYPE, 0)
    twice = tiny_classifier(GaussianDiscriminantHead(GaussianDiscriminantHead(), fusion_weight=1.0))
    twice.head.update(*rows(3))
    twice.head.first.update(*rows(0, 1))
    twice.head.first.settle(twice.backbone)
    expected = (IN_ONE.by_class + 2 * IN_FOLDS.by_class, IN_ONE.shared + IN_FOLDS.shared)
    assert twice.head.kept_bytes == expected


@pytest.mark.parametrize("make", [*LEARNING, DualPathHead, GaussianDiscriminantHead])
def test_heads_that_have_kept_nothing_are_not_listed(make):
    model = tiny_classifier(make(), trainable="image")
    model(tiny_benchmark().train_stream[0].dataset[0][0][None])
    assert stored_bytes(strategy_of(model)) == {"total": 0}


class SquaresHead(ClosedFormHead):
    """Sums with the classes on the second axis, and nothing else."""

    _BY_CLASS: ClassVar = {"tally": 0, "columns": 1}
    _SHARED = ("squares",)

    def __init__(self):
        super().__init__(None)
        for name, empty in self._empty(0, 0).items():
            self.register_buffer(name, empty)

    def _empty(self, class_count, width):
        return {
            "tally": torch.zeros(class_count, dtype=torch.int64),
            "columns": torch.zeros(width, class_count, dtype=torch.float64),
            "squares": torch.zeros(width, dtype=torch.float64),
        }

    @property
    def counts(self):
        return self.tally

    @property
    def width(self):
        return len(self.squares)

    def _add_rows(self, unit, labels):
        self.tally.add_(labels.bincount(minlength=len(self.tally)))
        self.columns.index_add_(1, labels, unit.T)
        self.squares.add_((unit * unit).sum(dim=0))

    def _solved_anew(self, backbone):
        return None

    def second_scores(self, backbone, embeddings, raw):
        return torch.arange(0), embeddings[:, :0]

    @property
    def fusion_rule(self) -> FusionRule:
        return LogLinearFusion(1.0)

    def own_config(self):
        return {}


def test_any_head_in_closed_form_says_it_by_what_it_declares():
    model = tiny_classifier(SquaresHead())
    assert model.head.kept_bytes == (0, 0)
    model.head.update(*rows(0, 5, 5))
    assert model.head.kept_bytes == (2 * (8 + 8 * WIDTH), 8 * WIDTH)
    assert SquaresHead().kept_bytes == (0, 0)  # without names


class RememberingHead(ZeroShotHead):
    def own_kept_bytes(self):
        return KeptBytes(by_class=10, shared=3)


def test_a_head_of_ones_own_says_it_itself():
    assert TextHead.own_kept_bytes(ZeroShotHead()) == (0, 0)
    model = tiny_classifier(DualPathHead(RememberingHead()))
    assert model.head.kept_bytes == (10, 3)


def test_head_and_plugins_add_up():
    model = tiny_classifier(DualPathHead(visual_space="embedding"))
    model.head.update(*rows(0, 1))
    # What a plugin holds of the head's own counts once; a copy counts anew; names stay apart.
    same_name = type("DualPathHead", (Holder,), {})
    plugins = (Holder(own=model.head.prototypes, copy=torch.zeros(5)), same_name(a=torch.zeros(1)))
    assert stored_bytes(strategy_of(model, *plugins)) == {
        "Holder": 20,
        "DualPathHead": 4,
        "DualPathHead 2": 2 * PROTOTYPE,
        "DualPathHead 2/by_class": 2 * PROTOTYPE,
        "DualPathHead 2/shared": 0,
        "total": 24 + 2 * PROTOTYPE,
    }


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.module = model


class OfAnotherLibrary(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)


def test_other_models_have_no_such_head():
    inside = tiny_classifier(DualPathHead(visual_space="embedding"), trainable="image")
    inside.head.update(*rows(0, 1))
    for model in (Wrapped(inside), OfAnotherLibrary(), nn.Linear(2, 3)):
        assert stored_bytes(strategy_of(model)) == {"total": 0}


def test_a_run_of_the_discriminant_writes_it(tmp_path):
    path = tmp_path / "results.csv"
    metric = MemoryMetric()
    model = tiny_classifier(GaussianDiscriminantHead())
    evaluator = EvaluationPlugin(metric, loggers=[ResultsLogger(path, method="discriminant")])
    strategy = GaussianDiscriminant(model=model, train_mb_size=4, evaluator=evaluator)
    expected = []
    for number, experience in enumerate(tiny_benchmark().train_stream, start=1):
        last = strategy.train(experience)
        by_class, shared = 2 * number * IN_FOLDS.by_class, IN_FOLDS.shared
        assert last["StoredBytes/GaussianDiscriminantHead/by_class"] == by_class
        assert last["StoredBytes/GaussianDiscriminantHead/shared"] == shared
        assert last["StoredBytes/GaussianDiscriminantHead"] == last["StoredBytes"] == by_class + shared
        for part, size in (
            ("/GaussianDiscriminantPlugin", 0),
            ("/GaussianDiscriminantHead", by_class + shared),
            ("/GaussianDiscriminantHead/by_class", by_class),
            ("/GaussianDiscriminantHead/shared", shared),
            ("", by_class + shared),
        ):
            expected.append((f"stored_bytes{part}", "train", number, size))
    found = [(row.metric, row.stream, row.after_experience, row.value) for row in read_results(path)]
    assert [row for row in found if row[0].startswith("stored_bytes")] == expected
    other = MemoryMetric()
    other.load_state_dict(metric.state_dict())
    assert other.result() == metric.result() == stored_bytes(strategy)


def test_a_run_that_keeps_prototypes_writes_it():
    model = tiny_classifier(DualPathHead(visual_space="embedding"), trainable="image")
    strategy = FineTune(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        train_mb_size=4,
        plugins=[PrototypePlugin()],
        evaluator=EvaluationPlugin(MemoryMetric()),
    )
    for number, experience in enumerate(tiny_benchmark().train_stream, start=1):
        last = strategy.train(experience)
        assert last["StoredBytes/PrototypePlugin"] == 0
        assert last["StoredBytes/DualPathHead"] == last["StoredBytes"] == 2 * number * PROTOTYPE
