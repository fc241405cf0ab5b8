import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_vlm.models import (
    GeneratedContext,
    HybridPromptHead,
    ImageConditionedPromptHead,
    LatestLearnedVectors,
    LearnedContextHead,
    LearnedVectors,
    PromptContext,
    UnnormalisedZeroShotHead,
    ZeroShotHead,
)
from avalanche_vlm.models.seeded_layers import ChannelAffine
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_benchmark, tiny_classifier, tiny_images
from avalanche_vlm.text import ClassNames

NAMES = ClassNames(TINY_CLASSES)
SEEN = torch.tensor([True, False, True, True, False, False])
ALL = torch.ones(6, dtype=torch.bool)

CONTEXTS = {
    "the paper's": lambda: None,
    "learned": lambda: [LearnedVectors(2)],
    "generated": lambda: [GeneratedContext()],
    "shared": lambda: [LearnedVectors(3, sharing="shared")],
    "latest": lambda: [LatestLearnedVectors()],
    "three parts": lambda: [GeneratedContext(seed=4), LearnedVectors(2, sharing="shared"), LearnedVectors(1)],
}


def named(head, backbone=None, names=NAMES, seen=None):
    backbone = TinyBackbone() if backbone is None else backbone
    head.set_classes(names, backbone)
    if seen is not None:
        head.adapt(seen)
    return head, backbone


def shaken(head, scale=0.1):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return head


def network_in_float64(part):
    """The paper's network with batch norms in eval mode, holding the weights of the part's own."""
    linears = [layer for layer in part.network if isinstance(layer, nn.Linear)]
    affines = [layer for layer in part.network if isinstance(layer, ChannelAffine)]
    layers = []
    for linear, affine in zip(linears, [*affines, None], strict=True):
        layers.append(nn.Linear(linear.in_features, linear.out_features).double())
        layers[-1].load_state_dict(linear.state_dict())
        if affine is not None:
            layers.append(nn.BatchNorm1d(linear.out_features, eps=0.0).double())
            layers[-1].weight.data.copy_(affine.weight)
            layers[-1].bias.data.copy_(affine.bias)
            layers.append(nn.SELU())
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def by_hand(head, backbone, index):
    """The prompt of one class, position by position, through the text tower at its full length."""
    vectors = []
    for part in head.context:
        if isinstance(part, GeneratedContext):
            feature = backbone.encode_text(backbone.tokenize([part.template(NAMES[index])]))
            vectors.append(network_in_float64(part)(feature.double())[0].float())
        else:
            vectors += list(part.vectors[0 if part.sharing == "shared" else index])
    tokens = backbone.tokenize([NAMES[index] + "."])[0]
    end = int(tokens.argmax())
    table = backbone.text_tower.token_embedding.weight
    sequence = [table[tokens[0]], *vectors, *(table[token] for token in tokens[1 : end + 1])]
    text = backbone.text_tower
    hidden = torch.stack(sequence)[None] + text.positional_embedding[: len(sequence)]
    mask = text.attn_mask[: len(sequence), : len(sequence)]
    return (text.ln_final(text.transformer(hidden, attn_mask=mask))[0, -1] @ text.text_projection).double()


@pytest.mark.parametrize("kind", CONTEXTS)
def test_prompts_are_those_assembled_by_hand(kind):
    head, backbone = named(HybridPromptHead(context=CONTEXTS[kind]()), seen=ALL)
    shaken(head)
    with torch.no_grad():
        expected = torch.stack([by_hand(head, backbone, index) for index in range(6)])
        torch.testing.assert_close(head(backbone).double(), expected, atol=2e-6, rtol=1e-5)
        some = head.encode(backbone, torch.tensor([4, 0, 4]))
        torch.testing.assert_close(some.double(), expected[[4, 0, 4]], atol=2e-6, rtol=1e-5)


def test_the_constant_that_the_affine_layers_leave_out_is_small():
    head, backbone = named(HybridPromptHead(context=[GeneratedContext()]), seen=ALL)
    part = shaken(head).context[0]
    official = network_in_float64(part)
    for layer in official:
        if isinstance(layer, nn.BatchNorm1d):
            layer.eps = 1e-5
    with torch.no_grad():
        features = part.text_features(backbone)
        torch.testing.assert_close(
            part(backbone, torch.arange(6))[:, 0].double(), official(features.double()), atol=1e-5, rtol=3e-5
        )


@pytest.mark.parametrize("kind", CONTEXTS)
def test_without_a_class_seen_the_model_is_zero_shot_to_the_last_bit(kind):
    model, zero_shot = tiny_classifier(HybridPromptHead(context=CONTEXTS[kind]())), tiny_classifier()
    images, _ = tiny_images()
    assert torch.equal(model.head(model.backbone), zero_shot.head(zero_shot.backbone))
    assert torch.equal(model(images), zero_shot(images))


@pytest.mark.parametrize("unseen", [ZeroShotHead, UnnormalisedZeroShotHead])
def test_classes_not_seen_take_the_weights_and_logits_of_the_other_head(unseen):
    model, other = tiny_classifier(HybridPromptHead(unseen=unseen())), tiny_classifier(unseen())
    model.head.adapt(SEEN)
    images, labels = tiny_images()
    rows = other.head(other.backbone)
    for _ in range(2):
        weights, logits = model.head(model.backbone), model(images)
        assert torch.equal(weights[~SEEN], rows[~SEEN])
        assert torch.equal(logits[:, ~SEEN], other(images)[:, ~SEEN])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        F.cross_entropy(logits[:, SEEN], labels % 3).backward()
        optimizer.step()
        assert not (model.head(model.backbone)[SEEN] == weights[SEEN]).all(dim=1).any()
    cosine = F.cosine_similarity(model.encode(images)[:, None], model.head(model.backbone)[None], dim=-1)
    expected = model.backbone.logit_scale * cosine
    torch.testing.assert_close(model(images)[:, SEEN], expected[:, SEEN], atol=1e-5, rtol=1e-5)


def test_un_normalised_weights_are_features_and_count_with_their_length():
    model = tiny_classifier(UnnormalisedZeroShotHead(["a photo of a {}.", "{}"]))
    images, _ = tiny_images()
    backbone = model.backbone
    with torch.no_grad():
        for index, name in enumerate(NAMES):
            texts = [f"a photo of a {name}.", name]
            w = sum(backbone.encode_text(backbone.tokenize([text]))[0].double() for text in texts) / 2
            torch.testing.assert_close(model.head(backbone)[index].double(), w, atol=1e-6, rtol=0)
            for embedding, logits in zip(model.encode(images).double(), model(images), strict=True):
                expected = float(backbone.logit_scale) * float(embedding @ w) / float(embedding.norm())
                assert float(logits[index]) == pytest.approx(expected, abs=1e-4)


class Counting(TinyBackbone):
    texts = 0

    def encode_token_embeddings(self, embeddings, tokens):
        self.texts += len(tokens)
        return super().encode_token_embeddings(embeddings, tokens)


def test_a_step_encodes_the_classes_seen_and_nothing_else():
    head, backbone = named(HybridPromptHead(classes_at_once=None), Counting(), seen=SEEN)
    head(backbone)
    before = backbone.texts
    head(backbone).sum().backward()
    head.forget_what_trains(backbone)
    head(backbone).sum().backward()
    assert backbone.texts - before == 2 * 3
    with torch.no_grad():
        head(backbone)
        before = backbone.texts
        head(backbone, torch.tensor([1, 2]))
        assert backbone.texts - before == 3  # in training mode nothing that trains is kept
        head.eval()
        head(backbone)
        before = backbone.texts
        head(backbone)
        assert backbone.texts == before
        head.adapt(ALL)
        assert not torch.equal(head(backbone)[1], head.unseen(backbone)[1])


def gradients(head, backbone, dtype=torch.float32, autocast=False):
    head, backbone = copy.deepcopy(head).to(dtype), copy.deepcopy(backbone).to(dtype)
    target = torch.randn(6, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        weights = F.normalize(head(backbone), dim=-1)
        loss = (weights.to(dtype) - target).square().sum()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in head.parameters()]


@pytest.mark.parametrize("seen", [SEEN, ALL])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: HybridPromptHead(classes_at_once=n),
        lambda n: LearnedContextHead(context_length=2, sharing="per-class", classes_at_once=n),
        lambda n: LearnedContextHead(context_length=2, classes_at_once=n),
    ],
)
def test_gradients_in_parts_are_those_at_once(make, seen):
    for arguments, tolerance in (
        ({"dtype": torch.float64}, 1e-13),
        # Sums over 6 classes and 7 positions of their texts, in another order: 42 epsilons of float32.
        ({}, 5e-6),
        # Sums over classes are rounded to 8 bits at other places.
        ({"autocast": True}, 2e-2),
    ):
        whole, backbone = named(make(None), seen=seen)
        loss, expected = gradients(shaken(whole), backbone, **arguments)
        assert all(g is not None and g.any() for g in expected)
        for at_once in (1, 2, 4):
            parts, _ = named(make(at_once), seen=seen)
            loss_of_parts, found = gradients(shaken(parts), backbone, **arguments)
            torch.testing.assert_close(loss_of_parts, loss, rtol=tolerance, atol=0)
            for g, e in zip(found, expected, strict=True):
                assert float((g - e).norm() / e.norm()) <= tolerance


def test_in_parts_the_text_tower_sees_no_more_than_one_part():
    sizes = []

    class Watching(TinyBackbone):
        def encode_token_embeddings(self, embeddings, tokens):
            sizes.append(len(tokens))
            return super().encode_token_embeddings(embeddings, tokens)

    head, backbone = named(HybridPromptHead(classes_at_once=2, unseen=ZeroShotHead()), Watching(), seen=ALL)
    head.context[1].text_features(backbone)
    sizes.clear()
    head(backbone).sum().backward()
    assert sizes == [2, 2, 2, 2, 2, 2]  # once forward, once more in the backward pass


def test_learned_vectors_of_earlier_experiences_stay():
    model = tiny_classifier(HybridPromptHead(context=[LatestLearnedVectors(), GeneratedContext()])).train()
    vectors, (images, labels) = model.head.context[0], tiny_images()
    for number, experience in enumerate(tiny_benchmark().train_stream):
        model.adaptation(experience)
        model.adaptation(experience)  # the host may call it more than once
        before = vectors.vectors.detach().clone()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        moved = (vectors.vectors != before).any(dim=2).flatten()
        assert moved.nonzero().flatten().tolist() == [2 * number, 2 * number + 1]


@pytest.mark.parametrize(
    "kind", [HybridPromptHead, lambda **parts: ImageConditionedPromptHead(**parts, reduction=2)]
)
def test_no_part_learns_through_the_prompts_of_earlier_experiences(kind):
    """The gradient is that of a loss whose old columns are constants, for every part of the context."""
    parts = [LatestLearnedVectors(), LearnedVectors(2, sharing="shared"), GeneratedContext()]
    model, (images, labels) = tiny_classifier(kind(context=parts)).train(), tiny_images()
    first, second, _ = tiny_benchmark().train_stream
    model.adaptation(first)
    shaken(model.head)
    model.adaptation(second)
    logits = model(images)
    old = torch.tensor([True, True, False, False, False, False])
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(
        F.cross_entropy(logits, labels), weights, retain_graph=True, allow_unused=True
    )
    # Nothing comes through an old column alone, of whatever part.
    through_old = torch.autograd.grad(
        logits[:, old].square().sum(), weights, retain_graph=True, allow_unused=True
    )
    assert all(gradient is None or not gradient.any() for gradient in through_old)
    # What comes is what a model gives that knows the old columns as numbers.
    held = torch.where(old, logits.detach(), logits)
    expected = torch.autograd.grad(F.cross_entropy(held, labels), weights, allow_unused=True)
    for name, own, other in zip(names, found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-7, msg=name)
    assert any(own.any() for name, own in zip(names, found, strict=True) if "network" in name)


def test_what_was_learned_stays_when_names_are_added():
    parts = [LatestLearnedVectors(), LearnedVectors(2, sharing="shared"), GeneratedContext()]
    head, backbone = named(HybridPromptHead(context=parts), names=ClassNames(NAMES[:4]), seen=SEEN[:4])
    shaken(head)
    before, shared, network = head(backbone).detach().clone(), parts[1].vectors, parts[2].network
    named(head, backbone)
    assert parts[0].vectors.shape == (6, 1, 16)
    assert parts[1].vectors is shared
    assert parts[2].network is network
    assert head.classes_seen.tolist() == SEEN.tolist()
    assert parts[0].classes_latest.tolist() == SEEN.tolist()
    torch.testing.assert_close(head(backbone)[:4], before, atol=1e-6, rtol=1e-5)
    named(head, backbone, ClassNames(["emu", "yak"]))
    assert head.classes_seen.tolist() == parts[0].classes_latest.tolist() == [False, False]


def test_a_trained_text_tower_takes_part():
    model = tiny_classifier(HybridPromptHead(), trainable="text")
    model.head.adapt(SEEN)
    images, _ = tiny_images()
    found = []
    for column in (0, 1):  # one seen, one not
        model.zero_grad()
        model(images)[:, column].sum().backward()
        grad = model.backbone.text_tower.token_embedding.weight.grad
        found.append(bool(grad is not None and grad.any()))
    assert found == [True, True]
    before = model(images).detach()
    with torch.no_grad():
        model.backbone.text_tower.ln_final.weight.data.mul_(torch.linspace(0.5, 2, 16))
    model.train()
    assert ((model(images) - before).abs().amax(dim=0) > 1e-4).all()


def test_frozen_text_is_not_encoded_again_when_the_mode_changes():
    backbone = Counting()
    head, _ = named(HybridPromptHead(), backbone, seen=SEEN)
    head(backbone)
    before = backbone.texts
    head.forget_what_trains(backbone)
    head(backbone)
    assert backbone.texts - before == 3
    head.forget()
    before = backbone.texts
    head(backbone)
    assert backbone.texts - before == 3 + 2 * 6


def test_weights_kept_in_inference_mode_meet_a_gradient_later():
    model = tiny_classifier(UnnormalisedZeroShotHead(), trainable="image")
    images, labels = tiny_images()
    with torch.inference_mode():
        model(images)
    F.cross_entropy(model(images), labels).backward()
    assert all(p.grad is not None for p in model.backbone.image_tower.parameters())


def test_another_part_needs_three_methods():
    class Name(PromptContext):
        length = 1

        def set_classes(self, class_names, backbone, *, added):
            words = backbone.tokenize([f"{name}" for name in class_names])
            self.first = backbone.embed_tokens(words)[:, 1:2]

        def forward(self, backbone, class_ids):
            return self.first[class_ids]

        def config(self):
            return {}

    head, backbone = named(HybridPromptHead(context=[Name(), LearnedVectors()]), seen=ALL)
    assert head(backbone).shape == (6, 16)
    with pytest.raises(ValueError, match="`head` must be given"):
        HybridPromptHead.from_config(head.config())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HybridPromptHead(context=[]), "`context`"),
        (lambda: HybridPromptHead(context=LearnedVectors()), "`context`.*LearnedVectors"),
        (lambda: HybridPromptHead(context=["words"]), "`context`"),
        (lambda: HybridPromptHead(context=[LearnedVectors()] * 2), "`context`.*different"),
        (lambda: HybridPromptHead(unseen="zero-shot"), "`unseen`"),
        (lambda: HybridPromptHead(classes_at_once=0), "`classes_at_once`"),
        (lambda: LearnedVectors(0), "`length`"),
        (lambda: LearnedVectors(sharing="all"), "`sharing`"),
        (lambda: GeneratedContext(template="a photo"), "template"),
        (lambda: named(HybridPromptHead(context=[LearnedVectors(100)])), "beside 100 context tokens"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
