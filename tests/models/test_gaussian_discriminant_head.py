"""The head of the Gaussian discriminant by itself; with strategies it is tested beside these."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    LogLinearFusion,
    ProbabilityMixture,
    TextFeatureHead,
    TopKRescoring,
    ZeroShotHead,
)
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


def on_features(text_seed=0, **arguments):
    text = torch.randn(6, 16, generator=torch.Generator().manual_seed(text_seed))
    head = GaussianDiscriminantHead(TextFeatureHead(text), **arguments)
    return CLIPClassifier(EmbeddingBackbone(16), head, class_names=TINY_CLASSES).eval()


def rows(count=120, seed=0):
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 5, (count,), generator=draw)  # nothing of the sixth class
    return torch.randn(6, 16, generator=draw)[y] + 0.7 * torch.randn(count, 16, generator=draw), y


@torch.no_grad()
def test_a_hundred_orders_splits_and_merges_give_the_same_bits():
    x, y = rows()
    rule = LogLinearFusion(0.2, temperature=0.7)
    whole = on_features(fusion_weight=rule)
    whole.head.update(x, y)
    expected = whole(x)
    for seed in range(100):
        draw = torch.Generator().manual_seed(seed)
        parts = torch.tensor_split(torch.randperm(len(x), generator=draw), 1 + seed % 9)
        one, other = on_features(fusion_weight=rule), on_features(fusion_weight=rule)
        for number, part in enumerate(parts):
            (one if number % 2 == 0 else other).head.update(x[part], y[part])
        one.head.merge(other.head)
        assert all(torch.equal(a, b) for a, b in zip(one.buffers(), whole.buffers(), strict=True))
        assert torch.equal(one(x), expected)


@torch.no_grad()
def test_folds_add_up_to_the_same_sums():
    x, y = rows()
    folds, one = on_features(), on_features(fusion_weight=0.1)
    for model in (folds, one):
        model.head.update(x, y)
    for name in ("counts", "sums", "second_moment"):
        assert torch.equal(getattr(folds.head, name), getattr(one.head, name))
    assert folds.head.fold_counts.shape == (4, 6)


@torch.no_grad()
def test_the_fusion_is_chosen_on_rows_that_were_left_out():
    x, y = rows()
    model = on_features(text_seed=9)  # a text that says nothing
    assert model.head.fusion_rule == LogLinearFusion(0.0)
    model.head.update(x, y)
    before = model(x)  # which scores the rows that wait
    rule = model.head.fusion_rule
    assert rule.weight > 0
    assert (before.argmax(dim=1) == y).float().mean() > 0.8
    assert torch.equal(model(x), before)
    settled = on_features(text_seed=9)
    settled.head.update(x, y)
    settled.head.settle(settled.backbone)
    assert settled.head.fusion_rule == rule
    # Rows that add little are not scored, so that a class costs the same however many there are.
    weights = model.head.left_out_weights.clone()
    model.head.update(x[:3], y[:3])
    model(x)
    assert torch.equal(model.head.left_out_weights, weights)
    useless = on_features()
    useless.head.update(torch.randn(60, 16), torch.arange(60) % 5)
    assert useless(x).isfinite().all()


@torch.no_grad()
def test_text_that_learns_does_not_move_the_predicted_means():
    x, y = rows()
    model = tiny_classifier(GaussianDiscriminantHead(CosineHead(ZeroShotHead()), fusion_weight=1.0))
    model.head.update(x, y)
    solved = model.head.solved(model.backbone)
    model.head.zero_shot.weight.add_(1.0)
    assert model.head.solved(model.backbone) is solved


@torch.no_grad()
@pytest.mark.parametrize("mean_prior", ["text", "classes", "none"])
@pytest.mark.parametrize(
    "rule", [None, 0.3, LogLinearFusion(0.2, 0.5), ProbabilityMixture(0.4), TopKRescoring(3)]
)
def test_saved_and_read_with_every_prior_and_rule(tmp_path, mean_prior, rule):
    sketch = 0 if mean_prior == "none" else 4
    model = on_features(mean_prior=mean_prior, fusion_weight=rule, sketch=sketch)
    x, y = rows()
    model.head.update(x, y)
    expected = model(x)
    model.save_pretrained(str(tmp_path / "model"))
    again = CLIPClassifier.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(again(x), expected)
    assert again.head.fusion_rule == model.head.fusion_rule
    assert (again.head.mean_prior, again.head.fusion_weight) == (mean_prior, rule)


@torch.no_grad()
def test_a_file_of_before_there_were_folds_is_read(tmp_path):
    """Its sums were not rounded, and it says nothing of a prior of means."""
    model = on_features(mean_prior="none", fusion_weight=0.7, prior="counts")
    x, y = rows()
    model.head.update(x, y)
    model.save_pretrained(str(tmp_path / "model"))
    path = tmp_path / "model" / "model.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["avalanche_vlm"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del config["head"]["mean_prior"], config["format"]
    old = {
        name: each for name, each in weights.items() if not name.startswith("head.") or "zero_shot" in name
    }
    old |= {f"head.{name}": getattr(model.head, name) for name in ("counts", "sums", "second_moment")}
    save_file(old, path, {"avalanche_vlm": json.dumps(config)})
    again = CLIPClassifier.from_pretrained(str(tmp_path / "model"))
    assert torch.allclose(again(x), model(x), atol=1e-5)
    assert (again.head.mean_prior, again.head.fusion_weight, again.head.prior) == ("none", 0.7, "counts")


def test_folds_cannot_be_wanted_afterwards():
    model = on_features(fusion_weight=0.3)
    model.head.update(*rows())
    model.head.fusion_weight = None
    with pytest.raises(
        ValueError, match="`fusion_weight` must be a number.*Build a head with fusion_weight=None"
    ):
        model(rows()[0])


def test_wrong_arguments_are_named():
    for arguments, name in (
        ({"mean_prior": "texts"}, "mean_prior"),
        ({"fusion_weight": "all"}, "fusion_weight"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
            GaussianDiscriminantHead(**arguments)


@torch.no_grad()
def test_rows_that_wait_go_with_a_merge_and_into_a_file(tmp_path):
    x, y = rows()
    settled = on_features(text_seed=9)
    settled.head.update(x, y)
    settled(x)
    rule = settled.head.fusion_rule
    merged, other = on_features(text_seed=9), on_features(text_seed=9)
    other.head.update(x, y)
    merged.head.merge(other.head)
    merged(x)
    assert merged.head.fusion_rule == rule
    other.save_pretrained(str(tmp_path / "model"))
    assert CLIPClassifier.from_pretrained(str(tmp_path / "model")).head.fusion_rule == rule


@torch.no_grad()
def test_a_state_taken_too_early_is_told(tmp_path):
    x, y = rows()
    early, late = on_features(text_seed=9), on_features(text_seed=9)
    early.head.update(x, y)
    late.head.update(x[:30], y[:30])  # rows that wait, and do not belong to what is loaded
    late.load_state_dict(early.state_dict())
    with pytest.warns(UserWarning, match=r"No left-out row was scored.*head.settle"):
        late(x)
    assert not late.head.left_out_weights.any()


@torch.no_grad()
def test_a_prior_of_means_that_is_changed_counts_at_once():
    x, y = rows()
    model = on_features(fusion_weight=1.0)
    model.head.update(x, y)
    before = model(x)
    model.head.mean_prior = "classes"
    assert not torch.equal(model(x), before)
    other = on_features(fusion_weight=1.0, mean_prior="classes")
    other.head.update(x, y)
    assert torch.equal(other(x), model(x))
    other.head.mean_prior = "text"
    with pytest.raises(ValueError, match="`mean_prior` must be 'text' when the head is built"):
        other(x)
