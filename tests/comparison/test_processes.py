"""Runs in processes of their own, as a user's script makes them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from avalanche_vlm.comparison import compare, grid
from avalanche_vlm.logging import read_results
from tests.comparison import cases

COSTS = {"training_seconds", "evaluation_seconds", "peak_memory"}
# Its functions stand in the script itself, as a user's do.
SCRIPT = (
    Path(cases.__file__).read_text()
    + """

import os
import signal
import time

from avalanche.core import SupervisedPlugin

from avalanche_vlm.comparison import compare, grid


def noted(setup, evaluator):
    with open("made.txt", "a") as file:
        file.write(f"{setup.seed}\\n")
    return fine_tune(setup, evaluator)


def killed(setup, evaluator):
    print("about to be killed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


class Waits(SupervisedPlugin):
    def after_training_epoch(self, strategy, **kwargs):
        if strategy.experience.current_experience == 1:
            open("begun.txt", "a").close()
            while not os.path.exists("go on"):
                time.sleep(0.02)


def waiting(setup, evaluator):
    return fine_tune(setup, evaluator, plugins=[Waits()])


def runs(seeds, **methods):
    return grid(methods, {"small": prepare}, seeds=seeds)


if __name__ == "__main__":
    try:
        compare(runs([0], no=lambda setup, evaluator: None), "refused", processes=2)
    except ValueError as error:
        print(error)
    every = runs([0, 1, 2], naive=noted, untrained=zero_shot)
    pid = os.fork()  # somebody starts the same script a second time
    if pid == 0:
        compare(every, "out", processes=0)
        os._exit(0)
    for outcome in compare(every + runs([7], killed=killed), "out", processes=2):
        print(outcome.method, outcome.seed, outcome.state, outcome.reason, sep="; ")
    print("second script", os.waitpid(pid, 0)[1])
    try:
        compare(runs([0], waiting=waiting), "interrupted", processes=1)
    except KeyboardInterrupt:
        print("interrupted")
"""
)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The folder in which the script has run, and what it has printed."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Of what runs in the background a shell lets Ctrl-C be ignored, and processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        end = time.monotonic() + 240
        while not (folder / "begun.txt").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # Ctrl-C at a terminal reaches all processes
        (folder / "go on").touch()
        output, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    return folder, output.splitlines()


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork and no SIGKILL there")


def rows_of(folder):
    rows = [row for row in read_results(folder) if row.metric not in COSTS]
    return sorted(repr(replace(row, run="")) for row in rows)


def outcome_in(folder, name):
    (path,) = folder.glob(f"runs/small-{name}-*/outcome.json")
    return json.loads(path.read_text())


def test_functions_of_this_process_alone_are_refused(script):
    folder, output = script
    assert output[0].startswith("`runs` must be functions that another process can import; got no, small")
    assert output[0].endswith(
        "Define them with def at the top of a module, or take processes=0: in this process."
    )
    assert not (folder / "refused").exists()


def test_results_are_those_of_one_process(script, tmp_path):
    folder, _ = script
    methods = {"naive": cases.fine_tune, "untrained": cases.zero_shot}
    compare(grid(methods, {"small": cases.prepare}, seeds=[0, 1, 2]), tmp_path, processes=0)
    assert rows_of(folder / "out") == rows_of(tmp_path)


def test_two_scripts_make_no_run_twice(script):
    folder, output = script
    assert sorted((folder / "made.txt").read_text().split()) == ["0", "1", "2"]
    assert "second script 0" in output
    for name in ("naive", "untrained"):
        for seed in range(3):
            assert outcome_in(folder / "out", f"{name}-{seed}")["state"] == "finished"
            (line,) = (line for line in output if line.startswith(f"{name}; {seed}; "))
            assert line.split("; ")[2] in ("finished", "elsewhere")


def test_the_death_of_a_process_is_an_outcome(script):
    folder, output = script
    (line,) = (line for line in output if line.startswith("killed; 7; "))
    assert line.startswith("killed; 7; failed; its process ended with SIGKILL (out of memory?)")
    outcome = outcome_in(folder / "out", "killed-7")
    assert outcome["state"] == "failed"
    assert "SIGKILL" in outcome["reason"]
    (log,) = folder.glob("out/runs/small-killed-7-*/log.txt")
    assert "about to be killed" in log.read_text()


def test_what_is_printed_goes_to_the_log(script):
    _, output = script
    assert "about to be killed" not in output


def test_an_interrupt_stops_where_a_run_can_go_on(script):
    folder, output = script
    assert output[-1] == "interrupted"
    assert outcome_in(folder / "interrupted", "waiting-0")["state"] == "interrupted"
    assert list(folder.glob("interrupted/runs/*/checkpoints/*"))
    rows = read_results(folder / "interrupted")
    assert max(row.after_experience for row in rows) == 2  # the experience has ended, and was measured
