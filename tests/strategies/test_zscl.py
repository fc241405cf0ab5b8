"""ZSCL as a whole: what it is made of, what it adds, and that it can be stopped and resumed."""

from copy import deepcopy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from avalanche_vlm.models import LoRA
from avalanche_vlm.plugins import LabelSpaceCrossEntropy, RegularizerPlugin, WeightEnsemblePlugin
from avalanche_vlm.regularizers import (
    InitialTeacher,
    LastTeacher,
    PreviousWeightsPenalty,
    ReferenceDistillation,
)
from avalanche_vlm.strategies import ZSCL
from avalanche_vlm.testing import (
    check_frozen,
    check_repeatable,
    check_resumable,
    tiny_benchmark,
    tiny_classifier,
)
from avalanche_vlm.testing.running import differing, run
from tests.reference.tiny_image_source import NAMES, moved

BENCHMARK = tiny_benchmark()
IMAGES = (torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).byte()


def zscl(make_model=lambda: moved(tiny_classifier(trainable="both")), **arguments):
    model = make_model()
    settings = {
        **{"optimizer": AdamW(model.parameters(), lr=1e-3), "images": IMAGES, "texts": NAMES},
        **{"image_batch_size": 3, "texts_per_batch": 4, "ensemble_every": 2, "train_mb_size": 4},
        **{"evaluator": None, **arguments},
    }
    return ZSCL(model=model, **settings)


def test_the_parts_and_defaults():
    model = tiny_classifier(trainable="both")
    optimizer = SGD(model.parameters(), lr=0.1)
    strategy = ZSCL(model=model, optimizer=optimizer, images=IMAGES, texts=NAMES, evaluator=None)
    own = [p for p in strategy.plugins if isinstance(p, (RegularizerPlugin, WeightEnsemblePlugin))]
    first, second, ensemble = own
    assert type(first.regularizer) is ReferenceDistillation
    assert type(first.regularizer.teacher) is InitialTeacher
    assert type(second.regularizer) is PreviousWeightsPenalty
    assert (first.weight, second.weight, ensemble.every) == (1.0, 1.0, 100)
    assert first.regularizer.temperature == 2.0
    assert (first.regularizer.pairs.batch_size, first.regularizer.pairs.texts_per_batch) == (64, None)
    assert (strategy._criterion.space, strategy._criterion.label_smoothing) == ("experience", 0.2)
    assert isinstance(strategy._criterion, LabelSpaceCrossEntropy)


class Reference(SupervisedPlugin):
    """The loss with copies of the model in place of snapshots, over the batches that were drawn."""

    def __init__(self):
        super().__init__()
        self.initial = None
        self.checked = 0

    def before_training_exp(self, strategy, *args, **kwargs):
        self.origin = deepcopy(strategy.model).eval()
        self.initial = self.origin if self.initial is None else self.initial
        (regularizer,) = [
            p.regularizer
            for p in strategy.plugins
            if isinstance(p, RegularizerPlugin) and isinstance(p.regularizer, ReferenceDistillation)
        ]
        own = type(regularizer.pairs).batch.__get__(regularizer.pairs)

        def batch(*arguments):
            self.batch = own(*arguments)
            return self.batch

        regularizer.pairs.batch = batch

    def before_update(self, strategy, *args, **kwargs):
        student = deepcopy(strategy.model)
        named, batch = dict(student.named_parameters()), self.batch
        scale = student.backbone.logit_scale
        with torch.no_grad():
            texts = F.normalize(self.initial.backbone.encode_text(batch.texts), dim=1)
            taught = scale * F.normalize(self.initial.encode(batch.images), dim=1) @ texts.T
        own = scale * F.normalize(student.encode(batch.images), dim=1) @ texts.T
        classes = sorted(set(strategy.experience.classes_in_this_experience))
        labels = torch.tensor([classes.index(c) for c in strategy.mb_y.tolist()])
        loss = F.cross_entropy(student(strategy.mb_x)[:, classes], labels, label_smoothing=0.2)
        for m, m_ in ((own, taught), (own.T, taught.T)):
            loss = loss - 4 * ((m_ / 2).softmax(1) * (m / 2).log_softmax(1)).sum(1).mean()
        origin = dict(self.origin.named_parameters())
        loss = loss + sum((p - origin[name].detach()).square().sum() for name, p in named.items())
        for (name, parameter), expected in zip(
            strategy.model.named_parameters(), torch.autograd.grad(loss, list(named.values())), strict=True
        ):
            limit = 1e-4 * (1 + float(expected.abs().max()))
            assert float((parameter.grad - expected).abs().max()) < limit, name
        self.checked += 1


def test_each_step_is_that_of_the_equation_and_each_experience_ends_with_the_mean():
    reference, along = Reference(), []

    class Note(SupervisedPlugin):
        def before_training_exp(self, strategy, *args, **kwargs):
            along[:] = [[p.detach().clone() for p in strategy.model.parameters()]]

        def after_update(self, strategy, *args, **kwargs):
            along.append([p.detach().clone() for p in strategy.model.parameters()])

    strategy = zscl(plugins=[reference, Note()], train_epochs=2)
    for experience in BENCHMARK.train_stream:
        strategy.train(experience)
        for position, parameter in enumerate(strategy.model.parameters()):
            mean = sum(weights[position] for weights in along[::2]) / 3
            torch.testing.assert_close(parameter.detach(), mean, atol=1e-6, rtol=1e-5)
    assert reference.checked == 12


def test_each_part_has_an_effect():
    whole = run(zscl(), BENCHMARK)
    for other in (
        {"distillation_weight": 0.0},
        {"penalty_weight": 0.0},
        {"ensemble_every": 100},
        {"teacher": LastTeacher()},
        {"seed": 1},
        {"temperature": 1.0},
    ):
        assert differing(whole, run(zscl(**other), BENCHMARK))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_laws(precision):
    def make():
        return zscl(precision=precision)

    check_repeatable(make, BENCHMARK)
    check_resumable(make, BENCHMARK)
    check_frozen(make, BENCHMARK)
    check_frozen(lambda: zscl(lambda: tiny_classifier(trainable=LoRA(rank=2))), BENCHMARK)


def test_a_model_in_which_no_image_tower_trains_is_refused():
    with pytest.raises(ValueError, match="`regularizer` must be .*trainable='image'"):
        zscl(lambda: tiny_classifier(trainable="text")).train(BENCHMARK.train_stream[0])
