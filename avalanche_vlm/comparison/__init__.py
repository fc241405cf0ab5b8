"""Methods beside each other: runs that resume, tables with paired intervals, pictures, costs."""

from __future__ import annotations

from avalanche_vlm.comparison.compare import compare
from avalanche_vlm.comparison.outcome import Outcome
from avalanche_vlm.comparison.overview_plot import plot_overview
from avalanche_vlm.comparison.paired import PairedDifference, paired_difference
from avalanche_vlm.comparison.report import write_comparison
from avalanche_vlm.comparison.run import Run, grid
from avalanche_vlm.comparison.setup import Setup

__all__ = [
    "Outcome",
    "PairedDifference",
    "Run",
    "Setup",
    "compare",
    "grid",
    "paired_difference",
    "plot_overview",
    "write_comparison",
]
