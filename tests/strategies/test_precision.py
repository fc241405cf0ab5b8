"""Mixed precision, clipping and accumulation, against plain loops and each other."""

import math
import warnings

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EWCPlugin, LwFPlugin, SynapticIntelligencePlugin
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.optim import SGD

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing.running import differing, run

CLASSES, WIDTH, COUNT = 4, 5, 40
NAMES = [f"class {index}" for index in range(CLASSES)]


def tensors(seed=0):
    y = torch.arange(COUNT) % CLASSES
    noise = torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(seed))
    return F.pad(F.one_hot(y).float(), (0, WIDTH - CLASSES)) + 0.3 * noise, y


def model():
    weights = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(2))
    head = CosineHead(TextFeatureHead(weights))
    return CLIPClassifier(EmbeddingBackbone(WIDTH, logit_scale=10), head, class_names=NAMES)


def strategy(plugins=(), *, batch_size=8, epochs=2, rate=0.1, momentum=0.0, **arguments):
    classifier = model()
    optimizer = SGD(classifier.parameters(), lr=rate, momentum=momentum)
    chosen = FineTune(
        model=classifier,
        optimizer=optimizer,
        plugins=[*plugins],
        train_mb_size=batch_size,
        train_epochs=epochs,
        evaluator=None,
        **arguments,
    )
    if arguments.get("precision") == "fp16":
        # Torch's first scale is too large for these gradients; it would fall at the cost of some steps.
        chosen._gradient_step.gradient_scaler = GradScaler("cpu", init_scale=64.0)
    return chosen


@pytest.fixture(scope="module")
def benchmark():
    return tensor_benchmark(tensors(), tensors(1), class_names=NAMES, n_experiences=2)


@pytest.fixture(scope="module")
def joint():
    return tensor_benchmark(tensors(), tensors(1), class_names=NAMES, n_experiences=1)


def trained(strategy, benchmark):
    return run(strategy, benchmark)["head.weight"]


class Events(SupervisedPlugin):
    """Writes down what it sees."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.batch_gradients, self.step_gradients, self.moves, self.logits = [], [], [], []

    def before_training_iteration(self, strategy, **kwargs):
        self.names.append("batch")

    def after_forward(self, strategy, **kwargs):
        self.logits.append(strategy.mb_output)

    def after_eval_forward(self, strategy, **kwargs):
        self.logits.append(strategy.mb_output)

    def after_backward(self, strategy, **kwargs):
        self.batch_gradients.append(strategy.model.head.weight.grad.clone())

    def before_update(self, strategy, **kwargs):
        self.names.append("step")
        self.step_gradients.append(strategy.model.head.weight.grad.clone())
        self.before = strategy.model.head.weight.detach().clone()

    def after_update(self, strategy, **kwargs):
        self.moves.append(strategy.model.head.weight.detach() - self.before)

    def after_training_iteration(self, strategy, **kwargs):
        self.names.append("end")


# Precision.


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.15), ("fp16", 0.02)])
def test_low_precision_trains_nearly_the_same_and_weights_stay_fp32(joint, precision, tolerance):
    start, full = model().head.weight.detach(), trained(strategy(epochs=10), joint)
    low = trained(strategy(epochs=10, precision=precision), joint)
    assert low.dtype == torch.float32
    moved = (full - start).norm()
    assert 0 < (low - full).norm() < tolerance * moved

    x, y = tensors(1)
    classifier = model()
    with torch.no_grad():
        before = F.cross_entropy(classifier(x), y)
        classifier.head.weight.copy_(low)
        assert F.cross_entropy(classifier(x), y) < before / 2


@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_training_and_evaluation_run_under_autocast_and_hand_on_fp32(joint, precision, kind):
    seen = []

    class Watched(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            strategy.model.head.register_forward_hook(
                lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
            )

    events = Events()
    chosen = strategy([events, Watched()], epochs=1, precision=precision)
    inside = []
    criterion = chosen._criterion
    criterion.register_forward_pre_hook(lambda *_: inside.append(torch.get_autocast_dtype("cpu")))
    run(chosen, joint)
    assert all(seen)
    assert set(inside) == {kind}
    assert len(events.logits) == 10  # five batches of either stream
    for logits in events.logits:
        assert logits.dtype == torch.float32
        assert torch.equal(logits, logits.to(kind).float())  # what was computed had fewer bits
    assert not torch.is_autocast_enabled("cpu")


def test_fp32_is_the_default_and_changes_nothing(benchmark):
    assert not differing(run(strategy(), benchmark), run(strategy(precision="fp32"), benchmark))
    assert strategy().gradient_scaler is None
    assert strategy(precision="bf16").gradient_scaler is None


def test_plugins_see_unscaled_gradients_under_fp16(joint):
    low, full = Events(), Events()
    run(strategy([low], epochs=1, precision="fp16"), joint)
    run(strategy([full], epochs=1), joint)
    for seen in ("batch_gradients", "step_gradients"):
        for ours, expected in zip(getattr(low, seen), getattr(full, seen), strict=True):
            assert (ours - expected).norm() < 0.05 * expected.norm()


def test_a_scale_that_is_too_large_falls_until_steps_are_made(joint):
    chosen = strategy(epochs=10, precision="fp16")
    chosen._gradient_step.gradient_scaler = GradScaler("cpu")
    assert trained(chosen, joint).isfinite().all()
    assert 2**10 < chosen.gradient_scaler.get_scale() < 2**16


class Overflowing(SupervisedPlugin):
    """Makes the gradient of one batch infinite."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def before_backward(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == self.batch:
            strategy.loss = strategy.loss + torch.inf * strategy.model.head.weight.sum()


@pytest.mark.parametrize("accumulate_batches", [1, 2])
@pytest.mark.parametrize("max_gradient_norm", [None, 1.0])
def test_a_step_with_infinite_gradients_is_left_out_and_the_scale_falls(
    joint, accumulate_batches, max_gradient_norm
):
    events = Events()
    chosen = strategy(
        [Overflowing(2), events],
        epochs=1,
        precision="fp16",
        accumulate_batches=accumulate_batches,
        max_gradient_norm=max_gradient_norm,
    )
    scale = chosen.gradient_scaler.get_scale()
    weight = trained(chosen, joint)
    assert weight.isfinite().all()
    assert chosen.gradient_scaler.get_scale() == scale / 2
    still = [not move.any() for move in events.moves]
    assert still == ([False, False, True, False, False] if accumulate_batches == 1 else [False, True, False])


def test_the_scaler_grows_and_its_state_moves_to_another_strategy(joint):
    first, second = strategy(precision="fp16"), strategy(precision="fp16")
    first._gradient_step.gradient_scaler = GradScaler("cpu", init_scale=8.0, growth_interval=3)
    run(first, joint)  # ten steps
    assert first.gradient_scaler.get_scale() == 8.0 * 2**3
    second.gradient_scaler.load_state_dict(first.gradient_scaler.state_dict())
    assert second.gradient_scaler.state_dict() == first.gradient_scaler.state_dict()


def test_tiny_gradients_survive_fp16(joint):
    def start(chosen):
        chosen.model.backbone._scale.fill_(1e-8)
        return trained(chosen, joint) - model().head.weight.detach()

    full, scaled, unscaled = strategy(rate=1e7), *(strategy(rate=1e7, precision="fp16") for _ in range(2))
    scaled._gradient_step.gradient_scaler = GradScaler("cpu")
    unscaled._gradient_step.gradient_scaler = None
    expected = start(full)
    assert (start(scaled) - expected).norm() < 0.1 * expected.norm()
    assert (start(unscaled) - expected).norm() > 0.5 * expected.norm()


# Accumulation.


@pytest.mark.parametrize(("batch_size", "batches"), [(4, 2), (8, 5), (8, 3), (6, 2), (7, 4), (3, 100)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_batches_that_are_added_up_equal_one_large_batch(joint, batch_size, batches, momentum):
    """Also where the last batch, or the last group of batches, is smaller than the others."""
    one = trained(strategy(batch_size=batch_size * batches, momentum=momentum), joint)
    parts = strategy(batch_size=batch_size, accumulate_batches=batches, momentum=momentum)
    assert (trained(parts, joint) - one).abs().max() < 1e-6


def test_a_plain_loop_gives_the_same_steps(joint):
    """Written from the definition: the mean gradient over all samples of a group of batches."""
    events = Events()
    run(strategy([events], batch_size=12, epochs=1, accumulate_batches=3, rate=0.0), joint)
    assert len(events.batch_gradients) == 4  # of 12, 12, 12 and 4 samples
    expected = [sum(events.batch_gradients[:3]) / 3, events.batch_gradients[3]]
    assert len(events.step_gradients) == 2
    for ours, theirs in zip(events.step_gradients, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-6


def test_callbacks_of_updates_fire_once_a_step(joint):
    events = Events()
    run(strategy([events], epochs=1, accumulate_batches=2), joint)  # five batches
    batch, step = ["batch", "end"], ["batch", "step", "end"]
    assert events.names == [*batch, *step, *batch, *step, *step]


def test_an_unfinished_group_is_dropped_when_training_is_stopped(joint):
    class Stopping(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_epoch_iterations == 1:  # the clock is the last to be told
                strategy.stop_training()

    events = Events()
    run(strategy([events, Stopping()], accumulate_batches=3), joint)
    assert "step" not in events.names


def test_a_plugin_that_clears_gradients_takes_none_from_the_sum(joint):
    class Clearing(SupervisedPlugin):
        """Computes gradients of its own before each batch, as A-GEM and GEM do."""

        def before_training_iteration(self, strategy, **kwargs):
            strategy.optimizer.zero_grad()
            strategy.model(strategy.mb_x).sum().backward()

    assert torch.equal(
        trained(strategy([Clearing()], accumulate_batches=2), joint),
        trained(strategy(accumulate_batches=2), joint),
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: LwFPlugin(1.0, 2.0),
        lambda: EWCPlugin(10.0),
        lambda: SynapticIntelligencePlugin(10.0),
    ],
    ids=["LwF", "EWC", "SI"],
)
def test_penalties_count_once_however_many_batches(benchmark, make):
    def both(**arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trained(strategy([make()], epochs=1, **arguments), benchmark)

    assert (both(batch_size=20) - both(batch_size=5, accumulate_batches=4)).abs().max() < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_penalties_work_under_low_precision(benchmark, precision):
    def distance(**arguments):
        return (
            trained(strategy([LwFPlugin(1.0, 2.0)], **arguments), benchmark)
            - trained(strategy([LwFPlugin(1.0, 2.0)]), benchmark)
        ).norm()

    plain = trained(strategy(), benchmark) - trained(strategy([LwFPlugin(1.0, 2.0)]), benchmark)
    assert 0 < distance(precision=precision) < 0.2 * plain.norm()


# Clipping.


@pytest.mark.parametrize("arguments", [{}, {"precision": "fp16"}, {"accumulate_batches": 3}])
def test_clipping_bounds_the_step_and_keeps_its_direction(joint, arguments):
    limit, rate = 0.05, 0.5
    events = Events()
    run(strategy([events], rate=rate, max_gradient_norm=limit, **arguments), joint)
    assert any(gradient.norm() > limit for gradient in events.step_gradients)  # or nothing is shown
    for move, gradient in zip(events.moves, events.step_gradients, strict=True):
        expected = -rate * gradient * min(1.0, limit / float(gradient.norm()))
        assert (move - expected).abs().max() < 1e-5
        assert move.norm() <= rate * limit * 1.001


def test_a_limit_that_is_never_reached_changes_nothing(joint):
    assert torch.equal(trained(strategy(max_gradient_norm=1e6), joint), trained(strategy(), joint))


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("precision", "half", ValueError),
        ("precision", 16, ValueError),
        ("max_gradient_norm", 0, ValueError),
        ("max_gradient_norm", math.inf, ValueError),
        ("max_gradient_norm", "1", TypeError),
        ("accumulate_batches", 0, ValueError),
        ("accumulate_batches", 1.5, TypeError),
    ],
)
def test_a_wrong_value_is_named(argument, value, error):
    with pytest.raises(error, match=argument):
        strategy(**{argument: value})
