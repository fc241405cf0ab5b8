import json
import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_vlm.presets import SETTING_A_DATASETS, segp_cl_setting, setting_a
from avalanche_vlm.strategies import SeGPCL
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_benchmark


class Rates(SupervisedPlugin):
    """Keeps the learning rate of each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_training_epoch(self, strategy, *args, **kwargs):
        self.seen.append(strategy.optimizer.param_groups[0]["lr"])


def test_numbers_are_those_of_the_two_summaries_that_agree():
    for dataset in sorted(set(SETTING_A_DATASETS) - {"ucf101"}):
        setting = segp_cl_setting(dataset)
        assert setting.stream == setting_a(dataset)
        assert (setting.stream.model, setting.stream.pretrained) == ("ViT-B-16", "openai")
        assert (setting.learning_rate, setting.epochs, setting.batch_size) == (1e-3, 10, 128)
        assert (setting.distillation_weight, setting.distillation_temperature) == (5.0, 20.0)
        assert (setting.geometry_weight, setting.neighbours, setting.geometry_temperature) == (1.0, 10, 0.05)
        assert (setting.rank, setting.fusion_weight) == (32, 0.5)
        assert setting.describe() == json.loads(json.dumps(setting.describe()))


def test_its_parts_make_the_method_and_the_rate_falls_in_each_experience():
    setting = segp_cl_setting("cifar100")
    model = setting.model(TINY_CLASSES, backbone=TinyBackbone(), seed=3)
    assert model.trainable.seed == 3
    assert model.trainable.factors == ("B",)
    optimizer, anchors = setting.optimizer(model), setting.anchors(batch_size=4, seed=5)
    assert (anchors.seeds_per_class, anchors.steps, anchors.step_size) == (5, 10, 1.5e-3)
    assert (anchors.batch_size, anchors.seed) == (4, 5)
    arguments = {**setting.strategy_arguments(), "train_mb_size": 4, "train_epochs": 10}
    rates = Rates()
    plugins = [*setting.plugins(optimizer), rates]
    strategy = SeGPCL(
        model=model, optimizer=optimizer, anchors=anchors, plugins=plugins, evaluator=None, **arguments
    )
    for experience in list(tiny_benchmark().train_stream)[:2]:
        strategy.train(experience)
    falling = [1e-3 * (1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(10)]
    assert rates.seen == pytest.approx(2 * falling)
    assert bool((model.head.counts > 0).sum() == 4)
    assert type(optimizer) is torch.optim.SGD


def test_a_setting_stays_as_it_is_and_an_unknown_one_is_named():
    with pytest.raises(FrozenInstanceError):
        segp_cl_setting("cifar100").epochs = 3
    with pytest.raises(ValueError, match="`dataset`"):
        segp_cl_setting("isic")
    with pytest.raises(ValueError, match="class_order"):
        segp_cl_setting("ucf101")
