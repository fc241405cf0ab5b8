"""GIFT as a whole: what it is made of, what it adds, and that it can be stopped and resumed."""

from copy import deepcopy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from avalanche_vlm.models import LearnedContextHead, LoRA
from avalanche_vlm.plugins import AdaptiveWeightConsolidationPlugin, LabelSpaceCrossEntropy
from avalanche_vlm.regularizers import InitialTeacher, LastTeacher
from avalanche_vlm.sources import ImageNetPrompts, LearnedClassPrompts
from avalanche_vlm.strategies import GIFT, FineTune
from avalanche_vlm.testing import (
    check_frozen,
    check_repeatable,
    check_resumable,
    tiny_benchmark,
    tiny_classifier,
)
from avalanche_vlm.testing.running import differing, run, snapshot
from tests.reference.tiny_image_source import TinyImageSource, moved, union

BENCHMARK = tiny_benchmark()


def gift(make_model=lambda: moved(tiny_classifier(trainable="both")), **arguments):
    model = make_model()
    settings = {
        **{"optimizer": AdamW(model.parameters(), lr=1e-3), "images": TinyImageSource(), "prompts": union()},
        **{"images_per_experience": 9, "image_batch_size": 4, "train_mb_size": 4, "evaluator": None},
        **arguments,
    }
    return GIFT(model=model, **settings)


def consolidation(strategy):
    (plugin,) = [p for p in strategy.plugins if isinstance(p, AdaptiveWeightConsolidationPlugin)]
    return plugin


def test_the_defaults_are_those_of_the_authors():
    model = tiny_classifier(trainable="both")
    strategy = GIFT(model=model, optimizer=SGD(model.parameters(), lr=0.1), images=TinyImageSource())
    plugin = consolidation(strategy)
    distillation, alignment = plugin.regularizer.terms
    assert plugin.regularizer.weights == [1.0, 0.25]
    assert (plugin.regularizer_weight, plugin.consolidation_weight) == (1.0, 1.0)
    assert (distillation.temperature, alignment.label_smoothing) == (2.0, 0.2)
    pairs = distillation.pairs
    assert pairs is alignment.pairs
    assert (pairs.count, pairs.batch_size, pairs.replacement) == (1000, 64, True)
    assert [type(pool) for pool in pairs.prompts.pools] == [ImageNetPrompts, LearnedClassPrompts]
    assert type(distillation.teacher) is LastTeacher
    assert strategy.train_mb_size == 64
    assert isinstance(strategy._criterion, LabelSpaceCrossEntropy)
    assert (strategy._criterion.space, strategy._criterion.label_smoothing) == ("experience", 0.2)


class Reference(SupervisedPlugin):
    """METHODS' loss with copies of the model in place of snapshots, over the batches that were drawn."""

    def __init__(self):
        super().__init__()
        self.checked = 0

    def before_training_exp(self, strategy, *args, **kwargs):
        self.teacher = deepcopy(strategy.model).eval()
        pairs = consolidation(strategy).regularizer.terms[0].pairs
        own = type(pairs).batch.__get__(pairs)

        def batch(*arguments):
            self.batch = own(*arguments)
            return self.batch

        pairs.batch = batch

    def before_update(self, strategy, *args, **kwargs):
        student = deepcopy(strategy.model)
        named = dict(student.named_parameters())
        teacher, batch = self.teacher, self.batch
        scale = student.backbone.logit_scale

        def similarities(model):
            images = F.normalize(model.encode(batch.images), dim=1)
            return (
                scale * images @ F.normalize(model.backbone.encode_text(batch.texts), dim=1)[batch.text_of].T
            )

        own = similarities(student)
        with torch.no_grad():
            taught = similarities(teacher)
        same = (batch.text_of[:, None] == batch.text_of[None]).float()
        targets = same / same.sum(1, keepdim=True)
        targets = 0.8 * targets + 0.2 / len(targets)
        term = 0
        for m, m_ in ((own, taught), (own.T, taught.T)):
            entropy = -((m_ / 2).softmax(1) * (m / 2).log_softmax(1)).sum(1).mean()
            term = term + 4 * entropy - 0.25 * (targets * m.log_softmax(1)).sum(1).mean()
        g = torch.autograd.grad(term, list(named.values()), retain_graph=True)
        classes = sorted(set(strategy.experience.classes_in_this_experience))
        logits = student(strategy.mb_x)[:, classes]
        labels = torch.tensor([classes.index(c) for c in strategy.mb_y.tolist()])
        loss = F.cross_entropy(logits, labels, label_smoothing=0.2) + term
        for gradient, (name, parameter) in zip(g, named.items(), strict=True):
            importance = gradient**2 / (gradient**2).mean()
            origin = dict(teacher.named_parameters())[name].detach()
            loss = loss + (importance * (parameter - origin) ** 2).sum()
        for (name, parameter), expected in zip(
            strategy.model.named_parameters(), torch.autograd.grad(loss, list(named.values())), strict=True
        ):
            limit = 1e-3 * (1 + float(expected.abs().max()))
            assert float((parameter.grad - expected).abs().max()) < limit, name
        self.checked += 1


def test_each_step_is_that_of_the_equation():
    reference = Reference()
    strategy = gift(plugins=[reference], train_epochs=2)
    for experience in BENCHMARK.train_stream:
        strategy.train(experience)
    assert reference.checked == 12


def test_prompts_are_the_names_and_the_classes_of_earlier_experiences():
    source = TinyImageSource()
    strategy = gift(images=source, images_per_experience=60)
    drawn = []
    for experience in BENCHMARK.train_stream:
        strategy.train(experience)
        drawn.append({prompt for prompt, _ in source.drawn})
        source.drawn.clear()
    assert [len(each) for each in drawn] == [5, 7, 9]
    assert "a photo of a cat." in drawn[1] - drawn[0]


def test_each_part_has_an_effect_and_none_of_them_is_fine_tuning():
    def end(**arguments):
        return run(gift(**arguments), BENCHMARK)

    whole = end()
    for off in ("distillation_weight", "alignment_weight", "consolidation_weight"):
        assert differing(whole, end(**{off: 0.0}))
    assert differing(whole, end(teacher=InitialTeacher()))
    model = moved(tiny_classifier(trainable="both"))
    arguments = {"distillation_weight": 0.0, "alignment_weight": 0.0, "consolidation_weight": 0.0}

    class Fresh(SupervisedPlugin):
        def before_training_exp(self, strategy, *args, **kwargs):
            strategy.optimizer.state.clear()

    bare = FineTune(
        **{"model": model, "optimizer": AdamW(model.parameters(), lr=1e-3), "train_mb_size": 4},
        **{"plugins": [Fresh()], "evaluator": None},
        criterion=LabelSpaceCrossEntropy("experience", label_smoothing=0.2),
        text_space="experience",
    )
    assert not differing(end(**arguments), run(bare, BENCHMARK))


def test_the_state_of_the_optimizer_is_fresh_in_each_experience():
    steps = []

    class Note(SupervisedPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs):
            steps.append(len(strategy.optimizer.state))

    model = tiny_classifier(trainable="both")
    towers = (model.backbone.image_tower, model.backbone.text_tower)
    groups = [
        {"params": tower.parameters(), "lr": lr} for tower, lr in zip(towers, (1e-3, 1e-4), strict=True)
    ]
    strategy = gift(lambda: model, optimizer=AdamW(groups), plugins=[Note()])
    for experience in BENCHMARK.train_stream:
        strategy.train(experience)
    assert steps == [0, 0, 0]
    assert [group["lr"] for group in strategy.optimizer.param_groups] == [1e-3, 1e-4]


def test_laws():
    check_repeatable(gift, BENCHMARK)
    check_resumable(gift, BENCHMARK)
    check_frozen(lambda: gift(lambda: tiny_classifier(trainable=LoRA(rank=2))), BENCHMARK)
    states = []
    for arguments in ({}, {"seed": 5, "images_per_experience": 20}):
        torch.manual_seed(0)
        gift(**arguments).train(BENCHMARK.train_stream[0])
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize(
    "arguments",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"accumulate_batches": 2, "max_gradient_norm": 1.0},
        {"plugins": [ReplayPlugin(mem_size=4)]},
        {"images_per_experience": 1},
        {"images_per_experience": 2, "image_batch_size": 64},
    ],
    ids=" ".join,
)
def test_it_trains(arguments):
    strategy = gift(**arguments, train_epochs=12 if "precision" in arguments else 1)
    before = snapshot(strategy.model)
    for experience in BENCHMARK.train_stream:
        strategy.train(experience)
    assert all(bool(p.isfinite().all()) for p in strategy.model.parameters())
    assert len(differing(before, snapshot(strategy.model))) > 20


def test_a_model_in_which_no_tower_trains_is_refused():
    strategy = gift(lambda: tiny_classifier(LearnedContextHead(context_length=2)))
    with pytest.raises(ValueError, match="`regularizer` must be .*trainable='both'"):
        strategy.train(BENCHMARK.train_stream[0])
