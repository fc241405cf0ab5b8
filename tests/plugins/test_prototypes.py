"""Prototypes that a run leaves behind: means over images, and where they are after the tower has moved."""

from collections import Counter
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import ReplayPlugin
from torch import nn
from torch.optim import SGD

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.functional import transferred_prototypes
from avalanche_vlm.models import DualPathHead, GaussianDiscriminantHead, LoRA, ResidualAdapter, ZeroShotHead
from avalanche_vlm.plugins import (
    AdversarialAnchorDistillationPlugin,
    LabelSpaceCrossEntropy,
    PrototypePlugin,
    PrototypeTransferPlugin,
    RegularizerPlugin,
)
from avalanche_vlm.regularizers import (
    AdversarialAnchors,
    AnchorDistillation,
    CurrentPairs,
    LastTeacher,
    ReferencePairs,
    SyntheticPairs,
)
from avalanche_vlm.sources import NamePrompts
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import (
    TINY_CLASSES,
    check_callbacks,
    check_composes,
    check_repeatable,
    check_resumable,
    tiny_benchmark,
    tiny_classifier,
    tiny_images,
)
from avalanche_vlm.testing.running import differing, snapshot
from tests.reference.tiny_image_source import NAMES, TinyImageSource

BENCHMARK = tiny_benchmark()
SPACES = ("raw", "embedding")


def strategy(plugins=(), kind=FineTune, space="raw", head=None, **arguments):
    trainable = arguments.pop("trainable", "both")
    adapter = arguments.pop("image_adapter", None)
    head = DualPathHead(visual_space=space) if head is None else head
    model = tiny_classifier(head, trainable=trainable, image_adapter=adapter)
    arguments = {"train_mb_size": 4, "evaluator": None, **arguments}
    if kind is not FineTune:
        arguments |= {"criterion": LabelSpaceCrossEntropy("seen"), "eval_mb_size": 4}
    optimizer = SGD(model.parameters(), lr=0.05)
    return kind(model=model, optimizer=optimizer, plugins=[*plugins], **arguments)


def trained(made, stream, seed=0):
    torch.manual_seed(seed)
    for experience in stream:
        made.train(experience)
    return made.model


def features_of(model, images):
    with torch.no_grad():
        model = deepcopy(model).eval()
        if model.head.visual_space == "raw":
            return model.backbone.encode_image_raw(images)
        return model.adapted(model.encode(images))


def images_of(experience, transform=lambda image: image):
    """The images of each class of an experience."""
    found = {}
    for row in range(len(experience.dataset)):
        image, label, *_ = experience.dataset.eval()[row]
        found.setdefault(int(label), []).append(transform(image))
    return {label: torch.stack(images) for label, images in found.items()}


class Ends(SupervisedPlugin):
    """Copies the model at the end of each experience, before other plugins add to it."""

    def __init__(self):
        super().__init__()
        self.models = []

    def after_training_exp(self, strategy, *args, **kwargs):
        self.models.append(deepcopy(strategy.model))


def augmented():
    x, y = tiny_images()
    return tensor_benchmark(
        (x, y),
        (x, y),
        class_names=TINY_CLASSES,
        n_experiences=3,
        train_transform=lambda image: image.flip(2) + 3,
        eval_transform=lambda image: image + 0.5,
    )


@pytest.mark.parametrize("trainable", ["both", LoRA(rank=2, dropout=0.5)], ids=["full", "lora"])
@pytest.mark.parametrize("beside", [(), (lambda: ReplayPlugin(mem_size=6),)], ids=["alone", "beside replay"])
@pytest.mark.parametrize("space", SPACES)
def test_prototypes_are_means_over_eval_images_at_the_end_of_their_experience(space, beside, trainable):
    benchmark, ends = augmented(), Ends()
    adapter = ResidualAdapter() if space == "embedding" else None
    plugins = [ends, *(make() for make in beside), PrototypePlugin()]
    model = trained(
        strategy(plugins, space=space, trainable=trainable, image_adapter=adapter), benchmark.train_stream
    )
    for experience, then in zip(benchmark.train_stream, ends.models, strict=True):
        for label, images in images_of(experience).items():
            total = torch.zeros(16, dtype=torch.float64)
            for image in images:
                total += features_of(then, image[None])[0].double()
            mean = total / len(images)
            torch.testing.assert_close(model.head.prototypes[label].double(), mean, atol=1e-5, rtol=1e-5)
            assert int(model.head.counts[label]) == len(images) == 4
    raw, y = tiny_images()
    assert torch.equal(images_of(benchmark.train_stream[0])[0], raw[y == 0] + 0.5)


def test_a_class_that_comes_again_has_the_mean_of_all_its_samples():
    ends = Ends()
    stream = [BENCHMARK.train_stream[0], BENCHMARK.train_stream[1], BENCHMARK.train_stream[0]]
    model = trained(strategy([ends, PrototypePlugin()]), stream)
    images = images_of(stream[0])[1]
    both = torch.cat([features_of(ends.models[time], images) for time in (0, 2)])
    torch.testing.assert_close(model.head.prototypes[1], both.mean(dim=0))
    assert model.head.counts.tolist() == [8, 8, 4, 4, 0, 0]


def test_a_stream_of_embeddings_has_prototypes_in_the_embedding_space():
    benchmark = tiny_benchmark(embedded=tiny_classifier())
    made = strategy([PrototypePlugin()], space="embedding", trainable="text")
    model = trained(made, benchmark.train_stream)
    for label, embeddings in images_of(benchmark.train_stream[2]).items():
        torch.testing.assert_close(model.head.prototypes[label], embeddings.mean(dim=0))
    made.eval(benchmark.test_stream)
    with pytest.raises(ValueError, match="`visual_space` must be 'embedding' for a stream of embeddings"):
        trained(strategy([PrototypePlugin()], trainable="text"), benchmark.train_stream)


@pytest.mark.parametrize("kind", [FineTune, Naive])
def test_prototypes_say_nothing_in_training_and_something_in_evaluation(kind):
    ends = []
    for plugins in ([], [PrototypePlugin()], [PrototypeTransferPlugin()]):
        made = strategy(plugins, kind)
        model = trained(made, BENCHMARK.train_stream)
        made.eval(BENCHMARK.test_stream)
        model.eval()
        with torch.no_grad():
            ends.append((snapshot(model), model(tiny_images(seed=1)[0])))
    own = {"head.prototypes", "head.counts"}
    for tensors, logits in ends[1:]:
        assert set(differing(ends[0][0], tensors)) == own
        assert not torch.allclose(ends[0][1], logits, atol=1e-2)


def test_all_experiences_of_joint_training_count():
    made = strategy([PrototypePlugin()], JointTraining)
    torch.manual_seed(0)
    made.train(BENCHMARK.train_stream)
    assert made.model.head.counts.tolist() == [4] * 6
    for experience in BENCHMARK.train_stream:
        for label, images in images_of(experience).items():
            mean = features_of(made.model, images).mean(dim=0)
            torch.testing.assert_close(made.model.head.prototypes[label], mean)


# Following the tower.


def synthetic():
    return SyntheticPairs(TinyImageSource(), NamePrompts(NAMES), count=20)


PROBES = {
    "anchors": AdversarialAnchors,
    "images as they are": lambda: AdversarialAnchors(steps=0),
    "synthetic": synthetic,
}


def distances(model, experiences):
    """How far prototypes are from the means over the images of old classes under the model as it is."""
    found = []
    for experience in experiences:
        for label, images in images_of(experience).items():
            mean = features_of(model, images).mean(dim=0)
            found.append(float((model.head.prototypes[label] - mean).norm()))
    return sum(found) / len(found)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("probes", PROBES)
def test_moved_prototypes_are_nearer_to_the_true_means_than_those_left_behind(probes, space):
    models = [
        trained(strategy([plugin], space=space, train_epochs=4), BENCHMARK.train_stream)
        for plugin in (PrototypePlugin(), PrototypeTransferPlugin(PROBES[probes]()))
    ]
    stale, following = (each.head.prototypes for each in models)
    assert differing(*map(snapshot, models)) == ["head.prototypes"]  # one and the same tower
    assert torch.equal(stale[4:], following[4:])
    assert bool((stale[:4] != following[:4]).any(dim=1).all())
    behind, near = (distances(each, BENCHMARK.train_stream[:2]) for each in models)
    assert behind > 0.08
    assert near < behind / 2
    assert distances(models[0], BENCHMARK.train_stream[2:]) < 1e-5


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("probes", PROBES)
def test_they_move_as_the_function_says_with_features_of_before_and_after(probes, space):
    class Watch(SupervisedPlugin):
        models, images, places = [], None, None

        def before_training_exp(self, strategy, *args, **kwargs):
            self.models = [deepcopy(strategy.model)]

        def after_training_iteration(self, strategy, *args, **kwargs):
            self.images, self.places = (
                plugin.compensator.probes.fixed_images,
                plugin.compensator.probes.fixed_classes,
            )

        def after_training_exp(self, strategy, *args, **kwargs):
            self.models.append(deepcopy(strategy.model))

    watch, plugin = Watch(), PrototypeTransferPlugin(PROBES[probes](), temperature=0.3)
    made = strategy([watch, plugin], space=space)
    for position, experience in enumerate(BENCHMARK.train_stream):
        trained(made, [experience])
        if position == 0:
            continue
        old = torch.arange(2 * position)
        expected = transferred_prototypes(
            watch.models[0].head.prototypes[old],
            *(features_of(model, watch.images) for model in watch.models),
            stands_for=watch.places,  # the ids of old classes are their places here
            temperature=0.3,
        )
        torch.testing.assert_close(made.model.head.prototypes[old], expected)
        assert (watch.places is None) == (probes == "synthetic")


def test_without_drift_they_stay_exactly():
    models = [
        trained(strategy([plugin], trainable="text"), BENCHMARK.train_stream)
        for plugin in (PrototypePlugin(), PrototypeTransferPlugin())
    ]
    assert not differing(*map(snapshot, models))


def test_classes_without_prototype_have_anchors_and_no_place():
    """Trained before the plugin came: nothing of them is moved, and their anchors stand for none."""
    made = strategy()
    trained(made, BENCHMARK.train_stream[:1])
    made.plugins.append(PrototypeTransferPlugin())
    trained(made, BENCHMARK.train_stream[1:])
    assert made.model.head.counts.tolist() == [0, 0, 4, 4, 4, 4]
    assert not made.model.head.prototypes[:2].any()


def test_probes_that_change_from_batch_to_batch_are_refused():
    for probes in (CurrentPairs(), ReferencePairs(torch.zeros(2, 3, 8, 8), NAMES)):
        sentence = f"`probes` must be images that stay.*{type(probes).__name__}.*steps=0.*SyntheticPairs"
        with pytest.raises(ValueError, match=sentence):
            trained(strategy([PrototypeTransferPlugin(probes)]), BENCHMARK.train_stream)


@pytest.mark.parametrize("make", [PrototypePlugin, PrototypeTransferPlugin])
def test_a_model_without_prototypes_is_refused_before_it_is_trained(make):
    made = strategy([make()], head=ZeroShotHead())
    before = snapshot(made.model)
    with pytest.raises(ValueError, match="`model` must be .*with a ZeroShotHead.*DualPathHead"):
        trained(made, BENCHMARK.train_stream)
    assert set(differing(before, snapshot(made.model))) <= {"classes_seen"}
    other = SimpleNamespace(model=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="`model` must be .*a Linear"):
        make().before_training_exp(other)


def test_images_are_asked_for_in_a_stream_of_embeddings():
    benchmark = tiny_benchmark(embedded=tiny_classifier())
    made = strategy([PrototypeTransferPlugin()], space="embedding", trainable="text")
    with pytest.raises(ValueError, match=r"`experience` must be one with images \(3, H, W\)"):
        trained(made, benchmark.train_stream)


def test_anchors_that_are_shared_are_made_once(monkeypatch):
    made, make = Counter(), AdversarialAnchors.make

    def counted(self, model, experience, classes):
        made[self] += 1
        return make(self, model, experience, classes)

    monkeypatch.setattr(AdversarialAnchors, "make", counted)
    for step in (1, -1):
        shared = AdversarialAnchors(seeds_per_class=2)
        plugins = [
            RegularizerPlugin(AnchorDistillation(shared)),
            AdversarialAnchorDistillationPlugin(shared, 2.0),
            PrototypeTransferPlugin(shared),
        ]
        made.clear()
        trained(strategy(plugins[::step]), BENCHMARK.train_stream)
        assert dict(made) == {shared: 2}  # none in the first experience
    with pytest.raises(ValueError, match="`plugins` must be .*got a .* that has served another strategy"):
        trained(strategy(plugins), BENCHMARK.train_stream)
    made.clear()
    apart = [AdversarialAnchorDistillationPlugin(), PrototypeTransferPlugin()]
    trained(strategy(apart), BENCHMARK.train_stream)
    assert sorted(made.values()) == [2, 2]


def test_nothing_of_the_probes_outlives_an_experience():
    plugin = PrototypeTransferPlugin()
    trained(strategy([plugin]), BENCHMARK.train_stream)
    assert plugin.compensator._images is None
    assert plugin.compensator.probes.fixed_images is None
    assert plugin.nbytes == plugin.compensator.probes.nbytes == 6


def test_the_plugin_for_anchors_is_one_line_of_parts():
    anchors, teacher = AdversarialAnchors(), LastTeacher()
    plugin = AdversarialAnchorDistillationPlugin(anchors, 3.0, teacher=teacher, temperature=7.0)
    assert isinstance(plugin, RegularizerPlugin)
    assert plugin.weight == 3.0
    term = plugin.regularizer
    assert (term.pairs, term.teacher, term.temperature) == (anchors, teacher, 7.0)
    own = AdversarialAnchorDistillationPlugin()
    assert (own.weight, own.regularizer.temperature) == (5.0, 20.0)
    assert type(own.regularizer.pairs) is AdversarialAnchors
    with pytest.raises(TypeError, match=r"`anchors` must be .*RegularizerPlugin\(AnchorDistillation"):
        AdversarialAnchorDistillationPlugin(synthetic())


@pytest.mark.parametrize("probes", PROBES)
def test_laws(probes):
    def make(plugins=()):
        return strategy([*plugins, PrototypeTransferPlugin(PROBES[probes]())])

    check_callbacks(PrototypeTransferPlugin())
    check_callbacks(PrototypePlugin())
    check_callbacks(AdversarialAnchorDistillationPlugin())
    check_repeatable(make, BENCHMARK)
    check_resumable(make, BENCHMARK)


def test_they_draw_nothing_from_the_global_generator_and_leave_modes_alone():
    states = []
    for plugins in (
        [],
        [PrototypePlugin()],
        [AdversarialAnchorDistillationPlugin(), PrototypeTransferPlugin()],
    ):
        model = trained(strategy(plugins), BENCHMARK.train_stream)
        states.append(torch.get_rng_state())
        assert model.training
        assert model.backbone.image_tower.training
    assert all(torch.equal(states[0], state) for state in states[1:])


def test_beside_replay_of_the_host():
    """Beside others see `SeGPCL`, which has this plugin."""
    plugins = {
        "transfer": lambda: PrototypeTransferPlugin(AdversarialAnchors(steps=1)),
        "Replay": lambda: ReplayPlugin(mem_size=6),
    }
    check_composes(strategy, plugins, BENCHMARK)


def test_of_two_heads_that_fuse_only_the_outer_one_is_fed():
    made = strategy([PrototypePlugin()], head=GaussianDiscriminantHead(DualPathHead()))
    with pytest.raises(
        ValueError, match="GaussianDiscriminantHead around a DualPathHead.*leave one of them out"
    ):
        made.train(tiny_benchmark().train_stream[0])
