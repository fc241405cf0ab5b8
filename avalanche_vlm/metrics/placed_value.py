"""A metric value that says where in a file of results it belongs."""

from __future__ import annotations

from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue


class PlacedValue(MetricValue):
    """A metric value with the columns that `avalanche_vlm.logging.ResultsLogger` writes it to.

    Other loggers see a metric value like any other, by its name.

    Args:
        origin: the metric.
        name: the name that loggers show.
        value: the number.
        x_plot: training iterations so far.
        columns: fields of `avalanche_vlm.logging.ResultRow`; ``metric`` at least.
    """

    def __init__(
        self, origin: PluginMetric[Any], name: str, value: float, x_plot: int, columns: dict[str, Any]
    ) -> None:
        super().__init__(origin, name, value, x_plot)
        self.columns = columns
