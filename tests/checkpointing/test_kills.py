"""A small case of the study that kills runs: see `benchmarks/kill_study.py`."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from kill_study import Interpreter, row

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def interpreter():
    made = Interpreter()
    yield made
    made.close()


@pytest.mark.parametrize("name", ["Plateau and early stopping, inside", "Online, cut on the way", "AutoSeed"])
def test_killed_in_each_phase_and_resumed(interpreter, name):
    _, done, found = row(name, interpreter.run, [interpreter.run] * 3, keep=False)
    assert done.total() == 2, found
    assert not found
