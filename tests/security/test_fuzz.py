"""A small case of the study that changes files in one place: see `benchmarks/fuzz_study.py`."""

import random
import shutil
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from fuzz_containers import CONTAINERS
from fuzz_study import LEVELS, Audit, clone, read_changed

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
