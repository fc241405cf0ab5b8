"""NaN names no class: `predict` says what came, and where from."""

import math

import pytest
import torch

from avalanche_vlm.testing import tiny_classifier, tiny_images


def test_images_that_are_nan_are_counted():
    model, (x, _) = tiny_classifier(), tiny_images()
    x[3, 0, 0, 0], x[5, 1, 2, 2] = math.nan, math.inf
    message = r"`images` must be of finite numbers; got 2 of 24 images with NaN or infinity \(numbers 3, 5\)"
    with pytest.raises(ValueError, match=message):
        model.predict(x, batch_size=7)
    embeddings = torch.full((2, 16), math.nan)
    with pytest.raises(ValueError, match="2 of 2 embeddings with NaN"):
        model.predict(embeddings)
    assert len(model.predict(x[:3]).names) == 3


def test_a_model_that_is_nan_is_told():
    model, (x, _) = tiny_classifier(trainable="image"), tiny_images()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    message = r"`model` must be one whose logits are finite; got .* for 24 of 24 images, which are finite"
    with pytest.raises(ValueError, match=message):
        model.predict(x)


def test_a_class_that_does_not_compete_may_be_nan():
    model, (x, _) = tiny_classifier(), tiny_images()
    model.classes_seen[:2] = True
    before = model.predict(x, space="seen")
    forward = type(model).forward

    class Broken(type(model)):
        def forward(self, images):
            logits = forward(self, images).clone()
            logits[:, 4] = math.nan
            return logits

    model.__class__ = Broken
    assert model.predict(x, space="seen").names == before.names
    with pytest.raises(ValueError, match="`model` must be one whose logits are finite"):
        model.predict(x)
