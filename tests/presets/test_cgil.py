import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from avalanche_vlm.presets import CGIL_DATASETS, cgil_setting
from avalanche_vlm.sources.class_vae import ClassVAE
from avalanche_vlm.strategies import CGIL
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

# Data set: classes, experiences, learning rate, epochs, passes.
PUBLISHED = {
    "imagenet_r": (200, 10, 0.05, 60, 500),
    "stanford_cars": (196, 10, 0.03, 60, 500),
    "cub200": (200, 10, 0.01, 60, 500),
    "eurosat": (10, 5, 0.03, 150, 500),
    "isic": (6, 3, 0.05, 150, 750),
}


def test_numbers_are_the_published_ones():
    assert set(CGIL_DATASETS) == set(PUBLISHED)
    for dataset, (classes, experiences, rate, epochs, passes) in PUBLISHED.items():
        setting = cgil_setting(dataset)
        assert sum(setting.classes_per_experience) == classes
        assert len(setting.classes_per_experience) == experiences
        assert (setting.learning_rate, setting.epochs, setting.vae_passes) == (rate, epochs, passes)
        assert (setting.samples_per_class, setting.batch_size) == (256, 128)
        assert (setting.model, setting.pretrained) == ("ViT-L-14", "openai")
        assert setting.seeds == (1992, 1996, 1997)
        assert setting.describe() == json.loads(json.dumps(setting.describe()))


def test_its_parts_make_the_published_method():
    setting = cgil_setting("ISIC")
    model = tiny_classifier(trainable="text")
    optimizer = setting.optimizer(model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    generator = setting.generator(seed=7)
    assert (generator.passes, generator.noise_scale, generator.seed) == (750, "variance", 7)
    assert (generator.hidden, generator.latent, generator.batch_size) == (512, 256, 64)
    small = ClassVAE(passes=1, hidden=4, latent=2)
    arguments = {**setting.strategy_arguments(), "train_epochs": 1, "samples_per_class": 4}
    strategy = CGIL(model=model, optimizer=optimizer, generator=small, evaluator=None, **arguments)
    strategy.train(tiny_benchmark().train_stream[0])
    assert strategy.train_mb_size == 128
    assert small.classes == [0, 1]


def test_a_setting_stays_as_it_is_and_an_unknown_one_is_named():
    with pytest.raises(FrozenInstanceError):
        cgil_setting("isic").epochs = 3
    with pytest.raises(ValueError, match=r"`dataset`.*'cifar100'"):
        cgil_setting("cifar100")
