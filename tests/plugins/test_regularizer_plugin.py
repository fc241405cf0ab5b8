"""A regularizer as a plugin: what it adds, when it is refused, and what it leaves alone."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from torch.optim import SGD

from avalanche_vlm.models import CosineHead, LearnedContextHead, ZeroShotHead
from avalanche_vlm.plugins import (
    AdaptiveWeightConsolidationPlugin,
    LabelSpaceCrossEntropy,
    RegularizerPlugin,
)
from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    CurrentPairs,
    HeadTexts,
    ImageTextAlignment,
    PreviousWeightsPenalty,
    ReferenceDistillation,
    ReferencePairs,
    Regularizer,
    SumRegularizer,
    SyntheticPairs,
)
from avalanche_vlm.sources import LearnedClassPrompts, NamePrompts
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import (
    check_callbacks,
    check_composes,
    check_frozen,
    check_gradient,
    check_repeatable,
    check_resumable,
    check_zero_weight,
    tiny_benchmark,
    tiny_classifier,
)
from avalanche_vlm.testing.running import differing, run, snapshot
from tests.reference.tiny_image_source import NAMES, TinyImageSource, moved, union

BENCHMARK = tiny_benchmark()
FIRST = BENCHMARK.train_stream[0]
EMBEDDED = tiny_benchmark(embedded=tiny_classifier())


def both():
    return moved(tiny_classifier(trainable="both"))


def strategy(plugins=(), kind=FineTune, make_model=both, **arguments):
    model = make_model()
    arguments = {"train_mb_size": 4, "evaluator": None, **arguments}
    if kind is not FineTune:
        arguments = {"criterion": LabelSpaceCrossEntropy("seen"), "eval_mb_size": 4, **arguments}
    optimizer = SGD(model.parameters(), lr=0.05)
    return kind(model=model, optimizer=optimizer, plugins=[*plugins], **arguments)


def synthetic(prompts=None, **arguments):
    prompts = NamePrompts(NAMES) if prompts is None else prompts
    return SyntheticPairs(TinyImageSource(), prompts, **{"count": 9, "batch_size": 4, **arguments})


def aligned():
    return ImageTextAlignment(synthetic())


class LogitPenalty(Regularizer):
    """The mean squared logit: a term that reads the batch's own logits."""

    def __call__(self, model, x, y, logits):
        return logits.square().mean()


REGULARIZERS = {
    "alignment": aligned,
    "of the batch": lambda: ImageTextAlignment(CurrentPairs()),
    "logits": LogitPenalty,
    "sum": lambda: SumRegularizer([aligned(), LogitPenalty()], [1.0, 0.1]),
}


@pytest.mark.parametrize("kind", [FineTune, Naive])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_weights_count(name, kind):
    noted = {}

    def make(weight):
        noted[weight] = RegularizerPlugin(REGULARIZERS[name](), weight)
        return noted[weight]

    def make_strategy(plugins):
        return strategy(plugins, kind)

    def term(running):
        # Once more over the same batch.
        regularizer = REGULARIZERS[name]()
        regularizer.pre_adapt(running, running.experience)
        return regularizer(running.model, running.mb_x, running.mb_y, running.model(running.mb_x))

    check_zero_weight(make_strategy, lambda: make(0.0), BENCHMARK)
    check_gradient(make_strategy, make, term, FIRST, tolerance=2e-5)
    assert differing(run(make_strategy([]), BENCHMARK), run(make_strategy([make(1.0)]), BENCHMARK))


def test_the_reported_loss_contains_the_term():
    losses = {}
    for weight in (0.0, 1.0, 2.0):
        plugin = RegularizerPlugin(LogitPenalty(), weight)

        class Note(SupervisedPlugin):
            def after_backward(self, strategy, *args, plugin=plugin, weight=weight, **kwargs):
                losses.setdefault(weight, (strategy.loss.item(), strategy.mb_output.square().mean().item()))

        torch.manual_seed(0)
        strategy([plugin, Note()]).train(FIRST)
    base, penalty = losses[0.0]
    for weight in (1.0, 2.0):
        assert losses[weight][0] == pytest.approx(base + weight * penalty, rel=1e-5)


@pytest.mark.parametrize("make_plugin", [RegularizerPlugin, AdaptiveWeightConsolidationPlugin])
def test_what_nothing_in_training_influences_is_refused_with_what_to_do(make_plugin):
    def prompts():
        return tiny_classifier(LearnedContextHead(context_length=2))

    def text():
        return tiny_classifier(trainable="text")

    images = torch.zeros(4, 3, 8, 8)
    for regularizer, make_model, benchmark, message in (
        (aligned(), prompts, BENCHMARK, "ImageTextAlignment, which none has.*trainable='both'.*HeadTexts"),
        (CrossModalDistillation(CurrentPairs()), prompts, EMBEDDED, "CrossModalDistillation, which none has"),
        (
            SumRegularizer([aligned(), CrossModalDistillation(synthetic())]),
            lambda: tiny_classifier(CosineHead(ZeroShotHead())),
            BENCHMARK,
            r"ImageTextAlignment \+ CrossModalDistillation",
        ),
        (
            ReferenceDistillation(ReferencePairs(images, NAMES)),
            text,
            BENCHMARK,
            "ReferenceDistillation.*trainable='image' or 'both'",
        ),
    ):
        with pytest.raises(ValueError, match="`regularizer` must be one that.*" + message):
            strategy([make_plugin(regularizer)], make_model=make_model).train(benchmark.train_stream[0])


def test_prompts_are_reached_through_the_head():
    def make():
        pairs = synthetic(LearnedClassPrompts(), texts=HeadTexts())
        return CrossModalDistillation(pairs)

    def prompts():
        return moved(tiny_classifier(LearnedContextHead(context_length=2)), 0.5)

    for benchmark in (BENCHMARK, EMBEDDED):
        ends = []
        for plugins in ([], [RegularizerPlugin(make(), 10.0)]):
            trained = strategy(plugins, make_model=prompts)
            ends.append(run(trained, benchmark))
        assert differing(*ends) == ["head.context"]


def test_head_texts_of_names_that_are_no_classes_are_refused():
    plugin = RegularizerPlugin(CrossModalDistillation(synthetic(texts=HeadTexts())))
    with pytest.raises(ValueError, match="`prompts` must be prompts about classes.*Use LearnedClassPrompts"):
        strategy([plugin]).train(FIRST)


@pytest.mark.parametrize("order", [1, -1])
def test_the_same_regularizer_in_two_plugins_is_refused(order):
    shared = aligned()
    plugin = RegularizerPlugin(shared)
    for other in (
        RegularizerPlugin(shared),
        AdaptiveWeightConsolidationPlugin(shared),
        AdaptiveWeightConsolidationPlugin(SumRegularizer([shared, PreviousWeightsPenalty()])),
        RegularizerPlugin(SumRegularizer([SumRegularizer([shared])])),
    ):
        with pytest.raises(ValueError, match="`plugins` must be .*ImageTextAlignment in .*keep one"):
            strategy([plugin, other][::order]).train(FIRST)
    with pytest.raises(ValueError, match="`plugins` must be .*the same RegularizerPlugin twice"):
        strategy([plugin, plugin])
    # Two of their own are fine, also over the same pairs.
    pairs = synthetic()
    strategy(
        [RegularizerPlugin(ImageTextAlignment(pairs)), RegularizerPlugin(CrossModalDistillation(pairs))]
    ).train(FIRST)


def test_alignment_of_reference_pairs_is_refused():
    pairs = ReferencePairs(torch.zeros(4, 3, 8, 8), NAMES)
    with pytest.raises(ValueError, match="`pairs` must be pairs of images and their captions"):
        strategy([RegularizerPlugin(ImageTextAlignment(pairs))]).train(FIRST)


def test_an_experience_without_prompts_adds_nothing():
    plugin = RegularizerPlugin(ImageTextAlignment(synthetic(LearnedClassPrompts())))
    trained, bare = strategy([plugin]), strategy()
    for each in (trained, bare):
        torch.manual_seed(0)
        each.train(FIRST)
    assert not differing(snapshot(trained.model), snapshot(bare.model))
    for each in (trained, bare):
        torch.manual_seed(0)
        each.train(BENCHMARK.train_stream[1])
    assert differing(snapshot(trained.model), snapshot(bare.model))
    assert plugin.nbytes == 6


def test_laws():
    def make(plugins=()):
        return strategy([*plugins, RegularizerPlugin(CrossModalDistillation(synthetic(union())))])

    check_callbacks(RegularizerPlugin(aligned()))
    check_repeatable(make, BENCHMARK)
    check_resumable(make, BENCHMARK)
    check_frozen(make, BENCHMARK)
    check_frozen(
        lambda: strategy(
            [RegularizerPlugin(aligned())], make_model=lambda: tiny_classifier(trainable="image")
        ),
        BENCHMARK,
    )


def test_it_draws_nothing_from_the_global_generator():
    states = []
    for plugins in ([], [RegularizerPlugin(CrossModalDistillation(synthetic()))]):
        torch.manual_seed(3)
        strategy(plugins).train(FIRST)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_beside_plugins_of_the_host():
    plugins = {
        "ours": lambda: RegularizerPlugin(CrossModalDistillation(synthetic())),
        "Replay": lambda: ReplayPlugin(mem_size=6),
        "LwF": lambda: LwFPlugin(alpha=1.0, temperature=2.0),
        "EWC": lambda: EWCPlugin(ewc_lambda=100.0),
    }
    for other in ("Replay", "LwF", "EWC"):
        check_composes(strategy, {name: plugins[name] for name in ("ours", other)}, BENCHMARK)


def test_several_experiences_at_once():
    plugin = RegularizerPlugin(CrossModalDistillation(synthetic(union())))
    trained = strategy([plugin], kind=JointTraining)
    trained.train(BENCHMARK.train_stream)
    assert len(plugin.regularizer.pairs.images.drawn) == 9
    assert plugin.regularizer.pairs.prompts.pools[1].class_ids == list(range(6))
    trained = strategy([RegularizerPlugin(CrossModalDistillation(synthetic(union())))])
    trained.train(BENCHMARK.train_stream)  # one after the other
    assert trained.model.classes_seen.all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_teacher_speaks_in_the_precision_of_the_student(precision):
    """So that they agree before the first step, bit for bit, on pairs of either kind."""
    for pairs in (synthetic(), CurrentPairs()):
        values = []
        regularizer = CrossModalDistillation(pairs)
        compare = regularizer.compare

        def noting(model, student, compare=compare, values=values):
            assert student.images.dtype in (torch.bfloat16, torch.float16)
            assert student.similarities.dtype == torch.float32
            values.append(compare(model, student))
            return values[-1]

        regularizer.compare = noting
        strategy([RegularizerPlugin(regularizer)], precision=precision, train_epochs=12).train(FIRST)
        assert abs(values[0].item()) < 1e-6
        assert values[-1].item() > 1e-5
