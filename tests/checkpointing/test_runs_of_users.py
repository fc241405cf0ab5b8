"""What plugins, heads and streams of users do in a run comes back, or is refused before it is lost."""

import enum
import logging
import random
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.benchmarks import CLScenario, EagerCLStream
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import class_accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from avalanche_vlm.benchmarks import tensor_benchmark, with_validation_stream
from avalanche_vlm.checkpointing import CheckpointPlugin, _file, resume, save
from avalanche_vlm.checkpointing._bytes import from_bytes, to_bytes
from avalanche_vlm.logging import ResultsLogger
from avalanche_vlm.metrics import MemoryMetric, SemanticDriftMetric, continual_metrics
from avalanche_vlm.models import CosineHead, LoRA, ZeroShotHead
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier, tiny_images

sys.path.insert(0, str(Path(__file__).parent))
from cases import differences, seed

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated function:DeprecationWarning")


def cosine():
    return tiny_classifier(CosineHead(ZeroShotHead()))


def make(plugins=(), *, model=cosine, kind=FineTune, lr=0.05, metrics=(), loggers=(), **arguments):
    """Return a strategy as a script builds it, from its seed."""
    seed()
    made = model()
    made_plugins = [plugin() for plugin in plugins]
    arguments = {
        "train_mb_size": 4,
        "eval_mb_size": 8,
        "criterion": LabelSpaceCrossEntropy("seen"),
        **arguments,
    }
    arguments.setdefault("evaluator", EvaluationPlugin(*metrics, loggers=[*loggers]))
    optimizer = SGD(made.parameters(), lr=lr, momentum=0.9)
    return kind(model=made, optimizer=optimizer, plugins=made_plugins, **arguments)


def mine(strategy):
    """Return the plugin of this file."""
    return next(plugin for plugin in strategy.plugins if type(plugin).__module__ == __name__)


def with_checkpoints(strategy, folder, **arguments):
    strategy.plugins.append(CheckpointPlugin(folder, **{"keep": 9, **arguments}))
    return strategy


def go(strategy, benchmark, start, stop=None, stream="train"):
    for experience in list(benchmark.streams[stream])[start:stop]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)


def end(strategy):
    model = strategy.model
    tensors = [*nn.Module.named_parameters(model), *model.named_buffers()]
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors},
        "trains": sorted(n for n, p in nn.Module.named_parameters(model) if p.requires_grad),
        "optimizer": strategy.optimizer.state_dict(),
        "metrics": {n: (list(x), list(y)) for n, (x, y) in strategy.evaluator.get_all_metrics().items()},
        "random": torch.get_rng_state(),
    }


def check(tmp_path, plugins=(), *, facts=lambda strategy: None, benchmark=tiny_benchmark, go=go, **arguments):
    """Compare a run with the same run stopped after one experience, and after two, in each way to begin."""
    data = benchmark()
    whole = with_checkpoints(make(plugins, **arguments), tmp_path / "whole")
    go(whole, data, 0)
    expected, expected_facts = end(whole), repr(facts(whole))
    for stop, called_first in ((1, True), (2, False)):
        folder = tmp_path / str(stop)
        data = benchmark()
        first = with_checkpoints(make(plugins, **arguments), folder)
        if called_first:
            assert resume(first, folder, data) == 0
        go(first, data, 0, stop)
        data = benchmark()
        second = with_checkpoints(make(plugins, **arguments), folder)
        seed(99)
        assert resume(second, folder, data) == stop
        go(second, data, stop)
        assert not differences(expected, end(second)), stop
        assert repr(facts(second)) == expected_facts


class Rate(SupervisedPlugin):
    """Sets the learning rate before each step: whatever it depends on shows in the weights."""

    def before_update(self, strategy, *args, **kwargs):
        for group in strategy.optimizer.param_groups:
            group["lr"] = 0.001 + 0.01 * float(self.rate())


# Values that change in place.


class Phase(enum.Enum):
    FIRST = 1
    LATER = 2


class Phases(Rate):
    def __init__(self):
        super().__init__()
        self.phase = Phase.FIRST

    def rate(self):
        return self.phase is Phase.LATER

    def after_training_exp(self, strategy, *args, **kwargs):
        self.phase = Phase.LATER


def test_an_enumeration(tmp_path):
    check(tmp_path, [Phases], facts=lambda s: mine(s).phase.name)
    assert [phase.value for phase in Phase] == [1, 2]


class Closures(Rate):
    """A function that has caught a generator, and a view of a tensor that is written to."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.generator, self.bank = generator, torch.zeros(4)
        self.view = self.bank[:2]
        self.draw = lambda: torch.rand((), generator=generator)
        self.later = None

    def rate(self):
        self.bank += 0.1 * self.draw()
        if self.later is not None:
            self.bank[3] = self.later[0]
        return self.view.sum() + self.bank[3]

    def after_training_exp(self, strategy, *args, **kwargs):
        self.later = self.bank[1:3]


def test_closures_and_views(tmp_path):
    check(tmp_path, [Closures], facts=lambda s: (mine(s).bank, mine(s).later))


class Part:
    def __init__(self, value):
        self.value = value


class Pointing(Rate):
    def __init__(self):
        super().__init__()
        parts = [Part(0), Part(1)]
        self.current = parts[0]
        self.parts, self.by_key = parts, {(0, "a"): Part(5), (1, "a"): Part(6)}
        self.first = True

    def rate(self):
        return self.current.value + self.by_key[0, "a"].value - 5 + hasattr(self, "first")

    def after_training_exp(self, strategy, *args, **kwargs):
        self.current = self.parts[1]
        self.current.value += 1
        self.by_key[0, "a"].value += 1
        vars(self).pop("first", None)


def test_objects_that_are_reached_in_two_ways_and_attributes_that_are_deleted(tmp_path):
    def facts(strategy):
        plugin = mine(strategy)
        return plugin.current is plugin.parts[1], plugin.current.value, hasattr(plugin, "first")

    check(tmp_path, [Pointing], facts=facts)


class Holding(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.log, self.lock, self.path = logging.getLogger("a run"), threading.Lock(), Path("somewhere")
        self.complex = torch.zeros(2, dtype=torch.complex128)

    def after_training_exp(self, strategy, *args, **kwargs):
        self.complex += 1j


def test_loggers_of_python_and_locks(tmp_path):
    check(tmp_path, [Holding], facts=lambda s: (mine(s).complex, mine(s).log.name))


# What torch makes while a run goes on.


class Schedule(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.schedule = self.own = None
        self.net = nn.Linear(2, 2)

    def before_training_exp(self, strategy, *args, **kwargs):
        for group in strategy.optimizer.param_groups:
            group["lr"] = 0.05
        self.schedule = CosineAnnealingLR(strategy.optimizer, T_max=4)
        if self.own is None:
            self.own, self.layer = Adam(self.net.parameters(), lr=0.1), nn.Sequential(nn.Linear(2, 2))

    def after_training_iteration(self, strategy, *args, **kwargs):
        self.schedule.step()
        self.own.zero_grad()
        self.layer(self.net(torch.randn(3, 2))).pow(2).sum().backward()
        self.own.step()


@pytest.mark.parametrize("kind", [FineTune, Naive])
def test_schedules_optimizers_and_layers_that_are_made_late(tmp_path, kind):
    check(tmp_path, [Schedule], kind=kind, facts=lambda s: (mine(s).net.weight, mine(s).layer[0].bias))


class Scale(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def before_training(self, strategy, *args, **kwargs):
        if len(strategy.optimizer.param_groups) == 1:
            strategy.optimizer.add_param_group({"params": [self.scale], "lr": 0.1})

    def before_backward(self, strategy, *args, **kwargs):
        strategy.loss = strategy.loss * self.scale.abs().sum()


def test_a_group_for_an_own_parameter(tmp_path):
    check(tmp_path, [Scale], kind=Naive, facts=lambda s: mine(s).scale)


class GrowingHead(CosineHead):
    def grow(self):
        count = sum(1 for _ in self.parameters())
        self.register_parameter(f"extra{count}", nn.Parameter(torch.zeros(1)))


class Grow(SupervisedPlugin):
    def before_training_exp(self, strategy, *args, **kwargs):
        strategy.model.head.grow()
        strategy.make_optimizer()


def test_parameters_that_a_head_gains(tmp_path):
    check(tmp_path, [Grow], model=lambda: tiny_classifier(GrowingHead(ZeroShotHead())))


# The model.


class Merge(SupervisedPlugin):
    """Changes frozen weights, without and with torch's count of edits, and freezes one that trained."""

    def after_training_exp(self, strategy, *args, **kwargs):
        frozen = [p for _, p in nn.Module.named_parameters(strategy.model) if not p.requires_grad]
        frozen[0].data.mul_(0.9)
        with torch.no_grad():
            frozen[1].mul_(0.9)
        trained = list(strategy.model.parameters())
        if len(trained) > 2:
            trained[0].requires_grad_(False)


def test_frozen_weights_that_change_and_weights_that_freeze(tmp_path):
    check(tmp_path, [Merge], model=lambda: tiny_classifier(trainable=LoRA(rank=2)))


class CountingHead(CosineHead):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls, self.kept = 0, {}

    def compare(self, backbone, embeddings, weights):
        self.calls += self.training
        self.kept[self.calls % 3] = embeddings.detach().mean()
        return super().compare(backbone, embeddings, weights) * (1 + 0.01 * self.calls)


def test_plain_attributes_of_the_model(tmp_path):
    facts = lambda s: (s.model.head.calls, s.model.head.kept)  # noqa: E731
    check(tmp_path, model=lambda: tiny_classifier(CountingHead(ZeroShotHead())), facts=facts)


class Copies(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.heads = {}

    def after_training_exp(self, strategy, *args, **kwargs):
        import copy

        self.heads[strategy.clock.train_exp_counter] = copy.deepcopy(strategy.model.head).eval()


def test_endless_loaders(tmp_path):
    from avalanche.training.plugins import MIRPlugin

    check(tmp_path, [lambda: MIRPlugin(batch_size_mem=4, mem_size=8, subsample=8)], kind=Naive)


def test_copies_of_the_head(tmp_path):
    facts = lambda s: [(h.weight, h.training) for h in mine(s).heads.values()]  # noqa: E731
    check(tmp_path, [Copies], facts=facts)


class Adding(SupervisedPlugin):
    def before_training_exp(self, strategy, *args, **kwargs):
        strategy.model.head.more = nn.Linear(2, 2)


def test_a_model_that_gains_parts_is_refused_when_it_is_saved(tmp_path):
    strategy = with_checkpoints(make([Adding]), tmp_path)
    with pytest.raises(TypeError, match=r"strategy\.model\.head\.more was added in the run"):
        go(strategy, tiny_benchmark(), 0)


# Data.


class Draws:
    """A transform with a generator and a counter of its own."""

    def __init__(self):
        self.generator, self.count = torch.Generator().manual_seed(0), 0

    def __call__(self, x):
        self.count += 1
        return x + 0.1 * torch.randn(x.shape, generator=self.generator) + 0.001 * self.count


def transformed(transform=Draws):
    pairs = [tiny_images(seed=seed) for seed in (0, 1)]
    arguments = {"class_names": TINY_CLASSES, "n_experiences": 3, "train_transform": transform()}
    return tensor_benchmark(*pairs, **arguments)


def test_transforms_with_a_state(tmp_path):
    check(tmp_path, [lambda: ReplayPlugin(7)], benchmark=transformed)


class Times:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor


def test_other_transforms_are_told(tmp_path):
    strategy = with_checkpoints(make(), tmp_path)
    benchmark = transformed(lambda: Times(1))
    resume(strategy, tmp_path, benchmark)
    go(strategy, benchmark, 0, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The transforms")
        resume(make(), tmp_path, transformed(lambda: Times(1)))
    with pytest.warns(UserWarning, match="transforms of the stream .* have other settings"):
        resume(make(), tmp_path, transformed(lambda: Times(2)))


def test_validation_streams(tmp_path):
    def split(number=0):
        return with_validation_stream(tiny_benchmark(per_class=12), fraction=0.25, seed=number)

    check(tmp_path, [lambda: ReplayPlugin(7)], benchmark=split)
    with pytest.raises(ValueError, match="other labels or samples"):
        resume(make([lambda: ReplayPlugin(7)]), tmp_path / "1", split(1))


def online(lazy, shuffle):
    def build():
        benchmark = tiny_benchmark()
        pieces = split_online_stream(benchmark.train_stream, experience_size=3, shuffle=shuffle)
        if not lazy:
            pieces = EagerCLStream("train_online", list(pieces), benchmark)
        return CLScenario([*benchmark.streams.values(), pieces])

    return build


def go_online(strategy, benchmark, start, stop=None):
    go(strategy, benchmark, start, 6 if stop is None else stop, "train_online")


def go_lazily(strategy, benchmark, start, stop=None):
    """Train as one goes through the stream, skipping what was trained."""
    for position, piece in enumerate(benchmark.streams["train_online"]):
        if start <= position < (6 if stop is None else stop):
            strategy.train(piece)
            strategy.eval(benchmark.test_stream)
        if position + 1 == stop:
            break


class GlobalDraws(Rate):
    """Draws from the three global generators."""

    def rate(self):
        return (random.random() + np.random.rand() + float(torch.rand(()))) / 3


def go_listed(strategy, benchmark, start, stop=None):
    """Train on a stream that was listed as a whole before."""
    go(strategy, benchmark, start, 6 if stop is None else stop, "train_online")


@pytest.mark.parametrize(
    ("cut_with_a_seed", "go"), [(True, go_lazily), (False, go_lazily), (False, go_listed)]
)
def test_skipping_what_was_trained_draws_nothing(tmp_path, cut_with_a_seed, go):
    def build():
        benchmark = tiny_benchmark()
        own = {"seed": 3} if cut_with_a_seed else {}
        pieces = split_online_stream(benchmark.train_stream, experience_size=3, shuffle=False, **own)
        return CLScenario([*benchmark.streams.values(), pieces])

    def generators(strategy):
        return random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]

    check(tmp_path, [GlobalDraws], benchmark=seeded(build), go=go, kind=Naive, facts=generators)


@pytest.mark.parametrize(("lazy", "shuffle"), [(True, False), (False, True)])
def test_online_streams(tmp_path, lazy, shuffle):
    seed()
    check(
        tmp_path, [lambda: ReplayPlugin(7)], benchmark=seeded(online(lazy, shuffle)), go=go_online, kind=Naive
    )


def seeded(build):
    def again():
        seed(5)
        return build()

    return again


def test_an_online_stream_that_is_cut_at_random_on_the_way_is_refused_before_it_is_trained(tmp_path):
    strategy = with_checkpoints(make(), tmp_path)
    before = end(strategy)
    with pytest.raises(TypeError, match="cut at random while the run goes on"):
        go_online(strategy, online(True, True)(), 0)
    assert not differences(before["tensors"], end(strategy)["tensors"])


# Metrics.


@pytest.mark.parametrize(
    "metric", [lambda: class_accuracy_metrics(stream=True), MemoryMetric, SemanticDriftMetric]
)
def test_metrics_with_functions_of_memory_and_of_drift(tmp_path, metric):
    def evaluator():
        return EvaluationPlugin(metric(), loggers=[])

    check(tmp_path, [lambda: ReplayPlugin(7)], kind=with_evaluator(evaluator))


def with_evaluator(evaluator):
    def build(**arguments):
        return FineTune(**{**arguments, "evaluator": evaluator()})

    return build


# Streams trained in one call.


class Stop(Exception):
    pass


class Stopping(SupervisedPlugin):
    at = None

    def before_training_iteration(self, strategy, *args, **kwargs):
        clock = strategy.clock
        if (clock.train_exp_counter, clock.train_exp_epochs) == self.at:
            raise Stop


@pytest.mark.parametrize("at", [(0, 1), (1, 2)])
def test_a_whole_stream_in_one_call(tmp_path, at, monkeypatch):
    def build(folder, at):
        monkeypatch.setattr(Stopping, "at", at)
        strategy = make([lambda: ReplayPlugin(7), Stopping], train_epochs=3)
        return with_checkpoints(strategy, tmp_path / folder, every_n_epochs=1)

    whole, benchmark = build("whole", None), tiny_benchmark()
    whole.train(benchmark.train_stream)
    whole.eval(benchmark.test_stream)
    first = build("run", at)
    with pytest.raises(Stop):
        first.train(tiny_benchmark().train_stream)
    second, benchmark = build("run", None), tiny_benchmark()
    start = resume(second, tmp_path / "run", benchmark)
    assert start == at[0]
    second.train(benchmark.train_stream[start:])
    second.eval(benchmark.test_stream)
    assert not differences(end(whole), end(second))


# Folders.


def test_going_back_to_an_earlier_checkpoint(tmp_path):
    strategy, benchmark = with_checkpoints(make(), tmp_path), tiny_benchmark()
    go(strategy, benchmark, 0)
    strategy, benchmark = with_checkpoints(make(), tmp_path, keep=2), tiny_benchmark()
    assert resume(strategy, tmp_path / "experience-0001.ckpt", benchmark) == 1
    assert len(_file.checkpoints_in(tmp_path)) == 4  # nothing changes before the run goes another way
    go(strategy, benchmark, 1, 2)
    assert [path.name for path in _file.checkpoints_in(tmp_path)] == [
        f"experience-000{i}.ckpt" for i in (2, 1)
    ]
    assert (tmp_path / "experience-0003.ckpt.replaced").exists()
    assert resume(make(), tmp_path, tiny_benchmark()) == 2


def test_a_folder_of_another_run_is_refused(tmp_path):
    for name in "ab":
        strategy = with_checkpoints(make(), tmp_path / name)
        go(strategy, tiny_benchmark(), 0, 1)
    strategy = with_checkpoints(make(), tmp_path / "b")
    with pytest.raises(ValueError, match=r"`folder` must be that of the run that is resumed"):
        resume(strategy, tmp_path / "a", tiny_benchmark())


def test_two_processes_on_one_run(tmp_path):
    strategy, benchmark = with_checkpoints(make(), tmp_path), tiny_benchmark()
    go(strategy, benchmark, 0, 1)
    other = with_checkpoints(make(), tmp_path)
    go(other, benchmark, resume(other, tmp_path, benchmark), 2)
    with pytest.raises(RuntimeError, match="Another process has written"):
        go(strategy, benchmark, 1, 2)


def test_an_evaluation_that_is_missing_is_told(tmp_path):
    strategy, benchmark = with_checkpoints(make(), tmp_path), tiny_benchmark()
    for position, count in ((0, 2), (1, 1)):
        strategy.train(benchmark.train_stream[position])
        for _ in range(count):
            strategy.eval(benchmark.test_stream)
    with pytest.warns(UserWarning, match="after 1 evaluations of experience 1, where there were 2"):
        resume(make(), tmp_path, tiny_benchmark())


def test_folders_with_odd_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    strategy, benchmark = with_checkpoints(make(), "run.ckpt"), tiny_benchmark()
    assert resume(strategy, "run.ckpt", benchmark) == 0
    strategy.train(benchmark.train_stream[0])
    monkeypatch.chdir("/")
    strategy.eval(benchmark.test_stream)
    (tmp_path / "run.ckpt" / "experience-0009.ckpt").mkdir()
    (tmp_path / "run.ckpt" / "experience-0008.ckpt").symlink_to("nowhere")
    with pytest.warns(UserWarning, match=r"experience-000[89]\.ckpt is not a checkpoint") as told:
        assert resume(make(), tmp_path / "run.ckpt", tiny_benchmark()) == 1
    assert sum("is not a checkpoint" in str(each.message) for each in told) == 2
    with pytest.raises(FileNotFoundError):
        resume(with_checkpoints(make(), tmp_path / "c"), tmp_path / "none.ckpt", tiny_benchmark())


# Settings.


@pytest.mark.parametrize(
    ("first", "then", "match"),
    [
        (lambda: LoRA(rank=2, alpha=4.0), lambda: LoRA(rank=2, alpha=32.0), "alpha"),
        (lambda: LoRA(rank=2, dropout=0.2), lambda: LoRA(rank=2), "dropout"),
    ],
)
def test_another_setting_of_the_model_is_refused(tmp_path, first, then, match):
    strategy = with_checkpoints(make(model=lambda: tiny_classifier(trainable=first())), tmp_path)
    go(strategy, tiny_benchmark(), 0, 1)
    with pytest.raises(ValueError, match=f"strategy.model.*{match}"):
        resume(make(model=lambda: tiny_classifier(trainable=then())), tmp_path, tiny_benchmark())


def test_other_templates_are_refused(tmp_path):
    def build(template):
        return make(model=lambda: tiny_classifier(ZeroShotHead([template]), trainable=LoRA(rank=2)))

    strategy = with_checkpoints(build("a {}."), tmp_path)
    go(strategy, tiny_benchmark(), 0, 1)
    with pytest.raises(ValueError, match="templates of its ZeroShotHead"):
        resume(build("no {} here."), tmp_path, tiny_benchmark())


def test_other_settings_of_optimizer_and_criterion_are_told(tmp_path):
    strategy = with_checkpoints(make(), tmp_path)
    go(strategy, tiny_benchmark(), 0, 1)
    with pytest.warns(UserWarning, match="in the run that is resumed") as told:
        resume(make(lr=0.5, criterion=LabelSpaceCrossEntropy("all")), tmp_path, tiny_benchmark())
    text = " ".join(str(each.message) for each in told)
    assert "param_groups[0].lr was 0.05" in text
    assert "space was 'seen'" in text


# Saving without having resumed, and files from elsewhere.


class Notes(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.notes = []

    def after_training_exp(self, strategy, *args, **kwargs):
        self.notes.append(Part(1))


def test_save_refuses_what_resume_would(tmp_path):
    strategy, benchmark = make([Notes]), tiny_benchmark()
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(TypeError, match=r"plugins\[0\]\.notes\[0\] holds a .*Part"):
        save(strategy, tmp_path / "a.ckpt", benchmark)
    strategy = make([lambda: ReplayPlugin(7)])
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(TypeError, match=r"save\(strategy, path, benchmark\)"):
        save(strategy, tmp_path / "b.ckpt")
    assert not list(tmp_path.iterdir())


class Unsavable(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.handle = iter(())


def test_what_cannot_be_saved_is_refused_before_training(tmp_path):
    strategy = with_checkpoints(make([Unsavable]), tmp_path)
    before = end(strategy)
    with pytest.raises(TypeError, match=r"plugins\[0\]\.handle"):
        strategy.train(tiny_benchmark().train_stream[0])
    assert not differences(before, end(strategy))


@pytest.mark.parametrize(
    ("owner", "pair"),
    [
        ("ResultsLogger", ("path", "elsewhere")),
        ("ResultsLogger", ("method", "$(touch attacked)")),
        ("ResultsLogger", ("settings", "x")),
        ("ResultsLogger", ("log_metrics", None)),
        ("ReplayPlugin", ("before_training_exp", None)),
        ("ReplayPlugin", ("__class__", None)),
        ("strategy", ("model", None)),
        ("strategy", ("train", None)),
    ],
)
def test_a_file_cannot_set_what_the_encoder_would_not_write(tmp_path, owner, pair):
    def build():
        logger = ResultsLogger(tmp_path / "results.csv", method="x", seed=0)
        return make([lambda: ReplayPlugin(7)], metrics=continual_metrics(), loggers=[logger])

    strategy = with_checkpoints(build(), tmp_path / "run")
    go(strategy, tiny_benchmark(), 0, 1)
    path = tmp_path / "run" / "experience-0001.ckpt"
    file = _file.read_checkpoint(path)
    state = from_bytes(file.sections["state"])
    if owner == "strategy":
        state["roots"]["strategy"][0].append(pair)
    else:
        node = next(n for n in state["nodes"] if n[0] == "object" and n[2].endswith(f".{owner}"))
        node[3].append(pair)
    _file.write_checkpoint(path, file.header, {"state": to_bytes(state)})
    strategy = build()
    before = end(strategy)
    with pytest.raises(ValueError, match=f"sets {pair[0]} of a"):
        resume(strategy, path, tiny_benchmark())
    assert not differences(before, end(strategy))


def test_a_bad_state_of_random_numbers_changes_nothing(tmp_path):
    strategy = with_checkpoints(make(), tmp_path)
    go(strategy, tiny_benchmark(), 0, 1)
    path = tmp_path / "experience-0001.ckpt"
    file = _file.read_checkpoint(path)
    for change in (
        lambda state: state["random"].update(python=(3, torch.zeros(3, dtype=torch.uint8), None)),
        lambda state: state["roots"].update(strategy=7),
    ):
        state = from_bytes(file.sections["state"])
        change(state)
        _file.write_checkpoint(path, file.header, {"state": to_bytes(state)})
        strategy = make()
        before = end(strategy)
        with pytest.raises(ValueError, match=r"random generators|not what was written"):
            resume(strategy, path, tiny_benchmark())
        assert not differences(before, end(strategy))


@pytest.mark.parametrize("header", [b"{}", b"[]", b"xx", b"[" * 100_000, b'{"format": 2, "sections": 3}'])
def test_a_right_checksum_over_an_odd_header(tmp_path, header):
    import hashlib

    body = len(header).to_bytes(8, "big") + header
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"avlmckpt" + hashlib.sha256(body).digest() + body)
    with pytest.raises(ValueError, match="is damaged"):
        resume(make(), path, tiny_benchmark())


# What acts stays where constructors put it; the rest of memory is bounded.


class Functions(Rate):
    """Makes a schedule of a constructor's function at each experience."""

    def __init__(self):
        super().__init__()
        self.decay, self.schedule = decay, None

    def before_training_exp(self, strategy, *args, **kwargs):
        self.other = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
        self.schedule = LambdaLR(self.other, self.decay)

    def rate(self):
        self.other.step()
        self.schedule.step()
        return self.schedule.get_last_lr()[0]


def decay(epoch):
    return 0.9**epoch


def test_a_schedule_of_a_function_that_is_made_late_is_refused_when_it_is_saved(tmp_path):
    # A file that could put functions into schedules could have any of them called.
    strategy, benchmark = with_checkpoints(make([Functions]), tmp_path), tiny_benchmark()
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(TypeError, match=r"lr_lambdas\[0\] holds a decay.*give it to one"):
        strategy.eval(benchmark.test_stream)


class Moving(Rate):
    def __init__(self):
        super().__init__()
        self.functions, self.current = [decay, float], None

    def rate(self):
        return 0

    def after_training_exp(self, strategy, *args, **kwargs):
        self.current = self.functions[0]


def test_a_function_that_is_moved_is_refused_when_it_is_saved(tmp_path):
    strategy, benchmark = with_checkpoints(make([Moving]), tmp_path), tiny_benchmark()
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(
        TypeError, match=r"plugins\[\d\]\.current holds a decay.*where constructors had put them"
    ):
        strategy.eval(benchmark.test_stream)


class Strided(Rate):
    """Keeps columns of a table, one alone and two that overlap, and a few rows of a large one."""

    def __init__(self):
        super().__init__()
        self.columns, self.rows = None, None

    def rate(self):
        return 0 if self.columns is None else self.columns[0].sum() / 100 + self.rows[0]

    def after_training_exp(self, strategy, *args, **kwargs):
        table = torch.arange(40.0).reshape(10, 4)
        self.columns = [table[:, 0], table[:, 1:3], table[:, 2:]]
        self.columns[1][0, 1] = 7.0
        self.rows = torch.ones(1 << 20)[5:8]


def test_views_with_gaps(tmp_path):
    def facts(strategy):
        columns = mine(strategy).columns
        storages = {column.untyped_storage().data_ptr() for column in columns}
        return [column.tolist() for column in columns], [c.stride() for c in columns], len(storages)

    check(tmp_path, [Strided], facts=facts)


class Sparse(Rate):
    def __init__(self):
        super().__init__()
        self.views = []

    def rate(self):
        return 0

    def after_training_exp(self, strategy, *args, **kwargs):
        table = torch.empty(1 << 13, 1 << 13)
        self.views = [table[:, 0], table[:, 1]]


def test_views_that_would_take_far_more_memory_than_their_file_are_refused_when_saved(tmp_path):
    strategy, benchmark = with_checkpoints(make([Sparse]), tmp_path), tiny_benchmark()
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(TypeError, match=r"views\[0\] is a view of memory with large gaps.*clone"):
        strategy.eval(benchmark.test_stream)


class Chain(Rate):
    def __init__(self):
        super().__init__()
        self.chain = ()

    def rate(self):
        return 0

    def after_training_exp(self, strategy, *args, **kwargs):
        for _ in range(5000):
            self.chain = (self.chain,)


def test_a_chain_of_thousands_is_refused_in_a_sentence(tmp_path):
    strategy, benchmark = with_checkpoints(make([Chain]), tmp_path), tiny_benchmark()
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(TypeError, match="a thousand deep"):
        strategy.eval(benchmark.test_stream)
