"""The head of the Gaussian discriminant by itself; with strategies it is tested beside these."""

import pytest
import torch

from avalanche_vlm.models import GaussianDiscriminantHead
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_classifier, tiny_images
from avalanche_vlm.text import ClassNames

IMAGES, LABELS = tiny_images()


def fitted(**arguments):
    model = tiny_classifier(GaussianDiscriminantHead(fusion_weight=5.0, **arguments))
    with torch.no_grad():
        # Of different counts, so that the prior matters.
        model.head.update(model.encode(IMAGES)[:15], LABELS[:15])
    return model.eval()


@pytest.mark.parametrize(("name", "value"), [("ridge", 50.0), ("prior", "counts"), ("fusion_weight", 0.5)])
@torch.no_grad()
def test_a_setting_changed_after_use_counts_at_once(name, value):
    model = fitted()
    before = model(IMAGES)
    setattr(model.head, name, value)
    after = model(IMAGES)
    assert not torch.allclose(after, before, atol=1e-3)
    fresh = fitted()
    setattr(fresh.head, name, value)
    assert torch.equal(after, fresh(IMAGES))


@pytest.mark.parametrize("labels", [torch.tensor([True, False]), torch.tensor([1.0, 0.0]), [1, 0]])
def test_labels_that_are_no_whole_numbers_are_a_wrong_type(labels):
    head = fitted().head
    with pytest.raises(TypeError, match=r"`labels` must be a tensor \(N,\) of whole numbers"):
        head.update(torch.ones(2, 16), labels)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
def test_whole_numbers_of_any_kind_are_labels(dtype):
    narrow, usual = (tiny_classifier(GaussianDiscriminantHead()).head for _ in range(2))
    features = torch.eye(16)[:6]
    narrow.update(features, torch.arange(6).to(dtype))
    usual.update(features, torch.arange(6))
    assert torch.equal(narrow.sums, usual.sums)
    assert torch.equal(narrow.counts, usual.counts)


def test_a_head_of_other_names_is_not_merged():
    other = GaussianDiscriminantHead(fusion_weight=5.0)
    other.set_classes(ClassNames(["a", "b", "c"]), TinyBackbone())
    with pytest.raises(
        ValueError, match="`other` must be .* the same class names; got one with 3 other names"
    ):
        fitted().head.merge(other)
    same = GaussianDiscriminantHead(fusion_weight=1.0)
    same.set_classes(ClassNames(TINY_CLASSES), TinyBackbone())
    fitted().head.merge(same)
    folds = GaussianDiscriminantHead()
    folds.set_classes(ClassNames(TINY_CLASSES), TinyBackbone())
    with pytest.raises(ValueError, match="`other` must be a head with the same arguments"):
        fitted().head.merge(folds)
