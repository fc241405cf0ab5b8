"""Runs that are made in this process."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin

from avalanche_vlm._processes import free_lock
from avalanche_vlm.comparison import Run, compare, grid
from avalanche_vlm.logging import read_results, result_matrix
from avalanche_vlm.logging.provenance import read_runs
from avalanche_vlm.logging.results import as_rows
from tests.comparison.cases import fine_tune, joint, prepare, zero_shot

COSTS = {"training_seconds", "evaluation_seconds", "peak_memory"}


class Calls(Counter):
    """Counts how often each function is called."""

    def of(self, name, function):
        def counted(*arguments):
            self[name] += 1
            return function(*arguments)

        return counted


def run_of(name, build, prepare=prepare, seed=0):
    return Run(method=name, stream="small", seed=seed, build=build, prepare=prepare)


def here(runs, folder, **arguments):
    return compare(runs, folder, processes=0, **arguments)


def states(outcomes):
    return [outcome.state for outcome in outcomes]


def rows_of(folder, method):
    """What a method has in the file of results, without what depends on the clock and the machine."""
    rows = [row for row in read_results(folder) if row.method == method]
    return [repr(replace(row, run="")) for row in rows if row.metric not in COSTS]


def fail(setup, evaluator):
    raise RuntimeError("the disk\nis full")


class StopsInTheSecondExperience(SupervisedPlugin):
    """Raises in the middle of it, as long as it is asked to."""

    error = None
    trained: ClassVar = Counter()

    def before_training_exp(self, strategy, **kwargs):
        self.trained[strategy.experience.current_experience] += 1

    def before_training_iteration(self, strategy, **kwargs):
        if self.error and strategy.experience.current_experience == 1:
            raise self.error


@pytest.fixture
def stopping():
    yield StopsInTheSecondExperience
    StopsInTheSecondExperience.error = None


def stoppable(setup, evaluator):
    return fine_tune(setup, evaluator, plugins=[StopsInTheSecondExperience()])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "new" / "folder"
    methods = {"zero-shot": zero_shot, "naive": fine_tune, "joint": joint}
    runs = grid(methods, {"small": prepare}, seeds=[0, 1])
    return folder, runs, here(runs, str(folder))


def test_outcomes_are_in_the_order_of_the_runs(compared):
    folder, runs, outcomes = compared
    assert [(each.method, each.stream, each.seed) for each in outcomes] == [
        (run.method, run.stream, run.seed) for run in runs
    ]
    assert states(outcomes) == ["finished"] * len(runs)
    assert [each.definition for each in outcomes] == [run.definition() for run in runs]
    for run, outcome in zip(runs, outcomes, strict=True):
        written = json.loads((folder / "runs" / run.folder_name / "outcome.json").read_text())
        assert (written["state"], written["method"], written["seed"]) == ("finished", run.method, run.seed)
        assert written["definition"] == outcome.definition
        assert not (folder / "runs" / run.folder_name / "checkpoints").exists()


def test_results_are_measured_before_training_and_after_each_experience(compared):
    folder, runs, _ = compared
    rows = read_results(folder)
    assert {(row.method, row.benchmark, row.seed) for row in rows} == {
        (run.method, run.stream, run.seed) for run in runs
    }
    own = [row for row in rows if row.method == "naive" and row.seed == 0]
    matrix = result_matrix([row for row in own if row.space == "all"])
    assert matrix.shape == (4, 3)
    assert not matrix.isnan().any()
    zero_shot_matrix = result_matrix(
        [row for row in rows if row.method == "zero-shot" and row.seed == 0 and row.space == "all"]
    )
    assert matrix[0].tolist() == zero_shot_matrix[0].tolist()
    assert (zero_shot_matrix == zero_shot_matrix[0]).all()
    assert matrix[3].mean() != matrix[0].mean()
    assert {row.metric for row in own} >= COSTS | {"stored_bytes", "last_accuracy", "forgetting"}


def test_joint_training_takes_all_experiences_at_once(compared):
    folder, _, _ = compared
    rows = [row for row in read_results(folder) if row.method == "joint" and row.seed == 0]
    matrix = result_matrix([row for row in rows if row.space == "all"])
    assert matrix.isnan().all(dim=1).tolist() == [False, True, True, False]
    (stored,) = (row for row in rows if row.metric == "stored_bytes")
    assert stored.after_experience == 3


def test_what_is_needed_to_repeat_a_run_stands_beside_it(compared):
    folder, runs, _ = compared
    noted = read_runs(folder)
    facts = list(noted.values()) if isinstance(noted, dict) else list(noted)
    assert len(facts) == len(runs)
    assert {fact["settings"]["definition"] for fact in facts} == {run.definition() for run in runs}


def test_a_seed_decides_the_numbers(compared, tmp_path):
    folder, runs, _ = compared
    # Of another order, and without others before it.
    here([run for run in reversed(runs) if run.method == "naive"], tmp_path)
    assert rows_of(tmp_path, "naive") == rows_of(folder, "naive")


def test_finished_runs_are_not_repeated(tmp_path):
    calls = Calls()
    runs = grid(
        {name: calls.of(name, zero_shot) for name in "ab"}, {"small": calls.of("p", prepare)}, seeds=[0]
    )
    here(runs, tmp_path)
    before = list(map(repr, read_results(tmp_path)))
    again = here([*runs, run_of("c", calls.of("c", zero_shot))], tmp_path)
    assert states(again) == ["finished"] * 3
    assert calls == {"a": 1, "b": 1, "c": 1, "p": 2}
    assert [repr(row) for row in read_results(tmp_path) if row.method != "c"] == before


def test_a_failing_method_leaves_the_others_alone(tmp_path, capsys):
    broken = run_of("no setup", zero_shot, prepare=lambda seed: [seed])
    runs = [run_of("a", zero_shot), run_of("bad", fail), broken, run_of("b", fine_tune)]
    outcomes = here(runs, tmp_path)
    assert states(outcomes) == ["finished", "failed", "failed", "finished"]
    assert [outcome.reason for outcome in outcomes][:2] == ["", "RuntimeError: the disk is full"]
    assert outcomes[2].reason.startswith("TypeError: `prepare` must be Setup; got list")
    assert "in fail\n" in capsys.readouterr().err  # the traceback
    assert {row.method for row in read_results(tmp_path)} == {"a", "b"}
    written = json.loads((tmp_path / "runs" / runs[1].folder_name / "outcome.json").read_text())
    assert (written["state"], written["reason"]) == ("failed", "RuntimeError: the disk is full")


def test_failed_runs_are_tried_again(tmp_path):
    calls, broken = Calls(), [True]

    def moody(setup, evaluator):
        return fail(setup, evaluator) if broken else fine_tune(setup, evaluator)

    runs = [run_of("good", calls.of("good", fine_tune)), run_of("moody", calls.of("moody", moody))]
    assert states(here(runs, tmp_path)) == ["finished", "failed"]
    assert states(here(runs, tmp_path)) == ["finished", "failed"]
    broken.clear()
    outcomes = here(runs, tmp_path)
    assert states(outcomes) == ["finished", "finished"]
    assert outcomes[1].reason == ""
    assert calls == {"good": 1, "moody": 3}
    # Another name is all that tells them apart.
    assert [row.replace("'moody'", "'good'") for row in rows_of(tmp_path, "moody")] == rows_of(
        tmp_path, "good"
    )


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_run_that_fails_midway_goes_on_after_mending(tmp_path, stopping, checkpoints):
    stopping.error = MemoryError("no room")
    (outcome,) = here([run_of("m", stoppable)], tmp_path, checkpoints=checkpoints)
    assert (outcome.state, outcome.reason) == ("failed", "MemoryError: no room")
    stopping.error = None
    assert states(here([run_of("m", stoppable)], tmp_path, checkpoints=checkpoints)) == ["finished"]
    here([run_of("m", stoppable)], tmp_path / "whole", checkpoints=checkpoints)
    rows = as_rows(row for row in read_results(tmp_path) if row.metric not in COSTS)
    whole = as_rows(row for row in read_results(tmp_path / "whole") if row.metric not in COSTS)
    assert {repr(row) for row in rows} == {repr(row) for row in whole}
    assert len(rows) == len(whole)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_an_interrupted_run_ends_as_if_it_had_never_stopped(tmp_path, stopping, checkpoints):
    calls = Calls()
    runs = [run_of("zero-shot", zero_shot), run_of("m", calls.of("m", stoppable)), run_of("after", zero_shot)]
    stopping.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        here(runs, tmp_path, checkpoints=checkpoints)
    state = [tmp_path / "runs" / run.folder_name / "outcome.json" for run in runs]
    assert [json.loads(path.read_text())["state"] for path in state[:2]] == ["finished", "interrupted"]
    assert not state[2].exists()
    stopping.error = None
    stopping.trained.clear()
    assert states(here(runs, tmp_path, checkpoints=checkpoints)) == ["finished"] * 3
    assert stopping.trained == ({1: 1, 2: 1} if checkpoints else {0: 1, 1: 1, 2: 1})
    here(runs, tmp_path / "whole", checkpoints=checkpoints)
    assert rows_of(tmp_path, "m") == rows_of(tmp_path / "whole", "m")
    assert calls["m"] == 3


def test_the_seconds_of_an_interrupted_run_go_on(tmp_path, stopping):
    stopping.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        here([run_of("m", stoppable)], tmp_path)
    stopping.error = None
    here([run_of("m", stoppable)], tmp_path)
    for metric, times in (("training_seconds", 3), ("evaluation_seconds", 4)):
        rows = [row for row in read_results(tmp_path) if row.metric == metric]
        values = [row.value for row in rows]
        assert len(values) == times
        assert values == sorted(set(values))


def test_a_run_that_reads_differently_is_made_again(tmp_path):
    slow, fast = partial(fine_tune, rate=0.01), partial(fine_tune, rate=5.0)
    calls = Calls()
    other = run_of("other", calls.of("other", zero_shot))
    here([run_of("m", slow), other], tmp_path)
    first = rows_of(tmp_path, "m")
    assert states(here([run_of("m", fast), other], tmp_path)) == ["finished", "finished"]
    assert calls["other"] == 1
    here([run_of("m", fast)], tmp_path / "fresh")
    assert rows_of(tmp_path, "m") == rows_of(tmp_path / "fresh", "m") != first
    (definition,) = (
        facts["settings"]["definition"] for facts in read_runs(tmp_path).values() if facts["method"] == "m"
    )
    assert definition == run_of("m", fast).definition()
    # What was measured before is set aside, and in no table.
    earlier = tmp_path / "runs" / run_of("m", fast).folder_name / "earlier" / "1"
    assert rows_of(earlier, "m") == first
    assert len(read_runs(earlier)) == 1


def test_a_checkpoint_of_what_read_differently_is_not_gone_on_with(tmp_path, stopping):
    stopping.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        here([run_of("m", stoppable)], tmp_path)
    stopping.error = None
    assert states(here([run_of("m", fine_tune)], tmp_path)) == ["finished"]
    here([run_of("m", fine_tune)], tmp_path / "fresh")
    assert rows_of(tmp_path, "m") == rows_of(tmp_path / "fresh", "m")


def test_a_deleted_folder_of_runs_begins_anew(tmp_path):
    calls = Calls()
    runs = [run_of("m", calls.of("m", zero_shot))]
    here(runs, tmp_path)
    shutil.rmtree(tmp_path / "runs")
    here(runs, tmp_path)
    assert calls["m"] == 2


def test_an_evaluator_that_is_not_passed_on_is_refused(tmp_path):
    runs = [
        run_of("none", lambda setup, evaluator: fine_tune(setup, None)),
        run_of("own", lambda setup, evaluator: fine_tune(setup, EvaluationPlugin(loggers=[]))),
        run_of("no strategy", lambda setup, evaluator: setup.model()),
    ]
    for outcome in here(runs, tmp_path):
        assert outcome.state == "failed"
        assert "`build` must be a strategy with the evaluator that it was given" in outcome.reason
        assert outcome.reason.endswith("Pass evaluator=evaluator.")


def test_arguments_for_training_are_passed_on(tmp_path):
    seen = []

    def listening(setup, evaluator):
        strategy = fine_tune(setup, evaluator)
        train = strategy.train
        strategy.train = lambda experience, **arguments: (seen.append(arguments), train(experience))
        return strategy

    def with_arguments(seed):
        return replace(prepare(seed), train_arguments={"num_workers": 0})

    assert states(here([run_of("m", listening, with_arguments)], tmp_path, checkpoints=False)) == ["finished"]
    assert seen == [{"num_workers": 0}] * 3


def test_wrong_calls_make_nothing(tmp_path):
    folder = tmp_path / "new"
    twice = [run_of("a", zero_shot), run_of("b", zero_shot), run_of("a", fine_tune)]
    with pytest.raises(
        ValueError, match="`runs` must be runs of different names; got a, small, seed 0 twice"
    ):
        here(twice, folder)
    with pytest.raises(ValueError, match="`runs` must be at least one run"):
        here([], folder)
    with pytest.raises(TypeError, match="`runs` must be a list of runs"):
        here([zero_shot], folder)
    with pytest.raises(ValueError, match="`processes` must be"):
        compare(twice[:1], folder, processes=-1)
    with pytest.raises(TypeError, match="`folder` must be"):
        here(twice[:1], 3)
    with pytest.raises(ValueError, match="with def at the top of a module, or take processes=0"):
        compare([run_of("a", lambda setup, evaluator: None)], folder, processes=1)
    assert not folder.exists()


def test_what_another_process_makes_is_left_to_it(tmp_path):
    calls = Calls()
    runs = [run_of("a", calls.of("a", zero_shot)), run_of("b", calls.of("b", zero_shot))]
    own = tmp_path / "runs" / runs[0].folder_name
    own.mkdir(parents=True)
    lock = free_lock(own / "lock")
    assert states(here(runs, tmp_path)) == ["elsewhere", "finished"]
    lock.release()
    assert states(here(runs, tmp_path)) == ["finished", "finished"]
    assert calls == {"a": 1, "b": 1}


def test_what_another_process_made_meanwhile_is_not_made_again(tmp_path):
    calls = Calls()
    second = run_of("second", calls.of("second", zero_shot))

    def as_if_another(setup, evaluator):
        calls["first"] += 1
        # While this run is made, somebody else starts the same script.
        assert states(here(runs, tmp_path)) == ["elsewhere", "finished"]
        return zero_shot(setup, evaluator)

    runs = [run_of("first", as_if_another), second]
    assert states(here(runs, tmp_path)) == ["finished", "finished"]
    assert calls == {"first": 1, "second": 1}
    assert len(rows_of(tmp_path, "second")) == len(rows_of(tmp_path, "first"))


class Unhashable:
    __hash__ = None

    def __call__(self, setup, evaluator):
        return zero_shot(setup, evaluator)


def test_what_makes_a_strategy_can_be_any_callable(tmp_path):
    assert states(here([run_of("m", Unhashable())], tmp_path)) == ["finished"]
