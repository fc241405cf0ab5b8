"""Runs that were stopped and resumed in a new process end as those that never stopped, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from cases import INSIDE, names, positions  # noqa: E402


def worker(mode, folder):
    done = subprocess.run(
        [sys.executable, HERE / "worker.py", mode, folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,  # a bound for what hangs; busy machines take minutes
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((Path(folder) / f"{mode}.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {"whole": worker("whole", folder), "resumed": worker("resumed", folder)}


@pytest.mark.parametrize(("case", "optimizer"), names())
def test_resumed_between_experiences(results, case, optimizer):
    found = {
        name: bad for name, bad in results["resumed"].items() if name.startswith(f"{case}, {optimizer}, ")
    }
    assert len(found) == len(positions(case, optimizer))
    assert not any(found.values()), found


@pytest.mark.parametrize("case", INSIDE)
def test_resumed_inside_an_experience(results, case):
    found = {name: bad for name, bad in results["resumed"].items() if name.startswith(f"{case}, experience-")}
    assert len(found) == 2
    assert not any(found.values()), found


def test_the_plugin_changes_nothing(results):
    assert len(results["whole"]) == len(names())
    assert not any(results["whole"].values()), results["whole"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments(tmp_path):
    found = worker("kills", tmp_path)
    assert len(found) == 3
    assert not any(found.values()), found
