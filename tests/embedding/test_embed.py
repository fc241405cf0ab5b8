"""What comes out is the benchmark that went in, with embeddings for images."""

import pytest
import torch
from avalanche.benchmarks import CLScenario, split_online_stream
from avalanche.benchmarks.scenarios.deprecated.generic_benchmark_creation import (
    LazyStreamDefinition,
    create_lazy_generic_benchmark,
)
from avalanche.training.plugins import EvaluationPlugin
from torch.optim import SGD

from avalanche_vlm.benchmarks import (
    LabelledTensors,
    class_names,
    domain_benchmark,
    tensor_benchmark,
    with_validation_stream,
)
from avalanche_vlm.embedding import embed
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, LoRA, ZeroShotHead
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_benchmark, tiny_classifier

from .conftest import (
    SHAPES,
    all_x,
    class_incremental,
    counting_backbone,
    domains,
    host_class_incremental,
    host_task_incremental,
    pixels,
    transforms,
)


def encoded(backbone, x, features="projected"):
    encode = backbone.encode_image if features == "projected" else backbone.encode_image_raw
    with torch.no_grad():
        return encode(x)


@pytest.mark.parametrize("features", ["projected", "raw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_samples_are_the_encoded_images_in_their_places(shape, features, backbone, tmp_path):
    backbone = backbone if shape.__name__ != "small_world" else TinyBackbone()
    benchmark = shape(backbone, tmp_path)
    embedded = embed(benchmark, backbone, cache_dir=tmp_path / "cache", features=features, batch_size=5)
    assert type(embedded) is type(benchmark)
    assert list(embedded.streams) == list(benchmark.streams)
    backbone.eval()
    for name, stream in benchmark.streams.items():
        for images, embeddings in zip(stream, embedded.streams[name], strict=True):
            expected = encoded(backbone, eval_x(images), features)
            assert len(embeddings.dataset) == len(images.dataset)
            assert torch.allclose(all_x(embeddings), expected, atol=1e-6)
            for index in range(len(images.dataset)):
                embedding, image = embeddings.dataset[index], images.dataset[index]
                assert list(map(int, embedding[1:])) == list(map(int, image[1:]))
            assert type(embeddings.dataset) is type(images.dataset)
            assert list(embeddings.dataset.targets) == list(images.dataset.targets)


def eval_x(experience):
    dataset = experience.dataset.eval()
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


@pytest.mark.parametrize("shape", SHAPES)
def test_what_experiences_say_of_themselves_is_kept(shape, tmp_path):
    backbone = TinyBackbone()
    benchmark = shape(backbone, tmp_path)
    before = {
        name: [experience.dataset for experience in stream] for name, stream in benchmark.streams.items()
    }
    embedded = embed(benchmark, backbone, cache_dir=tmp_path / "cache")
    named = shape is not host_task_incremental
    if named:
        assert class_names(embedded) == class_names(benchmark)
        assert class_names(embedded).datasets == class_names(benchmark).datasets
    for attribute in ("n_classes", "n_experiences", "classes_order", "task_labels"):
        assert getattr(embedded, attribute, None) == getattr(benchmark, attribute, None)
    for name, stream in benchmark.streams.items():
        assert getattr(embedded, f"{name}_stream") is embedded.streams[name]
        for index, (images, embeddings) in enumerate(zip(stream, embedded.streams[name], strict=True)):
            for attribute in (
                "classes_in_this_experience",
                "classes_seen_so_far",
                "previous_classes",
                "future_classes",
                "task_labels",
            ):
                assert getattr(embeddings, attribute, None) == getattr(images, attribute, None)
            assert embeddings.current_experience == index
            assert embeddings.origin_stream is embedded.streams[name]
            if getattr(images, "benchmark", None) is benchmark:
                assert embeddings.benchmark is embedded
            # The benchmark that was given is left alone.
            assert images.dataset is before[name][index] or images.dataset == before[name][index]


def test_the_original_data_sets_are_embedded_where_every_sample_is(tmp_path):
    backbone = TinyBackbone()
    benchmark = class_incremental(backbone, tmp_path)
    embedded = embed(benchmark, backbone, cache_dir=tmp_path)
    whole = embedded.original_train_dataset
    for rows, experience in zip(embedded.train_exps_patterns_assignment, embedded.train_stream, strict=True):
        assert torch.equal(torch.stack([whole[i][0] for i in rows]), all_x(experience))
    partly = tensor_benchmark(
        pixels(0),
        pixels(1),
        class_names=TINY_CLASSES,
        n_experiences=1,
        class_order=[3],
        **transforms(backbone),
    )
    assert embed(partly, backbone, cache_dir=tmp_path).original_train_dataset is None


def test_equal_batches_give_equal_bits(backbone, tmp_path):
    benchmark = class_incremental(backbone, tmp_path)
    embedded = embed(benchmark, backbone, cache_dir=tmp_path, batch_size=5)
    x = torch.stack([backbone.eval_transform(image) for image in pixels(0)[0]])
    backbone.eval()
    direct = torch.cat([encoded(backbone, batch) for batch in x.split(5)])
    assert torch.equal(leaf(embedded).x, direct)


def leaf(benchmark, stream="train"):
    """Return the one data set below the experiences of a stream."""
    found = {
        id(data): data for experience in benchmark.streams[stream] for data in leaves(experience.dataset)
    }
    (only,) = found.values()
    return only


def leaves(dataset):
    return dataset._flat_data._datasets


def test_the_leaf_is_one_tensor_for_all_experiences_of_a_stream(tmp_path):
    backbone = TinyBackbone()
    embedded = embed(class_incremental(backbone, tmp_path), backbone, cache_dir=tmp_path)
    data = leaf(embedded)
    assert type(data) is LabelledTensors
    assert data.x.shape == (24, 16)
    assert torch.equal(data.y, pixels(0)[1])
    host = embed(host_class_incremental(backbone, tmp_path), backbone, cache_dir=tmp_path)
    assert leaf(host).x.shape == (24, 16)


def test_a_sample_with_two_labels_has_both(tmp_path):
    backbone = TinyBackbone()
    x, y = pixels(0)
    parts = {"plain": ((x, y), (x, y)), "shifted": ((x, (y + 1) % 6), (x, (y + 1) % 6))}
    benchmark = domain_benchmark(parts, class_names=TINY_CLASSES, **transforms(backbone))
    first, second = embed(benchmark, backbone, cache_dir=tmp_path).train_stream
    assert [first.dataset[i][1] for i in range(24)] == y.tolist()
    assert [second.dataset[i][1] for i in range(24)] == ((y + 1) % 6).tolist()
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # the same images


@pytest.mark.filterwarnings("ignore:stream generator will be converted:UserWarning")
@pytest.mark.parametrize("n_views", [1, 2])
@pytest.mark.parametrize("shape", [class_incremental, domains, host_class_incremental])
def test_validation_and_online_streams_can_be_made_of_it(shape, n_views, tmp_path):
    backbone = TinyBackbone()
    embedded = embed(shape(backbone, tmp_path), backbone, cache_dir=tmp_path, n_views=n_views)
    split = with_validation_stream(embedded, fraction=0.25)
    whole = [len(e.dataset) for e in embedded.train_stream]
    assert [
        len(a.dataset) + len(b.dataset) for a, b in zip(split.train_stream, split.valid_stream, strict=True)
    ] == whole
    assert class_names(split) == class_names(embedded)
    x, y = split.valid_stream[0].dataset[0][:2]
    assert x.shape == (16,)
    rows = eval_x(embedded.train_stream[0])
    assert y in split.valid_stream[0].dataset.targets.uniques
    assert any(torch.equal(x, row) for row in rows)  # the eval view, where there are several
    online = list(split_online_stream(split.train_stream, experience_size=3, drop_last=False))
    assert sum(len(each.dataset) for each in online) == sum(len(e.dataset) for e in split.train_stream)
    assert online[0].dataset[0][0].shape == (16,)
    assert class_names(online[0]) == class_names(embedded)


def test_a_lazy_benchmark_is_embedded_as_a_whole(tmp_path):
    backbone = TinyBackbone()
    eager = class_incremental(backbone, tmp_path)

    def stream(name):
        datasets = [experience.dataset for experience in eager.streams[name]]
        return LazyStreamDefinition((each for each in datasets), len(datasets), [0] * len(datasets))

    lazy = create_lazy_generic_benchmark(train_generator=stream("train"), test_generator=stream("test"))
    embedded = embed(lazy, backbone, cache_dir=tmp_path)
    expected = embed(eager, backbone, cache_dir=tmp_path)
    for a, b in zip(embedded.train_stream, expected.train_stream, strict=True):
        assert torch.equal(all_x(a), all_x(b))


def train(benchmark, *, frozen_tower):
    model = CLIPClassifier(frozen_tower, CosineHead(ZeroShotHead()), class_names=TINY_CLASSES)
    strategy = FineTune(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.5),
        train_mb_size=4,
        train_epochs=2,
        evaluator=EvaluationPlugin,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for experience in benchmark.train_stream:
            strategy.train(experience)
    return model.head.weight.detach()


def test_training_on_it_equals_training_on_the_images(tmp_path):
    backbone = TinyBackbone()
    same = {"train_transform": backbone.eval_transform, "eval_transform": backbone.eval_transform}
    images = tensor_benchmark(pixels(0), pixels(1), class_names=TINY_CLASSES, n_experiences=3, **same)
    embedded = embed(images, backbone, cache_dir=tmp_path)
    on_images = train(images, frozen_tower=TinyBackbone())
    on_embeddings = train(embedded, frozen_tower=TinyBackbone())
    start = CLIPClassifier(TinyBackbone(), CosineHead(ZeroShotHead()), class_names=TINY_CLASSES).head.weight
    assert torch.allclose(on_images, on_embeddings, atol=1e-5)
    assert not torch.allclose(on_images, start, atol=1e-2)


def test_mode_gradients_and_random_state_are_left_as_found(backbone, tmp_path):
    benchmark = class_incremental(backbone, tmp_path)
    backbone.text_tower.eval()
    modes = [module.training for module in backbone.modules()]
    state = torch.get_rng_state()
    embedded = embed(benchmark, backbone, cache_dir=tmp_path, n_views=2)
    assert [module.training for module in backbone.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    x = embedded.test_stream[0].dataset[0][0]
    assert not x.is_inference()
    assert not x.requires_grad


def test_a_classifier_with_a_frozen_image_tower_will_do(backbone, tmp_path):
    benchmark = class_incremental(backbone, tmp_path)
    text = CLIPClassifier(backbone, trainable="text", train_logit_scale=True)
    embed(benchmark, text, cache_dir=tmp_path)
    assert sum(backbone.batches) == 48
    with torch.no_grad():
        for parameter in text.parameters():
            parameter.add_(0.1)
    embed(benchmark, text, cache_dir=tmp_path)  # what trained has no part in the images' embeddings
    again = counting_backbone()
    embed(benchmark, CLIPClassifier(again), cache_dir=tmp_path)
    assert sum(backbone.batches) == 48
    assert again.batches == []


@pytest.mark.parametrize("trainable", ["image", "both", LoRA(rank=1, towers=("image",))])
def test_an_image_tower_that_trains_is_refused(trainable, tmp_path):
    model = tiny_classifier(trainable=trainable)
    benchmark = class_incremental(model.backbone, tmp_path)
    for wrong in (model, model.requires_grad_(False)):
        with pytest.raises(ValueError, match="`backbone` must be one whose image tower is frozen; got one"):
            embed(benchmark, wrong, cache_dir=tmp_path)
    by_hand = TinyBackbone().requires_grad_(True)
    with pytest.raises(ValueError, match="out of date after the first step"):
        embed(benchmark, by_hand, cache_dir=tmp_path)


def test_lora_on_the_text_tower_is_no_hindrance(tmp_path):
    model = tiny_classifier(trainable=LoRA(rank=1, towers=("text",)))
    embedded = embed(class_incremental(model.backbone, tmp_path), model, cache_dir=tmp_path)
    assert len(embedded.train_stream) == 3


@pytest.mark.filterwarnings("ignore:stream generator will be converted:UserWarning")
def test_wrong_benchmarks_are_named(tmp_path):
    backbone = TinyBackbone()
    images = class_incremental(backbone, tmp_path)
    untransformed = tensor_benchmark(pixels(0), pixels(1), class_names=TINY_CLASSES, n_experiences=3)
    already = tiny_benchmark(embedded=tiny_classifier())
    online = CLScenario([split_online_stream(images.train_stream, experience_size=3), images.test_stream])
    for benchmark, error, sentence in (
        ([], TypeError, "`benchmark` must be an Avalanche benchmark"),
        (untransformed, TypeError, "whose transforms return float tensors"),
        (already, TypeError, "must be a benchmark of images"),
        (online, ValueError, "Embed the benchmark first"),
    ):
        with pytest.raises(error, match=sentence):
            embed(benchmark, backbone, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("cache_dir", 3, TypeError),
        ("features", "normalised", ValueError),
        ("n_views", 0, ValueError),
        ("batch_size", 0, ValueError),
        ("precision", "fp8", ValueError),
        ("device", 1.5, TypeError),
        ("num_workers", -1, ValueError),
        ("verify", "no", ValueError),
    ],
)
def test_a_wrong_argument_is_named(name, value, error, tmp_path):
    with pytest.raises(error, match=f"`{name}` must be"):
        embed(tiny_benchmark(), TinyBackbone(), **{"cache_dir": tmp_path, name: value})


def test_a_wrong_backbone_is_named(tmp_path):
    for wrong, error in (("ViT-B-16", TypeError), (EmbeddingBackbone(16), ValueError)):
        with pytest.raises(error, match="`backbone` must be"):
            embed(tiny_benchmark(), wrong, cache_dir=tmp_path)


def test_features_that_are_not_finite_are_refused_and_not_kept(tmp_path):
    backbone = TinyBackbone()
    with torch.no_grad():
        backbone.image_tower.proj[0, 0] = float("nan")
    with pytest.raises(ValueError, match="features \\(B, D\\) are finite"):
        embed(tiny_benchmark(), backbone, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_another_device_gives_the_same_and_is_left_again(tmp_path):
    backbone = TinyBackbone()
    benchmark = class_incremental(backbone, tmp_path)
    here = embed(benchmark, backbone, cache_dir=tmp_path / "cpu")
    there = embed(benchmark, backbone, cache_dir=tmp_path / "gpu", device="cuda")
    assert backbone.logit_scale.device.type == "cpu"
    assert torch.allclose(leaf(here).x, leaf(there).x, atol=1e-3)


def test_data_loader_processes_change_nothing(tmp_path):
    backbone = TinyBackbone()
    benchmark = class_incremental(backbone, tmp_path)
    arguments = {"batch_size": 2, "n_views": 2}
    alone = embed(benchmark, backbone, cache_dir=tmp_path / "a", **arguments)
    helped = embed(benchmark, backbone, cache_dir=tmp_path / "b", num_workers=2, **arguments)
    for one, other in zip(leaf_views(alone), leaf_views(helped), strict=True):
        assert torch.equal(one, other)


def leaf_views(benchmark):
    (node,) = {id(n): n for e in benchmark.train_stream for n in leaves(e.dataset)}.values()
    return node._datasets[0].views
