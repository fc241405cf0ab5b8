"""Each law catches the fake that it is meant to catch."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LwFPlugin, ReplayPlugin
from torch import nn
from torch.optim import SGD

from avalanche_vlm.models import LoRA
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import (
    LawBroken,
    check_arguments,
    check_callbacks,
    check_composes,
    check_documented,
    check_frozen,
    check_gradient,
    check_modes,
    check_repeatable,
    check_resumable,
    check_seeded,
    check_zero_weight,
    composition,
    tiny_benchmark,
    tiny_classifier,
    tiny_images,
)


class Decay(SupervisedPlugin):
    """Adds weight · ½‖θ‖², honestly."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight

    def before_backward(self, strategy, *args, **kwargs):
        strategy.loss = strategy.loss + self.weight * penalty(strategy)


def penalty(strategy):
    return sum((p**2).sum() for p in strategy.model.parameters()) / 2


def strategy(plugins=(), **arguments):
    model = tiny_classifier(trainable=LoRA(rank=2))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return FineTune(
        model=model, optimizer=optimizer, plugins=[*plugins], train_mb_size=4, evaluator=None, **arguments
    )


@pytest.fixture(scope="module")
def benchmark_of_images():
    return tiny_benchmark()


def test_an_honest_plugin_passes(benchmark_of_images):
    check_callbacks(Decay())
    check_zero_weight(strategy, lambda: Decay(0.0), benchmark_of_images)
    check_gradient(strategy, Decay, penalty, benchmark_of_images.train_stream[0])
    check_composes(
        strategy, {"decay": lambda: Decay(0.1), "replay": lambda: ReplayPlugin(4)}, benchmark_of_images
    )


def test_a_misspelt_callback_and_one_without_kwargs():
    class Misspelt(SupervisedPlugin):
        def before_trainig_exp(self, strategy, **kwargs): ...

    class Closed(SupervisedPlugin):
        def before_training_exp(self, strategy): ...

    for plugin, message in ((Misspelt(), "no callback of the host"), (Closed(), "kwargs")):
        with pytest.raises(LawBroken, match=message):
            check_callbacks(plugin)


def test_a_plugin_that_acts_at_weight_zero(benchmark_of_images):
    class Noisy(Decay):
        def before_forward(self, strategy, *args, **kwargs):
            torch.rand(1)  # one number of the global generator, and every later batch is another

        def before_training_epoch(self, strategy, *args, **kwargs):
            torch.rand(1)

    with pytest.raises(LawBroken, match="weight 0"):
        check_zero_weight(strategy, lambda: Noisy(0.0), benchmark_of_images)


def test_a_wrong_gradient_and_none(benchmark_of_images):
    class Twice(Decay):
        def before_backward(self, strategy, *args, **kwargs):
            strategy.loss = strategy.loss + 2 * self.weight * penalty(strategy)

    class Nothing(Decay):
        def before_backward(self, strategy, *args, **kwargs): ...

    experience = benchmark_of_images.train_stream[0]
    for plugin in (Twice, Nothing):
        with pytest.raises(LawBroken, match="gradient of"):
            check_gradient(strategy, plugin, penalty, experience)
    with pytest.raises(LawBroken, match="nothing was checked"):
        check_gradient(strategy, Nothing, lambda s: 0 * penalty(s), experience)


def test_a_displaced_plugin(benchmark_of_images):
    class OwnLoader(SupervisedPlugin):
        """Sets the loader, so that the last of two such plugins wins in silence."""

        def before_training_exp(self, strategy, *args, **kwargs):
            strategy.dataloader = torch.utils.data.DataLoader(strategy.adapted_dataset, batch_size=2)

    class ShuffledLoader(SupervisedPlugin):
        """The same with random numbers of its own, which must not save it."""

        def before_training_exp(self, strategy, *args, **kwargs):
            torch.rand(3)
            strategy.dataloader = torch.utils.data.DataLoader(
                strategy.adapted_dataset, batch_size=2, shuffle=True
            )

    for loader in (OwnLoader, ShuffledLoader):
        with pytest.raises(LawBroken, match="displaced"):
            check_composes(
                strategy, {"replay": lambda: ReplayPlugin(4), "other": loader}, benchmark_of_images
            )


def test_what_comes_of_pairs_is_told_in_both_orders(benchmark_of_images):
    makers = {
        "replay": lambda: ReplayPlugin(4),
        "second": lambda: ReplayPlugin(6),
        "decay": lambda: Decay(0.1),
    }
    verdicts = composition(strategy, makers, benchmark_of_images)
    assert len(verdicts) == 6
    for pair, verdict in verdicts.items():
        assert not verdict.broken
        assert ("at most one ReplayPlugin" in verdict.refusal) == ("decay" not in pair)
    with pytest.raises(LawBroken, match="refused: .*at most one ReplayPlugin"):
        check_composes(strategy, makers, benchmark_of_images)


def test_a_plugin_without_effect_proves_nothing(benchmark_of_images):
    class OnlyDraws(SupervisedPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs):
            torch.rand(1)

    with pytest.raises(LawBroken, match="no effect"):
        check_composes(
            strategy, {"replay": lambda: ReplayPlugin(4), "drawer": OnlyDraws}, benchmark_of_images
        )


def test_a_plugin_that_thaws_a_tower(benchmark_of_images):
    class Meddler(SupervisedPlugin):
        def after_training_exp(self, strategy, *args, **kwargs):
            with torch.no_grad():
                strategy.model.backbone.text_tower.ln_final.weight += 1e-3

    with pytest.raises(LawBroken, match="ln_final"):
        check_frozen(lambda: strategy([Meddler()]), benchmark_of_images)


def test_a_run_that_is_not_repeatable(benchmark_of_images):
    runs = iter(range(9))

    class Counter(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.weight = next(runs)

        def before_backward(self, strategy, *args, **kwargs):
            strategy.loss = strategy.loss + self.weight * penalty(strategy)

    with pytest.raises(LawBroken, match="one seed differ"):
        check_repeatable(lambda: strategy([Counter()]), benchmark_of_images)


def test_state_that_is_forgotten_at_a_stop(benchmark_of_images):
    class Growing(SupervisedPlugin):
        """A weight that grows with every experience, kept out of every state dict."""

        weight = 0.0

        def before_training_exp(self, strategy, *args, **kwargs):
            self.weight += 0.1

        def before_backward(self, strategy, *args, **kwargs):
            strategy.loss = strategy.loss + self.weight * penalty(strategy)

    class Remembering(Growing):
        def state_dict(self):
            return {"weight": self.weight}

        def load_state_dict(self, state):
            self.weight = state["weight"]

    with pytest.raises(LawBroken, match="resumed after experience 1"):
        check_resumable(lambda: strategy([Growing()]), benchmark_of_images)
    check_resumable(lambda: strategy([Remembering()]), benchmark_of_images)


def test_a_draw_from_the_global_generator_and_an_unseeded_start():
    with pytest.raises(LawBroken, match="global generator"):
        check_seeded(lambda: nn.Linear(2, 2))

    class Unseeded(nn.Module):
        starts = iter(range(9))

        def __init__(self):
            super().__init__()
            self.register_buffer("start", torch.tensor(next(self.starts)))

    with pytest.raises(LawBroken, match="same seed differ"):
        check_seeded(Unseeded)


def test_a_changed_mode():
    model, (images, _) = tiny_classifier(trainable="both"), tiny_images()

    def careless():
        model.eval()
        return model(images)

    with pytest.raises(LawBroken, match="mode of"):
        check_modes(careless, [model])


def test_arguments_that_are_accepted_unnamed_or_untried():
    def accepting(*, weight=1.0):
        return weight

    def vague(*, weight=1.0):
        raise ValueError("bad input")

    with pytest.raises(LawBroken, match="accepts weight"):
        check_arguments(accepting, {"weight": -1})
    with pytest.raises(LawBroken, match="does not name it"):
        check_arguments(vague, {"weight": -1})
    with pytest.raises(LawBroken, match=r"no wrong value.*weight"):
        check_arguments(accepting, {})


def test_a_docstring_without_source():
    with pytest.raises(LawBroken, match="References"):
        check_documented(Decay)


def test_the_laws_hold_for_the_hosts_lwf_too(benchmark_of_images):
    check_zero_weight(strategy, lambda: LwFPlugin(alpha=0.0, temperature=2.0), benchmark_of_images)
