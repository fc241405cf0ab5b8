"""What distillations and the alignment add, against the equations on features of copies of the model."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from avalanche_vlm.models import CLIPClassifier, LearnedContextHead, LoRA, OpenCLIPBackbone, ResidualAdapter
from avalanche_vlm.models.small_clip import SmallTokenizer
from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    CurrentPairs,
    FeatureDistillation,
    HeadTexts,
    ImageOnlyDistillation,
    ImageTextAlignment,
    ImageToTextDistillation,
    PreviousWeightsPenalty,
    ReferenceDistillation,
    ReferencePairs,
    SyntheticPairs,
    TextOnlyDistillation,
    TextToImageDistillation,
)
from avalanche_vlm.sources import LearnedClassPrompts, NamePrompts
from avalanche_vlm.testing import tiny_classifier, tiny_images
from tests.reference.tiny_image_source import NAMES, Agent, TinyImageSource, moved

TEMPERATURE = 1.5
KINDS = {
    CrossModalDistillation: {"temperature": TEMPERATURE},
    ImageToTextDistillation: {"temperature": TEMPERATURE},
    TextToImageDistillation: {"temperature": TEMPERATURE},
    FeatureDistillation: {},
    ReferenceDistillation: {"temperature": TEMPERATURE},
    ImageOnlyDistillation: {"temperature": TEMPERATURE},
    TextOnlyDistillation: {"temperature": TEMPERATURE},
}
X, Y = tiny_images(per_class=2)
SENTENCES = [f"a photo of a {name}." for name in NAMES]


def synthetic(**arguments):
    settings = {"count": 7, "batch_size": 7, **arguments}
    return SyntheticPairs(TinyImageSource(), NamePrompts(NAMES), **settings)


PAIRS = {
    "synthetic": synthetic,
    "current": CurrentPairs,
    "reference": lambda: ReferencePairs(
        (torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).byte(),
        SENTENCES,
        batch_size=4,
    ),
}


def both(**arguments):
    return tiny_classifier(trainable="both", **arguments)


def with_bias(**arguments):
    tokenizer = SmallTokenizer()
    text = {"context_length": 77, "vocab_size": tokenizer.vocab_size, "width": 16, "heads": 2, "layers": 1}
    configuration = {
        "embed_dim": 16,
        "init_logit_bias": -3.0,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
        "text_cfg": text,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = OpenCLIPBackbone(configuration, tokenizer=tokenizer)
    names = ("cat", "dog", "cow", "fox", "hen", "owl")
    return CLIPClassifier(backbone, class_names=names, trainable="both", **arguments)


def spied(regularizer):
    """Note the batches that a regularizer compares, in order to compare them again by hand."""
    batches, compare = [], regularizer.compare

    def noting(model, student):
        batches.append(student.batch)
        return compare(model, student)

    regularizer.compare = noting
    return batches


def kl_rows(student, teacher, temperature):
    """τ² / B Σ KL(teacher ‖ student) in float64, from the definition of KL."""
    total = 0.0
    for row, taught in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / temperature) for v in row]
        q = [math.exp(v / temperature) for v in taught]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def unit(features):
    return features.double() / features.double().norm(dim=1, keepdim=True)


def expected(kind, student, teacher, batch):
    """The value of the equation, from what two separate models say."""
    with torch.no_grad():
        said = []
        for model in (student, teacher):
            texts = model.backbone.encode_text(batch.texts)
            texts = texts if batch.text_of is None else texts[batch.text_of]
            scale, bias = model.backbone.logit_scale.double(), model.backbone.logit_bias
            said.append((unit(model.encode(batch.images)), unit(texts), scale, bias))
        (f, g, s, b), (f_, g_, s_, b_) = said
        own, taught = s * f @ g.T + b, s_ * f_ @ g_.T + b_
        if kind in (ReferenceDistillation, ImageOnlyDistillation):
            own = s * f @ g_.T + b
        if kind is TextOnlyDistillation:
            own = s * f_ @ g.T + b
        rows, columns = kl_rows(own, taught, TEMPERATURE), kl_rows(own.T, taught.T, TEMPERATURE)
        return {
            ImageToTextDistillation: rows,
            TextToImageDistillation: columns,
            FeatureDistillation: float(((f - f_) ** 2).mean() + ((g - g_) ** 2).mean()),
        }.get(kind, rows + columns)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "make", [both, lambda: both(train_logit_scale=True), with_bias, lambda: with_bias(train_logit_scale=True)]
)
def test_the_value_is_that_of_the_equation(kind, pairs, make):
    model = moved(make())
    teacher = deepcopy(model).eval()
    regularizer = kind(PAIRS[pairs](), **KINDS[kind])
    batches = spied(regularizer)
    regularizer.pre_adapt(Agent(model), object())
    moved(model, 0.2)
    found = regularizer(model, X, Y, torch.zeros(0)).item()
    assert found == pytest.approx(expected(kind, model, teacher, batches[0]), rel=1e-3)
    assert found > 1e-3


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_zero_where_student_and_teacher_agree(kind, pairs):
    """Up to rounding of fp32: with logits of 14, 1e-5 in the value and in the gradient."""
    model = moved(both())
    regularizer = kind(PAIRS[pairs](), **KINDS[kind])
    regularizer.pre_adapt(Agent(model), object())
    loss = regularizer(model, X, Y, torch.zeros(0))
    assert abs(loss.item()) < 1e-5
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in grads if g is not None) < 1e-5
    moved(model, 0.2)
    loss = regularizer(model, X, Y, torch.zeros(0))
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in grads if g is not None) > 1e-3


@pytest.mark.parametrize(
    ("kind", "tower"),
    [(ReferenceDistillation, "image"), (ImageOnlyDistillation, "image"), (TextOnlyDistillation, "text")],
)
@pytest.mark.parametrize("pairs", PAIRS)
def test_one_tower_alone_learns(kind, tower, pairs):
    model = moved(both())
    regularizer = kind(PAIRS[pairs]())
    regularizer.pre_adapt(Agent(model), object())
    moved(model, 0.2)
    loss = regularizer(model, X, Y, torch.zeros(0))
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    reached = {name for name, g in zip(named, grads, strict=True) if g is not None}
    assert {name for name in named if name.startswith(f"backbone.{tower}_tower.")} == reached


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_alignment_of_duplicate_captions_is_that_of_the_equation(smoothing):
    model = moved(both())
    regularizer = ImageTextAlignment(synthetic(count=20, batch_size=12), label_smoothing=smoothing)
    batches = spied(regularizer)
    regularizer.pre_adapt(Agent(model), object())
    found = regularizer(model, X, Y, torch.zeros(0)).item()
    (batch,) = batches
    captions = batch.text_of.tolist()
    assert len(set(captions)) < len(captions) == 12
    with torch.no_grad():
        texts = unit(model.backbone.encode_text(batch.texts)[batch.text_of])
        logits = model.backbone.logit_scale.double() * unit(model.encode(batch.images)) @ texts.T
    total = 0.0
    for rows in (logits.tolist(), logits.T.tolist()):
        for i, row in enumerate(rows):
            log_sum = math.log(sum(math.exp(v) for v in row))
            for j, value in enumerate(row):
                share = (captions[i] == captions[j]) / captions.count(captions[i])
                total -= ((1 - smoothing) * share + smoothing / 12) * (value - log_sum) / 12
    assert found == pytest.approx(total, rel=1e-4)


def test_alignment_of_images_and_texts_that_are_no_pairs_is_refused():
    model = both()
    regularizer = ImageTextAlignment(PAIRS["reference"]())
    regularizer.pre_adapt(Agent(model), object())
    with pytest.raises(ValueError, match="`pairs` must be pairs.*ReferencePairs.*Use SyntheticPairs"):
        regularizer(model, X, Y, torch.zeros(0))


@pytest.mark.parametrize("kind", [*KINDS, ImageTextAlignment])
@pytest.mark.parametrize(
    ("trainable", "reached"),
    [("image", "image_tower"), ("text", "text_tower"), (LoRA(rank=2, towers=("image",)), "lora_")],
)
def test_a_gradient_reaches_what_trains(kind, trainable, reached):
    model = moved(tiny_classifier(trainable=trainable), 0.2)
    regularizer = kind(synthetic())
    regularizer.pre_adapt(Agent(model), object())
    moved(model, 0.2)
    loss = regularizer(model, X, Y, torch.zeros(0))
    images_alone = kind in (ReferenceDistillation, ImageOnlyDistillation)
    if (images_alone and trainable == "text") or (kind is TextOnlyDistillation and trainable != "text"):
        assert not loss.requires_grad  # what is to be done is said by the plugins
        return
    named = dict(model.named_parameters())
    assert all(reached in name for name in named)
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    assert any(g is not None and bool(g.any()) for g in grads)


def learned(model, classes=(0, 1, 2)):
    """A pool that has met some classes."""
    pool = LearnedClassPrompts()
    model.classes_seen[list(classes)] = True
    pool.learn(model)
    return pool


@pytest.mark.parametrize("kind", [*KINDS, ImageTextAlignment])
@pytest.mark.parametrize("at_once", [None, 2])
def test_through_the_head_a_gradient_reaches_prompts(kind, at_once):
    model = tiny_classifier(LearnedContextHead(context_length=2, classes_at_once=at_once))
    pairs = SyntheticPairs(
        TinyImageSource(), learned(model), count=9, batch_size=9, texts=HeadTexts(), seed=1
    )
    regularizer = kind(pairs)
    regularizer.pre_adapt(Agent(model), object())
    teacher = deepcopy(model)
    moved(model, 1.0)
    batches = spied(regularizer)
    loss = regularizer(model, X, Y, torch.zeros(0))
    if kind in (ReferenceDistillation, ImageOnlyDistillation):
        assert not loss.requires_grad
        return
    (gradient,) = torch.autograd.grad(loss, [model.head.context])
    assert gradient.abs().max() > 1e-5
    assert batches[0].images.shape == (9, 16)  # no image tower trains: embeddings are kept
    if kind is CrossModalDistillation:
        with torch.no_grad():
            f = unit(batches[0].images)
            g, g_ = (unit(m.head.encode(m.backbone, batches[0].texts)) for m in (model, teacher))
            of, scale = batches[0].text_of, model.backbone.logit_scale.double()
            own, taught = scale * f @ g[of].T, scale * f @ g_[of].T
        value = kl_rows(own, taught, 2.0) + kl_rows(own.T, taught.T, 2.0)
        assert loss.item() == pytest.approx(value, rel=1e-3)


def test_images_pass_the_adapter():
    model = moved(tiny_classifier(image_adapter=ResidualAdapter()), 0.2)
    regularizer = CrossModalDistillation(synthetic())
    regularizer.pre_adapt(Agent(model), object())
    teacher = deepcopy(model)
    batches = spied(regularizer)
    moved(model, 0.5)
    loss = regularizer(model, X, Y, torch.zeros(0))
    batch = batches[0]
    with torch.no_grad():
        f, f_ = (unit(m.image_adapter(batch.images)) for m in (model, teacher))
        g = unit(batch.texts)[batch.text_of]  # features: no text tower trains
        own, taught = (model.backbone.logit_scale.double() * each @ g.T for each in (f, f_))
    value = kl_rows(own, taught, 2.0) + kl_rows(own.T, taught.T, 2.0)
    assert loss.item() == pytest.approx(value, rel=1e-3)
    assert all(bool(g.any()) for g in torch.autograd.grad(loss, list(model.parameters())))


def test_an_embedded_batch_is_as_good_as_its_images():
    """Where no image tower trains, the batch may hold embeddings."""
    found = []
    for embedded in (False, True):
        model = moved(tiny_classifier(trainable="text"))
        regularizer = CrossModalDistillation(CurrentPairs())
        regularizer.pre_adapt(Agent(model), object())
        moved(model, 0.2)
        with torch.no_grad():
            x = model.encode(X) if embedded else X
        found.append(regularizer(model, x, Y, torch.zeros(0)).item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] > 1e-3


def test_the_penalty_is_the_squared_distance_from_before():
    model = moved(both())
    before = [p.detach().double() for p in deepcopy(model).parameters()]
    penalty = PreviousWeightsPenalty()
    penalty.pre_adapt(Agent(model), object())
    loss = penalty(model, X, Y, torch.zeros(0))
    assert loss.item() == 0
    assert not any(bool(g.any()) for g in torch.autograd.grad(loss, list(model.parameters())))
    moved(model, 0.2)
    loss = penalty(model, X, Y, torch.zeros(0))
    distance = sum(
        float(((p.detach().double() - b) ** 2).sum()) for p, b in zip(model.parameters(), before, strict=True)
    )
    assert loss.item() == pytest.approx(distance, rel=1e-5)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    for gradient, parameter, origin in zip(grads, model.parameters(), before, strict=True):
        torch.testing.assert_close(gradient.double(), 2 * (parameter.detach() - origin))
    penalty.post_adapt(Agent(model), object())
    assert penalty._weights is None


def test_a_model_of_another_kind_is_refused():
    for regularizer in (CrossModalDistillation(synthetic()), PreviousWeightsPenalty()):
        with pytest.raises(TypeError, match="model` must be .*CLIPClassifier"):
            regularizer.pre_adapt(Agent(nn.Linear(2, 2)), object())
