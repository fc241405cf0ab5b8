import copy
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    GeneratedContext,
    HybridPromptHead,
    ImageConditionedPromptHead,
    LatestLearnedVectors,
    LearnedContextHead,
    LearnedVectors,
    LinearHead,
    LoRA,
    OpenCLIPBackbone,
    ResidualAdapter,
    TextFeatureHead,
    UnnormalisedZeroShotHead,
    ZeroShotHead,
)
from avalanche_vlm.models.small_clip import SmallTokenizer
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_benchmark, tiny_classifier, tiny_images

TRAINABLE = ["nothing", "image", "text", "both", LoRA(rank=2), LoRA(rank=2, factors=("B",), towers=("text",))]


def test_logits_are_scaled_cosines_plus_the_bias():
    model = tiny_classifier()
    model.backbone.logit_bias_parameter = torch.nn.Parameter(torch.tensor(-3.0), requires_grad=False)
    images, _ = tiny_images()
    with torch.no_grad():
        z, w = model.encode(images).double(), model.head(model.backbone).double()
        scale = float(model.backbone.logit_scale)
        expected = [[scale * float(F.cosine_similarity(a, b, dim=0)) - 3.0 for b in w] for a in z]
        torch.testing.assert_close(model(images).double(), torch.tensor(expected).double(), atol=1e-4, rtol=0)


def test_images_and_their_embeddings_give_the_same_logits():
    model = tiny_classifier()
    images, _ = tiny_images()
    assert torch.equal(model(images), model(model.encode(images)))


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_parameters_lists_what_trains(trainable):
    model = tiny_classifier(trainable=trainable)
    listed = {name for name, _ in model.named_parameters()}
    needing = {name for name, p in torch.nn.Module.named_parameters(model) if p.requires_grad}
    assert listed == needing
    assert bool(listed) == (trainable != "nothing")
    for name in listed:
        assert (
            trainable == "both"
            or ("image_tower" in name) != (trainable == "text" or "text" in str(trainable))
            or isinstance(trainable, LoRA)
        )
    assert set(model.state_dict()) > listed
    assert not any("logit_scale" in name for name in listed)


def test_the_scale_trains_when_asked():
    names = {name for name, _ in tiny_classifier(train_logit_scale=True).named_parameters()}
    assert names == {"backbone.logit_scale_parameter"}


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_frozen_towers_stay_in_eval_mode(trainable):
    model = tiny_classifier(trainable=trainable)
    for mode in (True, False):
        model.train(mode)
        assert model.training == mode
        assert model.backbone.image_tower.training == (mode and trainable in ("image", "both"))
        assert model.backbone.text_tower.training == (mode and trainable in ("text", "both"))


def test_classes_are_seen_in_training_only_and_never_in_evaluation():
    model, benchmark = tiny_classifier(), tiny_benchmark()
    model.train()
    model.adaptation(benchmark.train_stream[1])
    assert model.classes_seen.tolist() == [False, False, True, True, False, False]
    model.eval()
    model.adaptation(benchmark.test_stream[2])
    assert model.classes_seen.tolist() == [False, False, True, True, False, False]


def test_names_may_be_added_but_not_exchanged_once_trained():
    model = tiny_classifier()
    model.set_classes(["other", "names", "before", "training"])
    model.train()
    model.set_classes(TINY_CLASSES)
    model.adaptation(tiny_benchmark().train_stream[0])
    model.set_classes([*TINY_CLASSES, "emu"])
    assert model.classes_seen.tolist() == [True, True, False, False, False, False, False]
    with pytest.raises(ValueError, match="names set earlier"):
        model.set_classes(TINY_CLASSES[::-1])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 3, 9, 9), ValueError, r"images \(B, 3, 8, 8\).*\(1, 3, 9, 9\).*eval_transform"),
        (torch.zeros(1, 1, 8, 8), ValueError, "eval_transform"),
        (torch.zeros(1, 15), ValueError, r"embeddings \(B, 16\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "uint8.*train_transform"),
        ([Image.new("RGB", (8, 8))], TypeError, "list.*model.predict"),
    ],
)
def test_wrong_images_are_named(x, error, message):
    with pytest.raises(error, match=message):
        tiny_classifier()(x)


def test_a_model_without_names_says_how_to_get_them():
    model = CLIPClassifier(TinyBackbone())
    for use in (lambda: model(torch.zeros(1, 3, 8, 8)), lambda: model.class_names):
        with pytest.raises(RuntimeError, match=r"set_classes\(class_names\(benchmark\)\)"):
            use()


def test_labels_outside_the_names_are_refused():
    model = tiny_classifier()
    x, y = torch.zeros(8, 16), torch.arange(8)
    names = [*TINY_CLASSES, "pig", "rat"]
    benchmark = tensor_benchmark((x, y), (x, y), class_names=names, n_experiences=2)
    model.adaptation(benchmark.train_stream[0])
    with pytest.raises(ValueError, match=r"labels in 0\.\.5.*from 4 to 7"):
        model.adaptation(benchmark.train_stream[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "ViT-B-16"}, "`backbone`.*OpenCLIPBackbone"),
        ({"head": "zero-shot"}, "`head`"),
        ({"trainable": "images"}, "Did you mean 'image'"),
        ({"trainable": "lora"}, r"or a LoRA\(\.\.\.\)"),
        ({"trainable": 3}, "`trainable`"),
        ({"class_names": ["cat", "Cat "]}, "duplicates"),
        ({"class_names": "cat"}, "`class_names`"),
        ({"train_logit_scale": 1}, "`train_logit_scale`"),
        ({"image_adapter": torch.nn.Identity()}, "`image_adapter`"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        CLIPClassifier(**{"backbone": TinyBackbone(), **arguments})


def test_an_embedding_backbone_says_what_it_cannot_do():
    model = CLIPClassifier(EmbeddingBackbone(4), TextFeatureHead(torch.eye(4)), class_names=list("abcd"))
    torch.testing.assert_close(model(torch.eye(4)), 100 * torch.eye(4))
    with pytest.raises(RuntimeError, match="has no towers"):
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="no images"):
        model(torch.zeros(1, 5))
    with pytest.raises(RuntimeError, match="TextFeatureHead"):
        CLIPClassifier(EmbeddingBackbone(4), ZeroShotHead(), class_names=["a", "b"])


def test_predict_takes_every_form_of_an_image_and_leaves_the_modes_alone():
    model = tiny_classifier(trainable="image").train()
    array = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(array.permute(1, 2, 0).numpy())
    forms = [picture, [picture], array, array[None], model.eval_transform(picture)[None]]
    predictions = [model.predict(form, top_k=6) for form in forms]
    for prediction in predictions:
        assert prediction.names == predictions[0].names
        assert torch.equal(prediction.probabilities, predictions[0].probabilities)
    first = predictions[0]
    assert first.names[0] == [TINY_CLASSES[i] for i in first.class_ids[0].tolist()]
    assert float(first.probabilities.sum()) == pytest.approx(1.0, abs=1e-6)
    assert model.training
    assert model.backbone.image_tower.training
    assert not model.backbone.text_tower.training


def test_predict_among_the_classes_seen():
    model = tiny_classifier()
    images, _ = tiny_images()
    with pytest.raises(ValueError, match="no class has been trained on"):
        model.predict(images, space="seen")
    with pytest.raises(ValueError, match="top_k"):
        model.predict(images, top_k=7)
    model.train().adaptation(tiny_benchmark().train_stream[1])
    assert set(model.predict(images, space="seen").class_ids.flatten().tolist()) <= {2, 3}
    with pytest.raises(ValueError, match="`space`"):
        model.predict(images, space="every")
    with pytest.raises(ValueError, match="at least one image"):
        model.predict([])
    with pytest.raises(TypeError, match="uint8"):
        model.predict([torch.zeros(3, 8, 8)])


MODELS = {
    "zero-shot": lambda: small(ZeroShotHead(["a photo of a {}.", "one {}"])),
    "shared context": lambda: small(LearnedContextHead(context_length=2)),
    "context per class": lambda: small(LearnedContextHead(initial_context="a photo", sharing="per-class")),
    "cosine head": lambda: small(CosineHead(ZeroShotHead())),
    "linear head": lambda: small(LinearHead(CosineHead(ZeroShotHead("one {}")))),
    "hybrid prompts": lambda: small(HybridPromptHead(classes_at_once=1)),
    "hybrid prompts of other parts": lambda: small(
        HybridPromptHead(
            context=[LatestLearnedVectors(2), LearnedVectors(sharing="shared"), GeneratedContext()],
            unseen=UnnormalisedZeroShotHead(["{}", "one {}"]),
        )
    ),
    "beside given features": lambda: small(HybridPromptHead(unseen=TextFeatureHead(torch.eye(2, 128)))),
    "prompts of images": lambda: small(ImageConditionedPromptHead(reduction=4, seed=3)),
    "adapter": lambda: small(image_adapter=ResidualAdapter(reduction=8, ratio=0.5)),
    "lora": lambda: small(trainable=LoRA(rank=2, targets=("query", "mlp_out"), factors=("B",), seed=3)),
    "both towers": lambda: small(trainable="both", train_logit_scale=True),
    "embeddings": lambda: CLIPClassifier(
        EmbeddingBackbone(4, logit_scale=50.0), TextFeatureHead(torch.eye(4)), class_names=list("abcd")
    ),
}


def small(head=None, **arguments):
    backbone = OpenCLIPBackbone("small-clip")
    return CLIPClassifier(backbone, head, class_names=["red circle", "blue square"], **arguments)


@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_model_is_the_same_without_any_strategy(kind, tmp_path):
    model = MODELS[kind]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.classes_seen[1] = True
    model.head.adapt(model.classes_seen)
    x = torch.eye(4) if kind == "embeddings" else torch.rand(3, 3, 32, 32, generator=generator)
    model.save_pretrained(str(tmp_path / "model"))
    loaded = CLIPClassifier.from_pretrained(str(tmp_path / "model"))
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))
    described, expected = loaded.describe(), model.describe()
    assert all(described[part] == expected[part] for part in ("head", "image_adapter"))
    assert loaded.class_names == model.class_names
    assert loaded.classes_seen.tolist() == model.classes_seen.tolist()
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert not loaded.training
    assert sorted(p.name for p in (tmp_path).iterdir()) == ["model"]
    loaded.save_pretrained(str(tmp_path / "model"))  # over the old one


def test_saving_spares_other_files_and_loading_explains(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files"):
        small().save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        CLIPClassifier.from_pretrained(str(tmp_path))
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="another or damaged"):
        CLIPClassifier.from_pretrained(str(tmp_path / "junk"))


def test_an_interrupted_save_leaves_the_earlier_model(tmp_path, monkeypatch):
    first = small()
    first.save_pretrained(str(tmp_path / "model"))
    second = CLIPClassifier(OpenCLIPBackbone("small-clip"), class_names=["a third"])

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            second.save_pretrained(str(tmp_path / "model"))
    loaded = CLIPClassifier.from_pretrained(str(tmp_path / "model"))
    assert loaded.class_names == first.class_names
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_model_is_written_inside_its_folder_which_may_be_the_current_one(tmp_path, monkeypatch):
    replaced, replace = [], os.replace

    def noted(source, target):
        replaced.append((Path(source), Path(target)))
        replace(source, target)

    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    monkeypatch.setattr("os.replace", noted)
    small().save_pretrained(".")
    # Of the same folder, and so of the same disk.
    ((source, target),) = replaced
    assert source.parent.resolve() == target.parent.resolve() == tmp_path / "model"
    assert os.listdir(".") == ["model.safetensors"]
    # What a killed process was writing, and what another process is writing now, is in nobody's way.
    Path(".model.safetensors.123-abc.tmp").write_bytes(b"half")
    small().save_pretrained(".")
    assert CLIPClassifier.from_pretrained(".").class_names == small().class_names


def test_a_saved_model_may_be_read_by_whom_the_umask_says(tmp_path):
    small().save_pretrained(str(tmp_path / "model"))
    (tmp_path / "plain").touch()
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_model_with_a_tokenizer_of_its_own_is_asked_for(tmp_path):
    CLIPClassifier(
        OpenCLIPBackbone("small-clip", tokenizer=SmallTokenizer()), class_names=["a", "b"]
    ).save_pretrained(str(tmp_path / "m"))
    with pytest.raises(ValueError, match="tokenizer of its own"):
        CLIPClassifier.from_pretrained(str(tmp_path / "m"))


def test_freezing_and_thawing_come_back_to_the_arguments():
    for trainable in TRAINABLE:
        model = tiny_classifier(CosineHead(ZeroShotHead()), trainable=trainable)
        names = [name for name, _ in model.named_parameters()]
        assert not list(model.requires_grad_(False).named_parameters())
        assert [name for name, _ in model.requires_grad_(True).named_parameters()] == names


def test_a_backbone_is_adapted_once():
    backbone = TinyBackbone()
    CLIPClassifier(backbone, trainable=LoRA())
    for trainable in ("nothing", LoRA()):
        with pytest.raises(ValueError, match="nothing trains yet.*another classifier trains"):
            CLIPClassifier(backbone, trainable=trainable)
    shared = TinyBackbone()
    first, second = (CLIPClassifier(shared, class_names=names) for names in (["a", "b"], ["c"]))
    assert first(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    assert second(torch.zeros(1, 3, 8, 8)).shape == (1, 1)
    with pytest.raises(ValueError, match="train_logit_scale"):
        CLIPClassifier(EmbeddingBackbone(4), train_logit_scale=True)


def test_predict_refuses_what_is_no_picture_and_takes_odd_ones():
    model = tiny_classifier()
    grey = torch.zeros(9, 9, dtype=torch.uint8).numpy()
    assert len(model.predict(grey).names) == 1
    assert len(model.predict([grey] * 5, batch_size=2).names) == 5
    assert len(model.predict(torch.ones(2, 16, dtype=torch.float64)).names) == 2
    assert len(model.predict(torch.ones(2, 16).numpy()).names) == 2
    for wrong in ("cat.jpg", None, 3):
        with pytest.raises(TypeError, match="`images`"):
            model.predict(wrong)
    with pytest.raises(ValueError, match="at least one image"):
        model.predict(torch.zeros(0, 3, 9, 9, dtype=torch.uint8))


def test_a_backbone_of_somebody_else_is_asked_for(tmp_path):
    class Mine(TinyBackbone):
        pass

    CLIPClassifier(Mine(seed=7), class_names=TINY_CLASSES).save_pretrained(str(tmp_path / "m"))
    with pytest.raises(ValueError, match="`backbone`.*"):
        CLIPClassifier.from_pretrained(str(tmp_path / "m"))
    loaded = CLIPClassifier.from_pretrained(str(tmp_path / "m"), backbone=Mine(seed=8))
    images, _ = tiny_images()
    expected = CLIPClassifier(Mine(seed=7), class_names=TINY_CLASSES)(images)
    assert torch.equal(loaded(images), expected)


def test_a_deep_copy_is_independent():
    model = tiny_classifier(trainable="image")
    other = copy.deepcopy(model)
    images, _ = tiny_images()
    with torch.no_grad():
        expected = model(images)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(model(images), expected)


@torch.no_grad()
def test_visual_features_are_what_the_head_sees_or_what_lies_before_the_projection():
    adapter = ResidualAdapter()
    model = tiny_classifier(image_adapter=adapter).eval()
    adapter.bottleneck[-1].weight.fill_(0.1)
    images, _ = tiny_images(per_class=1)
    embeddings = model.encode(images)
    seen = model.visual_features(images)
    assert torch.equal(seen, adapter(embeddings))
    assert not torch.allclose(seen, embeddings)
    assert torch.equal(model.visual_features(embeddings), seen)
    raw = model.visual_features(images, "raw")
    assert torch.equal(raw, model.encode_with_raw(images)[1])
    torch.testing.assert_close(model.backbone.project_image(raw), embeddings)
    with pytest.raises(ValueError, match="`x` must be images, because raw visual features"):
        model.visual_features(embeddings, "raw")
