"""Tables and pictures of what a folder has, from results and outcomes that are written here."""

import csv
import re
import struct
from functools import partial

import pytest
import torch

from avalanche_vlm.comparison import Run, compare, grid, plot_overview, write_comparison
from avalanche_vlm.comparison.outcome import outcome_of, write_outcome
from avalanche_vlm.logging import MTIL_COLUMNS, ResultRow, TableColumn, matrix_rows, write_results
from tests.comparison.cases import fine_tune, prepare, zero_shot

LAST = TableColumn("Last", "last_accuracy", "seen")


def run_of(method, seed=0, stream="small"):
    return Run(method=method, stream=stream, seed=seed, build=zero_shot, prepare=prepare)


def rows_of(run, last, spaces=("seen", "all"), costs=(12.34, 2.0, 5e6, 2500)):
    """Rows of two experiences, after which the accuracy is ``last`` on both."""
    matrix = torch.tensor([[0.25, 0.25], [0.75, 0.5], [last, last]], dtype=torch.float64)
    names = {"method": run.method, "benchmark": run.stream, "seed": run.seed}
    found = [row for space in spaces for row in matrix_rows(matrix, space=space, **names)]
    metrics = ("training_seconds", "evaluation_seconds", "peak_memory", "stored_bytes")
    return found + [
        ResultRow(**names, metric=metric, stream="train", after_experience=after, value=value * after / 2)
        for metric, value in zip(metrics, costs, strict=True)
        for after in (1, 2)
    ]


def finish(folder, run, last, state="finished", reason="", **arguments):
    own = folder / "runs" / run.folder_name
    own.mkdir(parents=True)
    write_outcome(own, outcome_of(run, state, reason))
    write_results(own / "results.csv", rows_of(run, last, **arguments))


def table(page, stream="small"):
    """The cells of the table of a stream, by method."""
    part = page.read_text().split(f"## {stream}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(line) for line in cells}) == 1
    return {line[0]: dict(zip(cells[0], line, strict=True)) for line in cells[2:]}


def size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


LASTS = {"worse": [0.5, 0.6, 0.7], "best": [0.8, 0.8, 0.8], "close": [0.79, 0.81, 0.77]}
DISTANCE = "Last less the best's"


@pytest.fixture
def made(tmp_path):
    runs = [run_of(method, seed) for method in LASTS for seed in range(3)]
    for run in runs:
        finish(tmp_path, run, LASTS[run.method][run.seed])
    return tmp_path, runs


def test_methods_are_compared_with_the_best(made):
    folder, runs = made
    page = write_comparison(runs, str(folder))
    assert page == folder / "comparison.md"
    assert page.read_text().startswith("# Comparison\n")
    found = table(page)
    assert list(found) == list(LASTS)
    assert {name: line["Last"] for name, line in found.items()} == {
        "worse": "60.0 ± 10.0",
        "best": "**80.0 ± 0.0**",
        "close": "79.0 ± 2.0",
    }
    # Of three differences with the deviation 10 the half width is 4.303 · 10 / √3.
    assert {name: line[DISTANCE] for name, line in found.items()} == {
        "worse": "-20.0 ± 24.8",
        "best": "best",
        "close": "-1.0 ± 5.0",
    }
    assert page.read_text().count("**") == 2
    assert {line["Seeds"] for line in found.values()} == {"3"}
    # The matrix has the same first rows for all: 75 after the first experience, forgotten to the last.
    assert found["best"]["Average"] == "77.5 ± 0.0"
    assert found["worse"]["Forgetting"] == "15.0 ± 10.0"
    assert found["best"]["Transfer"] == "50.0 ± 0.0"


def test_costs_are_those_at_the_end(made):
    folder, runs = made
    line = table(write_comparison(runs, folder))["worse"]
    assert [line[name] for name in ("Train s", "Eval s", "Peak MB", "Kept KB")] == ["12.3", "2.0", "5", "2.5"]


def test_pictures_are_shown(made):
    folder, runs = made
    page = write_comparison(runs, folder, title="Beside each other")
    assert page.read_text().startswith("# Beside each other\n")
    shown = re.findall(r"!\[(\w+) on small\]\((.+)\)", page.read_text())
    assert [kind for kind, _ in shown] == ["overview", "curves", "matrices"]
    for _, name in shown:
        width, height = size(folder / name)
        assert width > 300
        assert height > 100
        assert (folder / name).stat().st_size > 3000


def test_outcomes_are_a_table_of_their_own(made):
    folder, runs = made
    bad = run_of('a, "b"')
    finish(folder, bad, 0.9, state="failed", reason="ValueError: a, b")
    write_comparison([*runs, bad], folder)
    with (folder / "runs.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["seed"]) for line in lines[:4]] == [
        *(("worse", str(seed)) for seed in range(3)),
        ("best", "0"),
    ]
    assert {line["state"] for line in lines[:-1]} == {"finished"}
    last = {name: lines[-1][name] for name in ("method", "state", "reason")}
    assert last == {"method": 'a, "b"', "state": "failed", "reason": "ValueError: a, b"}


def test_runs_that_did_not_finish_do_not_count(made):
    folder, runs = made
    # Its numbers would be the best.
    finish(folder, run_of("best", 3), 1.0, state="failed", reason="ValueError: too much")
    finish(folder, run_of("best", 4), 1.0, state="failed", reason="ValueError: too much")
    finish(folder, run_of("never"), 1.0, state="interrupted")
    others = [run_of("best", 3), run_of("best", 4), run_of("never"), run_of("later", 1)]
    page = write_comparison([*runs, *others], folder)
    found = table(page)
    assert (found["best"]["Seeds"], found["best"]["Last"]) == ("3 of 5", "**80.0 ± 0.0**")
    for method in ("never", "later"):
        assert found[method]["Seeds"] == "0 of 1"
        assert set(list(found[method].values())[2:]) == {"–"}
    notes = page.read_text().split("Not finished:\n\n")[1].split("\n\n")[0].splitlines()
    assert notes[:3] == [
        "- **best**, seeds 3, 4: failed: ValueError: too much",
        "- **never**, seed 0: interrupted",
        "- **later**, seed 1: not begun",
    ]


def test_a_long_reason_is_cut(tmp_path):
    finish(tmp_path, run_of("m"), 0.5, state="failed", reason="no " * 1000)
    assert len(write_comparison([run_of("m")], tmp_path).read_text()) < 1200


def test_a_page_of_nothing_finished(tmp_path):
    folder = tmp_path / "not" / "there"
    page = write_comparison([run_of("m"), run_of("n")], folder)
    assert table(page)["m"]["Last"] == table(page)["n"][DISTANCE] == "–"
    assert "- **n**, seed 0: not begun" in page.read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["comparison.md", "runs.csv"]


def test_names_do_not_break_the_table(tmp_path):
    for name, last in (("a|b", 0.5), ("$x_1$ *c*", 0.75)):
        finish(tmp_path, run_of(name, stream="x|y"), last)
    page = write_comparison([run_of(name, stream="x|y") for name in ("a|b", "$x_1$ *c*")], tmp_path)
    assert table(page, "x|y")[r"a\|b"][DISTANCE] == "-25.0 (1 pair)"
    assert (tmp_path / "overview_x-y.png").exists()


def test_streams_with_like_names_have_pictures_of_their_own(tmp_path):
    streams = ["a b", "A:b", "猫", "犬"]
    runs = [run_of("m", stream=stream) for stream in streams]
    for run in runs:
        finish(tmp_path, run, 0.5)
    page = write_comparison(runs, tmp_path)
    names = re.findall(r"\((.+\.png)\)", page.read_text())
    assert len({name.lower() for name in names}) == 3 * len(streams)
    assert {path.name for path in tmp_path.glob("*.png")} == set(names)
    assert names[0] == "overview_a-b.png"


def test_each_stream_has_its_own_best(tmp_path):
    runs = [run_of(method, stream=stream) for stream in "xy" for method in "ab"]
    for run, last in zip(runs, (0.5, 0.6, 0.9, 0.8), strict=True):
        finish(tmp_path, run, last)
    page = write_comparison(runs, tmp_path)
    assert [table(page, "x")[method][DISTANCE] for method in "ab"] == ["-10.0 (1 pair)", "best"]
    assert [table(page, "y")[method][DISTANCE] for method in "ab"] == ["best", "-10.0 (1 pair)"]


def test_some_of_the_runs_may_be_asked_for(made):
    folder, runs = made
    page = write_comparison([run_of("other", stream="x"), *runs[:3]], folder)
    assert list(table(page)) == ["worse"]
    assert table(page)["worse"][DISTANCE] == "best"


@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        (("all",), "Last in 'all'; Forgetting in 'all'; Transfer in 'all'"),
        (("all", "seen"), "Last in 'all'; Forgetting in 'all'; Transfer in 'seen'"),
        (("seen",), "Last in 'seen'; Forgetting in 'seen'; Transfer in 'all'"),
        (("dataset", "all"), "Last in 'dataset'; Forgetting in 'dataset'; Transfer in 'dataset'"),
    ],
)
def test_tables_are_in_the_label_spaces_that_were_measured(tmp_path, spaces, words):
    finish(tmp_path, run_of("m"), 0.5, spaces=spaces)
    page = write_comparison([run_of("m")], tmp_path)
    assert words in page.read_text()
    assert table(page)["m"]["Last"] == "**50.0**"


def test_columns_can_be_chosen(made):
    folder, runs = made
    columns = [LAST, TableColumn("First", "zero_shot_accuracy", "all")]
    page = write_comparison(runs, folder, columns=columns)
    line = table(page)["worse"]
    assert line["Last"] == "60.0 ± 10.0"
    assert line["First"] == "**25.0 ± 0.0**"
    assert "Forgetting" not in line
    assert table(page)["best"]["First less the best's"] == "+0.0 ± 0.0"


def test_wrong_calls_are_refused(made):
    folder, runs = made
    with pytest.raises(ValueError, match="`runs` must be at least one run"):
        write_comparison([], folder)
    with pytest.raises(TypeError, match="`runs` must be a list of runs"):
        write_comparison(["m"], folder)
    with pytest.raises(TypeError, match="`folder` must be"):
        write_comparison(runs, 3)
    for columns in ([], [LAST]):
        with pytest.raises(ValueError, match="`columns` must be at least two"):
            write_comparison(runs, folder, columns=columns)


def test_a_comparison_that_was_made_has_a_page(tmp_path):
    methods = {"zero-shot": zero_shot, "naive": fine_tune}
    runs = grid(methods, {"small": partial(prepare, spaces=("all",))}, seeds=[0])
    compare(runs, tmp_path, processes=0)
    found = table(write_comparison(runs, tmp_path))
    for line in found.values():
        for name in ("Last", "Train s", "Eval s", "Peak MB", "Kept KB"):
            assert re.fullmatch(r"\*{0,2}\d+(\.\d)?\*{0,2}", line[name]), (name, line)


def all_rows(folder, runs):
    return [row for run in runs for row in rows_of(run, LASTS[run.method][run.seed])]


def labels(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_the_most_accurate_method_stands_at_the_top(made):
    folder, runs = made
    figure = plot_overview(all_rows(folder, runs), LAST)
    assert labels(figure) == ["worse", "close", "best"]  # from below
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        *("Last, label space: seen (%)", "training (s)", "peak memory (MB)", "kept (KB)")
    ]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["60.0", "79.0", "80.0"]
    for axes, text in zip(figure.axes[1:], ("12.3", "5", "2.5"), strict=True):
        assert [label.get_text() for label in axes.texts] == [text] * 3


def test_methods_without_costs_have_no_bars():
    rows = [*rows_of(run_of("a"), 0.5, costs=(0.0, 0.0, float("nan"), 0)), *rows_of(run_of("b"), 0.6)]
    rows += [row for row in rows_of(run_of("c"), 0.7) if row.space]
    figure = plot_overview(rows, LAST)
    assert labels(figure) == ["a", "b", "c"]
    assert [[label.get_text() for label in axes.texts] for axes in figure.axes[1:]] == [
        *(["0", "12.3"], ["5"], ["0", "2.5"])
    ]


def test_an_overview_is_of_one_stream_and_of_what_was_measured(made):
    folder, runs = made
    rows = all_rows(folder, runs)
    with pytest.raises(ValueError, match="`rows` must be results of one benchmark; got .*'small', 'other'"):
        plot_overview([*rows, *rows_of(run_of("m", stream="other"), 0.5)], LAST)
    with pytest.raises(
        ValueError, match="`rows` must be results with 'last_accuracy' in 'dataset'; got none"
    ):
        plot_overview(rows, MTIL_COLUMNS[1])
    with pytest.raises(ValueError, match="`rows` must be results with"):
        plot_overview([], LAST)
    with pytest.raises(TypeError, match="`column` must be TableColumn"):
        plot_overview(rows, "last_accuracy")
