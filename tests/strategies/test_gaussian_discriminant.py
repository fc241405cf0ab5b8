"""The discriminant as a head and as a strategy: exact over any cut, saved, resumed, and on real features."""

import copy
import pickle

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch.nn import functional as F
from torch.optim import SGD

from avalanche_vlm.benchmarks import class_names, tensor_benchmark
from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.functional import last_accuracy
from avalanche_vlm.metrics import AccuracyMatrixMetric
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    ResidualAdapter,
    TextFeatureHead,
    ZeroShotHead,
)
from avalanche_vlm.plugins import GaussianDiscriminantPlugin, GenerativeLatentReplayPlugin
from avalanche_vlm.sources import DiagonalGaussian
from avalanche_vlm.strategies import FineTune, GaussianDiscriminant, ZeroShot
from avalanche_vlm.testing import (
    TINY_CLASSES,
    TinyBackbone,
    check_frozen,
    check_modes,
    check_seeded,
    tiny_benchmark,
    tiny_classifier,
    tiny_images,
)
from avalanche_vlm.testing.running import differing, run, snapshot

SUMS = ("counts", "sums", "second_moment")
EMBEDDED = tiny_benchmark(embedded=tiny_classifier())
IMAGES = tiny_benchmark()


def classifier(**arguments):
    return tiny_classifier(GaussianDiscriminantHead(**arguments))


def build(**arguments):
    return GaussianDiscriminant(**{"model": classifier(), "eval_mb_size": 5, "evaluator": None, **arguments})


def features(count=20, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 16, generator=draw), torch.randint(0, 6, (count,), generator=draw)


@pytest.mark.parametrize("images", [False, True])
def test_any_cut_into_experiences_ends_in_the_sums_of_all(images):
    x, y = tiny_images(per_class=4, seed=0)
    whole = classifier(fusion_weight=0.2)
    with torch.no_grad():
        whole.head.update(whole.encode(x), y)
    ends = []
    for n_experiences in (1, 2, 3):
        benchmark = tiny_benchmark(
            embedded=None if images else tiny_classifier(), n_experiences=n_experiences
        )
        strategy = build(model=classifier(fusion_weight=0.2))
        run(strategy, benchmark)
        ends.append(strategy.model)
    probe = features()[0]
    for model in ends:
        for name in SUMS:
            expected = getattr(whole.head, name)
            if images:  # whose embeddings depend on the batch a little
                torch.testing.assert_close(getattr(model.head, name), expected, atol=1e-4, rtol=0)
            else:
                assert torch.equal(getattr(model.head, name), expected)
        if images:
            torch.testing.assert_close(model(probe), whole(probe), atol=1e-3, rtol=1e-3)
        else:
            assert torch.equal(model(probe), whole(probe))


def test_processes_merge_into_one():
    x, y = features(40)
    whole, first, second = (classifier().head for _ in range(3))
    whole.update(x, y)
    first.update(x[:13], y[:13])
    second.update(x[13:], y[13:])
    first.merge(second)
    for name in SUMS:
        assert torch.equal(getattr(first, name), getattr(whole, name))


def test_classes_without_samples_keep_their_zero_shot_probability():
    model, zero_shot, (x, y) = classifier(), tiny_classifier(), features()
    p0 = zero_shot(x).softmax(dim=1)
    torch.testing.assert_close(model(x).softmax(dim=1), p0)  # nothing seen yet
    seen = y < 3
    model.head.update(x[seen], y[seen])
    p = model(x).softmax(dim=1)
    torch.testing.assert_close(p[:, 3:], p0[:, 3:])
    assert (p[:, :3] - p0[:, :3]).abs().max() > 1e-2
    model.head.update(x[y == 5], y[y == 5])  # noticed, though weights were solved before
    assert (model(x).softmax(dim=1)[:, 5] - p0[:, 5]).abs().max() > 1e-3


def test_weights_are_compared_in_cosine_space():
    model, (x, y) = classifier(), features()
    model.head.update(x, y)
    longer = classifier()
    longer.head.update(7 * x, y)
    torch.testing.assert_close(longer(3 * x), model(x), atol=1e-5, rtol=1e-4)


def test_half_precision_and_autocast_leave_the_sums_alone():
    model, (x, y) = classifier(), features()
    model.head.update(x, y)
    before = [getattr(model.head, name).clone() for name in SUMS]
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(x) - expected).abs().max() < 1
    model.head.half()
    for name, tensor in zip(SUMS, before, strict=True):
        assert torch.equal(getattr(model.head, name), tensor)
        assert getattr(model.head, name).dtype == tensor.dtype


def test_names_that_are_added_keep_the_sums_and_others_start_anew():
    model, (x, y) = classifier(), features()
    model.head.update(x, y)
    second = model.head.second_moment.clone()
    model.set_classes([*TINY_CLASSES, "elk"])
    assert torch.equal(model.head.second_moment, second)
    assert model.head.counts.tolist() == [*y.bincount(minlength=6).tolist(), 0]
    assert model(x).shape == (20, 7)
    model.set_classes(["one", "two"])
    assert not any(getattr(model.head, name).any() for name in SUMS)


def test_copies_pickles_and_state_dicts_have_the_sums():
    model, (x, y) = classifier(), features()
    model.head.update(x, y)
    model(x)
    for other in (copy.deepcopy(model.head), pickle.loads(pickle.dumps(model.head))):
        assert not differing(snapshot(model.head), snapshot(other))
    loaded = classifier()
    loaded(x)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(x), model(x))


def test_a_head_that_learns_can_be_the_zero_shot_part():
    model, (x, y) = classifier(zero_shot=CosineHead(ZeroShotHead())), features()
    model.head.update(x, y)
    assert [name for name, _ in model.named_parameters()] == ["head.zero_shot.weight"]
    F.cross_entropy(model(x), y).backward()
    assert model.head.zero_shot.weight.grad.abs().sum() > 0


def test_saved_and_read_again(tmp_path):
    model = CLIPClassifier(
        EmbeddingBackbone(16),
        GaussianDiscriminantHead(
            TextFeatureHead(torch.randn(6, 16)), fusion_weight=0.7, ridge=2.0, prior="counts"
        ),
        class_names=TINY_CLASSES,
    )
    model.head.update(*features())
    model.save_pretrained(str(tmp_path / "model"))
    given = GaussianDiscriminantHead.from_config(model.head.config())
    read = CLIPClassifier.from_pretrained(str(tmp_path / "model"), head=given)
    assert (given.fusion_weight, given.ridge, given.prior) == (0.7, 2.0, "counts")
    x = torch.randn(3, 16)
    assert torch.equal(read(x), model(x))


@pytest.mark.parametrize("images", [False, True])
def test_resumed_from_checkpoints(images, tmp_path):
    benchmark = IMAGES if images else EMBEDDED

    def make(folder):
        return build(plugins=[CheckpointPlugin(folder, keep=99, every_n_epochs=1)], train_epochs=2)

    def go_on(strategy, start):
        for experience in benchmark.train_stream[start:]:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
        return snapshot(strategy.model)

    expected = go_on(make(tmp_path / "whole"), 0)
    files = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(files) == 7
    for file in files:
        resumed = make(tmp_path / file.stem)
        start = resume(resumed, file, benchmark)
        assert not differing(expected, go_on(resumed, start)), file.name


def test_laws():
    check_seeded(classifier)
    model = classifier()
    model.head.update(*features())
    check_modes(lambda: model(features()[0]), [model])
    sums = {f"head.{name}" for name in ("fold_counts", "fold_sums", "fold_moments")}
    sums |= {f"head.left_out_{name}" for name in ("sums", "products", "weights")} | {"head.scored_rows"}
    strategy = build()
    before = snapshot(strategy.model)
    after = run(strategy, IMAGES)
    assert set(differing(before, after)) == sums | {"classes_seen"}
    check_frozen(lambda: ZeroShot(model=classifier(), evaluator=None), IMAGES, trains=False)


def test_a_fixed_adapter_is_passed_in_training_as_in_evaluation():
    model = tiny_classifier(GaussianDiscriminantHead(), image_adapter=ResidualAdapter())
    with torch.no_grad():
        for parameter in model.image_adapter.parameters():
            parameter.add_(0.5)
    with pytest.raises(ValueError, match="whose adapter trains"):
        GaussianDiscriminant(model=model, evaluator=None)
    model.image_adapter.requires_grad_(False)
    run(GaussianDiscriminant(model=model, evaluator=None), EMBEDDED)
    x = torch.stack([x for experience in EMBEDDED.train_stream for x, _, _ in experience.dataset])
    y = torch.tensor([y for experience in EMBEDDED.train_stream for _, y, _ in experience.dataset])
    expected = classifier().head
    with torch.no_grad():
        expected.update(model.image_adapter(x), y)
    torch.testing.assert_close(model.head.sums, expected.sums, atol=1e-6, rtol=0)


def test_epochs_and_batches_do_not_count():
    ends = [
        run(build(train_epochs=epochs, train_mb_size=size), EMBEDDED) for epochs, size in ((1, 3), (4, 24))
    ]
    assert not differing(*ends)


def test_each_fault_is_named():
    head = classifier().head
    x, y = features(4)
    for name, arguments in {
        "zero_shot": {"zero_shot": 3},
        "fusion_weight": {"fusion_weight": -1},
        "ridge": {"ridge": 0},
        "prior": {"prior": "equal"},
    }.items():
        with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
            GaussianDiscriminantHead(**arguments)
    for name, wrong in {
        "embeddings": ([[1.0]], y),
        "embeddings`.*shape": (x[:, :3], y),
        "embeddings`.*finite": (x / 0, y),
        "labels": (x, y.float()),
        "labels`.*one for each": (x, y[:2]),
        "labels`.*in 0..5": (x, y + 6),
    }.items():
        with pytest.raises((TypeError, ValueError), match=f"`{name}"):
            head.update(*wrong)
    other = GaussianDiscriminantHead()
    other.set_classes(type(head.class_names)(["one", "two"]), TinyBackbone())
    with pytest.raises(ValueError, match="`other`"):
        head.merge(other)
    with pytest.raises(TypeError, match="`other`"):
        head.merge(ZeroShotHead())
    with pytest.raises(ValueError, match=r"`model`.*ZeroShotHead.*Wrap the head"):
        GaussianDiscriminant(model=tiny_classifier())
    with pytest.raises(TypeError, match="`model`"):
        GaussianDiscriminant(model=torch.nn.Linear(2, 2))
    training = tiny_classifier(GaussianDiscriminantHead(), trainable="image")
    with pytest.raises(ValueError, match=r"`strategy.model`.*image tower trains"):
        GaussianDiscriminant(model=training, evaluator=None).train(IMAGES.train_stream[0])
    with pytest.raises(RuntimeError, match="no names yet"):
        GaussianDiscriminantHead().update(x, y)


@pytest.mark.parametrize(
    ("name", "n_experiences", "reached"), [("caltech101", 7, 97.0), ("oxford_pets", 5, 94.1)]
)
def test_on_real_features_it_beats_zero_shot(real_data, name, n_experiences, reached):
    with np.load(real_data / "clip_vitb32_features.npz", allow_pickle=False) as data:
        text = torch.from_numpy(data[f"{name}/text"]).float()
        kept = text.ne(0).any(dim=1)
        new_id = kept.cumsum(0) - 1

        def part(*names):
            x = torch.cat([torch.from_numpy(data[f"{name}/{p}_x"]).float() for p in names])
            y = torch.cat([torch.from_numpy(data[f"{name}/{p}_y"]).long() for p in names])
            return x[kept[y]], new_id[y[kept[y]]]

        train, test = part("train", "val"), part("test")
    names = [f"class {index}" for index in range(int(kept.sum()))]
    benchmark = tensor_benchmark(train, test, class_names=names, n_experiences=n_experiences, seed=0)
    accuracy = {}
    for kind, head in ((ZeroShot, lambda h: h), (GaussianDiscriminant, GaussianDiscriminantHead)):
        text_head = head(TextFeatureHead(text[kept]))
        model = CLIPClassifier(EmbeddingBackbone(512), text_head, class_names=class_names(benchmark))
        metric = AccuracyMatrixMetric("seen")
        strategy = kind(model=model, train_mb_size=512, evaluator=EvaluationPlugin(metric))
        for experience in benchmark.train_stream:
            strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        accuracy[kind] = 100 * float(last_accuracy(metric.matrix(), metric.counts()))
    assert accuracy[GaussianDiscriminant] > accuracy[ZeroShot] + 2
    assert accuracy[GaussianDiscriminant] == pytest.approx(reached, abs=0.3)


def test_beside_replay_only_real_samples_count_in_either_order():
    alone = build()
    run(alone, EMBEDDED)
    expected = alone.model.head
    for order in (1, -1):
        plugins = [GaussianDiscriminantPlugin(), GenerativeLatentReplayPlugin(DiagonalGaussian())][::order]
        model = tiny_classifier(GaussianDiscriminantHead(CosineHead(ZeroShotHead())))
        before = model.head.zero_shot.weight.detach().clone()
        optimizer = SGD(model.parameters(), lr=0.1)
        run(FineTune(model=model, optimizer=optimizer, plugins=plugins, evaluator=None), EMBEDDED)
        for name in SUMS:
            assert torch.equal(getattr(model.head, name), getattr(expected, name))
        assert not torch.equal(model.head.zero_shot.weight, before)
