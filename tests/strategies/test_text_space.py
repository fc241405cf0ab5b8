"""Class weights that rest change nothing but the time."""

from collections import Counter

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin
from torch.optim import SGD

from avalanche_vlm.models import LearnedContextHead, ZeroShotHead
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from avalanche_vlm.testing.running import differing, run, snapshot


def strategy_over(space, *, head=None, plugins=(), **arguments):
    model = tiny_classifier(head() if head else None, trainable="both")
    return FineTune(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.05),
        criterion=LabelSpaceCrossEntropy("experience", label_smoothing=0.2),
        train_mb_size=4,
        train_epochs=2,
        plugins=[make() for make in plugins],
        evaluator=None,
        text_space=space,
        **arguments,
    )


def closest(first, second):
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


HEADS = {
    "two templates": lambda: ZeroShotHead(["a {}.", "the {}."], training_templates="a {}."),
    "learned context": lambda: LearnedContextHead(context_length=2, sharing="per-class"),
}


@pytest.mark.parametrize("head", [None, *HEADS.values()], ids=["plain", *HEADS])
@pytest.mark.parametrize("plugins", [(), (lambda: ReplayPlugin(6),)], ids=["alone", "with replay"])
def test_a_loss_over_the_space_trains_the_same_weights(head, plugins):
    benchmark = tiny_benchmark()
    every = run(strategy_over("all", head=head, plugins=plugins), benchmark)
    some = run(strategy_over("experience", head=head, plugins=plugins), benchmark)
    start = snapshot(strategy_over("all", head=head).model)
    assert differing(start, every)
    assert closest(every, some) < 1e-5


def test_only_the_classes_of_the_space_are_encoded_with_a_gradient(monkeypatch):
    encoded = Counter()
    encode = ZeroShotHead.encode

    def counted(self, backbone, class_ids):
        if torch.is_grad_enabled():
            encoded[len(class_ids)] += 1
        return encode(self, backbone, class_ids)

    monkeypatch.setattr(ZeroShotHead, "encode", counted)
    experience = tiny_benchmark().train_stream[0]
    strategy_over("experience").train(experience)
    assert set(encoded) == {2}
    encoded.clear()
    strategy_over("all").train(experience)
    assert set(encoded) == {6}


class Logits(SupervisedPlugin):
    """Keeps the first logits of each experience, and the last."""

    def __init__(self):
        super().__init__()
        self.first, self.last = [], []

    def before_training_exp(self, strategy, *args, **kwargs):
        self.first.append(None)
        self.last.append(None)

    def after_forward(self, strategy, *args, **kwargs):
        if strategy.is_training:
            self.last[-1] = strategy.mb_output.detach()
            self.first[-1] = self.last[-1] if self.first[-1] is None else self.first[-1]


def test_logits_are_those_of_all_classes_and_evaluation_knows_no_rest():
    logits = {space: Logits() for space in ("all", "experience")}
    benchmark, models = tiny_benchmark(), {}
    for space, kept in logits.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            strategy = strategy_over(space, plugins=[lambda kept=kept: kept])
            for experience in benchmark.train_stream:
                strategy.train(experience)
        models[space] = strategy.model.eval()
    torch.testing.assert_close(logits["all"].first, logits["experience"].first, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits["all"].last[0], logits["experience"].last[0], atol=1e-3)
    x = torch.zeros(2, 3, 8, 8)
    torch.testing.assert_close(models["all"](x), models["experience"](x), atol=1e-3, rtol=1e-3)


def test_a_class_that_rests_gives_no_gradient():
    strategy = strategy_over("experience")
    strategy.train(tiny_benchmark().train_stream[0])
    head, backbone = strategy.model.train().head, strategy.model.backbone
    others = head(backbone).detach()
    with head.encoding_only(torch.tensor([1]), others):
        weights = head(backbone)
    assert torch.equal(weights[[0, 2, 3, 4, 5]], others[[0, 2, 3, 4, 5]])
    (gradient,) = torch.autograd.grad(weights[0].sum(), [backbone.text_tower.text_projection])
    assert not gradient.any()
    assert head(backbone).requires_grad


def test_an_unknown_space_is_refused():
    with pytest.raises(ValueError, match="text_space"):
        strategy_over("open")
