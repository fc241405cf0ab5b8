"""SeGP-CL as a whole: beside a plain loop, beside other methods, and stopped and resumed."""

import os
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from torch.optim import SGD, AdamW

from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.models import DualPathHead, LearnedContextHead, LoRA, ZeroShotHead
from avalanche_vlm.plugins import (
    AdaptiveWeightConsolidationPlugin,
    AdversarialAnchorDistillationPlugin,
    GenerativeLatentReplayPlugin,
    LabelSpaceCrossEntropy,
    PrototypeTransferPlugin,
    RegularizerPlugin,
    SynapticIntelligencePlugin,
)
from avalanche_vlm.regularizers import (
    AdversarialAnchors,
    CrossModalDistillation,
    InitialTeacher,
    LastTeacher,
    SyntheticPairs,
    TextGeometry,
)
from avalanche_vlm.sources import DiagonalGaussian, NamePrompts
from avalanche_vlm.strategies import FineTune, SeGPCL
from avalanche_vlm.testing import (
    TINY_CLASSES,
    check_composes,
    check_repeatable,
    check_resumable,
    tiny_benchmark,
    tiny_classifier,
)
from avalanche_vlm.testing.running import differing, run, snapshot
from tests.reference.tiny_image_source import NAMES, TinyImageSource

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
from segp_cl_reference import PlainSeGPCL

BENCHMARK = tiny_benchmark()
BOTH = ("both", LoRA(rank=2, factors=("B",)))


def dual(head=None, **arguments):
    return tiny_classifier(DualPathHead(head), **{"trainable": "both", **arguments})


def segp(make_model=dual, optimizer=None, **arguments):
    model = make_model()
    settings = {
        **{
            "optimizer": SGD(model.parameters(), lr=0.02)
            if optimizer is None
            else optimizer(model.parameters())
        },
        **{"anchors": AdversarialAnchors(seeds_per_class=2, steps=2), "train_mb_size": 4, "evaluator": None},
        **arguments,
    }
    return SeGPCL(model=model, **settings)


def parts(strategy):
    """The distillation, the geometry and the transfer of a strategy."""
    found = []
    for kind in (AdversarialAnchorDistillationPlugin, RegularizerPlugin, PrototypeTransferPlugin):
        (plugin,) = [each for each in strategy.plugins if type(each) is kind]
        found.append(plugin)
    return found


def test_the_defaults_are_those_of_the_sources():
    model = dual()
    strategy = SeGPCL(model=model, optimizer=SGD(model.parameters(), lr=0.1))
    distillation, geometry, transfer = parts(strategy)
    assert (distillation.weight, distillation.regularizer.temperature) == (5.0, 20.0)
    assert type(distillation.regularizer.teacher) is LastTeacher
    anchors = distillation.regularizer.pairs
    assert anchors is transfer.compensator.probes
    assert (anchors.seeds_per_class, anchors.steps, anchors.step_size) == (5, 10, 1.5e-3)
    assert (anchors.epsilon, anchors.visual_weight, anchors.batch_size) == (4 / 255, 1.0, 64)
    assert type(geometry.regularizer) is TextGeometry
    assert (geometry.weight, geometry.regularizer.neighbours, geometry.regularizer.temperature) == (
        1.0,
        10,
        0.05,
    )
    assert type(geometry.regularizer.teacher) is InitialTeacher
    assert transfer.compensator.temperature == 0.1
    assert strategy.train_mb_size == strategy.eval_mb_size == 128
    assert (strategy._criterion.space, strategy._criterion.label_smoothing) == ("experience", 0.0)
    assert strategy.text_space == "seen"
    assert (model.head.fusion_weight, model.head.visual_space) == (0.5, "raw")


def test_arguments_reach_their_parts():
    anchors, teacher = AdversarialAnchors(seeds_per_class=1), InitialTeacher()
    strategy = segp(
        **{
            "anchors": anchors,
            "teacher": teacher,
            "distillation_weight": 2.0,
            "distillation_temperature": 3.0,
        },
        **{"geometry_weight": 0.5, "neighbours": 4, "geometry_temperature": 0.2, "transfer_temperature": 0.3},
        criterion=LabelSpaceCrossEntropy("seen"),
    )
    distillation, geometry, transfer = parts(strategy)
    assert (distillation.weight, distillation.regularizer.temperature) == (2.0, 3.0)
    assert distillation.regularizer.pairs is transfer.compensator.probes is anchors
    assert distillation.regularizer.teacher is teacher
    assert (geometry.weight, geometry.regularizer.neighbours, geometry.regularizer.temperature) == (
        0.5,
        4,
        0.2,
    )
    assert transfer.compensator.temperature == 0.3
    assert (strategy._criterion.space, strategy.text_space) == ("seen", "all")


class Steps(SupervisedPlugin):
    """Keeps the batches that a strategy trained on, by experience."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_training_exp(self, strategy, *args, **kwargs):
        self.seen.append([])

    def after_training_iteration(self, strategy, *args, **kwargs):
        self.seen[-1].append((strategy.mb_x.clone(), strategy.mb_y.clone()))


def momentum(parameters):
    return SGD(parameters, lr=0.01, momentum=0.9)


def all_of(experience):
    samples = [experience.dataset[row][:2] for row in range(len(experience.dataset))]
    return torch.stack([x for x, _ in samples]), torch.tensor([int(y) for _, y in samples])


@pytest.mark.parametrize("trainable", BOTH, ids=["full", "lora"])
def test_it_equals_the_plain_loop_step_for_step(trainable, monkeypatch):
    steps, drawn, draw = Steps(), [], AdversarialAnchors.batch

    def kept(self, *arguments):
        drawn.append(draw(self, *arguments))
        return drawn[-1]

    monkeypatch.setattr(AdversarialAnchors, "batch", kept)
    anchors = AdversarialAnchors(batch_size=7)
    strategy = segp(
        lambda: dual(trainable=trainable),
        momentum,
        anchors=anchors,
        neighbours=3,
        plugins=[steps],
        train_epochs=3,
    )
    model, backbone = strategy.model, strategy.model.backbone
    plain = dual(trainable=trainable).train()
    start = snapshot(plain)
    loop = PlainSeGPCL(plain, momentum(plain.parameters()), TINY_CLASSES, *backbone.pixel_space, neighbours=3)
    torch.manual_seed(11)
    values = []
    for position, experience in enumerate(BENCHMARK.train_stream[:2]):
        drawn.clear()
        strategy.train(experience)
        images, labels = all_of(experience)
        loop.begin(images, experience.classes_in_this_experience)
        batches = drawn or [None] * 6
        for (x, y), batch in zip(steps.seen[position], batches, strict=True):
            if batch is not None:
                expected = torch.stack([loop.anchors[row] for row in batch.image_rows])
                # A slope that is almost 0 may have another sign in a batch.
                assert float(((batch.images - expected).abs() > 1e-5).float().mean()) < 0.02
            values.append(loop.step(x, y, [] if batch is None else batch.image_rows.tolist()))
            if position == 0 or len(values) == 7:
                continue
            assert values[-1][1] > 1e-6
        loop.end(images, labels)
        own = dict(plain.named_parameters())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                parameter, own[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
        assert sorted(loop.prototypes) == model.head.classes_with_prototype.tolist()
        for c, prototype in loop.prototypes.items():
            torch.testing.assert_close(model.head.prototypes[c], prototype, atol=2e-5, rtol=1e-4)
    assert len(values) == 12
    assert values[6][1] == pytest.approx(0, abs=1e-4)  # student and teacher agree before the first step
    assert values[-1][2] > 0
    farthest = max(float((p.detach() - start[name]).abs().max()) for name, p in model.named_parameters())
    assert farthest > 1e-2


class Fresh(SupervisedPlugin):
    def before_training_exp(self, strategy, *args, **kwargs):
        strategy.optimizer.state.clear()


def bare(plugins=(), make_model=dual, **arguments):
    model = make_model()
    return FineTune(
        **{"model": model, "optimizer": momentum(model.parameters()), "plugins": [Fresh(), *plugins]},
        **{"train_mb_size": 4, "evaluator": None, **arguments},
        criterion=LabelSpaceCrossEntropy("experience"),
        text_space="seen",
    )


def test_it_is_its_parts_in_a_list_of_plugins():
    anchors = AdversarialAnchors(seeds_per_class=2, steps=2)
    plugins = [
        AdversarialAnchorDistillationPlugin(anchors),
        RegularizerPlugin(TextGeometry()),
        PrototypeTransferPlugin(anchors),
    ]
    assert not differing(run(segp(optimizer=momentum), BENCHMARK), run(bare(plugins), BENCHMARK))


def test_each_part_has_an_effect_and_without_all_it_is_fine_tuning():
    def end(**arguments):
        return run(segp(optimizer=momentum, **arguments), BENCHMARK)

    whole = end()
    for off in ("distillation_weight", "geometry_weight"):
        assert len(differing(whole, end(**{off: 0.0}))) > 20
    assert differing(whole, end(teacher=InitialTeacher()))
    assert differing(whole, end(transfer_temperature=3.0)) == ["head.prototypes"]
    nothing = end(distillation_weight=0.0, geometry_weight=0.0)
    assert set(differing(nothing, run(bare(), BENCHMARK))) == {"head.prototypes", "head.counts"}


def test_the_state_of_the_optimizer_is_fresh_in_each_experience():
    found = []

    class Note(SupervisedPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs):
            found.append(len(strategy.optimizer.state))

    strategy = segp(optimizer=AdamW, plugins=[Note()])
    for experience in BENCHMARK.train_stream:
        strategy.train(experience)
    assert found == [0, 0, 0]


@pytest.mark.parametrize("make_model", [dual, lambda: dual(trainable=BOTH[1])], ids=["full", "lora"])
def test_laws(make_model):
    def make():
        return segp(make_model, momentum)

    check_repeatable(make, BENCHMARK)
    check_resumable(make, BENCHMARK)
    strategy = make()
    trains = {name for name, _ in strategy.model.named_parameters()}
    before = snapshot(strategy.model)
    changed = set(differing(before, run(strategy, BENCHMARK)))
    # What the towers are made of stays, bit for bit, unless it trains.
    kept = {"head.prototypes", "head.counts", "classes_seen"}
    assert kept < changed <= trains | kept
    held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in strategy.model.parameters()}


def test_nothing_is_drawn_from_the_global_generator():
    states = []
    for make in (segp, bare):
        torch.manual_seed(5)
        strategy = make()
        for experience in BENCHMARK.train_stream[:2]:
            strategy.train(experience)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


OTHERS = {
    "Replay": lambda: ReplayPlugin(mem_size=4),
    "LwF": lambda: LwFPlugin(alpha=1.0, temperature=2.0),
    "EWC": lambda: EWCPlugin(ewc_lambda=100.0),
    "SI": lambda: SynapticIntelligencePlugin(si_lambda=1e4),
    "AWC": lambda: AdaptiveWeightConsolidationPlugin(
        CrossModalDistillation(SyntheticPairs(TinyImageSource(), NamePrompts(NAMES), count=4))
    ),
}
OF_TWO = tiny_benchmark(n_experiences=2, per_class=2)


@pytest.mark.parametrize("pair", [("Replay", "LwF"), ("EWC", "SI"), ("AWC", "Replay")])
def test_beside_other_methods(pair):
    def light(chosen=()):
        return segp(anchors=AdversarialAnchors(seeds_per_class=1, steps=1), plugins=chosen)

    check_composes(light, {name: OTHERS[name] for name in pair}, OF_TWO)
    for name in pair:
        assert differing(run(light([OTHERS[name]()]), OF_TWO), run(bare([OTHERS[name]()]), OF_TWO))


def checkpointed(folder):
    torch.manual_seed(3)
    plugins = [CheckpointPlugin(folder, keep=99, every_n_epochs=1)]
    return segp(optimizer=momentum, train_epochs=2, plugins=plugins)


def go_on(strategy, start, killed_after=None):
    steps = []

    def count(*_):
        steps.append(1)
        if len(steps) == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    strategy.optimizer.register_step_post_hook(count)
    for experience in BENCHMARK.train_stream[start:]:
        strategy.train(experience)
        strategy.eval(BENCHMARK.test_stream)
    return snapshot(strategy.model), len(steps)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    strategy = checkpointed(folder)
    resume(strategy, folder, BENCHMARK)
    return folder, *go_on(strategy, 0)


def test_resumed_between_experiences_and_inside_of_them_it_ends_as_if_never_stopped(whole, tmp_path):
    folder, expected, total = whole
    files = sorted(folder.glob("*.ckpt"))
    assert len(files) == 7
    for file in files:
        strategy = checkpointed(tmp_path / file.stem)
        start = resume(strategy, file, BENCHMARK)
        found, steps = go_on(strategy, start)
        assert not differing(expected, found), file.name
        assert steps == total - 4 * start - 2 * ("epoch" in file.name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_and_resumed_it_ends_as_if_never_stopped(whole, tmp_path):
    _, expected, _ = whole
    # In the second epoch of the second experience, and then in that of the third.
    for steps in (7, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fork beside threads
            child = os.fork()
        if child == 0:
            try:
                strategy = checkpointed(tmp_path)
                go_on(strategy, resume(strategy, tmp_path, BENCHMARK), killed_after=steps)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    strategy = checkpointed(tmp_path)
    start = resume(strategy, tmp_path, BENCHMARK)
    found, steps = go_on(strategy, start)
    assert not differing(expected, found)
    assert (start, steps) == (2, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"accumulate_batches": 2, "max_gradient_norm": 1.0},
        {"train_iterations": 3},
        {"criterion": LabelSpaceCrossEntropy("seen")},
        {"text_space": "experience", "criterion": LabelSpaceCrossEntropy("experience")},
        {"anchors": AdversarialAnchors(seeds_per_class=99, steps=0)},
        {"make_model": lambda: dual(trainable=LoRA(rank=2))},
        {"make_model": lambda: dual(trainable=LoRA(rank=2, towers=("text",)))},
        {"make_model": lambda: dual(LearnedContextHead(context_length=2), trainable="nothing")},
        {"make_model": lambda: tiny_classifier(DualPathHead(visual_space="embedding"), trainable="both")},
    ],
    ids=lambda arguments: ", ".join(arguments),
)
def test_it_trains(arguments):
    strategy = segp(**arguments)
    before = snapshot(strategy.model)
    for experience in BENCHMARK.train_stream:
        strategy.train(experience)
    strategy.eval(BENCHMARK.test_stream)
    assert all(bool(p.isfinite().all()) for p in strategy.model.parameters())
    names = {name for name, _ in strategy.model.named_parameters()}
    changed = set(differing(before, snapshot(strategy.model)))
    assert len(changed & names) > len(names) / 2 or "context" in str(names)
    assert changed & names
    assert strategy.model.head.counts.tolist() == [4] * 6


def test_where_only_text_trains_prototypes_stay_and_geometry_alone_trains():
    def text():
        return dual(trainable=LoRA(rank=2, towers=("text",)))

    ends = []
    for weight in (0.0, 1.0):
        strategy = segp(text, distillation_weight=0.0, geometry_weight=weight)
        prototypes = []
        for experience in BENCHMARK.train_stream:
            strategy.train(experience)
            prototypes.append(strategy.model.head.prototypes.clone())
        assert torch.equal(prototypes[0][:2], prototypes[2][:2])
        assert torch.equal(prototypes[1][:4], prototypes[2][:4])
        ends.append(snapshot(strategy.model))
    assert all("text_tower" in name for name in differing(*ends))
    assert differing(*ends)

    class Nothing(LabelSpaceCrossEntropy):
        def __call__(self, logits, y):
            return 0 * super().__call__(logits, y)

    alone = segp(text, distillation_weight=0.0, criterion=Nothing("experience"))
    before = snapshot(alone.model)
    for experience in BENCHMARK.train_stream[:2]:
        alone.train(experience)
    assert any("lora_B" in name for name in differing(before, snapshot(alone.model)))


def test_what_it_cannot_train_or_see_is_refused_in_a_sentence():
    image = segp(lambda: dual(trainable=LoRA(rank=2, towers=("image",))))
    with pytest.raises(ValueError, match="`regularizer` must be .*TextGeometry.*train the text tower"):
        run(image, BENCHMARK)
    run(segp(lambda: dual(trainable="image"), geometry_weight=0.0), OF_TWO)
    replay = segp(plugins=[GenerativeLatentReplayPlugin(DiagonalGaussian())])
    with pytest.raises(ValueError, match="image tower is frozen; got one whose image tower trains"):
        run(replay, BENCHMARK)
    embedded = tiny_benchmark(embedded=tiny_classifier())
    stored = segp(lambda: tiny_classifier(DualPathHead(visual_space="embedding"), trainable="text"))
    with pytest.raises(ValueError, match="`experience` must be one with images.*not on their embeddings"):
        run(stored, embedded)
    with pytest.raises(ValueError, match="`model` must be .*with a ZeroShotHead.*Wrap the head"):
        segp(lambda: tiny_classifier(ZeroShotHead(), trainable="both"))


def test_latent_replay_of_a_frozen_image_tower_stands_beside_it():
    def text():
        return dual(trainable=LoRA(rank=2, towers=("text",)))

    ends = []
    for plugins in ([], [GenerativeLatentReplayPlugin(DiagonalGaussian(), samples_per_class=4)]):
        strategy = segp(text, plugins=plugins, criterion=LabelSpaceCrossEntropy("seen"))
        ends.append(run(strategy, BENCHMARK))
        assert strategy.model.head.counts.tolist() == [4] * 6
    changed = differing(*ends)
    assert changed
    assert all("lora" in name for name in changed)
