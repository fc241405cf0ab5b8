"""What plugins, storage policies and the head hold, as a metric of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from avalanche.evaluation.metric_results import MetricValue

from avalanche_vlm.metrics._run_metric import RunMetric
from avalanche_vlm.metrics.placed_value import PlacedValue
from avalanche_vlm.metrics.stored_bytes import stored_bytes


@final
class MemoryMetric(RunMetric[dict[str, int]]):
    """Bytes that a strategy, its plugins and its head keep of data, after each training experience.

    `stored_bytes` says what counts. In the host's reservoir buffers that is the samples, and the random
    weight of each that decides which ones stay, so they hold a few bytes more than their samples.

    ``StoredBytes/<plugin>`` is logged for each part, and
    ``StoredBytes`` for all together; `avalanche_vlm.logging.ResultsLogger` writes rows with the
    metrics ``stored_bytes/<plugin>`` and ``stored_bytes``. A head that keeps something of data, such as
    sums or prototypes, is such a part, and has two more rows that it is the sum of:
    ``stored_bytes/<head>/by_class`` and ``stored_bytes/<head>/shared``.

    A metric belongs to one run: another strategy is refused until `reset` is called.

    >>> MemoryMetric().result()
    {}
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _forget(self) -> None:
        self._last: dict[str, int] = {}

    def result(self) -> dict[str, int]:
        """Return the last measurement, bytes by the name of the part; empty before any."""
        return dict(self._last)

    def state_dict(self) -> dict[str, Any]:
        """Return the last measurement, in plain types."""
        return {"last": self.result()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.reset()
        self._last = {str(name): int(size) for name, size in state["last"].items()}

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Measure and log."""
        self._last = stored_bytes(strategy)
        step = strategy.clock.train_iterations
        values: list[MetricValue] = []
        for name, size in self._last.items():
            part = "" if name == "total" else f"/{name}"
            columns = {"metric": f"stored_bytes{part}", "stream": "train"}
            values.append(PlacedValue(self, f"StoredBytes{part}", size, step, columns))
        return values
