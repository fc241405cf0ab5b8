"""Replay from a generator: against a plain loop, beside other plugins, resumed, and without a trace."""

import gc
import json
from copy import copy

import pytest
import torch
from avalanche.benchmarks import class_incremental_benchmark, nc_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.training import Cumulative, JointTraining, Naive
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.utils.data import TensorDataset

from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.metrics import stored_bytes
from avalanche_vlm.models import CosineHead, LearnedContextHead, ZeroShotHead
from avalanche_vlm.plugins import (
    GDumbPlugin,
    GenerativeLatentReplayPlugin,
    LabelSpaceCrossEntropy,
    PastGenerativeLatentReplayPlugin,
    SynapticIntelligencePlugin,
)
from avalanche_vlm.plugins.fast_loader import FastLoader
from avalanche_vlm.sources import DiagonalGaussian, LowRankGaussian
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import (
    check_callbacks,
    check_composes,
    check_repeatable,
    check_resumable,
    tiny_benchmark,
    tiny_classifier,
)
from avalanche_vlm.testing.running import differing, run, snapshot

KINDS = [GenerativeLatentReplayPlugin, PastGenerativeLatentReplayPlugin]
EMBEDDED = tiny_benchmark(embedded=tiny_classifier())
IMAGES = tiny_benchmark()


def replay(kind=GenerativeLatentReplayPlugin, **arguments):
    return kind(DiagonalGaussian(seed=3), **{"samples_per_class": 6, **arguments})


def strategy(
    plugins, kind=FineTune, make_model=lambda: tiny_classifier(CosineHead(ZeroShotHead())), **arguments
):
    model = make_model()
    arguments = {"train_mb_size": 5, "train_epochs": 2, "evaluator": None, **arguments}
    if kind is not FineTune:
        arguments = {"criterion": LabelSpaceCrossEntropy("seen"), "eval_mb_size": 4, **arguments}
    return kind(model=model, optimizer=SGD(model.parameters(), lr=0.05), plugins=[*plugins], **arguments)


class Watch(SupervisedPlugin):
    """Notes every batch, and what the data set looks like, epoch by epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []
        self.sizes = []
        self.lengths = []
        self.loaders = []

    def before_training_epoch(self, strategy, **kwargs):
        self.epochs.append([])
        self.lengths.append(len(strategy.adapted_dataset))

    def before_forward(self, strategy, **kwargs):
        self.epochs[-1].append((strategy.mb_x.clone(), strategy.mb_y.clone()))
        self.loaders.append(type(strategy.dataloader))

    def after_training_epoch(self, strategy, **kwargs):
        self.sizes.append(strategy.train_mb_size)

    def features(self, epoch):
        return torch.cat([x for x, _ in self.epochs[epoch]])

    def labels(self, epoch):
        return torch.cat([y for _, y in self.epochs[epoch]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [False, True])
def test_a_plain_loop_with_the_same_draws_ends_in_the_same_weights(kind, images):
    """The loop encodes, fits, draws and steps by itself; only the order in a batch is the host's."""
    watch = Watch()
    trained = strategy([replay(kind), watch], make_model=cosine_model)
    run(trained, IMAGES if images else EMBEDDED)

    generator, model, batches = DiagonalGaussian(seed=3), cosine_model(), iter(watch.epochs)
    optimizer = SGD([model.head.weight], lr=0.05)
    seen = []
    for experience in (IMAGES if images else EMBEDDED).train_stream:
        samples = [(x, y) for x, y, _ in experience.dataset]
        with torch.no_grad():
            real = model.encode(torch.stack([x for x, _ in samples]))
        labels = torch.tensor([y for _, y in samples])
        old = list(seen)
        seen = sorted({*seen, *labels.tolist()})
        generator.fit(real, labels)
        for _ in range(2):
            x, y = real[:0], labels[:0]
            asked = seen
            if kind is PastGenerativeLatentReplayPlugin:
                x, y, asked = real, labels, old
            if asked:
                drawn = generator.sample(asked, 6)
                x, y = torch.cat([x, drawn[0]]), torch.cat([y, drawn[1]])
            given = next(batches)
            # The epoch has exactly these samples, in batches of some order.
            gone = torch.cat([each for each, _ in given])
            distance = torch.cdist(gone.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
            order = distance.argmin(dim=1)
            assert sorted(order.tolist()) == list(range(len(x)))
            torch.testing.assert_close(gone, x[order], atol=1e-6, rtol=0)
            for part in order.split([len(each) for each, _ in given]):
                weights = F.normalize(model.head.weight, dim=1)
                logits = model.backbone.logit_scale * F.normalize(x[part], dim=1) @ weights.T
                loss = F.cross_entropy(
                    logits[:, seen], torch.tensor([seen.index(c) for c in y[part].tolist()])
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    torch.testing.assert_close(trained.model.head.weight, model.head.weight, atol=1e-5, rtol=1e-4)
    assert next(batches, None) is None


def cosine_model():
    return tiny_classifier(CosineHead(ZeroShotHead()))


def test_every_class_so_far_is_drawn_equally_often_and_anew_each_epoch():
    watch = Watch()
    trained = strategy([watch, replay()])
    for experience in EMBEDDED.train_stream:
        trained.train(experience)
    for epoch, classes in enumerate((2, 2, 4, 4, 6, 6)):
        assert watch.labels(epoch).bincount().tolist() == [6] * classes
        assert watch.lengths[epoch] == 6 * classes
    for epoch in (0, 2, 4):
        assert torch.cdist(watch.features(epoch), watch.features(epoch + 1)).min() > 1e-4
    assert set(watch.loaders) == {FastLoader}


def test_the_past_alone_is_synthetic_where_the_present_is_kept():
    watch = Watch()
    trained = strategy([replay(PastGenerativeLatentReplayPlugin, samples_per_class=3), watch])
    for experience in EMBEDDED.train_stream:
        trained.train(experience)
    for epoch, past in enumerate((0, 0, 2, 2, 4, 4)):
        real = torch.stack([x for x, _, _ in EMBEDDED.train_stream[epoch // 2].dataset])
        equal = torch.cdist(watch.features(epoch), real).min(dim=1).values < 1e-5
        assert int(equal.sum()) == len(real)
        assert watch.labels(epoch)[~equal].bincount(minlength=past).tolist() == [3] * past


@pytest.mark.parametrize("kind", KINDS)
def test_images_give_what_their_embeddings_give(kind):
    ends = [run(strategy([replay(kind)]), benchmark) for benchmark in (IMAGES, EMBEDDED)]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], atol=1e-5, rtol=1e-5)


def test_images_are_encoded_once_an_experience_with_the_eval_transform():
    def augment(x):
        return x + 100

    x, y = torch.rand(24, 3, 8, 8), torch.arange(24) % 6
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    benchmark = nc_benchmark(
        data, data, 3, False, shuffle=False, train_transform=augment, eval_transform=lambda x: x + 1
    )
    trained = strategy([replay()])
    given = []
    encode_image = trained.model.backbone.encode_image
    trained.model.backbone.encode_image = lambda images: given.append(images) or encode_image(images)
    trained.train(benchmark.train_stream[0])
    assert sorted(len(each) for each in given) == [3, 5]  # 8 images in batches of eval_mb_size
    for images in given:
        assert images.min() >= 1
        assert images.max() <= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [False, True])
def test_no_feature_and_no_image_is_kept(kind, images):
    benchmark = IMAGES if images else EMBEDDED
    before = [*tensors_of_width(16), EMBEDDED.train_stream[0].dataset[0][0]]
    plugin = replay(kind)
    trained = strategy([plugin])
    model = trained.model
    for number, experience in enumerate(benchmark.train_stream):
        trained.train(experience)
        assert stored_bytes(trained) == {kind.__name__: plugin.nbytes, "total": plugin.nbytes}
        assert plugin.nbytes == plugin.generator.nbytes == (number + 1) * 2 * (2 * 16 * 4 + 2 * 8)
    real = torch.stack([x for experience in benchmark.train_stream for x, _, _ in experience.dataset])
    with torch.no_grad():
        rows = model.encode(real).reshape(len(real), -1)
    # Every tensor that training has left behind, whoever holds it; views of the benchmark's own apart.
    own = {tensor.untyped_storage().data_ptr() for tensor in (*before, real, rows)}
    for thing in tensors_of_width(16):
        if thing.untyped_storage().data_ptr() not in own:
            assert torch.cdist(thing.detach().reshape(-1, 16).float(), rows).min() > 1e-5, thing.shape


def tensors_of_width(width):
    gc.collect()
    # By `type`: some objects of torch warn when they are asked what they are.
    every = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    floats = [each for each in every if each.layout == torch.strided and each.is_floating_point()]
    return [each for each in floats if each.shape[-1:] == (width,) and each.numel()]


def test_the_batch_grows_with_the_classes_and_the_steps_do_not():
    watch = Watch()
    trained = strategy([watch, replay(batch_samples_per_class=2)])
    steps = []
    for experience in EMBEDDED.train_stream:
        trained.train(experience)
        steps.append([len(epoch) for epoch in watch.epochs[-2:]])
        assert trained.train_mb_size == 5
    assert steps == [[3, 3]] * 3
    assert [len(epoch[0][0]) for epoch in watch.epochs] == [4, 4, 8, 8, 12, 12]
    assert watch.sizes == [5] * 6


def test_an_interrupted_experience_leaves_the_batch_size_as_it_was():
    class Interrupting(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            raise KeyboardInterrupt

    plugin = replay(batch_samples_per_class=2)
    trained = strategy([plugin, Interrupting()])
    with pytest.raises(KeyboardInterrupt):
        trained.train(EMBEDDED.train_stream[0])
    trained.plugins.pop(1)
    watch = Watch()
    trained.plugins.append(watch)
    trained.train(EMBEDDED.train_stream[1])
    assert trained.train_mb_size == 5


def test_a_class_that_comes_again_is_drawn_from_all_that_was_fitted():
    plugin = replay()
    trained = strategy([plugin])
    for experience in (EMBEDDED.train_stream[0], EMBEDDED.train_stream[1], EMBEDDED.train_stream[0]):
        trained.train(experience)
    assert plugin.generator.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert plugin.generator.classes == [0, 1, 2, 3]


def test_a_list_of_experiences_is_served_at_once():
    watch = Watch()
    strategy([replay(), watch], kind=JointTraining).train(EMBEDDED.train_stream)
    assert watch.labels(0).bincount().tolist() == [6] * 6


def test_an_online_stream():
    plugin, watch = replay(samples_per_class=2), Watch()
    trained = strategy([plugin, watch], train_epochs=1)
    online = split_online_stream(EMBEDDED.train_stream, experience_size=3, access_task_boundaries=False)
    for experience in online:
        trained.train(experience)
    assert sorted(plugin.generator.counts.tolist())[-1] <= 3
    assert int(plugin.generator.counts.sum()) == 24
    assert watch.labels(-1).bincount().tolist() == [2] * 6
    assert trained.model.head.weight.isfinite().all()


def test_evaluation_inside_training_sees_the_streams_and_not_the_draws():
    counted = []

    class Count(SupervisedPlugin):
        def after_eval_forward(self, strategy, **kwargs):
            counted.append(len(strategy.mb_x))

    trained = strategy([replay(), Count()], eval_every=1)
    trained.train(EMBEDDED.train_stream[0], eval_streams=[EMBEDDED.test_stream])
    assert sum(counted) == 3 * 24  # before the first epoch, and after each


def plain_benchmark(task_labels=False):
    x, y = torch.randn(24, 16), torch.arange(24) % 6
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return nc_benchmark(data, data, n_experiences=3, task_labels=task_labels, shuffle=False)


@pytest.mark.parametrize("kind", KINDS)
def test_task_labels_are_those_of_each_class(kind):
    tasks = {}

    class Note(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            tasks.update(zip(strategy.mb_y.tolist(), strategy.mb_task_id.tolist(), strict=True))

    trained = strategy([replay(kind), Note()])
    for experience in plain_benchmark(task_labels=True).train_stream:
        tasks.clear()
        trained.train(experience)
    assert tasks == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_without_task_labels_and_a_model_of_the_host(kind):
    x, y = torch.randn(24, 16), torch.arange(24) % 6
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    data = as_classification_dataset(data)
    benchmark = class_incremental_benchmark(
        {"train": data, "test": data}, num_experiences=3, class_order=range(6)
    )
    watch = Watch()
    trained = strategy(
        [replay(kind), ReplayPlugin(mem_size=6), watch],
        kind=Naive,
        make_model=lambda: nn.Linear(16, 6),
        criterion=nn.CrossEntropyLoss(),
    )
    for experience in benchmark.train_stream:
        trained.train(experience)
    assert set(watch.labels(-1).tolist()) == set(range(6))


@pytest.mark.parametrize("kind", KINDS)
def test_laws(kind):
    check_callbacks(replay(kind))
    check_repeatable(lambda: strategy([replay(kind)]), EMBEDDED)
    check_resumable(lambda: strategy([replay(kind)]), IMAGES)
    before = torch.get_rng_state()
    trained = strategy([replay(kind)])
    assert torch.equal(before, torch.get_rng_state())
    trained.train(EMBEDDED.train_stream[0])
    assert set(differing(snapshot(trained.model), snapshot(tiny_classifier(CosineHead(ZeroShotHead()))))) == {
        "head.weight",
        "classes_seen",
    }


def test_the_embeddings_draw_nothing_from_the_global_generator():
    """The order of batches is the host's; with one batch an epoch only its loader draws."""
    orders = []
    for plugins in ([], [replay()]):
        torch.manual_seed(5)
        trained = strategy([*plugins], train_mb_size=99, train_epochs=1)
        trained.train(EMBEDDED.train_stream[0])
        orders.append(torch.get_rng_state())
    assert torch.equal(*orders)


def test_beside_plugins_of_the_host():
    plugins = {
        "ours": lambda: replay(samples_per_class=3),
        "Replay": lambda: ReplayPlugin(mem_size=6),
        "LwF": lambda: LwFPlugin(alpha=1.0, temperature=2.0),
        "EWC": lambda: EWCPlugin(ewc_lambda=100.0),
        "SI": lambda: SynapticIntelligencePlugin(si_lambda=1e4),
    }
    for other in [name for name in plugins if name != "ours"]:
        pair = {name: plugins[name] for name in ("ours", other)}
        check_composes(lambda chosen: strategy(chosen, train_mb_size=16), pair, EMBEDDED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [1, -1])
def test_beside_host_replay_batches_hold_both(order, kind):
    watch = Watch()
    plugins = [replay(kind), ReplayPlugin(mem_size=6)][::order]
    trained = strategy([*plugins, watch])
    for experience in EMBEDDED.train_stream:
        trained.train(experience)
    assert set(watch.loaders) == {FastLoader}
    real = torch.stack([x for e in EMBEDDED.train_stream[:2] for x, _, _ in e.dataset])
    for x, y in watch.epochs[-1]:
        stored = torch.cdist(x, real).min(dim=1).values < 1e-5
        assert 0 < int(stored.sum()) < len(x)
        assert y[stored].max() < 4


RESUMED = {
    "generative": (GenerativeLatentReplayPlugin, IMAGES),
    "past": (PastGenerativeLatentReplayPlugin, IMAGES),
    "past, embedded": (PastGenerativeLatentReplayPlugin, EMBEDDED),
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_from_a_real_checkpoint_anywhere(name, tmp_path):
    kind, benchmark = RESUMED[name]

    def build(folder):
        model = tiny_classifier(LearnedContextHead(context_length=2))
        others = [ReplayPlugin(mem_size=6)] if benchmark is EMBEDDED else [LwFPlugin()]
        return FineTune(
            model=model,
            optimizer=AdamW(model.parameters(), lr=1e-2),
            plugins=[
                *others,
                CheckpointPlugin(folder, keep=99, every_n_epochs=1),
                kind(LowRankGaussian(rank=2), samples_per_class=5, batch_samples_per_class=2),
            ],
            train_mb_size=4,
            train_epochs=3,
            evaluator=None,
        )

    def go_on(run, start):
        for experience in benchmark.train_stream[start:]:
            run.train(experience)
            run.eval(benchmark.test_stream)
        return {**snapshot(run.model), "size": torch.tensor(run.train_mb_size)}

    torch.manual_seed(0)
    expected = go_on(build(tmp_path / "whole"), 0)
    files = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(files) > 6
    for file in files:
        torch.manual_seed(99)
        resumed = build(tmp_path / file.stem)
        start = resume(resumed, file, benchmark)
        assert not differing(expected, go_on(resumed, start)), file.name
    # Neither what is drawn nor what is real is written: 6 classes of 2 directions and a mean, twice a file.
    assert max(file.stat().st_size for file in files) < 200_000


def test_a_checkpoint_does_not_grow_with_the_draws(tmp_path):
    sizes = []
    for count in (5, 500):
        folder = tmp_path / str(count)
        plugins = [CheckpointPlugin(folder, keep=99, every_n_epochs=1), replay(samples_per_class=count)]
        strategy(plugins, train_mb_size=500).train(EMBEDDED.train_stream[0])
        sizes.append(max(file.stat().st_size for file in folder.glob("*.ckpt")))
    assert abs(sizes[1] - sizes[0]) < 2000  # 500 draws of 2 classes are 64,000 bytes


def test_what_cannot_be_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"`strategy.model`.*image tower trains.*CosineHead"):
        strategy([replay()], make_model=lambda: tiny_classifier(trainable="image")).train(
            IMAGES.train_stream[0]
        )
    for plugins in ([replay(), ReplayPlugin(mem_size=4)], [ReplayPlugin(mem_size=4), replay()]):
        with pytest.raises(
            ValueError, match=r"`strategy.plugins`.*ReplayPlugin with a .*Buffer of images.*embed"
        ):
            strategy(plugins).train(IMAGES.train_stream[0])
    with pytest.raises(TypeError, match=r"`strategy.model`.*CLIPClassifier.*embed\(benchmark"):
        strategy(
            [replay()], kind=Naive, make_model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
        ).train(IMAGES.train_stream[0])


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_told_as_plain_values(kind):
    plugin = kind(LowRankGaussian(rank=4, seed=2), samples_per_class=9, batch_samples_per_class=3)
    told = {
        "generator": {"kind": "LowRankGaussian", "rank": 4, "residual": 0.0, "dtype": "float32", "seed": 2},
        "samples_per_class": 9,
        "batch_samples_per_class": 3,
    }
    assert plugin.describe() == json.loads(json.dumps(plugin.describe())) == told
    strategy([plugin]).train(EMBEDDED.train_stream[0])
    assert plugin.describe() == told


def test_a_copy_of_an_experience_trains_as_the_experience():
    ends = []
    for experience in (EMBEDDED.train_stream[0], copy(EMBEDDED.train_stream[0])):
        torch.manual_seed(0)
        trained = strategy([replay()])
        trained.train(experience)
        ends.append(snapshot(trained.model))
    assert not differing(*ends)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cumulative_adds_is_not_fitted_again(kind):
    plugin = replay(kind)
    run(strategy([plugin], kind=Cumulative), EMBEDDED)
    assert plugin.generator.labels.tolist() == plugin.generator.classes


def test_two_generators_side_by_side_are_refused():
    both = strategy([replay(), replay(PastGenerativeLatentReplayPlugin)])
    with pytest.raises(ValueError, match="`plugins` must be a list with one plugin that replays"):
        both.train(EMBEDDED.train_stream[0])


def test_gdumb_beside_a_generator_is_refused():
    both = strategy([replay(), GDumbPlugin(8)])
    with pytest.raises(ValueError, match="`plugins` must be a list without GDumb"):
        both.train(EMBEDDED.train_stream[0])


def test_a_generator_of_another_run_is_noticed():
    generator = DiagonalGaussian()
    generator.fit(torch.randn(4, 16), torch.arange(4) % 2)
    with pytest.warns(UserWarning, match="fitted before, to 2 classes"):
        GenerativeLatentReplayPlugin(generator)
