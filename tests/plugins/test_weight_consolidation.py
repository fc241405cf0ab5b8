"""Consolidation of weights: its gradient against one backward pass of the whole loss, and its edges."""

import gc
import weakref
from copy import deepcopy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, LwFPlugin, ReplayPlugin
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from avalanche_vlm.models import CosineHead, HybridPromptHead, LearnedContextHead, LoRA, ZeroShotHead
from avalanche_vlm.plugins import (
    AdaptiveWeightConsolidationPlugin,
    GenerativeLatentReplayPlugin,
    LabelSpaceCrossEntropy,
    RegularizerPlugin,
    StaticWeightConsolidationPlugin,
)
from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    CurrentPairs,
    HeadTexts,
    ImageTextAlignment,
    PreviousWeightsPenalty,
    Regularizer,
    SumRegularizer,
    SyntheticPairs,
)
from avalanche_vlm.sources import DiagonalGaussian, LearnedClassPrompts, NamePrompts
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
from avalanche_vlm.testing.running import differing, snapshot
from tests.reference.tiny_image_source import NAMES, TinyImageSource, moved, union

BENCHMARK = tiny_benchmark()
FIRST = BENCHMARK.train_stream[0]
KINDS = [AdaptiveWeightConsolidationPlugin, StaticWeightConsolidationPlugin]


def both():
    return moved(tiny_classifier(trainable="both"))


def strategy(plugins=(), kind=FineTune, make_model=both, make_optimizer=None, **arguments):
    model = make_model()
    arguments = {"train_mb_size": 3, "evaluator": None, **arguments}
    if kind is not FineTune:
        arguments = {"criterion": LabelSpaceCrossEntropy("seen"), "eval_mb_size": 4, **arguments}
    optimizer = SGD(model.parameters(), lr=0.05) if make_optimizer is None else make_optimizer(model)
    return kind(model=model, optimizer=optimizer, plugins=[*plugins], **arguments)


def slow(model):
    return SGD(model.parameters(), lr=0.005)


def synthetic(prompts=None, **arguments):
    prompts = NamePrompts(NAMES) if prompts is None else prompts
    return SyntheticPairs(TinyImageSource(), prompts, **{"count": 9, "batch_size": 4, **arguments})


class Probe(Regularizer):
    """A function of the weights alone, in which both towers have a part."""

    def __init__(self, factor=1.0, scale_of_images=1.0):
        generator = torch.Generator().manual_seed(7)
        self.images = scale_of_images * torch.randn(5, 3, 8, 8, generator=generator)
        self.factor = factor

    def __call__(self, model, x, y, logits):
        texts = model.backbone.encode_text(model.backbone.tokenize(["a tench", "a cock", "a robin"]))
        similarities = F.normalize(model.encode(self.images), dim=1) @ F.normalize(texts, dim=1).T
        return self.factor * (similarities - 0.3).float().square().sum()


class OneTensor(Regularizer):
    """Depends on one tensor."""

    def __call__(self, model, x, y, logits):
        return model.backbone.image_tower.ln_post.weight.pow(3).sum()


def autocast(running):
    step = getattr(running, "_gradient_step", None)
    return torch.autocast("cpu", enabled=False) if step is None else step.autocast()


class Reference(SupervisedPlugin):
    """The gradient of L + w R + λ Σ F (θ - θ')² by one backward pass with F fixed, in its own graph."""

    def __init__(self, regularizer, w, lam, importances=None):
        super().__init__()
        self.regularizer, self.w, self.lam = regularizer, w, lam
        self.importances = importances
        self.origin = None
        self.sums, self.samples = {}, 0
        self.steps = self.compared = 0
        self.losses = []
        self.tolerance = 2e-5

    def before_training_exp(self, strategy, *args, **kwargs):
        self.origin = {name: p.detach().double() for name, p in strategy.model.named_parameters()}

    def whole(self, running):
        model = deepcopy(running.model)  # its own graph; the modes are those of the model
        named = dict(model.named_parameters())
        with autocast(running):
            output = model(running.mb_x).float()
            own = running.mb_output
            running.mb_output = output
            task = running.criterion()
            running.mb_output = own
            term = self.regularizer(model, running.mb_x, running.mb_y, output).float()
        grads = torch.autograd.grad(term, list(named.values()), allow_unused=True, retain_graph=True)
        loss = task.double() + self.w * term.double()
        for (name, parameter), g in zip(named.items(), grads, strict=True):
            if g is not None:
                square = g.double() ** 2
                importance = square / square.mean()
                loss = loss + self.lam * (importance * (parameter.double() - self.origin[name]) ** 2).sum()
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return loss.item(), {
            n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)
        }

    def before_backward(self, strategy, *args, **kwargs):
        loss, grads = self.whole(strategy)
        self.losses.append((loss, strategy.loss.item()))
        for name, gradient in grads.items():
            self.sums[name] = self.sums.get(name, 0) + len(strategy.mb_y) * gradient
        self.samples += len(strategy.mb_y)

    def before_update(self, strategy, *args, **kwargs):
        self.steps += 1
        for name, parameter in strategy.model.named_parameters():
            expected = self.sums[name] / self.samples
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            limit = self.tolerance * (1 + float(expected.abs().max()))
            error = float((found - expected).abs().max())
            assert error < limit, f"{name}, step {self.steps}: {error}"
        self.sums, self.samples = {}, 0

    def check(self, steps, rel=1e-5):
        assert self.steps == steps
        for expected, found in self.losses:
            assert found == pytest.approx(expected, rel=rel)


SETTINGS = {
    "plain": {},
    "accumulated": {"accumulate_batches": 2},
    "accumulated, uneven": {"accumulate_batches": 3, "train_mb_size": 5},
    "bf16": {"precision": "bf16"},
    "naive": {"kind": Naive},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("w", "lam"), [(1.0, 1.0), (0.5, 20.0), (0.0, 5.0), (2.0, 0.0)])
def test_gradient_and_loss_are_those_of_the_sum(name, w, lam):
    settings = SETTINGS[name]
    consolidation = AdaptiveWeightConsolidationPlugin(Probe(), regularizer_weight=w, consolidation_weight=lam)
    reference = Reference(Probe(), w, lam)
    if name == "bf16":
        reference.tolerance = 1e-2  # one graph adds up in bf16 what we add up in fp32
    trained = strategy([consolidation, reference], train_epochs=3, make_optimizer=slow, **settings)
    trained.train(FIRST)
    trained.train(BENCHMARK.train_stream[1])
    batches = 2 * 3 * -(-8 // settings.get("train_mb_size", 3))
    per_epoch = -(-(batches // 6) // settings.get("accumulate_batches", 1))
    reference.check(6 * per_epoch, rel=1e-3 if name == "bf16" else 1e-5)


def test_clipping_is_that_of_the_whole_gradient():
    class Steps(SupervisedPlugin):
        def before_update(self, strategy, *args, **kwargs):
            self.before = {n: (p.detach().clone(), p.grad.clone()) for n, p in named(strategy)}

        def after_update(self, strategy, *args, **kwargs):
            norm = torch.stack([g.norm() for _, g in self.before.values()]).norm()
            assert norm > 0.5
            for name, p in named(strategy):
                before, gradient = self.before[name]
                torch.testing.assert_close(p, before - 0.05 * gradient * 0.5 / (norm + 1e-6))

    def named(strategy):
        return [(n, p) for n, p in strategy.model.named_parameters() if p.grad is not None]

    consolidation = AdaptiveWeightConsolidationPlugin(Probe(), consolidation_weight=10.0)
    reference = Reference(Probe(), 1.0, 10.0)
    trained = strategy([consolidation, reference, Steps()], max_gradient_norm=0.5, train_epochs=2)
    trained.train(FIRST)
    reference.check(6)


def test_a_real_regularizer_gives_the_gradient_of_the_sum():
    """Distillation and alignment, over batches that are drawn: the twin draws the same."""

    def make():
        pairs = synthetic(union())
        return SumRegularizer([CrossModalDistillation(pairs), ImageTextAlignment(pairs)], [1.0, 0.25])

    class WithPairs(Reference):
        def before_training_exp(self, strategy, *args, **kwargs):
            super().before_training_exp(strategy)
            self.regularizer.pre_adapt(strategy, strategy.experience)

        def after_training_exp(self, strategy, *args, **kwargs):
            self.regularizer.post_adapt(strategy, strategy.experience)

    consolidation = AdaptiveWeightConsolidationPlugin(make(), consolidation_weight=3.0)
    reference = WithPairs(make(), 1.0, 3.0)
    # Where student and teacher agree, the gradient of the distillation is rounding, and so is F.
    reference.tolerance = 5e-4
    trained = strategy([consolidation, reference], train_epochs=2)
    for experience in BENCHMARK.train_stream:
        trained.train(experience)
    reference.check(18, rel=1e-4)


def importances_of(plugin):
    """Note the importances that a plugin uses."""
    noted, own = [], plugin._importances

    def noting(names, gradients):
        found = own(names, gradients)
        noted.append({n: None if f is None else f.clone() for n, f in zip(names, found, strict=True)})
        return found

    plugin._importances = noting
    return noted


@pytest.mark.parametrize("kind", KINDS)
def test_importances_have_mean_one_and_come_from_the_regularizer_alone(kind):
    found = []
    for criterion in (nn.CrossEntropyLoss(), lambda logits, y: 100 * logits.square().sum()):
        plugin = kind(Probe())
        found.append(importances_of(plugin))
        torch.manual_seed(0)
        trained = strategy(
            [plugin], criterion=criterion, make_optimizer=lambda m: SGD(m.parameters(), lr=0.0)
        )
        trained.train(FIRST)
    for one, other in zip(*found, strict=True):
        assert not differing(one, other)
        for importance in one.values():
            assert float(importance.mean()) == pytest.approx(1, rel=1e-4) or not importance.any()
            assert importance.min() >= 0
        assert sum(bool(importance.any()) for importance in one.values()) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_regularizer_does_not_touch_is_not_held(kind):
    touched = "backbone.image_tower.ln_post.weight"
    noted = {}

    class Note(SupervisedPlugin):
        def __init__(self, lam):
            super().__init__()
            self.lam = lam

        def before_update(self, strategy, *args, **kwargs):
            noted.setdefault(self.lam, []).append(
                {n: None if p.grad is None else p.grad.clone() for n, p in strategy.model.named_parameters()}
            )

        def after_update(self, strategy, *args, **kwargs):
            with torch.no_grad():  # the same weights in both runs, away from where they began
                for p, origin in zip(strategy.model.parameters(), both().parameters(), strict=True):
                    p.copy_(origin + 0.1)

    for lam in (0.0, 50.0):
        plugin = kind(OneTensor(), consolidation_weight=lam)
        torch.manual_seed(0)
        strategy([plugin, Note(lam)]).train(FIRST)
    for without, held in zip(noted[0.0][1:], noted[50.0][1:], strict=True):
        changed = [n for n in held if not torch.equal(without[n], held[n])]
        assert changed == [touched]
        # 2 λ F (θ - θ'), with F the shares of 9 θ⁴.
        theta = dict(both().named_parameters())[touched].detach() + 0.1
        squares = theta**4
        if kind is AdaptiveWeightConsolidationPlugin:
            pull = 2 * 50 * squares / squares.mean() * 0.1
            torch.testing.assert_close(held[touched] - without[touched], pull, atol=1e-3, rtol=1e-3)


def test_where_nothing_has_moved_the_penalty_adds_nothing():
    grads = {}
    for plugin in (
        RegularizerPlugin(Probe()),
        AdaptiveWeightConsolidationPlugin(Probe(), consolidation_weight=1e3),
        StaticWeightConsolidationPlugin(Probe(), consolidation_weight=1e3),
    ):

        class Note(SupervisedPlugin):
            def before_update(self, strategy, *args, own=plugin, **kwargs):
                named = strategy.model.named_parameters()
                grads.setdefault(own, (strategy.loss.item(), {n: p.grad.clone() for n, p in named}))

        torch.manual_seed(0)
        strategy([plugin, Note()]).train(FIRST)
    (loss, expected), *others = grads.values()
    for other_loss, found in others:
        assert other_loss == pytest.approx(loss, rel=1e-6)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("host", [FineTune, Naive])
def test_with_all_weights_zero_it_is_the_bare_strategy(kind, host):
    def make_strategy(plugins):
        return strategy(plugins, host)

    def make(weight, lam=0.0):
        pairs = SumRegularizer([ImageTextAlignment(CurrentPairs()), CrossModalDistillation(synthetic())])
        return kind(pairs, regularizer_weight=weight, consolidation_weight=lam)

    check_zero_weight(make_strategy, lambda: make(0.0), BENCHMARK)

    def term(running):
        regularizer = make(1.0).regularizer
        regularizer.pre_adapt(running, running.experience)
        return regularizer(running.model, running.mb_x, running.mb_y, running.mb_output)

    # At the first iteration nothing has moved: with λ the gradient is the same.
    check_gradient(make_strategy, lambda w: make(w, 1.0), term, FIRST, tolerance=5e-5)


def test_the_static_importance_is_the_mean_of_the_first_batches():
    class Changing(Probe):
        """Another function at each call."""

        calls = 0

        def __call__(self, model, x, y, logits):
            self.calls += 1
            self.images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(self.calls))
            return super().__call__(model, x, y, logits)

    plugin = StaticWeightConsolidationPlugin(Changing(), batches=2)
    noted = importances_of(plugin)
    trained = strategy([plugin], make_optimizer=lambda m: SGD(m.parameters(), lr=0.0), train_epochs=2)
    trained.train(FIRST)
    assert len(noted) == 6
    model, squares = both(), []
    for call in range(2):
        twin = Changing()
        twin.calls = call
        grads = torch.autograd.grad(
            twin(model, None, None, None), list(model.parameters()), allow_unused=True
        )
        squares.append([None if g is None else g.double() ** 2 for g in grads])
        for step in range(6)[call : call + 1] if call == 0 else range(1, 6):
            for importance, *own in zip(noted[step].values(), *squares, strict=True):
                if own[0] is None:
                    assert importance is None
                    continue
                mean = sum(own) / len(own)
                if mean.max() > 1e-12:
                    torch.testing.assert_close(importance.double(), mean / mean.mean(), atol=1e-3, rtol=1e-3)
    assert plugin._squares == {}  # let go of after the experience
    trained.train(BENCHMARK.train_stream[1])
    assert differing(noted[6], noted[5])


def test_under_fp16_small_gradients_survive_and_the_gradient_is_unscaled():
    """A gradient of 1e-9 is 0 in half precision, unless the term is scaled on its way."""
    pulls = {}
    for precision in ("fp32", "fp16"):
        plugin = AdaptiveWeightConsolidationPlugin(Probe(1e-7), consolidation_weight=10.0)
        noted, gradients = importances_of(plugin), []

        class Note(SupervisedPlugin):
            def before_update(self, strategy, *args, gradients=gradients, **kwargs):
                named = strategy.model.named_parameters()
                gradients.append({n: p.grad.clone() for n, p in named})

        torch.manual_seed(0)
        trained = strategy(
            [plugin, Note()],
            precision=precision,
            criterion=lambda logits, y: 0 * logits.sum(),
            make_optimizer=lambda m: SGD(m.parameters(), lr=0.0),
        )
        trained.train(FIRST)
        pulls[precision] = noted[0], gradients[0]
    for part in range(2):
        for name, expected in pulls["fp32"][part].items():
            found = pulls["fp16"][part][name]
            if expected is None or "attn.in_proj_bias" in name:  # a bias of keys has no gradient but rounding
                continue
            error = (found - expected).norm() / expected.norm()
            assert error < 0.05, (name, part, float(error))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_finite_is_left_out_and_forgotten(kind):
    class Bursting(Probe):
        calls = 0

        def __call__(self, model, x, y, logits):
            self.calls += 1
            term = super().__call__(model, x, y, logits)
            return term * float("inf") if self.calls == 3 else term

    plugin = kind(Bursting(), consolidation_weight=5.0)
    noted, weights = importances_of(plugin), []

    class Note(SupervisedPlugin):
        def after_update(self, strategy, *args, **kwargs):
            weights.append(snapshot(strategy.model))

    trained = strategy([plugin, Note()], precision="fp16", train_epochs=3, make_optimizer=slow)
    trained.gradient_scaler.load_state_dict(trained.gradient_scaler.state_dict() | {"scale": 16.0})
    trained.train(FIRST)
    assert not differing(weights[1], weights[2])
    assert differing(weights[2], weights[3])
    assert differing(weights[0], weights[1])
    assert all(bool(p.isfinite().all()) for p in trained.model.parameters())
    assert all(bool(f.isfinite().all()) for f in noted[3].values() if f is not None)
    assert trained.gradient_scaler.get_scale() == 8.0


def test_teacher_penalty_and_consolidation_share_one_copy_and_it_is_freed():
    distillation, penalty = CrossModalDistillation(CurrentPairs()), PreviousWeightsPenalty()
    first = AdaptiveWeightConsolidationPlugin(distillation)
    second = StaticWeightConsolidationPlugin(penalty)
    copies = []

    class Watch(SupervisedPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs):
            held = [first._reference, second._reference, distillation._weights, penalty._weights]
            assert all(each is held[0] for each in held)
            copies.extend(weakref.ref(tensor) for tensor in held[0].tensors.values())

    trained = strategy([first, second, Watch()])
    for experience in BENCHMARK.train_stream[:2]:
        trained.train(experience)
        gc.collect()
        assert copies
        assert not any(each() is not None for each in copies)


def test_the_gradients_of_a_step_do_not_outlive_it():
    noted = []

    class Own(AdaptiveWeightConsolidationPlugin.__mro__[1]):
        def _importances(self, names, gradients):
            noted.extend(weakref.ref(g) for g in gradients if g is not None)
            return [None] * len(names)

    alive = []

    class Watch(SupervisedPlugin):
        def after_training_iteration(self, strategy, *args, **kwargs):
            strategy.optimizer.zero_grad()
            gc.collect()
            alive.append(sum(each() is not None for each in noted))

    strategy([Own(Probe()), Watch()]).train(FIRST)
    assert noted
    assert alive == [0] * 3


@pytest.mark.parametrize("make_head", [lambda: LearnedContextHead(context_length=2), HybridPromptHead])
def test_prompts_are_held_through_the_head(make_head):
    def model():
        return moved(tiny_classifier(make_head()), 0.3)

    def make(lam):
        pairs = synthetic(LearnedClassPrompts(), texts=HeadTexts())
        terms = SumRegularizer([CrossModalDistillation(pairs), ImageTextAlignment(pairs)])
        return AdaptiveWeightConsolidationPlugin(terms, regularizer_weight=0.0, consolidation_weight=lam)

    distances, noted = {}, []
    for lam in (0.0, 1.0, 5.0):
        plugin = make(lam) if lam else RegularizerPlugin(aligned_head(), 0.0)
        noted = importances_of(plugin) if lam else noted
        trained = strategy([plugin], make_model=model, train_epochs=10, make_optimizer=slow)
        torch.manual_seed(0)
        trained.train(FIRST)
        before = [p.detach().clone() for p in trained.model.parameters()]
        trained.train(BENCHMARK.train_stream[1])
        after = list(trained.model.parameters())
        distances[lam] = sum((a - b).square().sum().item() for a, b in zip(after, before, strict=True))
        assert all(any(f is not None and f.any() for f in each.values()) for each in noted)
    assert distances[0.0] > distances[1.0] > distances[5.0] > 0


def aligned_head():
    return ImageTextAlignment(synthetic(LearnedClassPrompts(), texts=HeadTexts()))


def test_of_lora_the_factors_alone_are_held():
    plugin = AdaptiveWeightConsolidationPlugin(CrossModalDistillation(synthetic()), consolidation_weight=5.0)
    noted = importances_of(plugin)
    make = lambda: moved(tiny_classifier(trainable=LoRA(rank=2, dropout=0.1)), 0.2)  # noqa: E731
    check_frozen(lambda: strategy([plugin], make_model=make), BENCHMARK)
    assert all("lora_" in name for name in noted[0])
    assert all(importance.any() for importance in noted[1].values())


def interrupting():
    class Interrupting(SupervisedPlugin):
        armed = True

        def after_update(self, strategy, *args, **kwargs):
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt

    return Interrupting()


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_trained_again(kind):
    plugin = kind(CrossModalDistillation(synthetic()))
    trained = strategy([plugin, interrupting()])
    with pytest.raises(KeyboardInterrupt):
        trained.train(FIRST)
    before = [p.detach().clone() for p in trained.model.parameters()]
    references = []

    class Note(SupervisedPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs):
            references.append(list(plugin._reference.tensors.values()))

    trained.plugins.append(Note())
    trained.train(FIRST)
    assert all(torch.equal(a, b) for a, b in zip(before, references[0], strict=True))
    assert all(bool(p.isfinite().all()) for p in trained.model.parameters())


def test_an_experience_without_prompts_adds_nothing():
    plugin = AdaptiveWeightConsolidationPlugin(CrossModalDistillation(synthetic(LearnedClassPrompts())))
    ends = []
    for plugins in ([], [plugin]):
        torch.manual_seed(0)
        trained = strategy(plugins)
        trained.train(FIRST)
        ends.append(snapshot(trained.model))
    assert not differing(*ends)


def test_several_experiences_at_once():
    plugin = AdaptiveWeightConsolidationPlugin(CrossModalDistillation(synthetic(union())))
    strategy([plugin], kind=JointTraining).train(BENCHMARK.train_stream)
    strategy([AdaptiveWeightConsolidationPlugin(CrossModalDistillation(synthetic(union())))]).train(
        BENCHMARK.train_stream
    )


@pytest.mark.parametrize("kind", KINDS)
def test_laws(kind):
    def make(plugins=()):
        own = kind(CrossModalDistillation(synthetic(union())), consolidation_weight=2.0)
        return strategy([*plugins, own], make_optimizer=lambda m: AdamW(m.parameters(), lr=1e-2))

    check_callbacks(kind(Probe()))
    check_repeatable(make, BENCHMARK)
    check_resumable(make, BENCHMARK)
    check_frozen(make, BENCHMARK)
    before = torch.get_rng_state()
    own = kind(CrossModalDistillation(synthetic()))
    assert torch.equal(before, torch.get_rng_state())
    trained = strategy([own])
    trained.train(FIRST)
    assert own.nbytes == 0


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Replay", lambda: ReplayPlugin(mem_size=6)),
        ("LwF", lambda: LwFPlugin(alpha=1.0, temperature=2.0)),
        ("EWC", lambda: EWCPlugin(ewc_lambda=100.0)),
        ("AGEM", lambda: AGEMPlugin(patterns_per_experience=4, sample_size=4)),
    ],
)
def test_beside_plugins_of_the_host(name, other):
    plugins = {
        "ours": lambda: AdaptiveWeightConsolidationPlugin(
            CrossModalDistillation(synthetic()), consolidation_weight=5.0
        ),
        name: other,
    }
    check_composes(lambda chosen: strategy(chosen, train_mb_size=4), plugins, BENCHMARK)


def test_beside_replay_of_embeddings():
    """The image tower is frozen there; the text tower is held."""
    frozen = tiny_classifier()
    plugins = {
        "ours": lambda: AdaptiveWeightConsolidationPlugin(CrossModalDistillation(synthetic())),
        "replay": lambda: GenerativeLatentReplayPlugin(DiagonalGaussian(seed=3), samples_per_class=4),
    }
    for make_head in (ZeroShotHead, lambda: CosineHead(ZeroShotHead())):
        check_composes(
            lambda chosen, make=make_head: strategy(
                chosen, make_model=lambda: tiny_classifier(make(), trainable="text")
            ),
            plugins,
            tiny_benchmark(embedded=frozen, n_experiences=2),
        )
