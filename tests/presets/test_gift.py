import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.functional import WarmupCosine
from avalanche_vlm.presets import MTIL_ORDERS, gift_setting, zscl_setting
from avalanche_vlm.sources import DiffusionImageSource, NamePrompts
from avalanche_vlm.strategies import GIFT, ZSCL
from avalanche_vlm.testing import (
    TinyBackbone,
    check_resumable,
    save_tiny_pipeline,
    tiny_benchmark,
    tiny_classifier,
    tiny_images,
)
from avalanche_vlm.testing.running import differing, snapshot
from tests.reference.tiny_image_source import TinyImageSource

BENCHMARK = tiny_benchmark()
DATASETS = ["aircraft", "dtd", "mnist"]
PEAKS = [5e-5, 1e-5, 5e-5]
ITERATIONS, WARMUP = 7, 2


def small(setting):
    """Return a setting of three data sets whose experiences take a second."""
    setting = replace(setting, iterations=ITERATIONS, warmup_iterations=WARMUP, batch_size=4)
    return (
        replace(setting, **{"images_per_experience": 6, "image_batch_size": 3})
        if is_gift(setting)
        else setting
    )


def is_gift(setting):
    return hasattr(setting, "image_model")


class Rates(SupervisedPlugin):
    """The learning rate of each step, by experience."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def before_update(self, strategy, *args, **kwargs):
        (group,) = strategy.optimizer.param_groups
        self.seen.setdefault(strategy.clock.train_exp_counter, []).append(group["lr"])


def build(setting, *plugins, **arguments):
    model = tiny_classifier(trainable="both")
    optimizer = setting.optimizer(model)
    common = {"model": model, "optimizer": optimizer, "evaluator": None}
    common |= {
        "plugins": [*setting.plugins(), *plugins],
        **setting.strategy_arguments(),
        **arguments,
    }
    if is_gift(setting):
        return GIFT(**{"images": TinyImageSource(), "prompts": NamePrompts(["tench", "cock"]), **common})
    return ZSCL(images=tiny_images()[0], texts=["a tench", "a cock", "a robin"], **common)


def expected_rates():
    rates = []
    for peak in PEAKS:
        own = []
        for i in range(ITERATIONS):
            if i < WARMUP:
                own.append(peak * (i + 1) / WARMUP)
            else:
                own.append(peak * (1 + math.cos(math.pi * (i - WARMUP) / (ITERATIONS - WARMUP))) / 2)
        rates.append(own)
    return rates


@pytest.mark.parametrize("make", [gift_setting, zscl_setting])
@pytest.mark.parametrize("order", MTIL_ORDERS)
def test_training_numbers_are_the_published_ones(make, order):
    setting = make(order)
    assert setting.stream.datasets == MTIL_ORDERS[order]
    assert (setting.stream.model, setting.stream.pretrained) == ("ViT-B-16", "openai")
    rates = dict(zip(setting.stream.datasets, setting.learning_rates, strict=True))
    assert {dataset for dataset, rate in rates.items() if rate == 5e-5} == {"aircraft", "mnist"}
    assert set(rates.values()) == {1e-5, 5e-5}
    arguments = setting.strategy_arguments()
    assert (arguments["train_iterations"], arguments["train_mb_size"]) == (1000, 64)
    assert arguments["label_smoothing"] == 0.2
    optimizer = setting.optimizer(tiny_classifier(trainable="both"))
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    (plugin,) = setting.plugins()
    assert plugin.learning_rates == setting.learning_rates
    assert plugin.schedule == WarmupCosine(warmup=100, total=1000)
    assert setting.describe() == json.loads(json.dumps(setting.describe()))


def test_numbers_of_the_methods_are_the_published_ones(tmp_path):
    arguments = gift_setting().strategy_arguments()
    assert (arguments["images_per_experience"], arguments["image_batch_size"]) == (1000, 64)
    weights = [arguments[f"{name}_weight"] for name in ("distillation", "alignment", "consolidation")]
    assert (*weights, arguments["temperature"]) == (1.0, 0.25, 1.0, 2.0)
    stored = gift_setting().images(tmp_path / "generated", device="cpu", batch_size=3)
    assert isinstance(stored.source, DiffusionImageSource)
    told = json.dumps(stored.describe())
    assert '"stable-diffusion-v1-5/stable-diffusion-v1-5"' in told
    assert (stored.source.steps, stored.source.dtype, stored.source.batch_size) == (50, "float16", 3)
    assert not (tmp_path / "generated").exists()
    arguments = zscl_setting().strategy_arguments()
    assert (arguments["distillation_weight"], arguments["penalty_weight"]) == (1.0, 1.0)
    assert (arguments["ensemble_every"], arguments["temperature"]) == (100, 2.0)


def test_both_towers_of_the_model_train_and_the_logit_scale_does_not():
    model = gift_setting("I", ["mnist", "dtd"]).model(TinyBackbone())
    assert len(model.class_names) == 57
    assert model.class_names[47] == "0 - zero"
    trains = {id(parameter) for parameter in model.parameters()}
    for tower in (model.backbone.image_tower, model.backbone.text_tower):
        assert {id(parameter) for parameter in tower.parameters()} <= trains
    assert id(model.backbone.logit_scale) not in trains


@pytest.mark.parametrize("make", [gift_setting, zscl_setting])
def test_each_experience_has_its_own_peak_and_begins_anew(make):
    strategy = build(small(make("I", DATASETS)), rates := Rates())
    before = snapshot(strategy.model)
    for experience in BENCHMARK.train_stream:
        strategy.train(experience)
        assert strategy.clock.train_exp_iterations == ITERATIONS
    assert [*rates.seen.values()] == [pytest.approx(own, rel=1e-9) for own in expected_rates()]
    assert differing(before, snapshot(strategy.model))
    assert strategy.train_mb_size == 4


def test_the_pipeline_draws_what_is_trained_on(tmp_path):
    setting = small(gift_setting("I", DATASETS))
    setting = replace(
        setting, image_model=str(save_tiny_pipeline(tmp_path / "sd")), image_steps=2, image_dtype="float32"
    )
    strategy = build(setting, images=setting.images(tmp_path / "images"), prompts=None)
    strategy.train(BENCHMARK.train_stream[0])
    assert len(list((tmp_path / "images").glob("*.png"))) == 6


@pytest.mark.parametrize("make", [gift_setting, zscl_setting])
def test_it_resumes_exactly_between_experiences(make):
    check_resumable(lambda: build(small(make("I", DATASETS))), BENCHMARK)


def test_it_resumes_exactly_inside_an_experience(tmp_path):
    def checkpointed(folder, rates):
        return build(
            small(gift_setting("I", DATASETS)), rates, CheckpointPlugin(folder, keep=99, every_n_epochs=1)
        )

    torch.manual_seed(0)
    whole = checkpointed(tmp_path / "whole", rates := Rates())
    for experience in BENCHMARK.train_stream:
        whole.train(experience)
    file = tmp_path / "whole" / "experience-0001-epoch-0001.ckpt"
    resumed = checkpointed(tmp_path / "resumed", again := Rates())
    assert resume(resumed, file, BENCHMARK) == 1
    for experience in BENCHMARK.train_stream[1:]:
        resumed.train(experience)
    assert not differing(snapshot(whole.model), snapshot(resumed.model))
    assert again.seen == rates.seen


def test_an_interrupted_experience_does_not_move_the_rates():
    class Stop(SupervisedPlugin):
        def after_update(self, strategy, *args, **kwargs):
            if strategy.clock.train_exp_iterations == 3:
                raise KeyboardInterrupt

    strategy = build(small(gift_setting("I", DATASETS)), stop := Stop())
    with pytest.raises(KeyboardInterrupt):
        strategy.train(BENCHMARK.train_stream[0])
    strategy.plugins.remove(stop)
    strategy.plugins.append(rates := Rates())
    for experience in BENCHMARK.train_stream:
        strategy.train(experience)
    assert [*rates.seen.values()] == [pytest.approx(own, rel=1e-9) for own in expected_rates()]


def test_a_stream_that_is_longer_than_the_setting_is_named():
    strategy = build(small(gift_setting("I", DATASETS[:2])))
    with pytest.raises(ValueError, match="`learning_rates`.*number 2 of the stream.*2 of them"):
        strategy.train(BENCHMARK.train_stream[2])


def test_a_setting_stays_as_it_is_and_what_is_unknown_is_named():
    with pytest.raises(FrozenInstanceError):
        gift_setting().iterations = 3
    for make in (gift_setting, zscl_setting):
        with pytest.raises(ValueError, match="`order`"):
            make("III")
        with pytest.raises(ValueError, match="`datasets`.*'imagenet'"):
            make("I", ["imagenet"])
