"""Checkpoints that somebody else has written change nothing in files but what the run itself owns."""

import sys
import warnings

import pytest
import torch
from avalanche.benchmarks import CLScenario, EagerCLStream, benchmark_with_validation_stream
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import BaseLogger, CSVLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import SGD

from avalanche_vlm.benchmarks import with_validation_stream
from avalanche_vlm.checkpointing import CheckpointPlugin, _file, _logs, resume
from avalanche_vlm.checkpointing._bytes import from_bytes, to_bytes
from avalanche_vlm.logging import ResultRow, ResultsLogger, read_results, read_runs, write_results, write_run
from avalanche_vlm.logging.provenance import run_id
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

VICTIM = {"method": "FineTune", "benchmark": {"name": "", "train": "other data"}, "seed": None, "other": 1}


class Killed(BaseException):
    pass


class Kill(SupervisedPlugin):
    """Ends a run as a signal does, at an iteration."""

    at = None

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_iterations == Kill.at:
            raise Killed


_opened = []


@pytest.fixture(autouse=True)
def _closed():
    yield
    Kill.at = None
    while _opened:
        _opened.pop().close()


def build(folder, *, loggers=(), kill=None, rate=0.1, checkpoints="checkpoints", **arguments):
    folder.mkdir(exist_ok=True)
    Kill.at = kill
    torch.manual_seed(0)  # as a script does at its beginning
    model = tiny_classifier(trainable="image")
    logger = ResultsLogger(folder / "results.csv", **arguments)
    metrics = [*continual_metrics(spaces=("all",)), *accuracy_metrics(epoch=True, experience=True)]
    return FineTune(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=4,
        eval_mb_size=8,
        plugins=[Kill(), CheckpointPlugin(folder / checkpoints, keep=9)],
        evaluator=EvaluationPlugin(*metrics, *loss_metrics(epoch=True), loggers=[logger, *loggers]),
    )


def logger_of(strategy):
    return strategy.evaluator.loggers[0]


def go(strategy, folder, benchmark, *, count=3, train=None, checkpoints="checkpoints"):
    start = resume(strategy, folder / checkpoints, benchmark)
    if start == 0:
        strategy.eval(benchmark.test_stream)
    for experience in list(train or benchmark.train_stream)[start:count]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    return strategy


def changed(folder, change, number=1):
    """Change what a checkpoint says of the logs, with a right checksum over it."""
    path = folder / "checkpoints" / f"experience-{number:04d}.ckpt"
    file = _file.read_checkpoint(path)
    state = from_bytes(file.sections["state"])
    state["logs"] = change(state["logs"])
    _file.write_checkpoint(path, file.header, {"state": to_bytes(state)})
    return path


def with_victim(folder, facts=VICTIM):
    """Note another run in the file of results, with rows before and after those of the run."""
    run = write_run(folder / "results.csv", facts)
    row = ResultRow(run=run, method="FineTune", metric="accuracy", space="all", after_experience=1, value=1.0)
    write_results(folder / "results.csv", [row] * 5)
    return run


def rows_of(folder, run):
    return [row for row in read_results(folder / "results.csv") if row.run == run]


def test_rows_of_another_run_are_not_cut(tmp_path):
    go(build(tmp_path), tmp_path, tiny_benchmark(), count=1)
    victim = with_victim(tmp_path)
    before = (tmp_path / "results.csv").read_bytes()
    path = changed(tmp_path, lambda logs: [("rows", victim, 0, 0), *logs[1:]])
    strategy = build(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these rows stay
        resume(strategy, path, tiny_benchmark())
    assert (tmp_path / "results.csv").read_bytes() == before


@pytest.mark.parametrize("name", ["method", "seed", "benchmark"])
def test_a_run_of_another_name_is_refused(tmp_path, name):
    go(build(tmp_path), tmp_path, tiny_benchmark(), count=1)
    other = {"method": "another", "seed": 7, "benchmark": {"name": "another"}}
    victim = with_victim(tmp_path, {**VICTIM, name: other[name]})
    before = (tmp_path / "results.csv").read_bytes()
    path = changed(tmp_path, lambda logs: [("rows", victim, 0, 0), *logs[1:]])
    strategy = build(tmp_path)
    weights = [weight.clone() for weight in strategy.model.parameters()]
    with pytest.raises(
        ValueError, match=f"`strategy.evaluator` must be one whose ResultsLogger has the {name}"
    ):
        resume(strategy, path, tiny_benchmark())
    assert (tmp_path / "results.csv").read_bytes() == before
    assert all(map(lambda a, b: bool((a == b).all()), weights, strategy.model.parameters()))
    assert logger_of(strategy).run == ""


@pytest.mark.parametrize(
    "position",
    [
        *(None, (), "rows", 3, ("rows",), ("rows", "", 0), ("rows", "x", 0, 0), ("rows", "0" * 12, {}, 0)),
        *(("rows", "0" * 12, count, 0) for count in (-1, True, 1.0, "0", None)),
        *(("rows", "", 0, length) for length in (-1, 0.5)),
        *(("rows", run, 0, 0) for run in (None, 3, "../../evil!!", "0" * 11 + "\n", "A" * 12)),
        ("files", {}),
    ],
)
def test_odd_positions_are_refused_before_anything_changes(tmp_path, position):
    go(build(tmp_path), tmp_path, tiny_benchmark(), count=1)
    before = (tmp_path / "results.csv").read_bytes()
    path = changed(tmp_path, lambda logs: [position])
    strategy = build(tmp_path)
    weights = [weight.clone() for weight in strategy.model.parameters()]
    with pytest.raises(ValueError, match="`path` must be a checkpoint with"):
        resume(strategy, path, tiny_benchmark())
    assert all(map(lambda a, b: bool((a == b).all()), weights, strategy.model.parameters()))
    assert (tmp_path / "results.csv").read_bytes() == before


@pytest.mark.parametrize("logs", [None, {}, [], 7, "x"])
def test_odd_lists_of_positions_are_refused(tmp_path, logs):
    strategy = build(tmp_path)
    with pytest.raises(ValueError, match="`path` must be a checkpoint with the positions of 1 loggers"):
        _logs.check_log_positions(strategy, logs, tiny_benchmark())


def test_own_rows_are_cut_and_no_others_stay_out(tmp_path):
    whole = build(tmp_path / "whole")
    go(whole, tmp_path / "whole", tiny_benchmark())
    folder = tmp_path / "run"
    strategy = build(folder, kill=5)
    victim = with_victim(folder)
    with pytest.raises(Killed):
        go(strategy, folder, tiny_benchmark())
    lost = ResultRow(run=logger_of(strategy).run, method="FineTune", metric="lost", value=1.0)
    write_results(folder / "results.csv", [lost])
    victim_too = with_victim(folder)
    assert victim_too == victim
    again = go(build(folder), folder, tiny_benchmark())
    run = logger_of(again).run
    assert list(map(repr, rows_of(folder, run))) == list(map(repr, rows_of(tmp_path / "whole", run)))
    assert len(rows_of(folder, victim)) == 10


def test_a_checkpoint_of_other_versions_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[run_id.__module__], "package_version", lambda name: "0")
    go(build(tmp_path), tmp_path, tiny_benchmark(), count=2)
    monkeypatch.undo()
    (run,) = read_runs(tmp_path / "results.csv")
    before = len(read_results(tmp_path / "results.csv"))
    strategy = build(tmp_path)
    resume(strategy, tmp_path / "checkpoints" / "experience-0001.ckpt", tiny_benchmark())
    assert logger_of(strategy).run == run
    assert len(rows_of(tmp_path, run)) < before


def test_rows_of_a_run_that_was_set_up_in_another_way_stay(tmp_path):
    go(build(tmp_path), tmp_path, tiny_benchmark(), count=2)
    before = (tmp_path / "results.csv").read_bytes()
    strategy = build(tmp_path, rate=0.2)
    with pytest.warns(UserWarning, match="They stay, because that run was set up in another way"):
        resume(strategy, tmp_path / "checkpoints" / "experience-0001.ckpt", tiny_benchmark())
    assert (tmp_path / "results.csv").read_bytes() == before


def test_rows_that_are_gone_are_told(tmp_path):
    go(build(tmp_path), tmp_path, tiny_benchmark(), count=1)
    path = tmp_path / "results.csv"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    with pytest.warns(UserWarning, match=r"results.csv has 3 rows of the run .*earlier results are gone"):
        resume(build(tmp_path), tmp_path / "checkpoints", tiny_benchmark())


# Other loggers.


def make_logs(folder, mode="a"):
    folder.mkdir(exist_ok=True)
    host = CSVLogger(str(folder / "host"))
    _opened.extend([(folder / "log.txt").open(mode), host])
    return [TextLogger(_opened[-2]), host]


def test_what_the_csv_logger_has_written_comes_back(tmp_path, monkeypatch):
    strategy = go(build(tmp_path, loggers=make_logs(tmp_path)), tmp_path, tiny_benchmark(), count=1)
    names = ("training_results.csv", "eval_results.csv")
    before = [(tmp_path / "host" / name).read_bytes() for name in names]
    log = (tmp_path / "log.txt").read_bytes()
    assert all(data.count(b"\n") > 1 for data in before)
    strategy.train(tiny_benchmark().train_stream[1])
    monkeypatch.chdir(tmp_path / "host")
    again = build(tmp_path, loggers=make_logs(tmp_path))
    resume(again, tmp_path / "checkpoints", tiny_benchmark())
    assert [(tmp_path / "host" / name).read_bytes() for name in names] == before
    assert (tmp_path / "log.txt").read_bytes() == log


HEADER = b"eval_exp,training_exp,eval_accuracy,eval_loss,forgetting\n"


@pytest.mark.parametrize(
    ("where", "name", "place"),
    [
        *((2, "eval_file", (len(text), text)) for text in (b"import os\n", b"\n", HEADER + b"a,1,1,1,1\n")),
        *(
            (2, "eval_file", (len(text), text))
            for text in (HEADER + b"1,1,1,1\n", HEADER[1:], HEADER + b"1,1")
        ),
        (2, "eval_file", (len(HEADER), HEADER.decode())),
        (2, "eval_file", (len(HEADER) + 1, HEADER)),
        (2, "training_file", (len(HEADER), HEADER)),
        (2, "log_folder", (len(HEADER), HEADER)),
        (1, "file", (len(HEADER), HEADER)),
        (1, "file", (3, b"abc")),
        *((1, "file", place) for place in ((-1, None), (True, None), ("0", None), (0,), None, 0)),
    ],
)
def test_text_of_a_checkpoint_is_written_nowhere(tmp_path, where, name, place):
    go(build(tmp_path, loggers=make_logs(tmp_path)), tmp_path, tiny_benchmark(), count=1)

    def change(logs):
        logs[where] = ("files", {**logs[where][1], name: place})
        return logs

    path = changed(tmp_path, change)
    again = build(tmp_path, loggers=make_logs(tmp_path))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    with pytest.raises(ValueError, match="`path` must be a checkpoint with"):
        resume(again, path, tiny_benchmark())
    assert {file: file.read_bytes() for file in before} == before


def test_names_in_a_checkpoint_open_no_file(tmp_path):
    go(build(tmp_path, loggers=make_logs(tmp_path)), tmp_path, tiny_benchmark(), count=1)
    (tmp_path / "other.txt").write_text("kept")
    names = dict.fromkeys(("other.txt", str(tmp_path / "other.txt"), "log_folder"), (0, None))
    path = changed(tmp_path, lambda logs: [logs[0], ("files", names), *logs[2:]])
    again = build(tmp_path, loggers=make_logs(tmp_path))
    log = (tmp_path / "log.txt").read_bytes()
    resume(again, path, tiny_benchmark())
    assert (tmp_path / "other.txt").read_text() == "kept"
    assert (tmp_path / "log.txt").read_bytes() == log


def test_a_relative_name_is_that_of_the_open_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = open("log.txt", "a")  # noqa: SIM115
    _opened.append(opened)
    strategy = build(tmp_path, loggers=[TextLogger(opened)])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "log.txt").write_text("of somebody else" * 1000)
    monkeypatch.chdir(tmp_path / "elsewhere")
    go(strategy, tmp_path, tiny_benchmark(), count=1)
    length = (tmp_path / "log.txt").stat().st_size
    strategy.eval(tiny_benchmark().test_stream)
    positions = _logs.log_positions(strategy)
    assert positions[1] == ("files", {"file": ((tmp_path / "log.txt").stat().st_size, None)})
    _logs.set_log_positions(strategy, [positions[0], ("files", {"file": (length, None)})], tiny_benchmark())
    assert (tmp_path / "log.txt").stat().st_size == length
    assert (tmp_path / "elsewhere" / "log.txt").read_text() == "of somebody else" * 1000


# The same rows once, however often a run is killed.


def split(seed=0):
    return with_validation_stream(tiny_benchmark(), fraction=0.25, seed=seed)


def online():
    benchmark = tiny_benchmark()
    pieces = list(split_online_stream(benchmark.train_stream, experience_size=4, shuffle=False))
    return CLScenario([EagerCLStream("train", pieces, benchmark), benchmark.test_stream])


def lazily_online():
    benchmark = tiny_benchmark()
    stream = split_online_stream(benchmark.train_stream, experience_size=4, shuffle=False)
    return CLScenario([stream, benchmark.test_stream])


@pytest.mark.parametrize("first", ["eval", "train"])
@pytest.mark.parametrize("make", [tiny_benchmark, split, online, lazily_online])
def test_a_run_that_is_killed_early_writes_its_rows_once(tmp_path, make, first):
    def run(folder, kill):
        benchmark = make()
        strategy = build(folder, kill=kill)
        start = resume(strategy, folder / "checkpoints", benchmark)
        assert start == 0
        if first == "eval":
            strategy.eval(benchmark.test_stream)
        train = benchmark.streams.get("train", benchmark.streams.get("train_online"))
        for experience in list(train)[:2]:
            strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        return strategy

    whole = run(tmp_path / "whole", None)
    folder = tmp_path / "run"
    counts = set()
    for _ in range(3):
        with pytest.raises(Killed):
            run(folder, 0)
        counts.add(len(read_results(folder / "results.csv")))
    assert len(counts) == 1
    for path in (folder / "checkpoints").glob("*1.ckpt"):
        path.unlink()
    again = run(folder, None)
    assert logger_of(again).run == logger_of(whole).run
    expected = list(map(repr, read_results(tmp_path / "whole" / "results.csv")))
    assert list(map(repr, read_results(folder / "results.csv"))) == expected
    assert len(read_runs(folder / "results.csv")) == 1


@pytest.mark.parametrize("first", ["eval", "train"])
def test_the_data_of_a_run_are_those_that_it_trains_on(tmp_path, first):
    plain = tiny_benchmark()
    own = with_validation_stream(plain, fraction=0.25)
    ids = {}
    for name, benchmark in (("plain", plain), ("split", own), ("again", plain)):
        strategy = build(tmp_path, checkpoints=name)
        if first == "eval":
            strategy.eval(benchmark.test_stream)
        strategy.train(benchmark.train_stream[0])
        strategy.eval(benchmark.test_stream)
        ids[name] = logger_of(strategy).run
    assert ids["plain"] == ids["again"] != ids["split"]
    noted = read_runs(tmp_path / "results.csv")
    assert set(noted) == set(ids.values())
    for name, benchmark in (("plain", plain), ("split", own)):
        samples = [len(experience.dataset) for experience in benchmark.train_stream]
        assert noted[ids[name]]["benchmark"]["train"]["samples"] == samples
    assert {row.run for row in read_results(tmp_path / "results.csv")} == set(ids.values())
    assert len(rows_of(tmp_path, ids["plain"])) == 2 * len(rows_of(tmp_path, ids["split"]))


def test_a_stream_that_does_not_know_its_benchmark(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the host, of itself
        benchmark = benchmark_with_validation_stream(tiny_benchmark(), validation_size=0.25, shuffle=False)
    strategy = build(tmp_path)
    strategy.eval(benchmark.test_stream)
    strategy.train(next(iter(benchmark.train_stream)))
    (facts,) = read_runs(tmp_path / "results.csv").values()
    samples = facts["benchmark"]["train"]["samples"]
    assert samples == [len(experience.dataset) for experience in benchmark.train_stream]


# What loggers were told late.


def test_the_method_of_a_resumed_run_is_that_of_its_strategy(tmp_path):
    go(build(tmp_path), tmp_path, tiny_benchmark(), count=1)
    go(build(tmp_path), tmp_path, tiny_benchmark())
    assert {row.method for row in read_results(tmp_path / "results.csv")} == {"FineTune"}
    assert len(read_runs(tmp_path / "results.csv")) == 1


class LateLogger(BaseLogger):
    """A user's logger, which takes down names when a run begins."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.title = None
        self.phase = ""

    def before_training(self, strategy, metric_values, **kwargs):
        self.title, self.phase, self.added = "late", "training", "text"


def test_text_that_a_logger_was_told_late_survives(tmp_path):
    go(build(tmp_path, loggers=[LateLogger("here")]), tmp_path, tiny_benchmark(), count=1)
    again = LateLogger("there")
    resume(build(tmp_path, loggers=[again]), tmp_path / "checkpoints", tiny_benchmark())
    assert (again.path, again.title, again.phase, again.added) == ("there", "late", "training", "text")


def test_a_file_does_not_say_where_a_logger_writes(tmp_path):
    go(build(tmp_path, loggers=[LateLogger("here")]), tmp_path, tiny_benchmark(), count=1)
    path = tmp_path / "checkpoints" / "experience-0001.ckpt"
    file = _file.read_checkpoint(path)
    state = from_bytes(file.sections["state"])
    node = next(n for n in state["nodes"] if n[0] == "object" and n[2].endswith(".LateLogger"))
    node[3].append(("path", "elsewhere"))
    _file.write_checkpoint(path, file.header, {"state": to_bytes(state)})
    with pytest.raises(ValueError, match="sets path of a LateLogger"):
        resume(build(tmp_path, loggers=[LateLogger("there")]), path, tiny_benchmark())


def test_a_logger_of_one_run_refuses_another(tmp_path):
    strategy = build(tmp_path)
    strategy.eval(tiny_benchmark().test_stream)
    strategy.eval(tiny_benchmark().test_stream)
    other = build(tmp_path / "other")
    other.evaluator.loggers[:] = strategy.evaluator.loggers
    before = (tmp_path / "results.csv").read_bytes()
    for action in (
        lambda: other.eval(tiny_benchmark().test_stream),
        lambda: other.train(tiny_benchmark().train_stream[0]),
    ):
        with pytest.raises(ValueError, match=r"`evaluator` must be made of parts that no other run has used"):
            action()
    assert (tmp_path / "results.csv").read_bytes() == before


# What a checkpoint costs.


def test_a_checkpoint_reads_no_file_of_results(tmp_path, monkeypatch):
    strategy = go(build(tmp_path), tmp_path, tiny_benchmark(), count=1)
    rows = len(read_results(tmp_path / "results.csv"))
    monkeypatch.setattr("pathlib.Path.open", None)
    monkeypatch.setattr("pathlib.Path.read_bytes", None)
    size = (tmp_path / "results.csv").stat().st_size
    assert _logs.log_positions(strategy) == [("rows", logger_of(strategy).run, rows, size)]
