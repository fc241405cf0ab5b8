"""Where images and texts come from: what is drawn, in which order, and what stays."""

import gc
import weakref
from collections import Counter

import pytest
import torch

from avalanche_vlm.models import CLIPClassifier, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.regularizers import (
    AdversarialAnchors,
    CrossModalDistillation,
    CurrentPairs,
    HeadTexts,
    ImageTextAlignment,
    ReferencePairs,
    SyntheticPairs,
    TowerTexts,
)
from avalanche_vlm.sources import GeneratedImages, LearnedClassPrompts, NamePrompts, Prompt
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_classifier, tiny_images
from avalanche_vlm.text import ClassNames
from tests.reference.tiny_image_source import NAMES, Agent, TinyImageSource, union

X, Y = tiny_images(per_class=2)


def synthetic(**arguments):
    return SyntheticPairs(
        TinyImageSource(), NamePrompts(NAMES), **{"count": 10, "batch_size": 4, **arguments}
    )


def batches(pairs, model, count):
    return [pairs.batch(model, X, Y) for _ in range(count)]


class Elsewhere:
    """A tensor that a checkpoint was read to on another device, where no generator takes it."""

    def __init__(self, tensor):
        self.tensor = tensor

    def cpu(self):
        return self.tensor


@pytest.mark.parametrize(
    "make",
    [synthetic, AdversarialAnchors, lambda: ReferencePairs(X, NAMES)],
    ids=["synthetic", "anchors", "reference"],
)
def test_the_state_of_random_numbers_may_lie_on_another_device(make):
    drawn, pairs = make(), make()
    torch.rand(3, generator=drawn._generator)
    state = drawn.state_dict()
    pairs.load_state_dict({**state, "generator": Elsewhere(state["generator"])})
    assert torch.equal(pairs._generator.get_state(), state["generator"])


@pytest.mark.parametrize("trainable", ["both", "nothing"])
def test_batches_go_through_all_pairs_and_then_again_in_another_order(trainable):
    model, pairs = tiny_classifier(trainable=trainable), synthetic()
    pairs.pre_adapt(Agent(model), object())
    drawn = batches(pairs, model, 5)  # 20 of 10 pairs: two passes, a batch of both in the middle
    rows = torch.cat([batch.image_rows for batch in drawn]).tolist()
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    for batch in drawn:
        assert torch.equal(batch.images, pairs.fixed_images[batch.image_rows])
        assert torch.equal(batch.texts, pairs.fixed_texts[batch.text_rows])
        assert len(batch.text_of) == 4


def test_each_image_has_its_own_caption():
    model, pairs = tiny_classifier(trainable="both"), synthetic()
    pairs.pre_adapt(Agent(model), object())
    source, (batch,) = pairs.images, batches(pairs, model, 1)
    prompts = [prompt for prompt, _ in source.drawn]
    for row, image, text in zip(batch.image_rows.tolist(), batch.images, batch.text_of, strict=True):
        prompt, seed = source.drawn[row]
        made = model.eval_transform(source.sample([prompt], [seed]).images[0])
        assert torch.equal(image, made)
        assert torch.equal(batch.texts[text], model.backbone.tokenize([prompt])[0])
    assert len(pairs.fixed_texts) == len(set(prompts)) < 10


def test_captions_of_the_source_take_the_place_of_prompts():
    class Captioned(TinyImageSource):
        def _sample(self, prompts, seeds):
            return GeneratedImages(super()._sample(prompts, seeds).images, ["what is there"] * len(prompts))

    model = tiny_classifier(trainable="both")
    pairs = SyntheticPairs(Captioned(), NamePrompts(NAMES), count=4)
    pairs.pre_adapt(Agent(model), object())
    assert torch.equal(pairs.fixed_texts, model.backbone.tokenize(["what is there"]))


@pytest.mark.parametrize(("count", "batch_size", "size"), [(3, 8, 3), (1, 64, 1), (5, 5, 5)])
def test_fewer_pairs_than_a_batch(count, batch_size, size):
    model, pairs = tiny_classifier(trainable="both"), synthetic(count=count, batch_size=batch_size)
    pairs.pre_adapt(Agent(model), object())
    for batch in batches(pairs, model, 3):
        assert sorted(batch.image_rows.tolist()) == list(range(size))
    for kind in (CrossModalDistillation, ImageTextAlignment):
        regularizer = kind(synthetic(count=count, batch_size=batch_size))
        regularizer.pre_adapt(Agent(model), object())
        assert regularizer(model, X, Y, torch.zeros(0)).isfinite()


def test_draws_without_replacement():
    model = tiny_classifier(trainable="both")
    pairs = synthetic(count=5, replacement=False)
    pairs.pre_adapt(Agent(model), object())
    assert max(Counter(prompt for prompt, _ in pairs.images.drawn).values()) == 1
    with pytest.raises(ValueError, match="`count` must be at most 5.*replacement=True"):
        synthetic(count=6, replacement=False).pre_adapt(Agent(model), object())


def test_the_seed_decides_and_each_experience_draws_anew():
    model = tiny_classifier(trainable="both")
    drawn = {}
    for seed in (0, 0, 1):
        pairs = synthetic(seed=seed)
        before = torch.get_rng_state()
        for _ in range(2):
            pairs.pre_adapt(Agent(model), object())
            batches(pairs, model, 3)
            pairs.post_adapt(Agent(model), object())
        assert torch.equal(before, torch.get_rng_state())
        assert drawn.setdefault(seed, pairs.images.drawn) == pairs.images.drawn
        assert pairs.images.drawn[:10] != pairs.images.drawn[10:]
    assert drawn[0] != drawn[1]


def test_two_regularizers_share_a_pool_and_it_is_drawn_once():
    model, pairs, experience = tiny_classifier(trainable="both"), synthetic(), object()
    for kind in (CrossModalDistillation, ImageTextAlignment):
        kind(pairs).pre_adapt(Agent(model), experience)
    assert len(pairs.images.drawn) == 10
    pairs.pre_adapt(Agent(model), object())
    assert len(pairs.images.drawn) == 20


def test_no_prompt_no_pairs_and_no_error():
    model = tiny_classifier(trainable="both")
    pairs = SyntheticPairs(TinyImageSource(), LearnedClassPrompts(), count=4)
    for regularizer in (CrossModalDistillation(pairs), ImageTextAlignment(pairs)):
        regularizer.pre_adapt(Agent(model), None)
        assert not regularizer.is_active
    model.classes_seen[[0, 3]] = True
    regularizer.post_adapt(Agent(model), None)
    regularizer.pre_adapt(Agent(model), object())
    assert regularizer.is_active
    names = {prompt for prompt, _ in pairs.images.drawn}
    assert names <= {f"a photo of a {TINY_CLASSES[c]}." for c in (0, 3)}


def test_nothing_of_the_pairs_outlives_the_experience():
    model, pairs = tiny_classifier(trainable="both"), synthetic()
    distillation, experience = CrossModalDistillation(pairs), object()
    distillation.pre_adapt(Agent(model), experience)
    loss = distillation(model, X, Y, torch.zeros(0))
    kept = [weakref.ref(t) for t in (pairs.fixed_images, pairs.fixed_texts, distillation._images)]
    distillation.post_adapt(Agent(model), experience)
    del loss
    gc.collect()
    assert [each() for each in kept] == [None] * 3
    assert distillation.nbytes == 0


def test_frozen_towers_are_asked_once():
    calls = Counter()
    model = tiny_classifier()
    for tower in ("image_tower", "text_tower"):
        getattr(model.backbone, tower).register_forward_hook(lambda *_, t=tower: calls.update([t]))
    encode_text = model.backbone.encode_text
    model.backbone.encode_text = lambda tokens: calls.update(["texts"]) or encode_text(tokens)
    regularizer = CrossModalDistillation(synthetic())
    regularizer.pre_adapt(Agent(model), object())
    calls.clear()
    for _ in range(3):
        assert not regularizer(model, X, Y, torch.zeros(0)).requires_grad
    assert not calls


def test_the_state_goes_on_where_it_was():
    model = tiny_classifier(trainable="both")
    first, second = (SyntheticPairs(TinyImageSource(), union(), count=6, seed=seed) for seed in (0, 5))
    model.classes_seen[:2] = True
    for _ in range(2):
        first.pre_adapt(Agent(model), object())
        batches(first, model, 2)
        first.post_adapt(Agent(model), object())
    second.load_state_dict(first.state_dict())
    assert second.nbytes == first.nbytes > 0
    for pairs in (first, second):
        pairs.images.drawn.clear()
        pairs.pre_adapt(Agent(model), object())
    assert first.images.drawn == second.images.drawn
    for _ in range(4):
        one, other = (pairs.batch(model, X, Y).image_rows for pairs in (first, second))
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="`state`"):
        CurrentPairs().load_state_dict(first.state_dict())


def test_head_texts_take_classes_and_refuse_other_names():
    model = tiny_classifier()
    prompts = [Prompt("a", 4), Prompt("b", 1), Prompt("c", 4)]
    texts, text_of = HeadTexts().prepare(model, prompts, ["x", "y", "z"])
    assert texts[text_of].tolist() == [4, 1, 4]
    expected = model.head(model.backbone, torch.tensor([1, 4]))
    assert torch.equal(HeadTexts().encode(model, texts), expected)
    pairs = SyntheticPairs(TinyImageSource(), union(), count=4, texts=HeadTexts())
    with pytest.raises(ValueError, match="`prompts` must be .*HeadTexts; got '.*'.*LearnedClassPrompts"):
        pairs.pre_adapt(Agent(model), object())


def test_tower_texts_keep_one_row_for_equal_captions():
    captions = ["a cat", "a dog", "a cat"]
    model = tiny_classifier(trainable="text")
    tokens, text_of = TowerTexts().prepare(model, [], captions)
    assert text_of.tolist() == [0, 1, 0]
    assert torch.equal(tokens, model.backbone.tokenize(["a cat", "a dog"]))
    frozen = tiny_classifier()
    features, text_of = TowerTexts().prepare(frozen, [], captions)
    assert TowerTexts().encode(frozen, features) is features
    torch.testing.assert_close(features, model.backbone.encode_text(tokens).detach())


def test_current_pairs_are_the_batch_with_sentences_about_its_classes():
    model = tiny_classifier(trainable="both")
    pairs = CurrentPairs("the {} itself")
    pairs.pre_adapt(Agent(model), object())
    y = torch.tensor([3, 0, 3])
    batch = pairs.batch(model, X[:3], y)
    assert batch.images is X[:3] or torch.equal(batch.images, X[:3])
    expected = model.backbone.tokenize([f"the {TINY_CLASSES[c]} itself" for c in (3, 0, 3)])
    assert torch.equal(batch.texts[batch.text_of], expected)
    assert len(batch.texts) == 2
    assert batch.image_rows is None


def test_one_sentence_of_two_data_sets_is_one_caption():
    names = ClassNames(["lotus", "rose", "lotus"], datasets=["a", "a", "b"])
    model = CLIPClassifier(TinyBackbone(), class_names=names, trainable="both")
    pairs = CurrentPairs()
    pairs.pre_adapt(Agent(model), object())
    batch = pairs.batch(model, X[:3], torch.tensor([0, 1, 2]))
    assert batch.text_of[0] == batch.text_of[2] != batch.text_of[1]


def reference(**arguments):
    images = (torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).byte()
    return ReferencePairs(images, NAMES, **{"batch_size": 4, **arguments})


@pytest.mark.parametrize("kind", ["uint8 tensor", "float tensor", "tuples"])
def test_reference_images_of_every_kind(kind):
    model = tiny_classifier(trainable="both")
    images = (torch.rand(3, 3, 8, 8) * 255).byte()
    ready = torch.stack([model.eval_transform(image) for image in images])
    given = {"uint8 tensor": images, "float tensor": ready, "tuples": [(image, 7) for image in images]}[kind]
    pairs = ReferencePairs(given, NAMES, batch_size=8)
    pairs.pre_adapt(Agent(model), object())
    batch = pairs.batch(model, X, Y)
    assert batch.images.shape == (8, 3, 8, 8)
    for image in batch.images:
        assert any(torch.equal(image, each) for each in ready)
    assert batch.text_of is None
    assert torch.equal(batch.texts, model.backbone.tokenize(NAMES))


def test_reference_texts_are_drawn_each_once():
    model, pairs = tiny_classifier(trainable="both"), reference(texts_per_batch=3)
    pairs.pre_adapt(Agent(model), object())
    seen = set()
    for batch in batches(pairs, model, 12):
        rows = batch.text_rows.tolist()
        assert len(set(rows)) == 3
        assert torch.equal(batch.texts, pairs.fixed_texts[batch.text_rows])
        seen |= set(rows)
    assert seen == set(range(5))
    state = pairs.state_dict()
    following = batches(pairs, model, 2)
    other = reference(texts_per_batch=3, seed=9)
    other.pre_adapt(Agent(model), object())
    other.load_state_dict(state)
    for one, two in zip(following, batches(other, model, 2), strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.text_rows, two.text_rows)


def test_wrong_references_are_named():
    for images, error in ((3, TypeError), ("folder", TypeError), (X[:0], ValueError)):
        with pytest.raises(error, match="`images`"):
            ReferencePairs(images, NAMES)
    for texts, error in (("one", TypeError), ([], ValueError), ([3], TypeError)):
        with pytest.raises(error, match="`texts`"):
            ReferencePairs(X, texts)
    with pytest.raises(ValueError, match="`texts_per_batch` must be at most 5"):
        reference(texts_per_batch=6)


def test_a_backbone_without_towers_is_refused_in_a_sentence():
    model = CLIPClassifier(EmbeddingBackbone(16), TextFeatureHead(torch.eye(6, 16)), class_names=TINY_CLASSES)
    for pairs in (synthetic(), CurrentPairs(), reference()):
        with pytest.raises(ValueError, match="`model` must be one with a text tower.*EmbeddingBackbone"):
            CrossModalDistillation(pairs).pre_adapt(Agent(model), object())
