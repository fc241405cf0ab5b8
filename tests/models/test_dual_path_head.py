"""Text and prototypes in one head, what it asks of towers, and text that a step encodes once."""

import copy
import itertools
import math
import pickle
from contextlib import nullcontext

import pytest
import torch
from avalanche.core import SupervisedPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from avalanche_vlm.functional import PixelSpace
from avalanche_vlm.models import (
    CLIPClassifier,
    DualPathHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    HybridPromptHead,
    ImageConditionedPromptHead,
    LearnedContextHead,
    LoRA,
    NearestClassMeanHead,
    OpenCLIPBackbone,
    ResidualAdapter,
    RidgeRegressionHead,
    TextFeatureHead,
    TextHead,
    ZeroShotHead,
)
from avalanche_vlm.models.modes import in_eval_mode
from avalanche_vlm.models.small_clip import SmallTokenizer
from avalanche_vlm.plugins import RegularizerPlugin
from avalanche_vlm.regularizers import AdversarialAnchors, AnchorDistillation, TextGeometry
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_benchmark, tiny_classifier, tiny_images
from avalanche_vlm.testing.running import snapshot
from tests.reference.tiny_image_source import moved

X, _ = tiny_images(per_class=1)
SPACES = ("raw", "embedding")


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_prototypes(head=None, classes=(0, 2, 5), **arguments):
    """A classifier some of whose classes have a prototype."""
    model = tiny_classifier(DualPathHead() if head is None else head, **arguments)
    labels = torch.tensor(list(classes))
    model.head.update(numbers(len(labels), 16, seed=3), labels)
    return model


def unit(features):
    return features.double() / features.double().norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("space", SPACES)
def test_in_training_mode_logits_are_those_of_text(space):
    model = with_prototypes(DualPathHead(visual_space=space), trainable="both")
    alone = tiny_classifier(trainable="both")
    assert torch.equal(model.train()(X), alone.train()(X))
    with torch.no_grad():
        assert not torch.allclose(model.eval()(X), alone.eval()(X), atol=1e-2)


@pytest.mark.parametrize("beta", [0.5, 3.0])
@pytest.mark.parametrize("space", SPACES)
@torch.no_grad()
def test_in_eval_mode_classes_with_prototype_are_ranked_by_the_sum_of_both_scores(space, beta):
    model = with_prototypes(DualPathHead(fusion_weight=beta, visual_space=space)).eval()
    known, unknown = [0, 2, 5], [1, 3, 4]
    found, text = model(X).double(), model.similarities(X).double()
    v, h = model.encode(X), model.backbone.encode_image_raw(X)
    h, scale = h if space == "raw" else v, float(model.backbone.logit_scale)
    names = model.head.text(model.backbone)
    scores = [
        [
            scale * (float(unit(v[i]) @ unit(names[c])))
            + beta * scale * float(unit(h[i]) @ unit(model.head.prototypes[c]))
            for c in known
        ]
        for i in range(len(X))
    ]
    for i, row in enumerate(scores):
        expected = sorted(known, key=lambda c: -row[known.index(c)])
        assert found[i, known].argsort(descending=True).tolist() == [known.index(c) for c in expected]
        for first, second in ((0, 1), (1, 2)):
            gap = float(found[i, known[first]] - found[i, known[second]])
            assert gap == pytest.approx(row[first] - row[second], abs=1e-4)
    both = found.softmax(dim=1), text.softmax(dim=1)
    torch.testing.assert_close(both[0][:, unknown], both[1][:, unknown], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[:, unknown], text[:, unknown])
    assert not torch.allclose(both[0], both[1], atol=1e-3)


@torch.no_grad()
def test_prototypes_can_outvote_text_for_the_classes_that_have_one():
    model = tiny_classifier(DualPathHead(fusion_weight=1000.0)).eval()
    model.head.update(model.backbone.encode_image_raw(X), torch.tensor([5, 4, 3, 2, 1, 0]))
    assert model(X).argmax(dim=1).tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("space", SPACES)
@torch.no_grad()
def test_with_a_weight_of_0_or_without_prototypes_text_is_alone(space):
    alone = tiny_classifier().eval()(X)
    off = with_prototypes(DualPathHead(fusion_weight=0, visual_space=space)).eval()
    none = tiny_classifier(DualPathHead(visual_space=space)).eval()
    assert torch.equal(off(X), alone)
    assert torch.equal(none(X), alone)


@torch.no_grad()
def test_half_precision_leaves_logits_finite_and_in_full():
    model = with_prototypes().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(X)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model(X), atol=0.3, rtol=0.05)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), cuts=st.lists(st.integers(0, 30), max_size=5), dtype=st.sampled_from([32, 64])
)
def test_prototypes_are_means_whatever_the_batches(seed, cuts, dtype):
    features = numbers(30, 16, seed=seed).to(getattr(torch, f"float{dtype}")) + 1
    labels = torch.randint(5, (30,), generator=torch.Generator().manual_seed(seed))  # 5 has none
    head = tiny_classifier(DualPathHead()).head
    place = head.prototypes.data_ptr(), head.counts.data_ptr()
    ends = [0, *sorted(cuts), 30]
    for start, end in itertools.pairwise(ends):
        head.update(features[start:end], labels[start:end])
    for c in range(6):
        own = [features[i].double() for i in range(30) if int(labels[i]) == c]
        assert int(head.counts[c]) == len(own)
        mean = sum(own) / len(own) if own else torch.zeros(16)
        torch.testing.assert_close(head.prototypes[c].double(), mean.double(), atol=1e-5, rtol=0)
    assert head.classes_with_prototype.tolist() == sorted(set(labels.tolist()))
    assert place == (head.prototypes.data_ptr(), head.counts.data_ptr())


HEADS = {
    "zero-shot": lambda **a: DualPathHead(ZeroShotHead(["a {}", "one {}"]), **a),
    "context": lambda **a: DualPathHead(LearnedContextHead(context_length=2), **a),
    "hybrid prompts": lambda **a: DualPathHead(HybridPromptHead(classes_at_once=3), **a),
    "discriminant": lambda **a: DualPathHead(GaussianDiscriminantHead(), **a),
    "ridge": lambda **a: DualPathHead(RidgeRegressionHead(), **a),
    "class means": lambda **a: DualPathHead(NearestClassMeanHead(), **a),
    "prompts of images": lambda **a: DualPathHead(ImageConditionedPromptHead(reduction=4), **a),
}


def around(name, **arguments):
    model = moved(tiny_classifier(HEADS[name](**arguments)), 0.3)
    model.classes_seen[[0, 2, 5]] = True
    model.head.adapt(model.classes_seen)
    if name in ("discriminant", "ridge", "class means"):
        model.head.text.update(numbers(12, 16, seed=4), torch.tensor([0, 2, 5] * 4))
    return model


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_around_any_head_training_is_that_head_and_evaluation_fuses_it(name, space):
    model = around(name, visual_space=space)
    inner = CLIPClassifier(model.backbone, copy.deepcopy(model.head.text)).train()
    inner.classes_seen = model.classes_seen
    assert torch.equal(model.train()(X), inner(X))
    text = inner.eval()(X)
    torch.testing.assert_close(model.eval()(X), text)
    model.head.update(numbers(3, 16, seed=3), torch.tensor([0, 2, 5]))
    fused = model(X)
    assert bool(fused.isfinite().all())
    both = fused.softmax(1), text.softmax(1)
    torch.testing.assert_close(both[0][:, [1, 3, 4]], both[1][:, [1, 3, 4]], atol=1e-6, rtol=1e-4)
    assert not torch.allclose(fused, text, atol=1e-2)
    assert torch.equal(model.train()(X), inner.train()(X))


def test_what_the_inner_head_learns_trains_and_is_told_of_classes():
    model = tiny_classifier(DualPathHead(HybridPromptHead(classes_at_once=3)))
    inner = tiny_classifier(HybridPromptHead(classes_at_once=3))
    assert [name.replace(".text", "") for name, _ in model.named_parameters()] == [
        name for name, _ in inner.named_parameters()
    ]
    model.train().adaptation(tiny_benchmark().train_stream[0])
    assert torch.equal(model.head.text.classes_seen, model.classes_seen)
    loss = model(X)[:, :2].sum()
    assert all(bool(g.any()) for g in torch.autograd.grad(loss, list(model.parameters())))


def test_the_text_part_is_the_head_that_compares_with_text():
    for name in ("zero-shot", "context", "hybrid prompts", "prompts of images"):
        head = HEADS[name]()
        assert head.text_part is head.text
        assert head.text.text_part is head.text
        assert head.has_class_weights == (name != "prompts of images")
    head = HEADS["discriminant"]()
    assert head.text_part is head.text.zero_shot is head.text.text_part
    head = DualPathHead(ZeroShotHead(["one {}", "{}"]))
    assert [template.text for template in head.templates_of("")] == ["one {}", "{}"]
    assert DualPathHead().reads_raw_features
    assert not DualPathHead(visual_space="embedding").reads_raw_features
    assert not ZeroShotHead().reads_raw_features


@torch.no_grad()
def test_similarities_are_scaled_cosines_whatever_is_fused():
    for name in ("zero-shot", "context", "hybrid prompts", "discriminant"):
        model = around(name).eval()
        model.head.update(numbers(3, 16, seed=3), torch.tensor([0, 2, 5]))
        weights = model.head.text_part(model.backbone)
        expected = float(model.backbone.logit_scale) * unit(model.encode(X)) @ unit(weights).T
        torch.testing.assert_close(model.similarities(X).double(), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(model.similarities(model.encode(X)), model.similarities(X))
        assert not torch.allclose(model(X), model.similarities(X), atol=1e-2)
    with pytest.raises((ValueError, RuntimeError), match="class weights .*depend on the image"):
        around("prompts of images").similarities(X)


KINDS = {
    "raw": lambda: DualPathHead(fusion_weight=0.7),
    "embedding": lambda: DualPathHead(visual_space="embedding"),
    "context": lambda: DualPathHead(LearnedContextHead(context_length=2, sharing="per-class")),
    "hybrid prompts": lambda: DualPathHead(HybridPromptHead(classes_at_once=3)),
    "discriminant": lambda: DualPathHead(GaussianDiscriminantHead(fusion_weight=0.2)),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_saved_model_has_its_prototypes(kind, tmp_path):
    model = moved(with_prototypes(KINDS[kind](), image_adapter=ResidualAdapter()), 0.1).eval()
    model.save_pretrained(str(tmp_path / "model"))
    loaded = CLIPClassifier.from_pretrained(str(tmp_path / "model"), backbone=TinyBackbone(seed=9))
    assert torch.equal(loaded(X), model(X))
    assert loaded.head.config() == model.head.config()
    assert type(loaded.head.text) is type(model.head.text)
    assert torch.equal(loaded.head.prototypes, model.head.prototypes)
    assert torch.equal(loaded.head.counts, model.head.counts)
    assert loaded.head.classes_with_prototype.tolist() == [0, 2, 5]


@torch.no_grad()
def test_names_that_come_later_leave_prototypes_where_they_are():
    model = with_prototypes().eval()
    before, logits = snapshot(model.head), model(X)
    model.set_classes([*TINY_CLASSES, "ant", "bee"])
    assert torch.equal(model.head.prototypes[:6], before["prototypes"])
    assert model.head.prototypes.shape == (8, 16)
    assert model.head.counts.tolist() == [1, 0, 1, 0, 0, 1, 0, 0]
    torch.testing.assert_close(model(X)[:, [1, 3, 4]], logits[:, [1, 3, 4]])
    model.head.update(numbers(2, 16), torch.tensor([7, 0]))
    assert model.head.classes_with_prototype.tolist() == [0, 2, 5, 7]
    model.set_classes(["ant", "bee"])  # none of the earlier ones was trained on
    assert model.head.counts.tolist() == [0, 0]
    assert not model.head.prototypes.any()


@torch.no_grad()
def test_in_the_embedding_space_embeddings_are_as_good_as_images():
    model = with_prototypes(DualPathHead(visual_space="embedding"), image_adapter=ResidualAdapter())
    moved(model, 0.3).eval()
    embeddings = model.encode(X)
    torch.testing.assert_close(model(embeddings), model(X))
    torch.testing.assert_close(model.logits_from_embeddings(embeddings), model(X))
    weights = unit(model.head.prototypes[[0, 2, 5]])
    cosines = unit(model.image_adapter(embeddings)) @ weights.T  # behind the adapter
    text = model.similarities(X).double()[:, [0, 2, 5]]
    gaps = (model(X).double()[:, [0, 2, 5]] - text - 0.5 * float(model.backbone.logit_scale) * cosines).diff()
    assert float(gaps.abs().max()) < 1e-4

    stored = CLIPClassifier(
        EmbeddingBackbone(4),
        DualPathHead(TextFeatureHead(torch.eye(4)), visual_space="embedding"),
        class_names=list("abcd"),
    ).eval()
    stored.head.update(torch.eye(4).flip(0)[:2], torch.tensor([0, 1]))
    assert stored.head.prototypes.shape == (4, 4)
    stored.head.fusion_weight = 2.0
    assert (
        stored(torch.tensor([[1.0, 0.0, 0.0, 1.1]])).argmax().item() == 3
    )  # text decides on 0 and 1 together
    assert stored(torch.tensor([[1.0, 0.9, 0.0, 0.6]])).argmax().item() == 0


def test_raw_features_are_asked_for_where_there_are_none():
    with pytest.raises(ValueError, match="`visual_space` must be 'embedding' for a EmbeddingBackbone"):
        CLIPClassifier(
            EmbeddingBackbone(4), DualPathHead(TextFeatureHead(torch.eye(4))), class_names=list("abcd")
        )
    model = with_prototypes()
    embeddings = model.encode(X).detach()
    assert torch.equal(model.train()(embeddings), model(X))  # text needs none
    for call in (model, model.logits_from_embeddings):
        with pytest.raises(ValueError, match="`x` must be images.*visual_space='embedding'"):
            model.eval() and call(embeddings)
    without = tiny_classifier(DualPathHead()).eval()
    torch.testing.assert_close(without(embeddings), without(X))


FEATURES, LABELS = numbers(3, 16), torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (FEATURES.long(), LABELS, TypeError, "`features` must be a float tensor"),
        ([[0.0]], LABELS, TypeError, "`features` must be a float tensor"),
        (FEATURES, LABELS.float(), TypeError, "`labels` must be a tensor .* whole numbers"),
        (FEATURES[:, :4], LABELS, ValueError, r"`features` must be of shape \(N, 16\)"),
        (FEATURES[0], LABELS, ValueError, "`features` must be of shape"),
        (FEATURES, LABELS[:2], ValueError, "`labels` must be one for each of the 3 features"),
        (FEATURES, LABELS + 5, ValueError, r"`labels` must be in 0\.\.5; got from 5 to 6"),
        (FEATURES, LABELS - 1, ValueError, "`labels` must be in"),
        (
            FEATURES.masked_fill(LABELS[:, None] == 1, math.nan),
            LABELS,
            ValueError,
            "`features` must be finite",
        ),
    ],
)
def test_wrong_features_are_refused_and_change_nothing(features, labels, error, message):
    head = with_prototypes().head
    before = snapshot(head)
    with pytest.raises(error, match=message):
        head.update(features, labels)
    assert all(torch.equal(before[name], value) for name, value in snapshot(head).items())


def test_a_head_without_names_says_how_to_get_them():
    with pytest.raises(RuntimeError, match="set_classes"):
        DualPathHead().update(FEATURES, LABELS)


def test_predictions_are_fused_and_modes_stay():
    model = with_prototypes(DualPathHead(fusion_weight=2.0), trainable="both").train()
    probabilities = tiny_classifier(trainable="both").predict(X, top_k=6).probabilities
    found = model.predict(X, top_k=6)
    assert model.training
    assert not torch.allclose(found.probabilities, probabilities, atol=1e-2)
    with torch.no_grad():
        expected = model.eval()(X).softmax(dim=1)
    torch.testing.assert_close(found.probabilities, expected.sort(dim=1, descending=True).values)
    assert found.names[0][0] == TINY_CLASSES[int(found.class_ids[0, 0])]


@torch.no_grad()
def test_raw_features_and_embeddings_come_from_one_pass_through_the_tower():
    model = tiny_classifier(DualPathHead())
    embeddings, raw = model.encode_with_raw(X)
    assert torch.equal(embeddings, model.encode(X))
    assert torch.equal(raw, model.backbone.encode_image_raw(X))
    again, none = model.encode_with_raw(embeddings)
    assert again is embeddings
    assert none is None
    with pytest.raises(ValueError, match="`x` must be"):
        model.encode_with_raw(X[:, :, :4])
    with pytest.raises(TypeError, match="float images"):
        model.encode_with_raw(X.long())
    calls = []
    model.backbone.image_tower.transformer.register_forward_hook(lambda *_: calls.append(1))
    model(X)
    assert len(calls) == 1
    assert model.adapted(embeddings) is embeddings


def tower(**vision):
    tokenizer = SmallTokenizer()
    text = {"context_length": 77, "vocab_size": tokenizer.vocab_size, "width": 16, "heads": 2, "layers": 1}
    small = {"image_size": 32, "layers": 1, "width": 24, "head_width": 8, "patch_size": 16, **vision}
    configuration = {"embed_dim": 16, "vision_cfg": small, "text_cfg": text}
    with torch.random.fork_rng(devices=[]):
        return OpenCLIPBackbone(configuration, tokenizer=tokenizer)


@torch.no_grad()
def test_backbones_say_how_wide_raw_features_are():
    for backbone, width in (
        (tower(), 24),
        (tower(timm_model_name="resnet10t", timm_proj="linear", timm_pool="avg"), 512),
    ):
        assert backbone.raw_dim == width
        assert backbone.eval().encode_image_raw(torch.rand(1, 3, 32, 32)).shape == (1, width)
    resnet = tower(layers=[1, 1, 1, 1], width=8)
    assert resnet.raw_dim is None
    assert EmbeddingBackbone(8).raw_dim is None
    with pytest.raises(ValueError, match="`visual_space` must be 'embedding' for a OpenCLIPBackbone"):
        CLIPClassifier(resnet, DualPathHead(), class_names=["cat"])
    CLIPClassifier(resnet, DualPathHead(visual_space="embedding"), class_names=["cat"])


def test_the_pixel_space_undoes_the_preprocessing():
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    assert backbone.pixel_space == PixelSpace((0.50, 0.49, 0.48), (0.25, 0.24, 0.25))
    for value in (0, 51, 255):
        image = torch.full((3, 32, 32), value, dtype=torch.uint8)
        pixels = backbone.pixel_space.pixels(backbone.eval_transform(image)[None])
        torch.testing.assert_close(pixels, torch.full((1, 3, 32, 32), value / 255))
    assert EmbeddingBackbone(4).pixel_space == PixelSpace()


def test_up_projections_of_rank_32_in_vit_b_16_have_the_weights_of_the_paper():
    backbone = OpenCLIPBackbone("ViT-B-16")  # with random weights, as open_clip tells its log
    model = CLIPClassifier(backbone, DualPathHead(), trainable=LoRA(rank=32, factors=("B",)))
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_440_640
    assert all("lora_B" in name for name, _ in model.named_parameters())


def test_modules_are_in_eval_mode_for_a_while_each_with_its_own_mode_afterwards():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model[1].eval()
    model[1][1].train()
    before = [module.training for module in model.modules()]
    with in_eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with in_eval_mode(model, unless=lambda module: isinstance(module, nn.Dropout)):
        assert [module.training for module in model.modules()] == [False, True, False, False, True]
    with pytest.raises(KeyError), in_eval_mode(model):
        raise KeyError
    assert [module.training for module in model.modules()] == before


class Counting(TinyBackbone):
    """Counts passes through the text tower."""

    passes = 0

    def encode_token_embeddings(self, embeddings, tokens):
        self.passes += 1
        return super().encode_token_embeddings(embeddings, tokens)


def counting(head=None, **arguments):
    model = CLIPClassifier(Counting(), head, class_names=TINY_CLASSES, **{"trainable": "text", **arguments})
    return model.train(), model.head, model.backbone


IDS = torch.tensor([4, 1])


def test_a_forward_pass_serves_whoever_asks_for_rows_afterwards():
    _, head, backbone = counting()
    with head.encoding_once():
        weights = head(backbone)
        rows = head(backbone, IDS)
        assert backbone.passes == 1
        assert torch.equal(rows, weights[IDS])
        head(backbone)  # a forward pass is a forward pass
        assert backbone.passes == 2
        again = head(backbone, IDS)
        assert backbone.passes == 2
        (gradient,) = torch.autograd.grad(again.sum(), [weights], retain_graph=True)  # rows of the first
        assert gradient.any(dim=1).nonzero().flatten().tolist() == [1, 4]
    head(backbone, IDS)
    assert backbone.passes == 3


def test_rows_are_encoded_on_their_own_before_a_forward_pass_and_without_a_gradient():
    _, head, backbone = counting()
    with head.encoding_once():
        head(backbone, IDS)
        assert backbone.passes == 1
        with torch.no_grad():
            head(backbone)
        head(backbone, IDS)
        assert backbone.passes == 3
        weights = head(backbone)
        with torch.no_grad():
            rows = head(backbone, IDS)
        torch.testing.assert_close(rows, weights[IDS].detach())
        assert not rows.requires_grad


@pytest.mark.parametrize("what", ["head", "tower"])
def test_rows_are_encoded_on_their_own_after_a_change_in_place(what):
    model, head, backbone = counting(LearnedContextHead(context_length=2))
    changed = head.context if what == "head" else next(iter(backbone.text_tower.parameters()))
    with head.encoding_once():
        weights = head(backbone)
        with torch.no_grad():
            changed.add_(0.5)
        rows = head(backbone, IDS)
        assert backbone.passes == 2
    assert not torch.allclose(rows, weights[IDS])
    torch.testing.assert_close(rows, head(backbone)[IDS])
    assert len(list(model.parameters())) > 1


def test_classes_that_rest_are_encoded_on_their_own_when_asked_for():
    _, head, backbone = counting()
    others = torch.zeros(6, 16)
    with head.encoding_once(), head.encoding_only(torch.tensor([1, 4, 5]), others):
        weights = head(backbone)
        assert not weights[[0, 2, 3]].any()
        assert torch.equal(head(backbone, IDS), weights[IDS])
        assert backbone.passes == 1
        rows = head(backbone, torch.tensor([1, 3]))
        assert backbone.passes == 2
    torch.testing.assert_close(rows, head(backbone)[[1, 3]])
    (gradient,) = torch.autograd.grad(rows[1].sum(), [backbone.text_tower.text_projection])
    assert bool(gradient.any())


def test_the_weights_of_a_step_are_in_no_copy_and_gone_afterwards():
    _, head, backbone = counting()
    with head.encoding_once():
        head(backbone)
        assert head._step is not None
        assert copy.deepcopy(head)._step is None
        assert pickle.loads(pickle.dumps(head))._step is None
    assert head._step is None
    with pytest.raises(KeyError), head.encoding_once():
        raise KeyError
    assert head._step is None


class PassesPerIteration(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.counts = []

    def before_training_iteration(self, strategy, *args, **kwargs):
        strategy.model.backbone.passes = 0

    def before_backward(self, strategy, *args, **kwargs):
        self.counts.append(strategy.model.backbone.passes)


def trained(make_head=DualPathHead, **arguments):
    model, _, _ = counting(make_head(), trainable="both")
    counter = PassesPerIteration()
    plugins = [
        RegularizerPlugin(AnchorDistillation(AdversarialAnchors(seeds_per_class=2))),
        RegularizerPlugin(TextGeometry()),
        counter,
    ]
    strategy = FineTune(
        **{"model": model, "optimizer": SGD(model.parameters(), lr=0.02), "plugins": plugins},
        **{"train_mb_size": 4, "evaluator": None, **arguments},
    )
    torch.manual_seed(0)
    for experience in tiny_benchmark().train_stream[:2]:
        strategy.train(experience)
    return model, counter.counts


@pytest.mark.parametrize(
    ("arguments", "passes"),
    [({}, 3), ({"text_space": "seen"}, 3), ({"text_space": "experience"}, 3)],
    ids=str,
)
def test_a_step_of_three_terms_passes_the_text_tower_once(arguments, passes, monkeypatch):
    model, counts = trained(**arguments)
    # Where only the classes of the experience are live, what is asked of the others is encoded apart.
    once = [1, 1, 3, 3] if arguments.get("text_space") == "experience" else [1, 1, 1, 1]
    assert [counts[0], counts[1], counts[-2], counts[-1]] == once
    start = snapshot(tiny_classifier(trainable="both"))
    monkeypatch.setattr(TextHead, "encoding_once", lambda self: nullcontext())
    apart, counts = trained(**arguments)
    assert counts[-1] == passes
    for name, value in snapshot(model).items():
        torch.testing.assert_close(value, snapshot(apart)[name], atol=1e-6, rtol=1e-4)
    farthest = max(float((p.detach() - start[name]).abs().max()) for name, p in model.named_parameters())
    assert farthest > 1e-3


@pytest.mark.parametrize("labels", [torch.tensor([True, False]), torch.tensor([1.0, 0.0]), [1, 0]])
def test_labels_that_are_no_whole_numbers_are_a_wrong_type(labels):
    head = with_prototypes().head
    with pytest.raises(TypeError, match=r"`labels` must be a tensor \(N,\) of whole numbers"):
        head.update(numbers(2, 16), labels)


@pytest.mark.parametrize("space", SPACES)
@torch.no_grad()
def test_any_head_can_be_asked_for_prototypes_and_the_features_to_compare_them_with(space):
    model, ids = with_prototypes(DualPathHead(visual_space=space)).eval(), torch.tensor([5, 1, 0])
    prototypes, there = model.head.visual_prototypes(model.backbone, ids)
    assert torch.equal(prototypes, model.head.prototypes[ids])
    assert there.tolist() == [True, False, True]
    embeddings, raw = model.encode_with_raw(X)
    features = model.head.visual_features(embeddings, raw)
    assert features is (raw if space == "raw" else embeddings)
    plain = tiny_classifier().eval()
    prototypes, there = plain.head.visual_prototypes(plain.backbone, ids)
    assert prototypes.shape == (3, plain.backbone.embed_dim)
    assert not prototypes.any()
    assert there.tolist() == [False, False, False]
    assert plain.head.visual_features(embeddings, raw) is embeddings
