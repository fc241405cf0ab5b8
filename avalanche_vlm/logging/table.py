"""The results of several methods as one table."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from avalanche_vlm._checks import (
    check_choice,
    check_count,
    check_number,
    check_sequence,
    check_type,
    wrong_value,
)
from avalanche_vlm.functional.label_space import LABEL_SPACES, LabelSpace
from avalanche_vlm.logging._footnotes import footnotes
from avalanche_vlm.logging.result_row import Results
from avalanche_vlm.logging.results import all_rows, as_rows, final_values, of_stream

UNDEFINED = "–"


@dataclass(frozen=True)
class TableColumn:
    """One column of a table of results.

    Args:
        heading: what stands above it.
        metric: the name of a metric of `avalanche_vlm.functional.accuracy_matrix_summary`.
        space: the label space that it is read in.

    Raises:
        TypeError: an argument is not text.
        ValueError: an unknown label space.
    """

    heading: str
    metric: str
    space: LabelSpace

    def __post_init__(self) -> None:
        check_type("heading", self.heading, str)
        check_type("metric", self.metric, str)
        check_choice("space", self.space, LABEL_SPACES)


#: Columns of a class-incremental table: among the classes seen, and transfer among all.
CLASS_INCREMENTAL_COLUMNS = (
    TableColumn("Average", "average_incremental_accuracy", "seen"),
    TableColumn("Last", "last_accuracy", "seen"),
    TableColumn("Forgetting", "forgetting", "seen"),
    # Among the classes seen so far there is no transfer to unseen ones.
    TableColumn("Transfer", "ci_transfer", "all"),
)

#: Columns of a table over several data sets, each scored among its own classes.
MTIL_COLUMNS = (
    TableColumn("Average", "average_accuracy", "dataset"),
    TableColumn("Last", "last_accuracy", "dataset"),
    TableColumn("Forgetting", "forgetting", "dataset"),
    TableColumn("Transfer", "transfer", "dataset"),
)


def results_table(
    results: Results,
    *,
    columns: Sequence[TableColumn] = CLASS_INCREMENTAL_COLUMNS,
    title: str | None = None,
    stream: str = "test",
) -> Table:
    """Return a table with one line a method, in percent.

    Of a run that is still going on, or was logged while it went, the latest summaries count: those
    after the most experiences.

    Below the table stands which seeds are unfinished, and which runs are not shown because another of
    the same method, benchmark and seed wrote later.

    Over several seeds a cell is the mean ± the standard deviation of the sample. Lines are in the
    order of the results; with several benchmarks there is one a benchmark and method. Names and
    headings are shown letter by letter, whatever they would mean to rich, and long names go on in
    the next line.

    Args:
        results: path of a file of results, or rows.
        columns: what to show: `CLASS_INCREMENTAL_COLUMNS`, `MTIL_COLUMNS`, or columns of your own.
        title: a line above the table.
        stream: name of the evaluated stream.

    Returns:
        A table of the package rich: ``rich.print(table)``, or `table_text`.

    Raises:
        ValueError: there are no results, no columns, or results in label spaces but none of the stream.
    """
    check_sequence("columns", columns, TableColumn, "columns")
    check_type("title", title, (str, type(None)))
    every = all_rows(results)
    rows = as_rows(every)
    if not rows:
        raise wrong_value("results", "at least one row", "none", "Write results of a run first.")
    if not columns:
        raise wrong_value("columns", "at least one column", "none")
    lines = list(dict.fromkeys((row.benchmark, row.method) for row in rows))
    of_stream([row for row in rows if row.space], stream)
    values = [final_values(rows, column.metric, space=column.space, stream=stream) for column in columns]
    several_benchmarks = len({benchmark for benchmark, _ in lines}) > 1
    # Texts, because rich reads a string as markup: it would swallow the end of "LoRA [r=8]".
    table = Table(
        title=None if title is None else Text(title, style="table.title"),
        caption=Text("\n".join([_caption(columns), *footnotes(every, stream)]), style="table.caption"),
        box=box.SIMPLE_HEAD,
    )
    # Where the line is too short, names give way: half a number is none.
    if several_benchmarks:
        table.add_column("Benchmark", overflow="fold")
    table.add_column("Method", overflow="fold")
    for column in columns:
        table.add_column(Text(column.heading), justify="right", no_wrap=True)
    for benchmark, method in lines:
        cells = [mean_text(of_column.get((benchmark, method), {}), scale=100) for of_column in values]
        table.add_row(*([Text(benchmark)] if several_benchmarks else []), Text(method), *cells)
    return table


def table_text(table: Table, *, width: int = 100) -> str:
    """Return a table as plain text, for a file or a log.

    Args:
        table: what `results_table` returned.
        width: characters a line at most.

    Raises:
        TypeError: ``table`` is not a table, or ``width`` not a whole number.
        ValueError: ``width`` is smaller than 1.
    """
    check_type("table", table, Table)
    check_count("width", width)
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def mean_text(values: Mapping[Any, float], *, scale: float = 1.0, digits: int = 1) -> str:
    """Return mean ± standard deviation of the sample of a number for each seed, as text.

    Args:
        values: seed -> number.
        scale: factor of what is written, 100 for percent.
        digits: after the point.

    >>> mean_text({0: 0.5, 1: 0.7}, scale=100), mean_text({0: 0.5}), mean_text({})
    ('60.0 ± 14.1', '0.5', '–')

    Raises:
        TypeError: ``values`` is not a mapping, or another argument not a number.
    """
    check_type("values", values, Mapping)
    check_number("scale", scale)
    check_count("digits", digits, at_least=0)
    numbers = [scale * value for value in values.values()]
    if not numbers:
        return UNDEFINED
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.{digits}f}"


def _caption(columns: Sequence[TableColumn]) -> str:
    """Return which label space each column is in, because its heading alone does not say."""
    spaces = dict.fromkeys(column.space for column in columns)
    named = [
        f"{', '.join(column.heading for column in columns if column.space == space)} in {space!r}"
        for space in spaces
    ]
    return f"percent; label space: {'; '.join(named)}"
