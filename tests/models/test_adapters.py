import pytest
import torch
from torch.nn import functional as F

from avalanche_vlm.embedding.frozen_backbone import frozen_backbone
from avalanche_vlm.models import (
    CLIPClassifier,
    EmbeddingAdapter,
    EmbeddingBackbone,
    LinearHead,
    ResidualAdapter,
    TextFeatureHead,
    ZeroShotHead,
)
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_classifier, tiny_images


def trained(model, steps=3):
    images, labels = tiny_images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def test_an_adapter_is_the_identity_first_and_the_equation_later():
    images, _ = tiny_images()
    model, bare = tiny_classifier(image_adapter=ResidualAdapter(ratio=0.3)), tiny_classifier()
    assert torch.equal(model(images), bare(images))
    assert not torch.equal(trained(model)(images), bare(images))
    w1, w2 = (layer.weight.double() for layer in model.image_adapter.bottleneck if hasattr(layer, "weight"))
    assert (w1.shape, w2.shape) == ((4, 16), (16, 4))
    with torch.no_grad():
        embeddings = model.encode(images)
        assert torch.equal(embeddings, bare.encode(images))  # what is stored lies before the adapter
        for embedding, out in zip(embeddings.double(), model.image_adapter(embeddings), strict=True):
            expected = embedding + 0.3 * w2 @ (w1 @ embedding).clamp(min=0)
            torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(model(embeddings), model(images), atol=0, rtol=0)


def test_both_layers_of_an_adapter_train_and_freeze():
    model = tiny_classifier(image_adapter=ResidualAdapter())
    names = [name for name, _ in model.named_parameters()]
    assert names == ["image_adapter.bottleneck.0.weight", "image_adapter.bottleneck.2.weight"]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trained(model)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not list(model.requires_grad_(False).parameters())
    assert [name for name, _ in model.requires_grad_(True).named_parameters()] == names
    frozen_backbone(model)  # its embeddings may be stored


def test_an_adapter_works_on_embeddings_alone():
    head, adapter = TextFeatureHead(torch.eye(4)), ResidualAdapter(reduction=8)
    model = CLIPClassifier(EmbeddingBackbone(4), head, class_names=list("abcd"), image_adapter=adapter)
    torch.testing.assert_close(model(torch.eye(4)), 100 * torch.eye(4))
    sentence = "`adapter` must be one of the backbone's width 5; got one of width 4.*AdaptedTextHead"
    with pytest.raises(ValueError, match=sentence):
        CLIPClassifier(EmbeddingBackbone(5), image_adapter=adapter)


def test_an_adapter_of_somebody_else_is_asked_for(tmp_path):
    class Mine(EmbeddingAdapter):
        def set_width(self, embed_dim, device):
            self.factor = torch.nn.Parameter(torch.full((embed_dim,), 2.0, device=device))

        def forward(self, embeddings):
            return embeddings * self.factor

        def config(self):
            return {}

    model = tiny_classifier(image_adapter=Mine())
    with torch.no_grad():
        model.image_adapter.factor[0] = 9.0
    model.save_pretrained(str(tmp_path / "m"))
    with pytest.raises(ValueError, match="`image_adapter` must be given"):
        CLIPClassifier.from_pretrained(str(tmp_path / "m"), backbone=TinyBackbone())
    loaded = CLIPClassifier.from_pretrained(
        str(tmp_path / "m"), backbone=TinyBackbone(seed=3), image_adapter=Mine()
    )
    images, _ = tiny_images()
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(ValueError, match="`ratio`"):
        ResidualAdapter(ratio=0)
    with pytest.raises(
        RuntimeError,
        match=r"no width yet.*CLIPClassifier\(image_adapter=...\) or AdaptedTextHead\(adapter=...\)",
    ):
        ResidualAdapter()(torch.zeros(1, 4))


def test_a_linear_head_starts_as_the_cosine_and_keeps_lengths_and_a_bias():
    model, bare = tiny_classifier(LinearHead(ZeroShotHead(["{}", "a {}"]))), ZeroShotHead(["{}", "a {}"])
    bare = tiny_classifier(bare)
    images, _ = tiny_images()
    torch.testing.assert_close(model(images), bare(images), atol=2e-5, rtol=0)
    torch.testing.assert_close(model.head.weight.norm(dim=1), torch.ones(6))
    assert model.head.bias.tolist() == [0.0] * 6
    trained(model)
    w, b = model.head.weight.detach().double(), model.head.bias.detach().double()
    assert not torch.allclose(w.norm(dim=1), torch.ones(6).double(), atol=1e-3)
    assert b.any()
    with torch.no_grad():
        scale = float(model.backbone.logit_scale)
        for f, z in zip(model.encode(images).double(), model(images).double(), strict=True):
            expected = scale * w @ (f / f.norm()) + b
            torch.testing.assert_close(z, expected, atol=1e-4, rtol=1e-5)


def test_a_linear_head_keeps_what_it_learned_when_names_are_added():
    model = trained(tiny_classifier(LinearHead(ZeroShotHead())))
    weight, bias = model.head.weight.detach().clone(), model.head.bias.detach().clone()
    model.set_classes([*TINY_CLASSES, "emu"])
    assert torch.equal(model.head.weight[:6], weight)
    assert torch.equal(model.head.bias, torch.cat([bias, torch.zeros(1)]))


def test_a_linear_head_starts_as_the_cosine_beside_a_bias_of_the_backbone():
    model, bare = tiny_classifier(LinearHead(ZeroShotHead())), tiny_classifier()
    for each in (model, bare):
        each.backbone.logit_bias_parameter = torch.nn.Parameter(torch.tensor(-3.0), requires_grad=False)
    images, _ = tiny_images()
    torch.testing.assert_close(model(images), bare(images), atol=2e-5, rtol=0)
