"""Files of results and of runs that were damaged: refused with file and line, and left as they are."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avalanche_vlm.logging import ResultRow, matrix_rows, read_results, read_runs, write_results, write_run
from avalanche_vlm.logging.results_file import results_files

NAMES = ['a "b", c', "naïve", "two\nlines", "22"]
ROWS = [
    ResultRow(run="0123456789ab", method=name, metric="accuracy", space="seen", seed=2, step=2, value=0.25)
    for name in NAMES
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.csv"


def written(path, rows=ROWS):
    write_results(path, rows)
    return path.read_bytes()


def refused(path, line=None):
    """Nobody reads the file and nobody appends to it, and it stays as it is."""
    before = path.read_bytes()
    where = "" if line is None else f"line {line} of "
    for action in (lambda: read_results(path), lambda: write_results(path, ROWS)):
        with pytest.raises(ValueError, match=f"`path` must be .*{where}.*results.csv"):
            action()
    assert path.read_bytes() == before


def test_a_stray_quotation_mark_loses_no_row(path):
    rows = matrix_rows(torch.rand(32, 31), method="m", space="all", run="0123456789ab")
    assert len(rows) > 990
    data = written(path, rows)
    lines = data.splitlines(keepends=True)
    lines[3] = lines[3].replace(b",all,", b',"ll,')
    path.write_bytes(b"".join(lines))
    refused(path, 4)


def test_each_flipped_bit_is_seen_or_loses_nothing(path):
    data = written(path)
    outcomes = set()
    for place in range(data.index(b"\n") - 5, len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                found = read_results(path)
            except ValueError as error:
                outcomes.add("refused" if "results.csv" in str(error) else "unnamed")
            else:
                assert len(found) == len(ROWS), (place, bit)
                outcomes.add("another letter")
    assert outcomes == {"refused", "another letter"}


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_happens_to_a_file_no_later_row_is_cut(path, data):
    path.unlink(missing_ok=True)
    whole = bytearray(written(path))
    start = whole.index(b"\n") + 1
    place = data.draw(st.integers(start, len(whole) - 1))
    with_end = data.draw(st.integers(place, min(place + 3, len(whole))))
    whole[place:with_end] = data.draw(
        st.sampled_from([b'"', b'""', b",", b"\n", b"\r", b"\0", b"\xff", b"", b"7"])
    )
    path.write_bytes(whole)
    try:
        write_results(path, ROWS[:1])
    except ValueError:
        assert path.read_bytes() == whole
    else:
        after = path.read_bytes()
        kept = whole[: whole.rindex(b"\n") + 1]  # a name may have two lines, so that one more may go
        assert after.startswith(bytes(kept)) or after.startswith(bytes(kept[: kept[:-1].rindex(b"\n") + 1]))
        assert read_results(path)[-1] == ROWS[0]


ROW = b"0123456789ab,m,,2,seen,test,accuracy,,,,2,0.25\n"


@pytest.mark.parametrize(
    "line",
    [
        *(b"\n", b" \n", b",\n", ROW[:-1] + b",\n", ROW[:-6] + b"\n", ROW.replace(b",m,", b",")),
        *(ROW.replace(b",2,0", value) for value in (b",-1,0", b",2.0,0", b", 2,0", b",1_0,0", b",02,0")),
        *(ROW.replace(b",2,0", value) for value in (",٣,0".encode(), b"," + b"9" * 5000 + b",0")),
        *(ROW.replace(b"0.25", value) for value in (b"", b"x", b"0,25", b"0.2 5", b"0x1", b"1_0.0", b"+1")),
        *(ROW.replace(b",m,", name) for name in (b",m\0,", b",\xc3,", b",\xed\xa0\x80,", b',"m",', b',m",')),
        ROW.replace(b",m,", b',"m"x,'),
        *(ROW.replace(b",m,", name) for name in (b",m\r,", b',"""",x,', b",a,b,")),
        ROW + ROW[:-1] + b"\0\n",
        ROW.replace(b",m,", b',"m,') + ROW + ROW.replace(b",m,", b',m",'),
    ],
)  # fmt: skip
def test_a_line_that_is_no_row_is_refused_in_the_middle(path, line):
    data = written(path, ROWS[:1])
    path.write_bytes(data + line + ROW)
    refused(path)


@pytest.mark.parametrize(
    "tail",
    [
        ROW[:-1] + b"*",
        ROW[:20] + b"\0" * 50,
        b"\0" * 4096,
        ROW.replace(b",m,", b',"m,')[:-1],
        ROW.replace(b",m,", b',"m,'),
        ROW.replace(b",m,", b',"m,') + ROW[:30],
        ROW.replace(b",2,seen", b",two,seen")[:-1],
        ROW[:-1] + b",1",
        b"\xff",
    ],
)  # fmt: skip
def test_an_end_that_no_crash_leaves_is_refused(path, tail):
    data = written(path, ROWS[:1])
    path.write_bytes(data + tail)
    if tail == ROW.replace(b",m,", b',"m,')[:-1]:  # this one is what a crash leaves of a strange name
        assert len(read_results(path)) == 1
        return
    refused(path, 3)


def test_what_spreadsheets_do_is_read(path):
    data = written(path, ROWS[:1] + ROWS[1:2] + ROWS[3:])
    path.write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n").replace(b"0.25", b".25"))
    assert read_results(path) == ROWS[:1] + ROWS[1:2] + ROWS[3:]
    write_results(path, ROWS)
    assert len(read_results(path)) == 7
    for whole in (b"\xef\xbb\xbf", b"\xef", b"\xef\xbb\xbfrun,meth", data[: data.index(b"\n")] + b"\r"):
        path.write_bytes(whole)
        write_results(path, ROWS)
        assert read_results(path) == ROWS


def test_damage_is_seen_also_in_what_this_process_has_checked(path):
    data = written(path)
    written(path)
    for place in (data.index(b"naive"[:2]), data.index(b"0.25"), len(data) - 2):
        path.write_bytes(data[:place] + b'"' + data[place + 1 :])
        refused(path)
    path.write_bytes(data)
    write_results(path, ROWS)
    assert read_results(path) == 2 * ROWS


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
wholes = st.none() | st.integers(0, 2**64 - 1)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            ResultRow,
            **dict.fromkeys(("run", "method", "benchmark", "space", "stream", "metric", "class_name"), texts),
            **dict.fromkeys(("seed", "after_experience", "experience", "step"), wholes),
            value=st.floats(),
        ),
        max_size=3,
    )
)
def test_every_row_that_can_be_made_comes_back(path, rows):
    path.unlink(missing_ok=True)
    write_results(path, rows)
    assert list(map(repr, read_results(path))) == list(map(repr, rows))
    data = path.read_bytes()
    write_results(path, rows)
    assert path.read_bytes() == data + data[data.index(b"\n") + 1 :]


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        *(("value", value, TypeError) for value in ("0.5", None, True, 1j, [0.5], b"1")),
        *(("value", value, TypeError) for value in (torch.zeros(2), np.zeros(2), torch.tensor(True))),
        ("value", 10**400, ValueError),
        *(("step", value, TypeError) for value in (1.0, "1", True, torch.tensor(1.0))),
        *(("seed", value, ValueError) for value in (-1, 2**64, 10**100)),
        *(("method", value, TypeError) for value in (None, 3, b"m")),
        *((name, "a\0", ValueError) for name in ("method", "class_name", "run")),
        *((name, "\ud800", ValueError) for name in ("benchmark", "stream")),
        ("metric", "a,1,0.5\nb", ValueError),
    ],
)  # fmt: skip
def test_what_no_file_can_hold_is_no_row(argument, value, error):
    with pytest.raises(error, match=f"`{argument}` must be"):
        ResultRow(**{"method": "m", "metric": "accuracy", "value": 0.5, argument: value})


def test_numbers_of_others_become_plain_ones(path):
    for value in (torch.tensor(0.5), torch.tensor([0.5]), np.float32(0.5), np.array([[0.5]])):
        row = ResultRow(method=np.str_("m"), metric="a", seed=np.int64(3), step=np.uint8(4), value=value)
        assert (type(row.value), row.value) == (float, 0.5)
        assert [type(each) for each in (row.method, row.seed, row.step)] == [str, int, int]
        write_results(path, [row])
        assert read_results(path)[-1] == row
    assert ResultRow(method="m", metric="a", value=3).value == 3.0


# Runs.


def noted(path):
    ids = [write_run(path, {"a": number, "text": "naïve"}) for number in range(3)]
    return ids, path.with_name("results.runs.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"a": 1', b'"a": 3'),
        lambda line: line[:-2] + b"\n",
        lambda line: b"\n" + line,
        lambda line: b'{"run": "' + line,
        lambda line: line.replace(b"}", b"\0}"),
        lambda line: line.replace("ï".encode(), b"\xef"),
        lambda line: line.replace(b'"a": 1', b'"a": 1, "a": 1'),
        lambda line: line.replace(b'"a": 1', b'"a": NaN'),
        lambda line: line.replace(b'"a": 1', b'"a": ' + b"[" * 100_000),
        lambda line: line.replace(b'"a": 1', b'"a": ' + b"1" * 5000),
        lambda line: line.rstrip(b"\n"),
        lambda line: b"[]\n",
    ],
)
def test_a_damaged_line_of_a_run_is_refused(path, change):
    _, runs = noted(path)
    lines = runs.read_bytes().splitlines(keepends=True)
    lines[1] = change(lines[1])
    runs.write_bytes(before := b"".join(lines))
    for action in (lambda: read_runs(path), lambda: write_run(path, {"b": 1})):
        with pytest.raises(ValueError, match=r"`path` must be .* line 2 of .*results\.runs\.jsonl"):
            action()
    assert runs.read_bytes() == before


def test_each_flipped_bit_of_a_run_is_seen(path):
    write_run(path, {"a": 1, "b": [0.5, "naïve"]})
    write_run(path, {"a": 2})
    runs = path.with_name("results.runs.jsonl")
    data = runs.read_bytes()
    same = read_runs(path)
    last = data.rindex(b'{"run"')
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            runs.write_bytes(changed)
            try:
                found = read_runs(path)
            except ValueError as error:
                found = same if "results.runs.jsonl" in str(error) else {}
            # White space, or the end of the last line, is all that may be another.
            assert found == same or place >= last, (place, bit)
            assert list(found)[:1] == list(same)[:1]


def test_a_last_line_without_its_end_is_kept(path):
    ids, runs = noted(path)
    runs.write_bytes(runs.read_bytes().removesuffix(b"\n"))
    assert list(read_runs(path)) == ids
    ids.append(write_run(path, {"a": 3}))
    assert list(read_runs(path)) == ids


def test_facts_that_would_not_come_back_are_refused(path):
    for facts in ({"a": float("nan")}, {"a": {1}}, {"run": "x"}, {"a": {1: 2, "1": 3}}, [1]):
        with pytest.raises((TypeError, ValueError), match="`facts` must be"):
            write_run(path, facts)
    assert not os.listdir(path.parent)
    run = write_run(path, {"a": {2: (1, 2), 10: "\ud800"}})
    assert read_runs(path) == {run: {"a": {"2": [1, 2], "10": "\ud800"}}}
    assert json.loads(path.with_name("results.runs.jsonl").read_text())["run"] == run


# Folders.


def test_a_folder_of_results_is_read_as_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="has neither"):
        read_results(tmp_path)
    places = [tmp_path / "results.csv", *(tmp_path / "runs" / name / "results.csv" for name in "ab")]
    for place, row in zip(places, ROWS, strict=False):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_results(place, [row])
        write_run(place, {"name": row.method})
    (tmp_path / "runs" / "a" / "other.csv").write_text("x\n")
    (tmp_path / "runs.csv").write_text("x\n")
    assert results_files(tmp_path) == places
    assert read_results(str(tmp_path)) == ROWS[:3]
    assert [facts["name"] for facts in read_runs(tmp_path).values()] == NAMES[:3]
    places[2].write_bytes(places[2].read_bytes() + b"\n")
    with pytest.raises(ValueError, match="line 4 of .*runs/b/results.csv"):
        read_results(tmp_path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        with pytest.raises(ValueError, match=f"`path` must be a file; got .*{name}"):
            write_results(tmp_path / name, ROWS)
    with pytest.raises(ValueError, match="`path` must be a file; got .*pipe.csv"):
        read_results(tmp_path / "pipe.csv")
    for action in (read_results, read_runs, lambda path: write_results(path, [])):
        with pytest.raises(TypeError, match="`path` must be str or PathLike"):
            action(3)
