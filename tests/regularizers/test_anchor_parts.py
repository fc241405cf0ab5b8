"""Anchors, what is distilled on them, and how names lie: against loops over copies of the model."""

import math
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn
from torch.optim import SGD

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.functional import nearest_classes
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    DualPathHead,
    EmbeddingBackbone,
    ImageConditionedPromptHead,
    LearnedContextHead,
    LoRA,
    ResidualAdapter,
    TextFeatureHead,
)
from avalanche_vlm.plugins import AdaptiveWeightConsolidationPlugin, RegularizerPlugin
from avalanche_vlm.regularizers import (
    AdversarialAnchors,
    AnchorDistillation,
    CrossModalDistillation,
    CurrentPairs,
    InitialTeacher,
    LastTeacher,
    ReferencePairs,
    SumRegularizer,
    SyntheticPairs,
    TextGeometry,
)
from avalanche_vlm.regularizers.learned_classes import LearnedClasses
from avalanche_vlm.regularizers.pairs import next_rows
from avalanche_vlm.sources import NamePrompts
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import TINY_CLASSES, check_modes, tiny_benchmark, tiny_classifier, tiny_images
from avalanche_vlm.testing.running import differing, snapshot
from tests.reference.tiny_image_source import NAMES, TinyImageSource, moved

BENCHMARK = tiny_benchmark()
EXPERIENCES = list(BENCHMARK.train_stream)
ONE_BY_ONE = list(tiny_benchmark(n_experiences=6).train_stream)
X, Y = tiny_images(per_class=2)
OLD = torch.tensor([0, 1])


class Agent:
    """A strategy that is about to train on an experience, and does not."""

    def __init__(self, model, experience):
        self.model, self.experience = model, experience
        model.train().adaptation(experience)


def both(head=None, **arguments):
    return moved(tiny_classifier(head, **{"trainable": "both", **arguments}))


def begun(part, model, experiences=EXPERIENCES, position=1, between=lambda: None):
    """Let a part pass the experiences before one, and get ready for that one."""
    for experience in experiences[:position]:
        agent = Agent(model, experience)
        part.pre_adapt(agent, experience)
        part.post_adapt(agent, experience)
        between()
    agent = Agent(model, experiences[position])
    part.pre_adapt(agent, experiences[position])
    return agent


def images_of(experience):
    return torch.stack([experience.dataset[row][0] for row in range(len(experience.dataset))])


def unit(features):
    return features.double() / features.double().norm(dim=-1, keepdim=True)


def softmax(values):
    exponentials = [math.exp(value - max(values)) for value in values]
    return [each / sum(exponentials) for each in exponentials]


def divergence(student, teacher, temperature):
    """1 / B Σ KL(teacher ‖ student) of rows of logits."""
    total = 0.0
    for row, taught in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = (softmax([value / temperature for value in each]) for each in (row, taught))
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return total / len(student)


def gradients(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    names = [name for name, _ in model.named_parameters()]
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


# Which classes are old.


class Data:
    """The labels of an experience, and nothing else."""

    def __init__(self, *classes):
        self.dataset = self
        self.targets = SimpleNamespace(uniques=set(classes))

    def __len__(self):
        return 1


def test_old_classes_are_those_of_experiences_that_have_ended():
    model, learned, found = tiny_classifier(), LearnedClasses(), []
    for classes in ((3, 1), (1, 5), (0,), (1, 3, 5)):
        model.classes_seen[list(classes)] = True
        found.append(learned.before(model, Data(*classes)).tolist())
        found.append(learned.before(model, Data(*classes)).tolist())  # asked twice
        learned.note(model)
    assert found[::2] == found[1::2] == [[], [1, 3], [1, 3, 5], [0, 1, 3, 5]]
    other = LearnedClasses()
    other.load_state_dict(learned.state_dict())
    assert other.before(model, Data(0)).tolist() == [0, 1, 3, 5]
    assert other.nbytes == 6
    # What another run has trained counts, unless it is in the experience.
    assert LearnedClasses().before(model, Data(1)).tolist() == [0, 3, 5]


def test_old_classes_are_found_when_names_have_been_added():
    model, learned = tiny_classifier(), LearnedClasses()
    model.classes_seen[1] = True
    learned.note(model)
    model.set_classes([*model.class_names, "ant"])
    model.classes_seen[[1, 6]] = True
    assert learned.before(model, Data(1, 6)).tolist() == [1]


@pytest.mark.parametrize(("count", "size"), [(10, 4), (3, 8), (5, 5), (1, 1), (7, 6)])
def test_rows_of_a_pass_come_once_each_and_the_next_pass_fills_up(count, size):
    draw, order, rows = torch.Generator().manual_seed(0), torch.zeros(0, dtype=torch.int64), []
    for _ in range(2 * count):
        own, order = next_rows(order, count, size, draw)
        assert len(own) == min(size, count)
        rows += own.tolist()
    for start in range(0, len(rows) - count + 1, count):
        assert sorted(rows[start : start + count]) == list(range(count))


# Anchors.


def test_seeds_are_the_images_that_are_likest_to_each_old_class():
    model = both()
    anchors = AdversarialAnchors(seeds_per_class=3).make(model, EXPERIENCES[1], torch.tensor([4, 0]))
    images = images_of(EXPERIENCES[1])
    with torch.no_grad():
        cosines = unit(model.encode(images)) @ unit(model.head(model.backbone)).T
    expected = [row for c in (4, 0) for row in cosines[:, c].argsort(descending=True)[:3].tolist()]
    assert torch.equal(anchors.seeds, images[expected])
    assert anchors.classes.tolist() == [4, 4, 4, 0, 0, 0]
    assert anchors.text_distances.shape == (11, 6)
    torch.testing.assert_close(
        anchors.text_distances[0].double(),
        1 - cosines[expected, anchors.classes],
        atol=1e-5,
        rtol=0,
    )
    means = anchors.text_distances.mean(dim=1)
    assert bool((means.diff() < 0).all())
    everything = AdversarialAnchors(seeds_per_class=99, steps=1).make(model, EXPERIENCES[1], OLD)
    assert len(everything.images) == 2 * len(images)


def test_probabilities_are_those_among_all_classes_seen():
    model = both()
    for experience in EXPERIENCES[:2]:
        Agent(model, experience)
    anchors = AdversarialAnchors(seeds_per_class=2, steps=20, step_size=0.01, epsilon=0.2).make(
        model, EXPERIENCES[1], OLD
    )
    with torch.no_grad():
        names = unit(model.head(model.backbone))[:4]
        for images, found in (
            (anchors.seeds, anchors.probabilities_before),
            (anchors.images, anchors.probabilities_after),
        ):
            logits = float(model.backbone.logit_scale) * unit(model.encode(images)) @ names.T
            for row, own, value in zip(
                logits.tolist(), anchors.classes.tolist(), found.tolist(), strict=True
            ):
                assert value == pytest.approx(softmax(row)[own], rel=1e-3)
    assert bool((anchors.probabilities_after > anchors.probabilities_before).all())


def test_anchors_stay_in_the_ball_in_pixel_values():
    model, settings = both(), {"steps": 6, "step_size": 0.01, "epsilon": 0.03}
    anchors = AdversarialAnchors(**settings).make(model, EXPERIENCES[1], OLD)
    space = model.backbone.pixel_space
    assert space.std != (1.0, 1.0, 1.0)
    before, after = space.pixels(anchors.seeds), space.pixels(anchors.images)
    assert float((after - before).abs().max()) == pytest.approx(0.03, abs=1e-5)
    inside = (before >= 0) & (before <= 1)
    assert -1e-6 <= float(after[inside].min()) <= float(after[inside].max()) <= 1 + 1e-6


def test_the_prototype_is_a_target_only_of_classes_that_have_one():
    features = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    found = {}
    for name, head in (
        ("none", DualPathHead()),
        ("raw", DualPathHead()),
        ("embedding", DualPathHead(visual_space="embedding")),
        ("other head", None),
    ):
        model = both(head)
        if name in ("raw", "embedding"):
            model.head.update(features, torch.tensor([1]))
        found[name] = AdversarialAnchors(seeds_per_class=2).make(model, EXPERIENCES[1], OLD)
    for anchors in found.values():
        assert bool((anchors.visual_distances[:, :2] == 1).all())  # class 0 has none
        assert torch.equal(anchors.images[:2], found["none"].images[:2])
        assert bool(anchors.images.isfinite().all())
    assert torch.equal(found["other head"].images, found["none"].images)
    for name in ("raw", "embedding"):
        assert not torch.equal(found[name].images[2:], found["none"].images[2:])
        means = found[name].visual_distances[:, 2:].mean(dim=1)
        assert means[-1] < means[0] - 1e-3
    model = both(DualPathHead())
    model.head.update(features, torch.tensor([1]))
    with torch.no_grad():
        h = unit(model.backbone.encode_image_raw(found["raw"].images[2:]))
    distances = 1 - h @ unit(features[0])
    torch.testing.assert_close(found["raw"].visual_distances[-1, 2:].double(), distances, atol=1e-5, rtol=0)
    off = AdversarialAnchors(seeds_per_class=2, visual_weight=0.0).make(model, EXPERIENCES[1], OLD)
    assert torch.equal(off.images, found["none"].images)


def test_anchors_pass_the_adapter():
    model = both(DualPathHead(visual_space="embedding"), image_adapter=ResidualAdapter())
    moved(model, 0.3)
    anchors = AdversarialAnchors(seeds_per_class=2).make(model, EXPERIENCES[1], OLD)
    with torch.no_grad():
        features = unit(model.image_adapter(model.encode(anchors.images)))
        names = unit(model.head(model.backbone))[anchors.classes]
    found = anchors.text_distances[-1].double()
    torch.testing.assert_close(found, 1 - (features * names).sum(dim=1), atol=1e-5, rtol=0)


def test_anchors_are_made_again_bit_for_bit_and_alike_in_parts():
    whole = AdversarialAnchors(seed=1).make(both(), EXPERIENCES[1], OLD)
    again = AdversarialAnchors(seed=2).make(both(), EXPERIENCES[1], OLD)
    assert all(torch.equal(*pair) for pair in zip(whole, again, strict=True))
    parts = AdversarialAnchors(images_at_once=3).make(both(), EXPERIENCES[1], OLD)
    # Sums in another order may turn the sign of a slope that is almost 0.
    changed = (parts.images - whole.images).abs() > 1e-5
    assert float(changed.float().mean()) < 0.01
    torch.testing.assert_close(parts.text_distances, whole.text_distances, atol=1e-3, rtol=0)


def test_making_anchors_leaves_the_model_as_it_is():
    model = both(DualPathHead(), image_adapter=ResidualAdapter())
    model.head.update(torch.ones(1, 16), torch.tensor([0]))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before, state = snapshot(model), torch.get_rng_state()
    anchors = AdversarialAnchors(seeds_per_class=1, steps=2)
    check_modes(lambda: anchors.make(model, EXPERIENCES[1], OLD), [model])
    assert not differing(before, snapshot(model))
    assert all(bool((parameter.grad == 3).all()) for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(each.requires_grad for each in anchors.make(model, EXPERIENCES[1], OLD))


def test_nothing_is_dropped_while_anchors_are_made():
    model = moved(tiny_classifier(trainable=LoRA(rank=2, dropout=0.5)), 0.3)
    state, found = torch.get_rng_state(), []
    for mode in (True, False):
        model.train(mode)
        found.append(AdversarialAnchors(seeds_per_class=2).make(model, EXPERIENCES[1], OLD).images)
    assert torch.equal(*found)
    assert torch.equal(state, torch.get_rng_state())


def test_images_come_under_their_eval_transform():
    x, y = tiny_images()
    pairs = ((x, y), (x, y))
    benchmark = tensor_benchmark(
        *pairs,
        class_names=TINY_CLASSES,
        n_experiences=3,
        train_transform=lambda image: image + 100,
        eval_transform=lambda image: image + 0.25,
    )
    experience = benchmark.train_stream[1]
    anchors = AdversarialAnchors(steps=0).make(both(), experience, OLD)
    own = x[[int(label) in experience.classes_in_this_experience for label in y]] + 0.25
    assert all(any(torch.equal(seed, image) for image in own) for seed in anchors.seeds)
    assert torch.equal(anchors.images, anchors.seeds)


def test_in_the_first_experience_there_are_none():
    anchors, model = AdversarialAnchors(), both()
    agent = Agent(model, EXPERIENCES[0])
    anchors.pre_adapt(agent, EXPERIENCES[0])
    assert not anchors.is_active
    assert anchors.fixed_images is anchors.fixed_texts is anchors.fixed_classes is None
    anchors.post_adapt(agent, EXPERIENCES[0])
    begun(anchors, model)
    assert anchors.is_active
    assert anchors.fixed_images.shape == (10, 3, 8, 8)
    assert anchors.fixed_texts.tolist() == [0, 1]
    assert anchors.fixed_classes.tolist() == [0] * 5 + [1] * 5


def test_none_outlives_its_experience_and_classes_that_come_again_have_some():
    anchors, model = AdversarialAnchors(seeds_per_class=1, steps=1), both()
    found = []
    for experience in (*EXPERIENCES[:2], EXPERIENCES[0], EXPERIENCES[2]):
        agent = Agent(model, experience)
        anchors.pre_adapt(agent, experience)
        found.append([] if anchors.fixed_classes is None else anchors.fixed_classes.tolist())
        anchors.post_adapt(agent, experience)
        assert anchors.fixed_images is None
    assert found == [[], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert anchors.nbytes == 6


def test_batches_go_through_all_anchors_with_the_texts_of_their_classes():
    anchors, model = AdversarialAnchors(batch_size=4), both()
    begun(anchors, model)
    drawn = [anchors.batch(model, X, Y) for _ in range(5)]
    rows = torch.cat([batch.image_rows for batch in drawn]).tolist()
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    for batch in drawn:
        assert torch.equal(batch.images, anchors.fixed_images[batch.image_rows])
        assert torch.equal(batch.texts[batch.text_of], anchors.fixed_classes[batch.image_rows])
        assert torch.equal(batch.texts, anchors.fixed_texts[batch.text_rows])
    own = anchors.encode_texts(model, torch.tensor([1]))
    torch.testing.assert_close(own, model.head(model.backbone)[1:2])
    anchors.batch(model, X, Y)
    begun(anchors, both(), position=2)  # what was left of a pass is of no use in the next experience
    rows = torch.cat([anchors.batch(model, X, Y).image_rows for _ in range(5)])
    assert sorted(rows.tolist()) == list(range(20))
    fewer = AdversarialAnchors(seeds_per_class=1)
    begun(fewer, both())
    assert sorted(fewer.batch(model, X, Y).image_rows.tolist()) == [0, 1]
    orders = []
    for seed in (0, 0, 1):
        own = AdversarialAnchors(batch_size=10, seed=seed)
        begun(own, both())
        orders.append(own.batch(model, X, Y).image_rows.tolist())
    assert orders[0] == orders[1] != orders[2]


class Watch(SupervisedPlugin):
    """Keeps the anchors that a step of training has, and the model before it."""

    def __init__(self, anchors):
        super().__init__()
        self.anchors, self.models, self.images = anchors, [], []

    def before_training_exp(self, strategy, *args, **kwargs):
        self.models.append(deepcopy(strategy.model))

    def after_training_iteration(self, strategy, *args, **kwargs):
        self.images.append(self.anchors.fixed_images)


def fine_tuned(plugins, model, benchmark=BENCHMARK, **arguments):
    optimizer = SGD(model.parameters(), lr=0.05)
    settings = {"plugins": plugins, "train_mb_size": 4, "evaluator": None, **arguments}
    strategy = FineTune(model=model, optimizer=optimizer, **settings)
    torch.manual_seed(0)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
    return strategy


def test_what_is_looked_at_is_what_training_uses():
    anchors = AdversarialAnchors(seeds_per_class=2)
    watch = Watch(anchors)
    fine_tuned([watch, RegularizerPlugin(AnchorDistillation(anchors), 5.0)], both(DualPathHead()))
    assert watch.images[0] is watch.images[1] is None
    made = AdversarialAnchors(seeds_per_class=2).make(watch.models[1], EXPERIENCES[1], OLD)
    assert torch.equal(watch.images[2], made.images)
    assert watch.images[3] is watch.images[2]


def test_embeddings_and_pictures_are_refused_in_a_sentence():
    model = tiny_classifier(trainable="text")
    embedded = tiny_benchmark(embedded=model)
    sentence = r"`experience` must be one with images \(3, H, W\).*tensors \(16,\).*not on their embeddings"
    with pytest.raises(ValueError, match=sentence):
        fine_tuned([RegularizerPlugin(AnchorDistillation())], model, embedded)

    class Pictures:
        def __init__(self):
            self.dataset = self

        def eval(self):
            return self

        def __getitem__(self, row):
            return object(), 0

    with pytest.raises(
        TypeError, match="`experience` must be .*tensors.*train_transform=model.train_transform"
    ):
        AdversarialAnchors().make(model, Pictures(), OLD)
    with pytest.raises(ValueError, match="`classes` must be different ids in 0..5, at least one"):
        AdversarialAnchors().make(model, EXPERIENCES[1], OLD[:0])


# Distillation over the old classes.


def synthetic(**arguments):
    return SyntheticPairs(TinyImageSource(), NamePrompts(NAMES), **{"count": 7, "batch_size": 5, **arguments})


def reference():
    images = (torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).byte()
    return ReferencePairs(images, NAMES, batch_size=4)


SOURCES = {
    "anchors": lambda: AdversarialAnchors(batch_size=6),
    "current": CurrentPairs,
    "synthetic": synthetic,
    "reference": reference,
}


def spied(regularizer):
    """Note the batches that a regularizer compares."""
    batches, compare = [], regularizer.compare

    def noting(model, student):
        batches.append(student.batch)
        return compare(model, student)

    regularizer.compare = noting
    return batches


def logits_of(model, images, classes):
    with torch.no_grad():
        names = unit(model.head.text_part(model.backbone))[classes]
        return float(model.backbone.logit_scale) * unit(model.adapted(model.encode(images))) @ names.T


@pytest.mark.parametrize("position", [1, 2])
@pytest.mark.parametrize("source", SOURCES)
def test_the_distillation_is_that_of_the_equation(source, position):
    model = both(DualPathHead(), image_adapter=ResidualAdapter())
    regularizer = AnchorDistillation(SOURCES[source](), temperature=3.0)
    begun(regularizer, model, position=position)
    batches, teacher = spied(regularizer), deepcopy(model).eval()
    moved(model, 0.2)
    found = regularizer(model, X, Y, torch.zeros(0)).item()
    classes = list(range(2 * position))
    student, taught = (logits_of(each, batches[0].images, classes) for each in (model, teacher))
    assert found == pytest.approx(9 * divergence(student, taught, 3.0), rel=1e-3)
    assert found > 1e-3
    if source == "current":
        assert torch.equal(batches[0].images, X)


@pytest.mark.parametrize("source", SOURCES)
def test_value_and_gradient_vanish_where_student_and_teacher_agree(source):
    """Up to rounding of fp32, times the factor of 400 that the temperature makes."""
    model = both()
    regularizer = AnchorDistillation(SOURCES[source]())
    begun(regularizer, model)
    loss = regularizer(model, X, Y, torch.zeros(0))
    assert abs(loss.item()) < 1e-4
    assert max(float(g.abs().max()) for g in gradients(loss, model).values()) < 1e-4
    moved(model, 0.2)
    loss = regularizer(model, X, Y, torch.zeros(0))
    assert max(float(g.abs().max()) for g in gradients(loss, model).values()) > 1e-2


@pytest.mark.parametrize(
    ("source", "asked"), [("anchors", 0), ("synthetic", 0), ("current", 1), ("reference", 1)]
)
def test_the_teacher_is_asked_once_about_images_that_stay(source, asked):
    model = both()
    regularizer = AnchorDistillation(SOURCES[source]())
    begun(regularizer, model)
    passes, encode = [], model.backbone.encode_image

    def counted(images):
        passes.append(torch.is_grad_enabled())
        return encode(images)

    model.backbone.encode_image = counted
    for _ in range(3):
        regularizer(model, X, Y, torch.zeros(0))
    assert passes.count(True) == 3
    assert passes.count(False) == 3 * asked


def test_with_fewer_than_two_old_classes_there_is_nothing_to_keep():
    model, active = both(), []
    regularizer = AnchorDistillation(AdversarialAnchors(seeds_per_class=1, steps=1))
    for experience in ONE_BY_ONE[:3]:
        agent = Agent(model, experience)
        regularizer.pre_adapt(agent, experience)
        active.append(regularizer.is_active)
        regularizer.post_adapt(agent, experience)
    assert active == [False, False, True]
    current = AnchorDistillation(CurrentPairs())
    current.pre_adapt(Agent(both(), EXPERIENCES[0]), EXPERIENCES[0])
    assert not current.is_active


@pytest.mark.parametrize(
    ("head", "arguments", "reached"),
    [
        (None, {"trainable": "image"}, "image_tower"),
        (None, {"trainable": "text"}, "text_tower"),
        (None, {"trainable": LoRA(rank=2, factors=("B",))}, "lora_B"),
        (LearnedContextHead(context_length=2), {"trainable": "nothing"}, "context"),
        (None, {"trainable": "nothing", "image_adapter": ResidualAdapter()}, "adapter"),
    ],
    ids=["image", "text", "lora", "context", "adapter"],
)
def test_a_gradient_reaches_what_trains(head, arguments, reached):
    model = both(DualPathHead(head), **arguments)
    regularizer = AnchorDistillation(AdversarialAnchors(seeds_per_class=2))
    begun(regularizer, model)
    moved(model, 0.5)
    found = gradients(regularizer(model, X, Y, torch.zeros(0)), model)
    assert all(reached in name for name, _ in model.named_parameters())
    assert any(bool(g.any()) for g in found.values())


def test_a_model_that_it_cannot_reach_or_ask_is_refused():
    images = ImageConditionedPromptHead(reduction=4)
    for head, message in ((CosineHead(TextFeatureHead(torch.eye(6, 16))), None), (images, "class weights")):
        plugin = RegularizerPlugin(AnchorDistillation(AdversarialAnchors(seeds_per_class=1, steps=1)))
        model = tiny_classifier(head)
        if message is None:
            fine_tuned([plugin], model)  # a head whose weights learn
        else:
            with pytest.raises((ValueError, RuntimeError), match=message):
                fine_tuned([plugin], model)
    stored = CLIPClassifier(
        EmbeddingBackbone(16), CosineHead(TextFeatureHead(torch.eye(6, 16))), class_names=list(TINY_CLASSES)
    )
    with pytest.raises(ValueError, match="`model` must be one with a text tower"):
        fine_tuned([RegularizerPlugin(AnchorDistillation(CurrentPairs()))], stored)
    with pytest.raises(TypeError, match="`strategy.model` must be .*CLIPClassifier"):
        AnchorDistillation().pre_adapt(SimpleNamespace(model=nn.Linear(2, 2)), EXPERIENCES[1])


@pytest.mark.parametrize("text_space", ["seen", "experience"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_teacher_speaks_in_the_precision_of_the_student(precision, text_space):
    """So that they agree bit for bit before the first step, whether text was encoded once or for each."""
    values, regularizer = [], AnchorDistillation(AdversarialAnchors(batch_size=4))
    compare = regularizer.compare

    def noting(model, student):
        assert student.images.dtype in (torch.bfloat16, torch.float16)
        values.append(compare(model, student))
        return values[-1]

    regularizer.compare = noting
    arguments = {"precision": precision, "text_space": text_space, "train_epochs": 6}
    fine_tuned([RegularizerPlugin(regularizer)], both(DualPathHead()), **arguments)
    assert values[0].item() == 0
    assert values[-1].item() > 0
    assert values[0].dtype == torch.float32


def test_other_distillations_take_anchors_too_and_share_them():
    model, anchors = both(DualPathHead()), AdversarialAnchors(batch_size=6)
    cross = CrossModalDistillation(anchors, temperature=1.5)
    total = SumRegularizer([AnchorDistillation(anchors), cross], [2.0, 1.0])
    begun(total, model)
    batches, teacher = spied(cross), deepcopy(model).eval()
    moved(model, 0.2)
    drawn = []
    draw = anchors.batch
    anchors.batch = lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1]
    found = total(model, X, Y, torch.zeros(0)).item()
    (batch,) = drawn
    assert batch is batches[0]
    of = batch.texts[batch.text_of].tolist()
    student, taught = (logits_of(each, batch.images, of) for each in (model, teacher))
    rows, columns = divergence(student, taught, 1.5), divergence(student.T, taught.T, 1.5)
    own, said = (logits_of(each, batch.images, [0, 1]) for each in (model, teacher))
    expected = 1.5**2 * (rows + columns) + 2 * 400 * divergence(own, said, 20.0)
    assert found == pytest.approx(expected, rel=1e-3)
    assert rows + columns > 1e-3


# How names lie to each other.


def geometry_of(model, teacher, current, seen, count, temperature):
    """The equation, in lists; neighbours are those of the teacher."""
    with torch.no_grad():
        now, before = (unit(each.head.text_part(each.backbone)) for each in (model, teacher))
    total = 0.0
    for c in current:
        near = sorted((j for j in seen if j != c), key=lambda j: -float(before[c] @ before[j]))[:count]
        rho = [torch.tensor([[float(weights[c] @ weights[j]) for j in near]]) for weights in (now, before)]
        total += divergence(*rho, temperature) / len(current)
    return total


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_geometry_is_that_of_the_equation(position):
    model = both(DualPathHead())
    first, regularizer = deepcopy(model), TextGeometry(2)
    begun(regularizer, model, position=position, between=lambda: moved(model, 0.05))
    moved(model, 0.1)
    found = regularizer(model, X, Y, torch.zeros(0)).item()
    current, seen = [2 * position, 2 * position + 1], list(range(2 * position + 2))
    assert found == pytest.approx(geometry_of(model, first, current, seen, 2, 0.05), rel=1e-3, abs=1e-7)
    assert found > 1e-3 or position == 0  # with two classes seen, each has one neighbour
    assert regularizer.nbytes > 0


def test_with_another_teacher_neighbours_are_those_of_the_last_weights():
    model = both()
    regularizer = TextGeometry(3, LastTeacher(), temperature=0.2)
    begun(regularizer, model, position=2, between=lambda: moved(model, 0.05))
    last = deepcopy(model)
    moved(model, 0.1)
    found = regularizer(model, X, Y, torch.zeros(0)).item()
    assert found == pytest.approx(geometry_of(model, last, [4, 5], range(6), 3, 0.2), rel=1e-3)
    assert regularizer.nbytes == 0


def test_neighbours_stay_those_of_the_pretrained_tower():
    model = both()
    first, regularizer = deepcopy(model), TextGeometry(1)
    begun(regularizer, model, position=2, between=lambda: moved(model, 0.5))
    with torch.no_grad():
        rows, own = torch.tensor([4, 5]), first.head(first.backbone)
        pretrained, at_present = (nearest_classes(w, rows, 1) for w in (own, model.head(model.backbone)))
    found = regularizer._classes[regularizer._neighbours]
    assert torch.equal(found, pretrained)
    assert not torch.equal(found, at_present)


def test_it_vanishes_with_lora_at_its_start():
    model = tiny_classifier(DualPathHead(), trainable=LoRA(rank=2, factors=("B",)))
    regularizer = TextGeometry()
    begun(regularizer, model)
    loss = regularizer(model, X, Y, torch.zeros(0))
    assert abs(loss.item()) < 1e-6
    assert max(float(g.abs().max()) for g in gradients(loss, model).values()) < 1e-5
    moved(model, 0.2)
    loss = regularizer(model, X, Y, torch.zeros(0))
    found = gradients(loss, model)
    assert loss.item() > 1e-3
    assert set(found) == {name for name, _ in model.named_parameters() if "text_tower" in name}
    assert max(float(g.abs().max()) for g in found.values()) > 1e-3


def test_one_class_alone_has_no_neighbours_and_yet_the_first_weights_are_kept():
    model = both()
    first, regularizer = deepcopy(model), TextGeometry()
    agent = Agent(model, ONE_BY_ONE[0])
    regularizer.pre_adapt(agent, ONE_BY_ONE[0])
    assert not regularizer.is_active
    regularizer.post_adapt(agent, ONE_BY_ONE[0])
    moved(model, 0.1)
    for position in (1, 2):
        agent = Agent(model, ONE_BY_ONE[position])
        regularizer.pre_adapt(agent, ONE_BY_ONE[position])
        assert regularizer.is_active
        found = regularizer(model, X, Y, torch.zeros(0)).item()
        expected = geometry_of(model, first, [position], range(position + 1), 10, 0.05)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
        regularizer.post_adapt(agent, ONE_BY_ONE[position])
        assert not regularizer.is_active


def test_only_classes_that_count_are_asked_for():
    model, asked = both(), []
    regularizer = TextGeometry(1)
    begun(regularizer, model, position=2)
    forward = model.head.forward
    model.head.forward = lambda backbone, ids=None: asked.append(ids.tolist()) or forward(backbone, ids)
    regularizer(model, X, Y, torch.zeros(0))
    (ids,) = asked
    assert {4, 5} <= set(ids)
    assert len(ids) <= 4


def test_a_head_on_stored_embeddings_has_names_that_lie_somewhere():
    head = CosineHead(TextFeatureHead(torch.randn(6, 16, generator=torch.Generator().manual_seed(0))))
    model = CLIPClassifier(EmbeddingBackbone(16), head, class_names=list(TINY_CLASSES))
    strategy = fine_tuned(
        [RegularizerPlugin(TextGeometry(), 10.0)], model, tiny_benchmark(embedded=tiny_classifier())
    )
    assert strategy.model.classes_seen.sum() == 4


def test_what_it_cannot_keep_is_refused():
    for arguments, head, message in (
        ({"trainable": "image"}, None, "`regularizer` must be one that.*TextGeometry.*train the text tower"),
        ({"trainable": "nothing"}, ImageConditionedPromptHead(reduction=4), "class weights"),
    ):
        model = tiny_classifier(head, **arguments)
        with pytest.raises((ValueError, RuntimeError), match=message):
            fine_tuned([RegularizerPlugin(TextGeometry())], model)
    with pytest.raises(TypeError, match="`strategy.model` must be .*CLIPClassifier"):
        TextGeometry().pre_adapt(SimpleNamespace(model=nn.Linear(2, 2)), EXPERIENCES[1])


@pytest.mark.parametrize("name", ["distillation", "geometry"])
def test_a_part_adds_nothing_where_it_has_nothing_and_something_afterwards(name):
    benchmark = tiny_benchmark(n_experiences=6)
    ends = []
    for plugins in (
        [],
        [
            RegularizerPlugin(
                {
                    "distillation": AnchorDistillation(AdversarialAnchors(seeds_per_class=1)),
                    "geometry": TextGeometry(),
                }[name],
                5.0,
            )
        ],
    ):
        strategy = fine_tuned(plugins, both(), SimpleNamespace(train_stream=benchmark.train_stream[:1]))
        ends.append([snapshot(strategy.model)])
        for experience in benchmark.train_stream[1:3]:
            strategy.train(experience)
        ends[-1].append(snapshot(strategy.model))
    assert not differing(ends[0][0], ends[1][0])
    assert differing(ends[0][1], ends[1][1])


def test_state_goes_on_where_it_was():
    model = both()
    for make in (AdversarialAnchors, lambda: AnchorDistillation(AdversarialAnchors()), TextGeometry):
        part, other = make(), make()
        begun(part, model)
        part.post_adapt(SimpleNamespace(model=model), EXPERIENCES[1])
        other.load_state_dict(part.state_dict())
        assert other.nbytes == part.nbytes > 0
        for each in (part, other):
            each.pre_adapt(Agent(model, EXPERIENCES[2]), EXPERIENCES[2])
        if isinstance(part, AdversarialAnchors):
            rows = [each.batch(model, X, Y).image_rows for each in (part, other)]
            assert torch.equal(*rows)
            assert torch.equal(part.fixed_classes, other.fixed_classes)
        else:
            moved(model, 0.01)
            values = [each(model, X, Y, torch.zeros(0)).item() for each in (part, other)]
            assert values[0] == values[1] != 0


class First(SupervisedPlugin):
    """Keeps the gradients of the first step of an experience."""

    def __init__(self):
        super().__init__()
        self.found = []

    def before_training_exp(self, strategy, *args, **kwargs):
        self.found.append(None)

    def before_update(self, strategy, *args, **kwargs):
        if self.found[-1] is None:
            self.found[-1] = {n: p.grad.clone() for n, p in strategy.model.named_parameters()}


@pytest.mark.parametrize("name", ["distillation", "geometry", "both"])
def test_weight_consolidation_holds_on_to_what_a_part_depends_on(name):
    """Text of a step is encoded once, so that the part and the task have a part of their graphs in common."""

    def make():
        own = AnchorDistillation(AdversarialAnchors(seeds_per_class=2), InitialTeacher())
        geometry = TextGeometry()
        return {"distillation": own, "geometry": geometry, "both": SumRegularizer([own, geometry])}[name]

    def trained_with(plugin):
        first = First()
        strategy = fine_tuned([plugin, first], both(DualPathHead()), train_epochs=2)
        return first.found, snapshot(strategy.model)

    consolidated, held = trained_with(AdaptiveWeightConsolidationPlugin(make(), consolidation_weight=0.0))
    plain, free = trained_with(RegularizerPlugin(make()))
    for parameter, gradient in plain[1].items():
        torch.testing.assert_close(consolidated[1][parameter], gradient, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(held[parameter], free[parameter], atol=1e-5, rtol=1e-3)
    # Weights are where they are held before the first step, so that the penalty begins after it.
    consolidated, held = trained_with(AdaptiveWeightConsolidationPlugin(make(), consolidation_weight=0.01))
    for parameter, gradient in plain[0].items():
        torch.testing.assert_close(consolidated[0][parameter], gradient, atol=1e-5, rtol=1e-3)
    assert all(bool(held[name].isfinite().all()) for name in plain[0])
    assert len(differing(held, free)) > 10
