"""NaN and infinity do not train: settings, losses and weights, in our strategies and in the host's."""

import math

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import LRSchedulerPlugin
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.plugins import LabelSpaceCrossEntropy, LearningRatesPlugin
from avalanche_vlm.strategies import FineTune

CLASSES, WIDTH, COUNT = 4, 5, 40
NAMES = [f"class {index}" for index in range(CLASSES)]
STRATEGIES = pytest.mark.parametrize("kind", [FineTune, Naive, JointTraining])


def tensors(seed=0):
    y = torch.arange(COUNT) % CLASSES
    noise = torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(seed))
    return F.pad(F.one_hot(y).float(), (0, WIDTH - CLASSES)) + 0.3 * noise, y


BENCHMARK = tensor_benchmark(tensors(), tensors(1), class_names=NAMES, n_experiences=2)


def model():
    weights = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(2))
    head = CosineHead(TextFeatureHead(weights))
    return CLIPClassifier(EmbeddingBackbone(WIDTH, logit_scale=10), head, class_names=NAMES)


def make(*plugins, kind=FineTune, optimizer=None, **arguments):
    classifier = model()
    return kind(
        model=classifier,
        optimizer=SGD(classifier.parameters(), lr=0.1) if optimizer is None else optimizer(classifier),
        criterion=LabelSpaceCrossEntropy("seen"),
        plugins=[*plugins],
        train_mb_size=8,
        evaluator=None,
        **({} if "train_iterations" in arguments else {"train_epochs": 2}),
        **arguments,
    )


def train(strategy):
    strategy.train(
        BENCHMARK.train_stream if isinstance(strategy, JointTraining) else BENCHMARK.train_stream[0]
    )


class Spoil(SupervisedPlugin):
    """Makes what it is told NaN or infinite, at one iteration."""

    def __init__(self, what, value=math.nan, at=2):
        super().__init__()
        self.what, self.value, self.at = what, value, at
        self.weights = {}

    def before_backward(self, strategy, *args, **kwargs):
        self.weights = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}
        if self.what == "loss" and strategy.clock.train_exp_iterations == self.at:
            strategy.loss = strategy.loss * self.value

    def before_update(self, strategy, *args, **kwargs):
        if strategy.clock.train_exp_iterations == self.at:
            if self.what == "gradient":
                for parameter in strategy.model.parameters():
                    parameter.grad.fill_(self.value)
            elif self.what != "loss":
                strategy.optimizer.param_groups[0][self.what] = self.value


def unchanged(strategy, weights):
    return all(torch.equal(p, weights[name]) for name, p in strategy.model.named_parameters())


@STRATEGIES
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_is_refused_before_its_step(kind, value):
    plugin = Spoil("loss", value)
    strategy = make(plugin, kind=kind)
    places = "s 0, 1" if kind is JointTraining else " 0"
    message = rf"`strategy.loss` must be finite.*{value}.* at iteration 2 of experience{places}, .*rate 0.1"
    with pytest.raises(ValueError, match=message):
        train(strategy)
    assert strategy.clock.train_exp_iterations == 2
    assert unchanged(strategy, plugin.weights)
    assert all(bool(p.isfinite().all()) for p in strategy.model.parameters())


def test_a_loss_is_refused_whatever_the_criterion():
    classifier = model()
    strategy = FineTune(
        model=classifier,
        optimizer=SGD(classifier.parameters(), lr=0.1),
        criterion=torch.nn.CrossEntropyLoss(),
        plugins=[Spoil("loss")],
        evaluator=None,
    )
    with pytest.raises(ValueError, match="`strategy.loss`"):
        train(strategy)


@STRATEGIES
def test_images_that_a_transform_makes_nan_are_refused(kind):
    x, y = tensors()
    benchmark = tensor_benchmark(
        (x, y),
        tensors(1),
        class_names=NAMES,
        n_experiences=1,
        train_transform=lambda sample: sample * math.nan if torch.equal(sample, x[3]) else sample,
    )
    strategy = make(kind=kind)
    with pytest.raises(ValueError, match="`strategy.loss`"):
        strategy.train(benchmark.train_stream)
    assert all(bool(p.isfinite().all()) for p in strategy.model.parameters())


@STRATEGIES
def test_weights_of_a_gradient_that_is_not_finite_are_told(kind):
    with pytest.raises(ValueError, match="`strategy.loss`"):
        train(make(Spoil("gradient", at=0), kind=kind))
    last = 5 if kind is not JointTraining else 9
    with pytest.raises(ValueError, match=r"`strategy.model` must be one whose weights stay finite.*head"):
        train(make(Spoil("gradient", at=last), kind=kind))


@STRATEGIES
@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum", "dampening"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_settings_of_the_optimizer_are_refused_before_anything_is_trained(kind, name, value):
    def optimizer(classifier):
        made = SGD(classifier.parameters(), lr=0.1)
        made.param_groups[0][name] = value
        return made

    strategy = make(kind=kind, optimizer=optimizer)
    before = {key: p.detach().clone() for key, p in strategy.model.named_parameters()}
    with pytest.raises(
        ValueError, match=rf"`strategy.optimizer` must be .*finite.*{name}={value} in group 0"
    ):
        train(strategy)
    assert strategy.clock.train_exp_iterations == 0
    assert unchanged(strategy, before)


def test_all_kinds_of_settings_are_looked_at():
    def optimizer(classifier, **arguments):
        made = AdamW(classifier.parameters(), lr=0.1)
        made.param_groups[0].update(arguments)
        return made

    for arguments in ({"betas": (0.9, math.nan)}, {"eps": math.inf}, {"lr": torch.tensor(math.nan)}):
        with pytest.raises(ValueError, match=r"`strategy\.optimizer`"):
            train(make(optimizer=lambda classifier, own=arguments: optimizer(classifier, **own)))
    with pytest.raises(ValueError, match="lr=nan"):  # which torch lets pass
        train(make(optimizer=lambda classifier: SGD(classifier.parameters(), lr=math.nan)))


@STRATEGIES
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_setting_that_a_plugin_makes_nan_is_refused_before_its_step(kind, name):
    plugin = Spoil(name)
    strategy = make(plugin, kind=kind)
    with pytest.raises(ValueError, match=rf"{name}=nan in group 0"):
        train(strategy)
    assert unchanged(strategy, plugin.weights)


@STRATEGIES
def test_a_schedule_of_torch_that_gives_nan_is_refused(kind):
    classifier = model()
    optimizer = SGD(classifier.parameters(), lr=0.1)
    schedule = LambdaLR(optimizer, lambda step: 1.0 if step < 3 else math.nan)
    strategy = make(
        LRSchedulerPlugin(schedule, step_granularity="iteration", reset_lr=False),
        kind=kind,
        optimizer=lambda own: optimizer,
    )
    strategy.model = classifier
    with pytest.raises(ValueError, match="lr=nan"):
        train(strategy)
    assert all(bool(p.isfinite().all()) for p in classifier.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_schedule_of_ours_is_asked_for_numbers(value):
    strategy = make(LearningRatesPlugin([0.1], lambda iteration: 1.0 if iteration < 1 else value))
    with pytest.raises(ValueError, match=r"`schedule\(1\)` must be a finite number and at least 0"):
        train(strategy)
    with pytest.raises(ValueError, match="`learning_rates` must be a finite number"):
        LearningRatesPlugin([0.1, math.nan], lambda iteration: 1.0)


def test_steps_that_a_gradient_scaler_leaves_out_are_no_error():
    strategy = make(precision="fp16")
    scale = 2.0**120  # gradients overflow until it has fallen
    strategy._gradient_step.gradient_scaler = GradScaler("cpu", init_scale=scale)
    train(strategy)
    assert strategy.gradient_scaler.get_scale() < scale
    assert all(bool(p.isfinite().all()) for p in strategy.model.parameters())
    strategy = make(Spoil("loss"), precision="fp16")
    train(strategy)
    assert all(bool(p.isfinite().all()) for p in strategy.model.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_that_are_all_left_out_are_an_error(value):
    class Infinite(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            strategy.loss = strategy.loss * value

    strategy = make(Infinite(), precision="fp16", train_iterations=100)
    with pytest.raises(ValueError, match="`precision` must be 'fp32' or 'bf16'.* left out one step"):
        train(strategy)


def test_an_evaluation_inside_training_may_have_no_loss():
    strategy = make(eval_every=1)
    strategy.train(BENCHMARK.train_stream[0], eval_streams=[BENCHMARK.test_stream])
    strategy.eval(BENCHMARK.test_stream)
    strategy.train(BENCHMARK.train_stream[1])
