import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from avalanche_vlm.models import (
    AdaptedTextHead,
    CLIPClassifier,
    CosineHead,
    DualPathHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    HybridPromptHead,
    ImageConditionedPromptHead,
    LearnedContextHead,
    LearnedVectors,
    LinearHead,
    NearestClassMeanHead,
    RidgeRegressionHead,
    TextFeatureHead,
    UnnormalisedZeroShotHead,
    ZeroShotHead,
)
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_classifier, tiny_images
from avalanche_vlm.text import ClassNames

NAMES = ClassNames(TINY_CLASSES)


def named(head, backbone=None, names=NAMES):
    backbone = TinyBackbone() if backbone is None else backbone
    head.set_classes(names, backbone)
    return head, backbone


class Counting(TinyBackbone):
    """Counts the texts that it encodes."""

    texts = 0

    def encode_token_embeddings(self, embeddings, tokens):
        self.texts += len(tokens)
        return super().encode_token_embeddings(embeddings, tokens)


def test_the_ensemble_is_the_mean_of_normalised_features():
    templates = ["a photo of a {}.", "one {} in the dark", "{}"]
    head, backbone = named(ZeroShotHead(templates))
    with torch.no_grad():
        for index, name in enumerate(NAMES):
            features = [
                backbone.encode_text(backbone.tokenize([t.format(name)]))[0].double() for t in templates
            ]
            mean = sum(feature / feature.norm() for feature in features) / len(features)
            torch.testing.assert_close(head(backbone)[index].double(), mean, atol=1e-6, rtol=0)


BY_DATASET = {
    "pets": ["a photo of a {}, a type of pet."],
    "digits": ['the digit "{}"', "a {}", "{} in the dark"],
    "unused": ["{}"],
}
OF_TWO = ClassNames(["cat", "dog", "one", "two", "cat"], ["pets", "pets", "digits", "digits", "digits"])


def test_templates_by_data_set_are_those_of_each_class():
    head, backbone = named(ZeroShotHead(BY_DATASET), names=OF_TWO)
    with torch.no_grad():
        weights = head(backbone)
        for index, (name, dataset) in enumerate(zip(OF_TWO, OF_TWO.datasets, strict=True)):
            prompts = [template.format(name) for template in BY_DATASET[dataset]]
            features = [backbone.encode_text(backbone.tokenize([p]))[0].double() for p in prompts]
            mean = sum(feature / feature.norm() for feature in features) / len(features)
            torch.testing.assert_close(weights[index].double(), mean, atol=1e-6, rtol=0)
        some = head.encode(backbone, torch.tensor([3, 0, 3]))
        torch.testing.assert_close(some, weights[[3, 0, 3]], atol=1e-6, rtol=0)


def test_templates_by_data_set_survive_saving(tmp_path):
    model = CLIPClassifier(TinyBackbone(), ZeroShotHead(BY_DATASET), class_names=OF_TWO).eval()
    images, _ = tiny_images()
    model.save_pretrained(str(tmp_path / "model"))
    loaded = type(model).from_pretrained(str(tmp_path / "model"), backbone=TinyBackbone())
    assert loaded.head.config() == {"templates": BY_DATASET}
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), atol=0, rtol=0)


def test_a_gradient_reaches_the_text_tower_through_templates_of_different_number():
    model = CLIPClassifier(TinyBackbone(), ZeroShotHead(BY_DATASET), class_names=OF_TWO, trainable="text")
    images, _ = tiny_images()
    model(images)[:, 2].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("head", [ZeroShotHead(), LearnedContextHead(context_length=2)])
def test_equal_prompts_are_fine_in_different_data_sets_only(head):
    named(head, names=ClassNames(["cat", "dog", "cat"], ["pets", "pets", "farm"]))
    backbone = TinyBackbone()
    backbone._tokenizer = lambda texts: TinyBackbone().tokenize(["a photo of a thing." for _ in texts])
    named(head, backbone, ClassNames(["cat", "dog"], ["pets", "farm"]))
    with pytest.raises(ValueError, match="'dog' and 'hen'.*same tokens"):
        named(head, backbone, ClassNames(["cat", "dog", "hen"], ["pets", "farm", "farm"]))


ENSEMBLE, FIRST = ["a photo of a {}.", "one {} in the dark", "{}"], "a photo of a {}."
MODES = pytest.mark.parametrize("kind", [ZeroShotHead, UnnormalisedZeroShotHead])


@MODES
def test_training_has_weights_of_its_own_templates(kind):
    head, backbone = named(kind(ENSEMBLE, training_templates=FIRST))
    (ensemble, _), (first, _) = named(kind(ENSEMBLE)), named(kind(FIRST))
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(head.train()(backbone), first(backbone))
            assert torch.equal(head.eval()(backbone), ensemble(backbone))
            assert torch.equal(head.encode(backbone, torch.tensor([3, 1])), ensemble(backbone)[[3, 1]])
    assert not torch.equal(first(backbone), ensemble(backbone))


def test_training_templates_by_data_set_are_those_of_each_class():
    first = {dataset: own[:1] for dataset, own in BY_DATASET.items()}
    head, backbone = named(ZeroShotHead(BY_DATASET, training_templates=first), names=OF_TWO)
    with torch.no_grad():
        assert torch.equal(head(backbone), named(ZeroShotHead(first), names=OF_TWO)[0](backbone))
        assert torch.equal(head.eval()(backbone), named(ZeroShotHead(BY_DATASET), names=OF_TWO)[0](backbone))
    mixed, _ = named(ZeroShotHead(BY_DATASET, training_templates=FIRST), names=OF_TWO)
    with torch.no_grad():
        assert torch.equal(mixed(backbone), named(ZeroShotHead(FIRST), names=OF_TWO)[0](backbone))


def test_a_learned_head_starts_from_the_templates_of_evaluation():
    templates = {"templates": ["a {}.", "the {}."], "training_templates": "a {}."}
    started = tiny_classifier(CosineHead(ZeroShotHead(**templates)))
    ensemble = tiny_classifier(ZeroShotHead(templates["templates"])).eval()
    torch.testing.assert_close(started.head(started.backbone), ensemble.head(ensemble.backbone))


def test_what_is_kept_for_training_and_for_evaluation_are_two_things():
    head, backbone = named(ZeroShotHead(ENSEMBLE, training_templates=FIRST), Counting())
    for _ in range(3):
        head.train()(backbone)
        head.eval()(backbone)
    assert backbone.texts == 6 + 18
    with torch.no_grad():
        backbone.text_tower.ln_final.weight.add_(1.0)
    assert not torch.equal(head.train()(backbone), head.eval()(backbone))
    assert backbone.texts == 2 * (6 + 18)
    head.forget()
    head(backbone)
    assert backbone.texts == 2 * (6 + 18) + 18


@pytest.mark.parametrize("trainable", [None, "image", "text"])
def test_a_classifier_trains_with_the_one_and_evaluates_with_the_other(trainable):
    def classifier(head):
        arguments = {} if trainable is None else {"trainable": trainable}
        return CLIPClassifier(TinyBackbone(), head, class_names=NAMES, **arguments)

    both = classifier(ZeroShotHead(ENSEMBLE, training_templates=FIRST))
    first, ensemble = classifier(ZeroShotHead(FIRST)), classifier(ZeroShotHead(ENSEMBLE))
    images, labels = tiny_images()
    models = (both, first, ensemble)
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=0.5) if trainable else None for model in (both, first)
    ]
    for _ in range(2):
        for model in models:
            model.train()
        assert torch.equal(both(images), first(images))
        if trainable is not None:
            for model, optimizer in zip((both, first), optimizers, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
            ensemble.backbone.load_state_dict(both.backbone.state_dict())
        for model in models:
            model.eval()
        with torch.no_grad():
            torch.testing.assert_close(both(images), ensemble(images), atol=0, rtol=0)
            assert not torch.equal(both(images), first(images))
    assert both.train().predict(images).class_ids.tolist() == ensemble.predict(images).class_ids.tolist()


HOLDERS = {
    "hybrid": lambda head: HybridPromptHead(context=[LearnedVectors(2)], unseen=head),
    "discriminant": GaussianDiscriminantHead,
    "ridge": RidgeRegressionHead,
    "class means": NearestClassMeanHead,
    "discriminant on hybrid": lambda head: GaussianDiscriminantHead(
        HybridPromptHead(context=[LearnedVectors(2)], unseen=head)
    ),
}


@pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("frozen", [True, False])
def test_heads_that_hold_one_know_the_mode(make, frozen):
    holder, backbone = named(make(ZeroShotHead(ENSEMBLE, training_templates=FIRST)))
    (ensemble, _), (first, _) = named(make(ZeroShotHead(ENSEMBLE))), named(make(ZeroShotHead(FIRST)))
    for head in (holder, ensemble, first):
        head.requires_grad_(not frozen)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(holder.train()(backbone), first.train()(backbone))
            assert torch.equal(holder.eval()(backbone), ensemble.eval()(backbone))


@MODES
def test_training_templates_survive_saving(tmp_path, kind):
    model = CLIPClassifier(TinyBackbone(), kind(ENSEMBLE, training_templates=FIRST), class_names=NAMES)
    images, _ = tiny_images()
    model.save_pretrained(str(tmp_path / "model"))
    loaded = type(model).from_pretrained(str(tmp_path / "model"), backbone=TinyBackbone())
    assert type(loaded.head) is kind
    assert loaded.head.config() == {"templates": ENSEMBLE, "training_templates": [FIRST]}
    assert model.describe()["head"] == loaded.describe()["head"]
    for copied in (loaded, copy.deepcopy(model)):
        for mode in (True, False):
            torch.testing.assert_close(copied.train(mode)(images), model.train(mode)(images), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("templates", "error", "sentence"),
    [
        (3, TypeError, "must be a sentence"),
        ({"pets": 3}, TypeError, "must be a sentence"),
        ([], ValueError, "must be at least one template"),
        ({"pets": []}, ValueError, "must be at least one template"),
        ({}, ValueError, "must be templates of at least one data set"),
    ],
)
@pytest.mark.parametrize("argument", ["templates", "training_templates"])
def test_wrong_templates_are_named(argument, templates, error, sentence):
    with pytest.raises(error, match=f"`{argument}` {sentence}"):
        ZeroShotHead(**{argument: templates})


@pytest.mark.parametrize("argument", ["templates", "training_templates"])
def test_both_kinds_of_templates_must_fit_the_names(argument):
    head = ZeroShotHead(**{argument: {"pets": FIRST}})
    with pytest.raises(ValueError, match=f"`{argument}` must be .* none for 'digits'"):
        named(head, names=OF_TWO)
    with pytest.raises(ValueError, match=f"`class_names` must be .* because the {argument} do"):
        named(head)
    backbone = TinyBackbone()
    same = TinyBackbone().tokenize(["a"])
    # The tokenizer cuts what is longer, so that all texts of the first template are alike.
    backbone._tokenizer = lambda texts: torch.cat(
        [same if text.startswith("long") else TinyBackbone().tokenize([text]) for text in texts]
    )
    with pytest.raises(ValueError, match="same tokens"):
        named(ZeroShotHead(**{argument: "long {}"}), backbone)


def test_weights_are_kept_until_something_they_depend_on_changes():
    head, backbone = named(ZeroShotHead(), Counting())
    first = head(backbone)
    assert backbone.texts == 6
    assert head(backbone) is first
    assert backbone.texts == 6

    changes = {
        "an edit in place": lambda: backbone.text_tower.ln_final.weight.add_(1.0),
        "loaded weights": lambda: backbone.load_state_dict(TinyBackbone(seed=5).state_dict()),
        "other names": lambda: head.set_classes(ClassNames(reversed(TINY_CLASSES)), backbone),
        "forget": head.forget,
    }
    for change in changes.values():
        before = backbone.texts
        with torch.no_grad():
            change()
        head(backbone)
        assert backbone.texts == before + 6
    # Nothing in the image tower matters.
    with torch.no_grad():
        backbone.image_tower.ln_post.weight.add_(1.0)
    before = backbone.texts
    head(backbone)
    assert backbone.texts == before


@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"fused": True}])
def test_an_optimizer_step_is_noticed(how):
    model = tiny_classifier(trainable="text")
    model.eval()
    images, labels = tiny_images()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **how)
    with torch.no_grad():
        before = model(images)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    with torch.no_grad():
        after = model(images)
    assert not torch.equal(before, after)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        torch.testing.assert_close(fresh(images), after)


def test_an_edit_through_data_is_noticed_at_the_next_change_of_mode():
    model = tiny_classifier(trainable="text").eval()
    images, _ = tiny_images()
    with torch.no_grad():
        before = model(images)
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        model.train()
        model.eval()
        assert not torch.equal(before, model(images))


def test_with_gradients_the_text_tower_is_always_encoded_anew():
    model = tiny_classifier(trainable="text")
    images, _ = tiny_images()
    model(images).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_kept_weights_are_in_no_copy_and_no_pickle():
    head, backbone = named(ZeroShotHead())
    head(backbone)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert not other._kept
        assert torch.equal(other(backbone), head(backbone))


@pytest.mark.parametrize("sharing", ["shared", "per-class"])
def test_a_context_of_words_starts_as_the_template_with_these_words(sharing):
    learned, backbone = named(LearnedContextHead(initial_context="a photo of a", sharing=sharing))
    zero_shot, _ = named(ZeroShotHead("a photo of a {}."))
    assert learned.context.shape == (1 if sharing == "shared" else 6, 4, 16)
    expected = F.normalize(zero_shot(backbone), dim=-1)
    torch.testing.assert_close(F.normalize(learned(backbone), dim=-1), expected, atol=1e-6, rtol=0)


def test_a_shared_context_moves_every_class_and_a_per_class_one_its_own():
    for sharing, moved in (("shared", [True] * 6), ("per-class", [True] + [False] * 5)):
        head, backbone = named(LearnedContextHead(context_length=3, sharing=sharing))
        before = head(backbone).detach().clone()
        with torch.no_grad():
            head.context[0] += 0.5
        assert [not torch.equal(a, b) for a, b in zip(before, head(backbone), strict=True)] == moved


def test_contexts_of_earlier_classes_stay_when_names_are_added():
    head, backbone = named(
        LearnedContextHead(context_length=2, sharing="per-class"), names=NAMES[:4] and ClassNames(NAMES[:4])
    )
    with torch.no_grad():
        head.context += 1.0
    kept = head.context.detach().clone()
    head.set_classes(NAMES, backbone)
    assert head.context.shape[0] == 6
    assert torch.equal(head.context[:4], kept)


def test_a_name_that_does_not_fit_beside_the_context_is_refused():
    names = ClassNames(["cat", "x" * 70])
    LearnedContextHead(context_length=4).set_classes(names, TinyBackbone())
    with pytest.raises(ValueError, match="xxx"):
        LearnedContextHead(context_length=8).set_classes(names, TinyBackbone())


def test_names_that_a_tokenizer_cannot_tell_apart_are_refused():
    backbone = TinyBackbone()
    backbone._tokenizer = lambda texts: TinyBackbone().tokenize(["a photo of a thing." for _ in texts])
    with pytest.raises(ValueError, match="'cat' and 'dog'.*same tokens"):
        ZeroShotHead().set_classes(NAMES, backbone)


def test_a_cosine_head_starts_as_the_head_that_it_is_given():
    head, backbone = named(CosineHead(ZeroShotHead()))
    zero_shot, _ = named(ZeroShotHead())
    assert torch.equal(head(backbone), zero_shot(backbone))
    assert [tuple(p.shape) for p in head.parameters()] == [(6, 16)]


def test_given_features_are_the_weights():
    features = torch.randn(6, 4)
    head, backbone = named(TextFeatureHead(features), EmbeddingBackbone(4))
    assert torch.equal(head(backbone), features)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZeroShotHead("a photo"), "template.*exactly one"),
        (lambda: ZeroShotHead("a {} and a {}"), "template.*exactly one"),
        (lambda: ZeroShotHead([]), "templates"),
        (lambda: ZeroShotHead({}), "`templates` must be .* at least one data set"),
        (lambda: ZeroShotHead({"pets": "a photo"}), "template.*exactly one"),
        (
            lambda: named(ZeroShotHead({"pets": "a {}"})),
            "`class_names` must be names that belong to data sets",
        ),
        (
            lambda: named(ZeroShotHead({"pets": "a {}", "digit": "a {}"}), names=OF_TWO),
            "`templates` must be .*none for 'digits'. Did you mean 'digit'",
        ),
        (LearnedContextHead, "context_length"),
        (lambda: LearnedContextHead(context_length=1, initial_context="a"), "context_length"),
        (lambda: LearnedContextHead(context_length=1, sharing="class"), "sharing"),
        (lambda: TextFeatureHead(torch.zeros(2, 3)), r"rows \[0, 1\]"),
        (lambda: TextFeatureHead(torch.ones(3)), "features"),
        (lambda: TextFeatureHead(torch.ones(3, 2).long()), "features"),
        (lambda: CosineHead("text"), "initial"),
        (lambda: named(TextFeatureHead(torch.ones(5, 4)), EmbeddingBackbone(4)), "5 names"),
        (lambda: named(TextFeatureHead(torch.ones(6, 3)), EmbeddingBackbone(4)), "width 4"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_look_without_gradient_in_the_middle_of_training_is_fresh():
    model = tiny_classifier(LearnedContextHead(context_length=2)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    images, labels = tiny_images()
    looks = []
    for _ in range(3):
        with torch.no_grad():
            looks.append(model(images))
        F.cross_entropy(model(images), labels).backward()
        with torch.no_grad():
            model(images)
        optimizer.step()
    assert not torch.equal(looks[0], looks[1])
    assert not torch.equal(looks[1], looks[2])


def test_mixed_precision_keeps_weights_of_its_own():
    model = tiny_classifier().eval()
    images, _ = tiny_images()
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            model(images)
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize(
    "make",
    [lambda: CosineHead(ZeroShotHead()), lambda: LearnedContextHead(context_length=2, sharing="per-class")],
)
def test_other_names_start_afresh(make):
    for names in (["emu", "yak"], ["a", "b", "c", "d", "e", "f", "g"]):
        renamed, backbone = named(make())
        with torch.no_grad():
            next(renamed.parameters()).add_(1.0)
        renamed.set_classes(ClassNames(names), backbone)
        fresh, _ = named(make(), backbone, ClassNames(names))
        assert torch.equal(next(renamed.parameters()), next(fresh.parameters()))


def test_a_context_longer_than_the_model_is_refused():
    with pytest.raises(ValueError, match="context"):
        LearnedContextHead(context_length=100).set_classes(NAMES, TinyBackbone())


BY_COSINE = (ZeroShotHead, lambda: LearnedContextHead(context_length=2), AdaptedTextHead)
OTHERWISE = (
    UnnormalisedZeroShotHead,
    HybridPromptHead,
    ImageConditionedPromptHead,
    GaussianDiscriminantHead,
    RidgeRegressionHead,
    NearestClassMeanHead,
    DualPathHead,
)


def test_a_head_says_whether_it_compares_by_cosine():
    assert all(make().compares_by_cosine for make in BY_COSINE)
    assert not any(make().compares_by_cosine for make in OTHERWISE)
    initial = TextFeatureHead(torch.eye(3))
    assert initial.compares_by_cosine
    assert CosineHead(initial).compares_by_cosine
    assert not LinearHead(initial).compares_by_cosine


@torch.no_grad()
@pytest.mark.parametrize("make", BY_COSINE)
def test_a_head_that_compares_by_cosine_makes_logits_of_some_classes_by_their_weights_alone(make):
    model, some = tiny_classifier(make()), torch.tensor([4, 1])
    images, _ = tiny_images(per_class=1)
    embeddings = model.encode(images)
    some_logits = model.head.compare(model.backbone, embeddings, model.head(model.backbone, some))
    torch.testing.assert_close(some_logits, model(images)[:, some])


def test_a_head_of_somebody_else_compares_otherwise_unless_it_says_so():
    class Shifted(ZeroShotHead):
        def compare(self, backbone, embeddings, weights):
            return super().compare(backbone, embeddings, weights) + 1

    class Checked(ZeroShotHead):
        compares_by_cosine = True

        def logits(self, backbone, embeddings):
            assert embeddings.ndim == 2
            return super().logits(backbone, embeddings)

    assert not Shifted().compares_by_cosine
    assert Checked().compares_by_cosine
    AdaptedTextHead(Checked())
    with pytest.raises(ValueError, match="`text` must be a head that compares by cosine.*Shifted"):
        AdaptedTextHead(Shifted())


def test_the_initial_head_keeps_the_mode_of_each_part_of_it():
    initial = AdaptedTextHead()
    initial.text.eval()
    head, _ = named(CosineHead(initial))
    assert head.weight is not None
    assert [initial.training, initial.text.training, initial.adapter.training] == [True, False, True]
