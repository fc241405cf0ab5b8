"""A small case of the study that changes files in one place: see `benchmarks/fuzz_study.py`."""

import random
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from fuzz_containers import CONTAINERS
from fuzz_study import LEVELS, Audit, clone, read_changed
from kill_study_runs import Script
from kill_study_runs import made as made_by

from avalanche_vlm.checkpointing import _file as checkpoint_file
from avalanche_vlm.checkpointing import resume, save
from avalanche_vlm.checkpointing._bytes import from_bytes, to_bytes
from avalanche_vlm.checkpointing._random import check_random_state, random_state
from avalanche_vlm.strategies import FineTune

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def audit():
    return Audit()


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda each: each.name)
def test_files_with_one_change(container, audit, tmp_path, monkeypatch):
    original, folder = tmp_path / "original", tmp_path / "changed"
    original.mkdir()
    container.prepare()
    container.build(original)

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        container.prepare()

    fresh()
    audit.found, audit.folder = [], str(folder)
    with warnings.catch_warnings(), monkeypatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        expected = clone(container.read(folder))
    audit.folder, audit.usual = None, {*audit.usual, *audit.found}
    for level in LEVELS:
        for number in range(2):
            fresh()
            audit.found = []
            draw = random.Random(f"{container.name} {level} {number}")
            case = read_changed(container, folder, level, draw, audit, expected)
            assert case.verdict != "fault", case


@pytest.mark.parametrize("position", [-1, 625, 2**31 - 1, 1.0])
def test_a_generator_of_numpy_is_not_sent_outside_its_numbers(position):
    state = random_state()
    check_random_state(state)
    kind, keys, _, *rest = state["numpy"]
    with pytest.raises(ValueError, match="states of random generators.*of 624 numbers"):
        check_random_state(state | {"numpy": (kind, keys, position, *rest)})


@pytest.mark.parametrize(
    ("kind", "name", "position"), [("MT19937", "pos", 7000), ("Philox", "buffer_pos", -9)]
)
def test_neither_is_one_that_a_plugin_holds(kind, name, position, tmp_path):
    def built():
        made, benchmark = Script(made_by(FineTune)).built("a", tmp_path / "results.csv")
        made.generator = np.random.Generator(getattr(np.random, kind)(0))
        return made, benchmark

    changed = []

    def change(content):
        """Return content of a file with the position set; not every NumPy lets a generator have it."""
        if not isinstance(content, (list, tuple)):
            return content
        if len(content) == 2 and content[0] == name and type(content[1]) is int:
            changed.append(content[1])
            return type(content)((name, position))
        return type(content)(change(each) for each in content)

    strategy, benchmark = built()
    path = tmp_path / "run.ckpt"
    save(strategy, path, benchmark)
    assert resume(built()[0], path, benchmark) == 0
    file = checkpoint_file.read_checkpoint(path)
    state = from_bytes(file.sections["state"])
    state["nodes"] = change(state["nodes"])
    assert len(changed) == 1
    checkpoint_file.write_checkpoint(path, file.header, {"state": to_bytes(state)})
    with pytest.raises(ValueError, match="run.ckpt is damaged.* numbers"):
        resume(built()[0], path, benchmark)


@pytest.mark.parametrize(
    "change",
    [
        lambda pairs: [*pairs, ("evaluator", {})],
        lambda pairs: [(name, None if name == "evaluator" else value) for name, value in pairs],
        lambda pairs: [pair for pair in pairs if pair[0] != "evaluator"],
    ],
    ids=["twice", "none", "missing"],
)
def test_no_file_takes_the_evaluator_away(change, tmp_path):
    def built():
        return Script(made_by(FineTune)).built("a", tmp_path / "results.csv")

    strategy, benchmark = built()
    path = tmp_path / "run.ckpt"
    save(strategy, path, benchmark)
    file = checkpoint_file.read_checkpoint(path)
    state = from_bytes(file.sections["state"])
    pairs, left = state["roots"]["strategy"]
    state["roots"]["strategy"] = type(state["roots"]["strategy"])((change(pairs), left))
    checkpoint_file.write_checkpoint(path, file.header, {"state": to_bytes(state)})
    strategy, benchmark = built()
    before = strategy.evaluator
    with pytest.raises(ValueError, match="twice|evaluator of the run"):
        resume(strategy, path, benchmark)
    assert strategy.evaluator is before
