"""An experience of so many iterations, whatever its size, and a learning rate over them."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin, ReplayPlugin
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR

from avalanche_vlm.benchmarks import class_names, tensor_benchmark
from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.functional import WarmupCosine
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.strategies import FineTune, ZeroShot
from avalanche_vlm.testing.running import differing, run, snapshot

SIZES = (5, 12, 3)  # samples of each class: 3, 6 and 2 batches of four


def uneven():
    y = torch.arange(6).repeat_interleave(torch.tensor(SIZES).repeat_interleave(2))
    x = torch.randn(len(y), 8, generator=torch.Generator().manual_seed(0))
    return tensor_benchmark((x, y), (x, y), class_names=list("abcdef"), n_experiences=3)


BENCHMARK = uneven()


class Events(SupervisedPlugin):
    """Counts epochs, iterations, steps and evaluations of each experience, and notes learning rates."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.seen, self.rates, self.stop_at = [], [], stop_at

    def before_training_exp(self, strategy, **kwargs):
        self.seen.append({"began": 0, "ended": 0, "iterations": [], "steps": 0, "evaluations": 0})
        self.rates.append([])

    def before_training_epoch(self, strategy, **kwargs):
        self.seen[-1]["began"] += 1
        self.seen[-1]["iterations"].append(0)

    def before_training_iteration(self, strategy, **kwargs):
        self.rates[-1].append(strategy.optimizer.param_groups[0]["lr"])

    def after_training_iteration(self, strategy, **kwargs):
        self.seen[-1]["iterations"][-1] += 1
        if sum(self.seen[-1]["iterations"]) == self.stop_at and len(self.seen) == 1:
            strategy.stop_training()

    def after_update(self, strategy, **kwargs):
        self.seen[-1]["steps"] += 1

    def after_training_epoch(self, strategy, **kwargs):
        self.seen[-1]["ended"] += 1

    def before_eval(self, strategy, **kwargs):
        if self.seen and strategy._eval_streams:  # a periodic one
            self.seen[-1]["evaluations"] += 1

    def of(self, name):
        return [experience[name] for experience in self.seen]


def build(*plugins, optimizer=None, kind=FineTune, **arguments):
    text = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    model = CLIPClassifier(EmbeddingBackbone(8), CosineHead(TextFeatureHead(text)))
    model.set_classes(class_names(BENCHMARK))
    if kind is FineTune:
        arguments["optimizer"] = (optimizer or (lambda p: SGD(p, lr=0.1)))(model.parameters())
    return kind(model=model, train_mb_size=4, evaluator=None, plugins=[*plugins], **arguments)


@pytest.mark.parametrize("fast_loading", [True, False])
def test_an_experience_has_so_many_iterations_whatever_its_size(fast_loading):
    events = Events()
    run(build(events, train_iterations=7, fast_loading=fast_loading), BENCHMARK)
    assert events.of("iterations") == [[3, 3, 1], [6, 1], [2, 2, 2, 1]]
    assert events.of("began") == events.of("ended") == [3, 2, 4]


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_an_epoch_ends_where_the_number_is_reached(iterations):
    events = Events()
    run(build(events, train_iterations=iterations), BENCHMARK)
    assert [sum(own) for own in events.of("iterations")] == [iterations] * 3
    assert events.of("ended") == [-(-iterations // batches) for batches in (3, 6, 2)]


@pytest.mark.parametrize("arguments", [{}, {"accumulate_batches": 2}, {"eval_every": 1}, {"eval_every": 2}])
def test_epochs_and_as_many_iterations_are_the_same(arguments):
    for experience, batches in zip(BENCHMARK.train_stream, (3, 6, 2), strict=True):
        results = []
        for length in ({"train_epochs": 4}, {"train_iterations": 4 * batches}):
            events = Events()
            strategy = build(events, **length, **arguments)
            torch.manual_seed(0)
            strategy.train(experience)
            results.append((snapshot(strategy.model), events.seen, torch.get_rng_state()))
        assert not differing(results[0][0], results[1][0])
        assert results[0][1] == results[1][1]
        assert torch.equal(results[0][2], results[1][2])


def test_batches_that_a_cut_epoch_leaves_over_make_a_step():
    events = Events()
    run(build(events, train_iterations=7, accumulate_batches=2), BENCHMARK)
    # In epochs of [3, 3, 1], [6, 1] and [2, 2, 2, 1] batches, by twos.
    assert events.of("steps") == [2 + 2 + 1, 3 + 1, 1 + 1 + 1 + 1]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_evaluations_in_training_are_those_of_as_many_epochs(every):
    # With a memory the loader is another than what the experience alone would make.
    events = Events()
    strategy = build(events, ReplayPlugin(6, batch_size=2), train_iterations=7, eval_every=every)
    for index, experience in enumerate(BENCHMARK.train_stream):
        strategy.train(experience)
        by_epochs = Events()
        build(by_epochs, train_epochs=events.seen[-1]["ended"], eval_every=every).train(experience)
        assert events.of("evaluations")[index] == by_epochs.of("evaluations")[0]
    assert events.of("ended") == [3, 1, 3]


def test_a_stop_ends_the_experience_and_not_the_next():
    events = Events(stop_at=4)
    run(build(events, train_iterations=7), BENCHMARK)
    assert events.of("iterations")[0][:2] == [3, 1]
    assert [sum(own) for own in events.of("iterations")] == [4, 7, 7]


def test_a_strategy_without_iterations_ends():
    events = Events()
    run(build(events, kind=ZeroShot, train_iterations=100), BENCHMARK)
    assert events.of("ended") == [1, 1, 1]


# Torch notes that the first batch of two makes no step yet.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("accumulate_batches", [1, 2])
@pytest.mark.parametrize("position", [(0, 1), (0, 2), (1, 1), (2, 3)])
def test_resumed_inside_an_experience_what_is_left_is_trained(tmp_path, position, accumulate_batches):
    def checkpointed(folder, *plugins):
        plugin = CheckpointPlugin(folder, keep=99, every_n_epochs=1)
        made = scheduled(*plugins, plugin, accumulate_batches=accumulate_batches)
        return made, made.optimizer

    folder = tmp_path / "whole"
    whole, _ = checkpointed(folder, events := Events())
    torch.manual_seed(0)
    for experience in BENCHMARK.train_stream:
        whole.train(experience)
    # None after the last epoch of an experience, cut or not.
    inside = sorted(path.name for path in folder.glob("*-epoch-*"))
    expected = [(0, 1), (0, 2), (1, 1), (2, 1), (2, 2), (2, 3)]
    assert inside == [f"experience-{i:04d}-epoch-{epoch:04d}.ckpt" for i, epoch in expected]

    index, epoch = position
    strategy, _ = checkpointed(tmp_path / "resumed", again := Events())
    file = folder / f"experience-{index:04d}-epoch-{epoch:04d}.ckpt"
    assert resume(strategy, file, BENCHMARK) == index
    made = []
    strategy.optimizer.register_step_post_hook(lambda *_: made.append(1))
    for experience in BENCHMARK.train_stream[index:]:
        strategy.train(experience)
    assert not differing(snapshot(whole.model), snapshot(strategy.model))
    assert strategy.clock.train_iterations == whole.clock.train_iterations == 21
    assert again.seen == events.seen
    assert again.rates == events.rates
    steps = [sum(-(-n // accumulate_batches) for n in own) for own in events.of("iterations")]
    done = sum(-(-n // accumulate_batches) for n in events.of("iterations")[index][:epoch])
    assert len(made) == sum(steps[index:]) - done


def scheduled(*plugins, total=7, optimizer=lambda p: Adam(p, lr=0.1), **arguments):
    strategy = build(*plugins, optimizer=optimizer, train_iterations=7, **arguments)
    schedule = LambdaLR(strategy.optimizer, WarmupCosine(warmup=2, total=total))
    plugin = LRSchedulerPlugin(schedule, step_granularity="iteration", reset_lr=False)
    strategy.plugins.insert(1, plugin)
    return strategy


def test_the_schedule_begins_anew_in_each_experience():
    events = Events()
    run(scheduled(events), BENCHMARK)
    expected = [0.1 * WarmupCosine(warmup=2, total=7)(iteration) for iteration in range(7)]
    assert events.rates == [pytest.approx(expected)] * 3


def test_the_optimizer_starts_afresh_where_asked_and_keeps_its_schedule():
    for reset, steps in ((True, [7, 7, 7]), (False, [7, 14, 21])):
        events = Events()
        strategy, found = scheduled(events), []
        for experience in BENCHMARK.train_stream:
            strategy.train(experience, reset_optimizer_state=reset)
            found.append(int(next(iter(strategy.optimizer.state.values()))["step"]))
        assert found == steps
        assert len(set(map(tuple, events.rates))) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"train_iterations": 0}, ValueError, "`train_iterations`"),
        ({"train_iterations": 2.5}, TypeError, "`train_iterations`"),
        ({"train_iterations": 3, "train_epochs": 1}, ValueError, "`train_iterations` must be given in place"),
    ],
)
def test_mistakes_are_named(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        build(**arguments)
