"""Results of runs as a file, a table and pictures, with what is needed to repeat each run."""

from __future__ import annotations

from avalanche_vlm.logging._figures import save_figure
from avalanche_vlm.logging.anchors import anchor_table, plot_anchors
from avalanche_vlm.logging.curve_plots import plot_accuracy_over_experiences
from avalanche_vlm.logging.drift_plots import plot_semantic_drift
from avalanche_vlm.logging.forgetting_plots import plot_forgetting_per_class
from avalanche_vlm.logging.matrix_plots import plot_accuracy_matrices, plot_accuracy_matrix
from avalanche_vlm.logging.provenance import provenance, read_runs, write_run
from avalanche_vlm.logging.result_row import ResultRow
from avalanche_vlm.logging.results import final_values, matrix_rows, result_matrix, result_rows
from avalanche_vlm.logging.results_file import read_results, write_results
from avalanche_vlm.logging.results_logger import ResultsLogger
from avalanche_vlm.logging.seeds import plot_seeds, seed_table
from avalanche_vlm.logging.table import (
    CLASS_INCREMENTAL_COLUMNS,
    MTIL_COLUMNS,
    TableColumn,
    mean_text,
    results_table,
    table_text,
)

__all__ = [
    "CLASS_INCREMENTAL_COLUMNS",
    "MTIL_COLUMNS",
    "ResultRow",
    "ResultsLogger",
    "TableColumn",
    "anchor_table",
    "final_values",
    "matrix_rows",
    "mean_text",
    "plot_accuracy_matrices",
    "plot_accuracy_matrix",
    "plot_accuracy_over_experiences",
    "plot_anchors",
    "plot_forgetting_per_class",
    "plot_seeds",
    "plot_semantic_drift",
    "provenance",
    "read_results",
    "read_runs",
    "result_matrix",
    "result_rows",
    "results_table",
    "save_figure",
    "seed_table",
    "table_text",
    "write_results",
    "write_run",
]
