"""Results of runs as a file, a table and pictures."""

from __future__ import annotations

from avalanche_vlm.logging._figures import save_figure
from avalanche_vlm.logging.curve_plots import plot_accuracy_over_experiences
from avalanche_vlm.logging.matrix_plots import plot_accuracy_matrices, plot_accuracy_matrix
from avalanche_vlm.logging.results import (
    ResultRow,
    matrix_rows,
    read_results,
    result_matrix,
    result_rows,
    write_results,
)
from avalanche_vlm.logging.table import (
    CLASS_INCREMENTAL_COLUMNS,
    MTIL_COLUMNS,
    TableColumn,
    results_table,
    table_text,
)

__all__ = [
    "CLASS_INCREMENTAL_COLUMNS",
    "MTIL_COLUMNS",
    "ResultRow",
    "TableColumn",
    "matrix_rows",
    "plot_accuracy_matrices",
    "plot_accuracy_matrix",
    "plot_accuracy_over_experiences",
    "read_results",
    "result_matrix",
    "result_rows",
    "results_table",
    "save_figure",
    "table_text",
    "write_results",
]
