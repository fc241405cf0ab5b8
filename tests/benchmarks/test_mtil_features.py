"""An MTIL-like stream of real features: two label spaces out of one run, checked by hand."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch.optim import AdamW
from torch.utils.data import DataLoader

from avalanche_vlm.benchmarks import class_names, multi_dataset_benchmark
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    TextFeatureHead,
)
from avalanche_vlm.strategies import FineTune, GaussianDiscriminant, ZeroShot

ORDERS = (("food10", "oxford_pets", "caltech101"), ("caltech101", "food10", "oxford_pets"))
CLASSES, TRAIN, TEST = 6, 8, 10


@pytest.fixture(scope="module")
def parts(real_data):
    """Return (train, test, names, text) of each data set: a few samples of the first classes with text."""
    found = {}
    with np.load(real_data / "clip_vitb32_features.npz", allow_pickle=False) as data:
        for name in ORDERS[0]:
            text = torch.from_numpy(data[f"{name}/text"]).float()
            classes = text.ne(0).any(dim=1).nonzero().flatten()[:CLASSES].tolist()

            def part(which, count, name=name, classes=classes, data=data):
                x = torch.from_numpy(data[f"{name}/{which}_x"]).float()
                y = torch.from_numpy(data[f"{name}/{which}_y"]).long()
                rows = [(y == label).nonzero().flatten()[:count] for label in classes]
                labels = [torch.full((len(own),), new) for new, own in enumerate(rows)]
                return x[torch.cat(rows)], torch.cat(labels)

            names = [f"{data[f'{name}/names'][label]} of {name}" for label in classes]
            found[name] = part("train", TRAIN), part("test", TEST), names, text[classes]
    return found


class Predictions(SupervisedPlugin):
    """Predicts the test part itself whenever a row of the matrix is measured, in both label spaces."""

    def __init__(self, benchmark):
        super().__init__()
        self.benchmark, self.rows = benchmark, {"dataset": [], "all": []}

    def after_eval(self, strategy, **kwargs):
        for space, rows in self.rows.items():
            rows.append([self.accuracy(strategy.model, test, space) for test in self.benchmark.test_stream])

    def accuracy(self, model, experience, space):
        right = total = 0
        datasets = class_names(self.benchmark).datasets
        for x, y, _ in DataLoader(experience.dataset, batch_size=7):
            with torch.no_grad():
                logits = model(x)
            for row, label in zip(logits.tolist(), y.tolist(), strict=True):
                own = [c for c in range(len(row)) if space == "all" or datasets[c] == datasets[label]]
                right += max(own, key=lambda c: row[c]) == label
                total += 1
        return right / total


def summaries(rows):
    """Return Transfer, Average and Last of rows (before training first), by PROTOCOLS' definitions."""
    after, count = rows[1:], len(rows) - 1
    means = [sum(after[i][j] for i in range(j)) / j for j in range(1, count)]
    return {
        "transfer": sum(means) / len(means),
        "average_accuracy": sum(map(sum, after)) / count**2,
        "last_accuracy": sum(after[-1]) / count,
    }


@pytest.fixture(scope="module")
def trained(parts):
    """Return a function that trains a method on an order, once."""
    return cache(partial(train, parts))


def train(parts, method, order):
    benchmark = multi_dataset_benchmark({name: parts[name][:3] for name in order})
    text = torch.cat([parts[name][3] for name in order])
    head = {"naive": CosineHead, "discriminant": GaussianDiscriminantHead, "zero-shot": lambda same: same}
    model = CLIPClassifier(EmbeddingBackbone(512), head[method](TextFeatureHead(text)))
    model.set_classes(class_names(benchmark))
    metrics, predictions = continual_metrics(spaces=("dataset", "all")), Predictions(benchmark)
    arguments = {"model": model, "plugins": [predictions], "eval_mb_size": 64}
    arguments["evaluator"] = EvaluationPlugin(*metrics, loggers=[])
    if method == "naive":
        optimizer = AdamW(model.parameters(), lr=1e-3)
        strategy = FineTune(optimizer=optimizer, train_mb_size=16, train_iterations=20, **arguments)
    else:
        strategy = {"zero-shot": ZeroShot, "discriminant": GaussianDiscriminant}[method](**arguments)
    torch.manual_seed(0)
    strategy.eval(benchmark.test_stream)
    for experience in benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        strategy.eval(benchmark.test_stream)
    return metrics, predictions.rows


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", ["zero-shot", "naive", "discriminant"])
def test_both_label_spaces_come_out_of_one_run(trained, method, order):
    metrics, rows = trained(method, order)
    for metric in metrics:
        own = rows[metric.space]
        torch.testing.assert_close(metric.matrix(), torch.tensor(own).double(), atol=1e-6, rtol=0)
        expected = summaries(own)
        found = metric.summary()
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    inside, among_all = (metric.matrix() for metric in metrics)
    assert (inside >= among_all).all()
    assert (inside > among_all).any()
    assert torch.equal(among_all[0], among_all[-1]) == (method == "zero-shot")


def test_who_leaves_unseen_classes_alone_has_the_transfer_of_zero_shot(trained):
    (reference, _), _ = trained("zero-shot", ORDERS[0])
    for method in ("naive", "discriminant"):
        # The criterion of the naive line is that over the classes seen: others get no gradient.
        (inside, _), _ = trained(method, ORDERS[0])
        assert torch.equal(inside.matrix()[1:].triu(1), reference.matrix()[1:].triu(1))
        assert inside.summary()["transfer"] == reference.summary()["transfer"]
        assert not torch.equal(inside.matrix()[1:].tril(), reference.matrix()[1:].tril())


def test_two_orders_begin_with_the_same_accuracies(trained):
    rows = [trained("zero-shot", order)[1] for order in ORDERS]
    for space in ("dataset", "all"):
        by_name = [
            dict(zip(order, row[space][0], strict=True)) for order, row in zip(ORDERS, rows, strict=True)
        ]
        assert by_name[0] == by_name[1]
