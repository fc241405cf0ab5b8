"""A head behind an adapter: it starts as the head inside, learns, and is saved."""

import pytest
import torch
from torch.nn import functional as F

from avalanche_vlm.models import (
    AdaptedTextHead,
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    LearnedContextHead,
    ResidualAdapter,
    TextFeatureHead,
    ZeroShotHead,
)
from avalanche_vlm.testing import TinyBackbone, check_seeded, tiny_classifier, tiny_images

INSIDE = {
    "zero-shot": lambda: ZeroShotHead("a drawing of a {}."),
    "context": lambda: LearnedContextHead(context_length=2),
    "cosine": lambda: CosineHead(ZeroShotHead()),
    "features": lambda: TextFeatureHead(torch.randn(6, 16, generator=torch.Generator().manual_seed(0))),
}
IMAGES, LABELS = tiny_images()


def trained(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", INSIDE)
def test_it_starts_as_the_head_inside_and_learns(name):
    bare, model = tiny_classifier(INSIDE[name]()), tiny_classifier(AdaptedTextHead(INSIDE[name]()))
    with torch.no_grad():
        assert torch.equal(model(IMAGES), bare(IMAGES))
    inside = len(list(bare.parameters()))
    assert len(list(model.parameters())) == inside + 2
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trained(model)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_class_weights_are_those_of_the_equation():
    model = tiny_classifier(AdaptedTextHead(adapter=ResidualAdapter(ratio=0.3)))
    head, ids = trained(model).head, torch.tensor([4, 0, 1])
    with torch.no_grad():
        frozen = head.frozen_text(model.backbone, ids)
        assert torch.equal(frozen, tiny_classifier().head(TinyBackbone(), ids))
        adapted = head(model.backbone, ids)
        assert torch.equal(head.adapted_text(frozen), adapted)
        w1, w2 = (layer.weight.double() for layer in head.adapter.bottleneck if hasattr(layer, "weight"))
        for before, after in zip(frozen.double(), adapted, strict=True):
            expected = before + 0.3 * w2 @ (w1 @ before).clamp(min=0)
            torch.testing.assert_close(after.double(), expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(frozen, adapted)


def test_a_head_without_an_adapter_adapts_no_text():
    head, text = tiny_classifier().head, torch.randn(3, 16)
    assert torch.equal(head.adapted_text(text), text)


@pytest.mark.parametrize("name", [name for name in INSIDE if name != "features"])
def test_it_is_saved_and_loaded(name, tmp_path):
    model = trained(tiny_classifier(AdaptedTextHead(INSIDE[name]()), image_adapter=ResidualAdapter())).eval()
    model.save_pretrained(str(tmp_path / "model"))
    loaded = CLIPClassifier.from_pretrained(str(tmp_path / "model"), backbone=TinyBackbone()).eval()
    assert isinstance(loaded.head, AdaptedTextHead)
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), model(IMAGES))
    assert torch.equal(loaded.classes_seen, model.classes_seen)


def test_the_seed_of_its_adapter_decides():
    check_seeded(lambda: tiny_classifier(AdaptedTextHead()))


def test_new_names_leave_the_adapter_as_it_is():
    model = trained(tiny_classifier(AdaptedTextHead()))
    before = [parameter.detach().clone() for parameter in model.head.adapter.parameters()]
    model.set_classes([*model.class_names, "bee"])
    assert all(map(torch.equal, before, model.head.adapter.parameters()))
    assert model(IMAGES).shape == (len(IMAGES), 7)


def test_two_adapters_on_one_another_and_other_widths_are_refused():
    with pytest.raises(ValueError, match="`text`.*an adapter of its own"):
        AdaptedTextHead(AdaptedTextHead())
    with pytest.raises(TypeError, match="`adapter`"):
        AdaptedTextHead(adapter=torch.nn.Linear(2, 2))
    adapter = ResidualAdapter()
    tiny_classifier(AdaptedTextHead(adapter=adapter))
    head = AdaptedTextHead(TextFeatureHead(torch.eye(4)), adapter=adapter)
    with pytest.raises(ValueError, match="width"):
        CLIPClassifier(EmbeddingBackbone(4), head, class_names=list("abcd"))
