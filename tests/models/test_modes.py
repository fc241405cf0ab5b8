"""What is asked of models by many: whether they train, and whether they are classifiers at all."""

import pytest
import torch
from torch import nn

from avalanche_vlm.models.modes import in_eval_mode, is_frozen
from avalanche_vlm.models.required_classifier import required_classifier
from avalanche_vlm.testing import tiny_classifier


def test_a_module_is_frozen_if_nothing_in_it_trains():
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert not is_frozen(layers)
    layers[0].requires_grad_(False)
    assert not is_frozen(layers)
    assert is_frozen(layers[0])
    assert is_frozen(layers.requires_grad_(False))
    assert is_frozen(nn.ReLU())
    assert is_frozen(None)


@pytest.mark.parametrize(
    ("trainable", "frozen"), [("nothing", (True, True)), ("image", (False, True)), ("text", (True, False))]
)
def test_towers_of_a_classifier_are_frozen_unless_they_train(trainable, frozen):
    backbone = tiny_classifier(trainable=trainable).backbone
    assert (is_frozen(backbone.image_tower), is_frozen(backbone.text_tower)) == frozen


def test_every_module_gets_its_own_mode_back_after_an_error_too():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    layers[0].eval()
    modes = [module.training for module in layers.modules()]

    def fail():
        with in_eval_mode(layers):
            assert not any(module.training for module in layers.modules())
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert [module.training for module in layers.modules()] == modes


def test_a_classifier_is_returned_and_another_model_refused_with_purpose_and_advice():
    model = tiny_classifier()
    assert required_classifier(model, "which encodes images") is model
    with pytest.raises(TypeError) as caught:
        required_classifier(torch.nn.Linear(2, 2), "which encodes images", "Or embed the benchmark.")
    sentence = "`strategy.model` must be a CLIPClassifier, which encodes images; got Linear ("
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith(" Or embed the benchmark.")
