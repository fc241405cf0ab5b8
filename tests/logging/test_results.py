"""The file of results, and the table that is made of it."""

import csv
import math
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.table import Table

from avalanche_vlm.functional import accuracy_matrix_summary
from avalanche_vlm.logging import (
    MTIL_COLUMNS,
    ResultRow,
    TableColumn,
    matrix_rows,
    read_results,
    result_matrix,
    result_rows,
    results_table,
    table_text,
    write_results,
)

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
    method=names,
    benchmark=st.sampled_from(["", "a,b", 'quo"te', "naïve"]),
    seed=st.none() | st.integers(0, 5),
    space=st.just("all"),
    metric=st.just("accuracy"),
    after_experience=st.none() | st.integers(0, 3),
    experience=st.none() | st.integers(0, 3),
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
        "method,benchmark,seed,space,metric,after_experience,experience,value",
        "CGIL,digits,3,all,accuracy,0,0,0.5",
        "CGIL,digits,3,all,accuracy,1,0,0.9",
        "CGIL,digits,3,all,average_incremental_accuracy,,,0.9",
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
    train = result_rows(metrics[0], method="m", stream="train")
    assert comparable(train) == comparable(matrix_rows(b, method="m", space="seen", counts=counts))


def test_headers_are_not_mixed(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("method,value\nx,1\n")
    for action in (lambda: write_results(path, []), lambda: read_results(path)):
        with pytest.raises(ValueError, match="`path` must be a file with the header method,benchmark,seed"):
            action()
    assert path.read_text() == "method,value\nx,1\n"


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_results(path, matrix_rows(joint(), method="a", space="all"))
    before = path.read_text()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(path, matrix_rows(joint(), method="b", space="all"))
    with pytest.raises(TypeError, match="`rows` must be ResultRow"):
        write_results(path, ["a line"])
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["results.csv"]


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
