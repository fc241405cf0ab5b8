"""Folders of runs that hold something odd, and folders that an earlier version wrote."""

import json
import os
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avalanche_vlm.comparison import Run, compare, write_comparison
from avalanche_vlm.comparison.outcome import is_finished, outcome_of, read_outcome, write_outcome
from avalanche_vlm.logging import ResultRow, read_results, results_table, table_text, write_results
from tests.comparison.cases import prepare, zero_shot


def run_of(method="m", stream="small", build=zero_shot):
    return Run(method=method, stream=stream, seed=0, build=build, prepare=prepare)


def here(runs, folder):
    return compare(runs, folder, processes=0, checkpoints=False)


GOOD = asdict(outcome_of(run_of(), "finished"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", "null", "[" * 100_000, '{"a":' * 100_000, "1" * 5000, "\0"),
        json.dumps(GOOD | {"state": "won"}),
        json.dumps(GOOD | {"state": ["finished"]}),
        *(json.dumps(GOOD | {"seed": seed}) for seed in ("0", True, 0.0, -1, None)),
        *(json.dumps(GOOD | {name: 3}) for name in ("method", "stream", "reason", "definition")),
        json.dumps({name: value for name, value in GOOD.items() if name != "state"}),
        json.dumps(GOOD | {"more": 1}),
        json.dumps(GOOD)[:-1] + ', "state": "finished"}',
        json.dumps(GOOD | {"reason": "x" * (1 << 21)}),
    ],
    ids=lambda text: f"{len(text)} {text[:30]}",
)
def test_an_outcome_that_nobody_wrote_so_is_none(tmp_path, text):
    (tmp_path / "outcome.json").write_text(text)
    assert read_outcome(tmp_path) is None


@pytest.mark.parametrize("kind", ["folder", "dangling link", "link", "pipe", "no letters"])
def test_what_is_no_file_is_no_outcome(tmp_path, kind):
    path = tmp_path / "outcome.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        write_outcome(tmp_path / "elsewhere", outcome_of(run_of(), "finished"))
        path.symlink_to(tmp_path / "elsewhere" / "outcome.json")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\xff")
    assert read_outcome(tmp_path) is None


@given(st.text(st.characters(), max_size=20))
def test_any_reason_comes_back(tmp_path_factory, reason):
    folder = tmp_path_factory.getbasetemp()
    outcome = outcome_of(run_of(), "failed", reason)
    write_outcome(folder, outcome)
    assert read_outcome(folder) == outcome


def test_reasons_are_never_too_long_to_be_read(tmp_path):
    write_outcome(tmp_path, outcome_of(run_of(), "failed", "\ud800" * 10**6))
    found = read_outcome(tmp_path)
    assert found is not None
    assert len(found.reason) == 10_000


def test_an_outcome_of_another_run_is_not_that_of_this_one():
    other = outcome_of(run_of("other"), "finished")
    assert is_finished(run_of("other"), other)
    assert not is_finished(run_of(), other)


ODD = ["outcome.json", "results.csv", "results.runs.jsonl", "lock", "log.txt"]


@pytest.mark.parametrize("name", [*ODD, "checkpoints", "earlier", ""])
@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling link"])
def test_what_stands_in_the_way_ends_one_run_alone(tmp_path, name, kind):
    if kind == ("folder" if name not in ODD else "file"):
        pytest.skip("that is what belongs there")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    odd, good = run_of("odd"), run_of("good")
    path = tmp_path / "out" / "runs" / odd.folder_name / name
    path.parent.mkdir(parents=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("kept")
    else:
        path.symlink_to(
            elsewhere / ("nothing" if kind == "dangling link" else "kept" if name in ODD else ".")
        )
    outcomes = here([odd, good], tmp_path / "out")
    assert [each.state for each in outcomes] == ["failed", "finished"]
    assert str(path) in outcomes[0].reason
    assert outcomes[0].reason.endswith("Move it away.")
    assert [(file.name, file.read_text()) for file in elsewhere.iterdir()] == [("kept", "kept")]
    if name in ("results.csv", ""):
        page = write_comparison([odd, good], tmp_path / "out").read_text()
        assert "- **odd**, seed 0: failed: " in page
        assert "| good | 1 |" in page
    path.rmdir() if kind == "folder" else path.unlink()
    assert [each.state for each in here([odd, good], tmp_path / "out")] == ["finished"] * 2


def test_a_full_disk_at_the_end_ends_one_run_alone(tmp_path, monkeypatch):
    from avalanche_vlm.comparison import _one_run

    def full(folder, outcome):
        if outcome.method == "a" and outcome.state == "finished":
            raise OSError(28, "No space left on device", str(folder / "outcome.json"))
        write_outcome(folder, outcome)

    monkeypatch.setattr(_one_run, "write_outcome", full)
    runs = [run_of("a"), run_of("b")]
    outcomes = here(runs, tmp_path)
    assert [each.state for each in outcomes] == ["failed", "finished"]
    assert "outcome.json" in outcomes[0].reason


def test_results_of_an_unknown_outcome_are_set_aside(tmp_path):
    run = run_of()
    here([run], tmp_path)
    own = tmp_path / "runs" / run.folder_name
    before = (own / "results.csv").read_bytes()
    (own / "outcome.json").write_text("{")
    for number in (1, 2):
        (own / "outcome.json").write_text("{")
        assert here([run], tmp_path)[0].state == "finished"
        assert (own / "earlier" / str(number) / "results.csv").read_bytes()[:50] == before[:50]
    assert len(read_results(tmp_path)) == before.count(b"\n") - 1


def test_a_folder_that_an_earlier_version_wrote_is_read(tmp_path):
    old, new, changed = run_of("old"), run_of("new"), run_of("changed")
    rows = [
        ResultRow(run=run, method=name, benchmark="small", seed=0, metric="last_accuracy", space="seen",
                  after_experience=3, value=value)
        for name, run, value in (("old", "0" * 12, 0.25), ("changed", "1" * 12, 0.125))
    ]  # fmt: skip
    write_results(tmp_path / "results.csv", rows)
    for run, definition in ((old, old.definition()), (changed, "another one")):
        own = tmp_path / "runs" / run.folder_name
        own.mkdir(parents=True)
        (own / "outcome.json").write_text(
            json.dumps(asdict(outcome_of(run, "finished")) | {"definition": definition})
        )
    before = (tmp_path / "results.csv").read_bytes()
    assert [each.state for each in here([old, new, changed], tmp_path)] == ["finished"] * 3
    assert (tmp_path / "results.csv").read_bytes() == before
    assert {row.method for row in read_results(tmp_path)} == {"old", "new", "changed"}
    for text in (
        table_text(results_table(tmp_path)),
        write_comparison([old, new, changed], tmp_path).read_text(),
    ):
        assert "25.0" in text
        assert "12.5" not in text


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_folders_have_names_that_every_system_takes(method, stream):
    for pair in ((method, stream), (method, f"..{stream}"), (method, f"con.{stream}"), (f".{method}", "..")):
        name = run_of(*pair).folder_name
        assert all(letter.isascii() and (letter.isalnum() or letter in ".+-") for letter in name)
        assert 0 < len(name) < 100
        assert name[0] not in ".-"
        assert name[-1] not in ".-"
        assert name.split(".")[0].lower() not in {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10))}


def test_names_that_windows_keeps_have_another_folder(tmp_path):
    for stream in ("CON.x", "nul.", "Lpt1.y", "aux.tar.gz"):
        assert run_of(stream=stream).folder_name.startswith(f"run-{stream.split('.')[0]}")
    assert run_of(stream="console.x").folder_name.startswith("console.x-m-0-")
    assert run_of(stream="..", method="..").folder_name.startswith("0-")
    runs = [run_of(stream=stream) for stream in ("..", "x" * 300, "\u732b\ud800")]
    assert [each.state for each in here(runs[:2], tmp_path)] == ["finished"] * 2
    assert sorted(path.parent.name for path in tmp_path.glob("runs/*/outcome.json")) == sorted(
        run.folder_name for run in runs[:2]
    )
    (outcome,) = here(runs[2:], tmp_path)
    assert outcome.reason.startswith("ValueError: `benchmark` must be text that a file of results can hold")
    write_comparison(runs, tmp_path)
