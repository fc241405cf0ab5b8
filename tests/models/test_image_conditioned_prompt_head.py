import pytest
import torch
from torch.nn import functional as F

from avalanche_vlm.models import GeneratedContext, ImageConditionedPromptHead, LearnedVectors
from avalanche_vlm.testing import TINY_CLASSES, tiny_classifier, tiny_images

SEEN = torch.tensor([True, False, True, True, False, True])


def shaken(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def by_hand(model, embedding):
    """The logits of one image: its own prompt for each class seen, one at a time."""
    head, backbone = model.head, model.backbone
    first, _, last = head.network
    x = (embedding / embedding.norm()).double()
    hidden = (first.weight.double() @ x + first.bias.double()).clamp(min=0)
    shift = (last.weight.double() @ hidden + last.bias.double()).float()
    text, logits = backbone.text_tower, []
    for index in range(6):
        name = TINY_CLASSES[index]
        if not SEEN[index]:
            weight = backbone.encode_text(backbone.tokenize([f"a photo of a {name}."]))[0]
        else:
            context = head.context_of(backbone, torch.tensor([index]))[0]
            tokens = backbone.tokenize([name + "."])[0]
            table = text.token_embedding.weight
            words = [table[token] for token in tokens[1 : int(tokens.argmax()) + 1]]
            hidden = torch.stack([table[tokens[0]], *(vector + shift for vector in context), *words])[None]
            hidden = hidden + text.positional_embedding[: hidden.shape[1]]
            mask = text.attn_mask[: hidden.shape[1], : hidden.shape[1]]
            weight = text.ln_final(text.transformer(hidden, attn_mask=mask))[0, -1] @ text.text_projection
        cosine = F.cosine_similarity(x, weight.double(), dim=0)
        logits.append(float(backbone.logit_scale) * float(cosine))
    return torch.tensor(logits, dtype=torch.float64)


@pytest.mark.parametrize("at_once", [1, 3, 9, 256])
@pytest.mark.parametrize("context", [lambda: None, lambda: [LearnedVectors(1), GeneratedContext()]])
def test_every_image_has_prompts_of_its_own(context, at_once):
    head = ImageConditionedPromptHead(context=context(), reduction=2, prompts_at_once=at_once)
    model = shaken(tiny_classifier(head))
    model.head.adapt(SEEN)
    images, _ = tiny_images(per_class=1)
    with torch.no_grad():
        embeddings = model.encode(images)
        expected = torch.stack([by_hand(model, embedding) for embedding in embeddings])
        torch.testing.assert_close(model(images).double(), expected, atol=2e-4, rtol=0)
    shifts = model.head.network(F.normalize(embeddings, dim=-1))
    assert (shifts[1:] - shifts[0]).norm(dim=-1).max() > 0.05


def test_gradients_in_parts_are_those_at_once():
    found = []
    for at_once in (10_000, 3, 1):
        head = ImageConditionedPromptHead(reduction=2, prompts_at_once=at_once)
        model = tiny_classifier(head, trainable="image")
        model.double()
        model.head.adapt(SEEN)
        images, labels = tiny_images(per_class=1)
        F.cross_entropy(model(images.double()), labels).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(g.any() for g in found[0])
    for others in found[1:]:
        for g, e in zip(others, found[0], strict=True):
            assert float((g - e).norm() / e.norm()) < 1e-12


def test_without_a_class_seen_the_model_is_zero_shot_to_the_last_bit():
    images, _ = tiny_images()
    model = tiny_classifier(ImageConditionedPromptHead())
    assert torch.equal(model(images), tiny_classifier()(images))
    model.head.adapt(SEEN)
    assert torch.equal(model(images)[:, ~SEEN], tiny_classifier()(images)[:, ~SEEN])
    assert model(model.encode(images)[:0]).shape == (0, 6)


def test_no_class_has_weights_without_an_image():
    model = tiny_classifier(ImageConditionedPromptHead())
    with pytest.raises(RuntimeError, match="depend on the image.*HybridPromptHead"):
        model.head(model.backbone)


@pytest.mark.parametrize("argument", ["reduction", "prompts_at_once"])
def test_mistakes_are_named(argument):
    with pytest.raises(ValueError, match=argument):
        ImageConditionedPromptHead(**{argument: 0})
