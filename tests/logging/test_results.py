"""The file of results, and the table that is made of it."""

import csv
import io
import math
import multiprocessing
import os
import sys
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.table import Table

from avalanche_vlm import _files
from avalanche_vlm.functional import accuracy_matrix_summary
from avalanche_vlm.logging import (
    MTIL_COLUMNS,
    ResultRow,
    TableColumn,
    final_values,
    matrix_rows,
    mean_text,
    read_results,
    result_matrix,
    result_rows,
    results_table,
    table_text,
    write_results,
)
from avalanche_vlm.logging.results import as_rows

NAN = float("nan")


def comparable(rows):
    """NaN is not equal to itself."""
    return [repr(row) for row in rows]


def joint(size=2):
    matrix = torch.full((size + 1, size), NAN, dtype=torch.float64)
    matrix[0], matrix[-1] = 0.5, 0.9
    return matrix


class FakeMetric:
    def __init__(self, space, matrices, counts):
        self.space, self.matrices, self._counts = space, matrices, counts

    def matrix(self, stream="test"):
        return self.matrices[stream]

    def counts(self, stream="test"):
        return self._counts


names = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\r\n\t"), min_size=1
).filter(str.strip)
rows = st.builds(
    ResultRow,
    run=st.sampled_from(["", "0123456789ab"]),
    method=names,
    benchmark=st.sampled_from(["", "a,b", 'quo"te', "naïve"]),
    seed=st.none() | st.integers(0, 5),
    space=st.just("all"),
    stream=st.sampled_from(["test", "train"]),
    metric=st.just("accuracy"),
    after_experience=st.none() | st.integers(0, 3),
    experience=st.none() | st.integers(0, 3),
    class_name=st.just("") | names,
    step=st.none() | st.integers(0, 10**9),
    value=st.floats(allow_nan=True, allow_infinity=False),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows, max_size=4), st.lists(rows, max_size=4))
def test_what_is_appended_is_read(tmp_path, first, second):
    path = tmp_path / "results.csv"
    path.unlink(missing_ok=True)
    write_results(path, first)
    write_results(str(path), second)
    assert comparable(read_results(path)) == comparable(first + second)
    assert os.listdir(tmp_path) == ["results.csv"]


@pytest.mark.parametrize("name", ["a\rb", "a\r\nb", "a\nb", "a\r", "\na"])
def test_line_breaks_in_names_stay_as_they_are(tmp_path, name):
    path = tmp_path / "results.csv"
    first = matrix_rows(joint(), method=name, space="all", benchmark=name)
    for _ in range(2):
        write_results(path, first)
    assert comparable(read_results(path)) == comparable(2 * first)


def test_an_empty_file_counts_as_new(tmp_path):
    path = tmp_path / "results.csv"
    path.touch()
    found = matrix_rows(joint(), method="m", space="all")
    write_results(path, found)
    assert comparable(read_results(path)) == comparable(found)


def test_the_file_is_in_long_format(tmp_path):
    path = tmp_path / "results.csv"
    write_results(path, matrix_rows(joint(1), method="CGIL", space="all", benchmark="digits", seed=3))
    assert path.read_text().splitlines()[:4] == [
        "run,method,benchmark,seed,space,stream,metric,after_experience,experience,class_name,step,value",
        ",CGIL,digits,3,all,test,accuracy,0,0,,,0.5",
        ",CGIL,digits,3,all,test,accuracy,1,0,,,0.9",
        ",CGIL,digits,3,all,test,average_incremental_accuracy,1,,,,0.9",
    ]
    with path.open(newline="") as file:
        assert all(float(line["value"]) >= 0 for line in csv.DictReader(file))


def test_matrix_rows_hold_the_matrix_and_the_defined_summaries():
    matrix, counts = joint(3), torch.tensor([1, 2, 3])
    found = matrix_rows(matrix, method="joint", space="all", counts=counts)
    torch.testing.assert_close(result_matrix(found), matrix, rtol=0, atol=0, equal_nan=True)
    summaries = {row.metric: row.value for row in found if row.metric != "accuracy"}
    expected = accuracy_matrix_summary(matrix, space="all", counts=counts)
    assert summaries == {name: value for name, value in expected.items() if not math.isnan(value)}
    assert set(summaries) == {"last_accuracy", "pooled_last_accuracy", "zero_shot_accuracy"}


def test_result_rows_read_one_or_several_metrics():
    a, b, counts = joint(2), torch.rand(3, 2, dtype=torch.float64), torch.tensor([3, 4])
    metrics = [FakeMetric("seen", {"test": a, "train": b}, counts), FakeMetric("all", {"test": b}, counts)]
    found = result_rows(metrics, method="m", benchmark="b", seed=1)
    expected = [
        *matrix_rows(a, method="m", benchmark="b", seed=1, space="seen", counts=counts),
        *matrix_rows(b, method="m", benchmark="b", seed=1, space="all", counts=counts),
    ]
    assert comparable(found) == comparable(expected)
    train = result_rows(metrics[0], method="m", stream="train", run="0123456789ab")
    own = {"stream": "train", "run": "0123456789ab"}
    assert comparable(train) == comparable(matrix_rows(b, method="m", space="seen", counts=counts, **own))


OLD_HEADER = "method,benchmark,seed,space,metric,after_experience,experience,value\n"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("name,number\nx,1\n", "Use another file"),
        ("no line end", "Use another file"),
        (OLD_HEADER, r"it lacks run, stream, class_name, step\): begin a new file"),
    ],
)
def test_headers_are_not_mixed(tmp_path, text, advice):
    path = tmp_path / "other.csv"
    path.write_text(text)
    for action in (lambda: write_results(path, []), lambda: read_results(path)):
        with pytest.raises(ValueError, match=f"`path` must be a file with the header run,method,.*{advice}"):
            action()
    assert path.read_text() == text


def test_what_was_written_is_not_written_again(tmp_path):
    path = tmp_path / "results.csv"
    write_results(path, matrix_rows(joint(), method="a", space="all"))
    inode, before = path.stat().st_ino, path.read_bytes()
    write_results(path, matrix_rows(joint(), method="b", space="all"))
    assert path.stat().st_ino == inode
    assert path.read_bytes().startswith(before)


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_results(path, matrix_rows(joint(), method="a", space="all"))
    before = path.read_text()
    with pytest.raises(TypeError, match="`rows` must be ResultRow"):
        write_results(path, [*matrix_rows(joint(), method="b", space="all"), "a line"])
    assert path.read_text() == before

    class FullDisk(io.FileIO):
        def write(self, data):
            return super().write(data[:7])

    monkeypatch.setattr(_files, "FileIO", FullDisk)
    with pytest.raises(OSError, match="could not be written in full"):
        write_results(path, matrix_rows(joint(), method="b", space="all"))
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["results.csv"]


def test_a_torn_last_line_is_ignored_and_cut_off(tmp_path):
    path = tmp_path / "results.csv"
    first = matrix_rows(joint(1), method='with "quotes"\nand a second line', space="all")
    write_results(path, first)
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    ends = [0, header]  # of the whole lines, each made by itself
    for row in first:
        write_results(tmp_path / "one.csv", [row])
        ends.append(ends[-1] + (tmp_path / "one.csv").stat().st_size - header)
        (tmp_path / "one.csv").unlink()
    assert ends[-1] == len(whole)
    more = matrix_rows(joint(1), method="b", space="all")
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = sum(end <= length for end in ends) - 2
        if kept >= 0:
            assert comparable(read_results(path)) == comparable(first[:kept])
        write_results(path, more)
        assert comparable(read_results(path)) == comparable(first[: max(kept, 0)] + more)


def append_forty_times(path, name):
    for step in range(40):
        write_results(path, [ResultRow(method=name, metric="m", step=step, value=j) for j in range(50)])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_side_by_side_lose_nothing(tmp_path):
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("fork")  # a new interpreter would import for ten seconds
    processes = [context.Process(target=append_forty_times, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    found = read_results(path)
    for name in "ab":
        own = [(row.step, row.value) for row in found if row.method == name]
        assert own == [(i, j) for i in range(40) for j in range(50)]
    # The rows of one call stay together.
    assert all(len({row.method for row in found[i : i + 50]}) == 1 for i in range(0, len(found), 50))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks")
def test_nobody_appends_while_another_is_writing(tmp_path):
    import fcntl

    path = tmp_path / "results.csv"
    rows = matrix_rows(joint(1), method="a", space="all")
    write_results(path, rows)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"half a line that is no rest of a cra")
        other.flush()
        waiting = threading.Thread(target=write_results, args=(path, rows))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        other.truncate(other.tell() - len(b"half a line that is no rest of a cra"))
    waiting.join(10)
    assert comparable(read_results(path)) == comparable(2 * rows)


def test_single_classes_and_other_streams_do_not_leak():
    matrix = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.625, 1.0]], dtype=torch.float64)
    found = [
        *matrix_rows(matrix, method="m", space="all"),
        *matrix_rows(matrix / 2, method="m", space="all", stream="valid"),
        ResultRow(method="m", space="all", metric="accuracy", after_experience=2, experience=0, value=0.0,
                  class_name="cat"),
        ResultRow(method="m", space="all", metric="last_accuracy", after_experience=2, value=0.0,
                  class_name="cat"),
        ResultRow(method="m", metric="accuracy", after_experience=2, experience=7, value=0.0),
    ]  # fmt: skip
    columns = [TableColumn("Last", "last_accuracy", "all")]
    for rows_in_any_order in (found, found[::-1]):
        assert torch.equal(result_matrix(rows_in_any_order), matrix)
        assert torch.equal(result_matrix(rows_in_any_order, stream="valid"), matrix / 2)
        assert cells(results_table(rows_in_any_order, columns=columns))["Last"] == ["81.2"]
        valid = results_table(rows_in_any_order, columns=columns, stream="valid")
        assert cells(valid)["Last"] == ["40.6"]


def test_the_latest_summary_of_a_run_counts():
    def row(after, value, seed=0):
        return ResultRow(method="m", seed=seed, space="seen", metric="forgetting", after_experience=after,
                         value=value)  # fmt: skip

    columns = [TableColumn("Forgetting", "forgetting", "seen")]
    found = [row(1, 0.1), row(3, 0.3), row(2, 0.2)]
    assert cells(results_table(found, columns=columns))["Forgetting"] == ["30.0"]
    assert cells(results_table([*found, row(4, NAN)], columns=columns))["Forgetting"] == ["–"]
    assert cells(results_table([*found, row(2, 0.5, seed=1)], columns=columns))["Forgetting"] == [
        "40.0 ± 14.1"
    ]


def value_of(after, value, **columns):
    given = {"method": "m", "benchmark": "b", "seed": 0, "metric": "cost"} | columns
    return ResultRow(**given, after_experience=after, value=value)


def test_the_final_value_is_that_after_the_most_experiences():
    found = [value_of(1, 0.1), value_of(3, 0.3), value_of(2, 0.2)]
    for rows_in_any_order in (found, found[::-1]):
        assert final_values(rows_in_any_order, "cost") == {("b", "m"): {0: 0.3}}
    # Of several numbers at one time, the last that was written.
    later = [*found, value_of(3, 0.4, stream="train")]
    assert final_values(later, "cost") == {("b", "m"): {0: 0.4}}
    assert final_values(later, "cost", stream="test") == {("b", "m"): {0: 0.3}}
    assert final_values([value_of(0, 0.5), value_of(None, 0.1)], "cost") == {("b", "m"): {0: 0.5}}


def test_final_values_leave_out_what_is_not_a_number_and_not_of_the_whole_stream():
    assert final_values([value_of(1, 0.1), value_of(2, NAN)], "cost") == {("b", "m"): {}}
    parts = [value_of(1, 0.1), value_of(2, 0.2, experience=0), value_of(2, 0.2, class_name="cat")]
    assert final_values(parts, "cost") == {("b", "m"): {0: 0.1}}
    in_space = [value_of(1, 0.1), value_of(2, 0.2, space="all")]
    assert final_values(in_space, "cost") == {("b", "m"): {0: 0.1}}
    assert final_values(in_space, "cost", space="all") == {("b", "m"): {0: 0.2}}
    assert final_values(in_space, "other") == {}


def test_final_values_are_by_benchmark_method_and_seed(tmp_path):
    found = [
        value_of(1, 10 * seed + place, seed=seed, method=method, benchmark=benchmark)
        for place, (benchmark, method) in enumerate([("y", "n"), ("y", "a"), ("x", "n")])
        for seed in (2, 0)
    ]
    expected = {("y", "n"): {2: 20, 0: 0}, ("y", "a"): {2: 21, 0: 1}, ("x", "n"): {2: 22, 0: 2}}
    write_results(tmp_path / "results.csv", found)
    for results in (found, iter(found), tmp_path / "results.csv"):
        values = final_values(results, "cost")
        assert values == expected
        assert [list(value) for value in values.values()] == [[2, 0]] * 3
        assert list(values) == list(expected)
    assert final_values([value_of(1, 0.5, seed=None)], "cost") == {("b", "m"): {None: 0.5}}
    # Of two runs of one name the one that wrote last counts, even if it is not as far.
    runs = [value_of(3, 0.3, run="a" * 12), value_of(1, 0.1, run="b" * 12)]
    assert final_values(runs, "cost") == {("b", "m"): {0: 0.1}}


def test_means_are_told_as_in_the_table():
    assert mean_text({}) == "–"
    assert mean_text({None: 0.25}, scale=100) == "25.0"
    assert mean_text({0: 1.0, 1: 2.0, 2: 6.0}) == "3.0 ± 2.6"
    assert mean_text({0: 1.0, 1: 2.0}, digits=3) == "1.500 ± 0.707"
    assert mean_text({0: 12345.6}, digits=0) == "12346"


def test_of_two_runs_of_one_name_the_one_that_wrote_last_counts():
    matrix = torch.full((3, 2), 0.5, dtype=torch.float64)
    first = matrix_rows(matrix, method="m", space="all", run="a" * 12)
    later = [row for row in matrix_rows(matrix / 2, method="m", space="all", run="b" * 12)
             if row.after_experience < 2]  # fmt: skip
    expected = torch.tensor([[0.25, 0.25], [0.25, 0.25], [NAN, NAN]], dtype=torch.float64)
    torch.testing.assert_close(result_matrix([*first, *later]), expected, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(result_matrix([*later, *first]), matrix)
    other_seed = matrix_rows(matrix, method="m", space="all", run="c" * 12, seed=1)
    assert len(as_rows([*first, *other_seed])) == len(first) + len(other_seed)


def test_iterations_tell_apart_what_has_no_label_space():
    found = [ResultRow(method="m", metric="Loss_MB", stream="train", step=i, value=i) for i in range(3)]
    assert as_rows(found) == found
    in_space = [ResultRow(method="m", metric="accuracy", space="all", after_experience=1, experience=0,
                          step=i, value=i) for i in range(3)]  # fmt: skip
    assert as_rows(in_space) == in_space[2:]


def example_rows():
    a = torch.tensor([[0.5, 0.5], [0.8, 0.4], [0.6, 1.0]], dtype=torch.float64)
    seen = a.clone()
    seen[0], seen[1, 1] = NAN, NAN
    return [
        *matrix_rows(seen, method="CGIL", space="seen", seed=0),
        *matrix_rows(a, method="CGIL", space="all", seed=0),
        *matrix_rows(joint()[[1, 1, 2]], method="Joint training", space="seen"),
        *matrix_rows(joint(), method="Joint training", space="all"),
    ]


def cells(table):
    return {str(heading.header): [str(cell) for cell in heading.cells] for heading in table.columns}


def test_table_has_a_line_a_method(tmp_path):
    path = tmp_path / "results.csv"
    write_results(path, example_rows())
    for results in (path, str(path), example_rows(), iter(example_rows())):
        table = results_table(results)
        assert isinstance(table, Table)
        assert cells(table) == {
            "Method": ["CGIL", "Joint training"],
            "Average": ["80.0", "–"],
            "Last": ["80.0", "90.0"],
            "Forgetting": ["20.0", "–"],
            "Transfer": ["40.0", "–"],
        }


def test_table_of_several_seeds_has_mean_and_deviation():
    found = [
        row
        for seed, value in enumerate([0.5, 0.7])
        for row in matrix_rows(
            torch.full((2, 1), value, dtype=torch.float64), method="m", space="seen", seed=seed
        )
    ]
    assert cells(results_table(found))["Last"] == ["60.0 ± 14.1"]


def test_the_last_of_repeated_runs_counts():
    found = [
        row
        for value in (0.5, 0.7)
        for row in matrix_rows(
            torch.full((2, 1), value, dtype=torch.float64), method="m", space="seen", seed=0
        )
    ]
    assert cells(results_table(found))["Last"] == ["70.0"]
    assert result_matrix(found).tolist() == [[0.7], [0.7]]


def test_columns_can_be_chosen_and_benchmarks_are_told_apart():
    a = torch.tensor([[0.5, 0.5], [0.8, 0.4], [0.6, 1.0]])
    found = [row for b in ("x", "y") for row in matrix_rows(a, method="m", space="dataset", benchmark=b)]
    table = results_table(found, columns=MTIL_COLUMNS)
    assert cells(table)["Benchmark"] == ["x", "y"]
    assert cells(table)["Average"] == ["70.0", "70.0"]
    assert cells(table)["Transfer"] == ["40.0", "40.0"]
    own = results_table(found, columns=[TableColumn("Start", "zero_shot_accuracy", "dataset")])
    assert cells(own)["Start"] == ["50.0", "50.0"]


def notes(table):
    return str(table.caption).split("\n")[1:]


def seeds_of(*reached, method="naive", run="", benchmark=""):
    """Runs of three experiences, seed by seed, after so many of them."""
    found = []
    for seed, after in enumerate(reached):
        matrix = torch.full((4, 3), 0.5, dtype=torch.float64)
        matrix[after + 1 :] = NAN
        found += matrix_rows(
            matrix, method=method, space="seen", seed=seed, run=run and f"{run}{seed}", benchmark=benchmark
        )
    return found


def test_table_tells_of_unfinished_seeds():
    assert notes(results_table(seeds_of(3, 3))) == []
    assert notes(results_table(seeds_of(3, 1))) == ["naive: 1 of 2 seeds only after 1 of 3 experiences"]
    assert notes(results_table(seeds_of(1))) == ["naive: only after 1 of 3 experiences"]
    assert notes(results_table(seeds_of(0, 3))) == ["naive: 1 of 2 seeds only after 0 of 3 experiences"]
    assert notes(results_table(seeds_of(0, 0, method="zero-shot"))) == []
    several = [*seeds_of(1, 2, 1, 3), *seeds_of(3, method="joint"), *seeds_of(2, benchmark="b", method="EWC")]
    assert notes(results_table(several)) == [
        "naive: 2 of 4 seeds only after 1 of 3 experiences",
        "naive: 1 of 4 seeds only after 2 of 3 experiences",
        "EWC on b: only after 2 of 3 experiences",
    ]
    # It is about the stream of the table, whose rows alone stand in it.
    valid = matrix_rows(torch.full((2, 1), 0.5), method="naive", space="seen", seed=1, stream="valid")
    assert notes(results_table([*seeds_of(3, 1), *valid], stream="valid")) == []


def test_table_tells_of_runs_that_are_not_shown():
    finished, unfinished = seeds_of(3, 3, run="a"), seeds_of(1, run="b")
    assert notes(results_table([*unfinished, *finished])) == [
        "another run of naive, seed 0, after 1 of 3 experiences, is not shown"
    ]
    assert notes(results_table([*finished, *unfinished])) == [
        "naive: 1 of 2 seeds only after 1 of 3 experiences",
        "another run of naive, seed 0, after 3 of 3 experiences, is not shown",
    ]
    # A run that has begun, and not been evaluated yet, hides the others already.
    begun = ResultRow(run="c", method="naive", seed=0, metric="Loss_Epoch", stream="train", value=1.0)
    assert notes(results_table([*seeds_of(3, run="a"), *seeds_of(3, run="b"), begun])) == [
        "2 other runs of naive, seed 0, after 3 of 3 experiences, are not shown"
    ]
    text = " ".join(table_text(results_table([*finished, *unfinished])).split())
    assert text.endswith("is not shown")


def test_a_stream_that_was_not_evaluated_is_named():
    found = [*seeds_of(3), *matrix_rows(joint(), method="m", space="seen", stream="valid")]
    for action in (results_table, result_matrix):
        with pytest.raises(ValueError, match="`stream` must be one of 'test', 'valid'; got 'vaild'"):
            action(found, stream="vaild")
    # Before the first evaluation there is none.
    loss = ResultRow(method="m", metric="Loss_Epoch", stream="train", value=1.0)
    assert cells(results_table([loss]))["Last"] == ["–"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b",m,,,all,test,accuracy,1,0,,,half\n", "'half'"),
        (b",m,,,all,test,accuracy,one,0,,,0.5\n", "'one'"),
        (b",m,,,all,test,accuracy\n", "12"),
        (b",\xff,,,all,test,accuracy,1,0,,,0.5\n", "utf-8"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, problem):
    path = tmp_path / "results.csv"
    write_results(path, matrix_rows(joint(1), method="m", space="all"))
    whole = path.read_bytes()
    number = whole.count(b"\n") + 1
    path.write_bytes(before := whole + line + whole[whole.index(b"\n") + 1 :])
    for action in (lambda: read_results(path), lambda: write_results(path, [])):
        with pytest.raises(
            ValueError, match=rf"`path` must be .*line {number} of .*results\.csv .*{problem}"
        ):
            action()
    assert path.read_bytes() == before


def test_a_byte_order_mark_is_read_past(tmp_path):
    path = tmp_path / "results.csv"
    found = matrix_rows(joint(1), method="m", space="all")
    write_results(path, found)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    write_results(path, found)
    assert comparable(read_results(path)) == comparable(2 * found)


def test_table_text_is_plain():
    text = table_text(results_table(example_rows(), title="Digits"))
    assert "\x1b" not in text
    lines = text.splitlines()
    assert "Digits" in lines[0]
    assert any(line.split() == ["Joint", "training", "–", "90.0", "–", "–"] for line in lines)
    assert "Transfer in 'all'" in " ".join(text.split())
    assert all(line == line.rstrip() and len(line) <= 100 for line in lines)


@pytest.mark.parametrize("name", ["LoRA [r=8]", "x [/bold]", "[red]x", "a :smile:", "back\\", "\\[b]"])
def test_names_are_no_markup(name):
    found = [
        row
        for benchmark in (name, "other")
        for row in matrix_rows(joint(), method=name, space="all", benchmark=benchmark)
    ]
    columns = [TableColumn(name, "last_accuracy", "all")]
    table = results_table(found, columns=columns, title=f"title {name}")
    lines = [line.strip() for line in table_text(table).splitlines() if line]
    assert lines[0] == f"title {name}"
    assert " ".join(lines[1].split()) == f"Benchmark Method {name}"
    assert " ".join(lines[3].split()) == f"{name} {name} 90.0"
    assert " ".join(lines).endswith(f"percent; label space: {name} in 'all'")


@pytest.mark.parametrize("name", ["method" * 40, "a long name " * 20])
def test_long_names_leave_the_numbers_whole(name):
    found = [
        row for b in ("x" * 90, "y") for row in matrix_rows(joint(), method=name, space="all", benchmark=b)
    ]
    for rows_of_table in (found, [row for row in found if row.benchmark == "y"]):
        text = table_text(results_table(rows_of_table), width=80)
        assert "…" not in text
        assert all(len(line) <= 80 for line in text.splitlines())
        assert {"Average", "Last", "Forgetting", "Transfer"} <= set(text.split())
        assert sum(text.count(letter) for letter in "h") >= name.count("h")


def test_arguments_are_checked():
    for wrong, sentence in (
        ({"method": " "}, "`method` must be a name"),
        ({"space": "task"}, "`space` must be one of"),
        ({"seed": -1}, "`seed` must be a whole number"),
    ):
        with pytest.raises(ValueError, match=sentence):
            matrix_rows(joint(), **{"method": "m", "space": "all", **wrong})
    with pytest.raises(ValueError, match="`results` must be at least one row"):
        results_table([])
    with pytest.raises(ValueError, match="`columns` must be at least one column"):
        results_table(example_rows(), columns=[])
    with pytest.raises(TypeError, match="`results` must be a path or rows"):
        results_table(["a line"])
    with pytest.raises(ValueError, match="one run in one label space; got 4 runs"):
        result_matrix(example_rows())
