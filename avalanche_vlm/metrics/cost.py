"""What a run costs in time and memory, as a metric of the host."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import psutil
import torch
from avalanche.evaluation.metric_results import MetricValue

from avalanche_vlm.metrics._run_metric import RunMetric
from avalanche_vlm.metrics.placed_value import PlacedValue

_NAMES = {
    "training_seconds": "TrainingSeconds",
    "evaluation_seconds": "EvaluationSeconds",
    "peak_memory": "PeakMemory",
}


@final
class CostMetric(RunMetric[dict[str, float]]):
    """Seconds of training and of evaluation so far, and the peak of the memory.

    - ``TrainingSeconds``: wall-clock seconds inside ``strategy.train``, from the first callback that metrics
      get to the last one, with all that plugins do between them; periodic evaluations count here.
    - ``EvaluationSeconds``: the same of ``strategy.eval``, without them.
    - ``PeakMemory``: on a CUDA device the most bytes that tensors have held there. On the CPU the peak of
      the resident memory *of the process* beyond what it held when the metric was made. Linux forgets
      earlier peaks then; elsewhere a higher one from before counts, so that each run should have a process
      of its own, as in `avalanche_vlm.comparison.compare`. NaN where the system does not tell.

    `avalanche_vlm.logging.ResultsLogger` writes rows with the metrics ``training_seconds``,
    ``evaluation_seconds`` and ``peak_memory``. In a run that is resumed the seconds go on from those at the
    checkpoint: what was lost with the interruption does not count, nor the time in between. Of an
    experience that is resumed inside, the part since then counts. The time of writing checkpoints counts
    where they are written inside of training.

    A metric belongs to one run: another strategy is refused until `reset` is called.

    >>> CostMetric().result()
    {'training_seconds': 0.0, 'evaluation_seconds': 0.0, 'peak_memory': nan}
    """

    # In a slot, which checkpoints pass over: a clock of another process means nothing here.
    __slots__ = ("_start",)
    _start: float | None

    def __init__(self) -> None:
        super().__init__()
        _forget_peak()
        self._resident = int(psutil.Process().memory_info().rss)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _forget(self) -> None:
        self._last = {"training_seconds": 0.0, "evaluation_seconds": 0.0, "peak_memory": float("nan")}
        self._start = None

    def result(self) -> dict[str, float]:
        """Return what was measured so far, by the name of the number."""
        return dict(self._last)

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far, in plain types."""
        return self.result()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.reset()
        self._last = {name: float(state[name]) for name in self._last}

    def before_training(self, strategy: Any) -> None:
        """Start the clock.

        Raises:
            ValueError: the metric has measured another run.
        """
        super().before_training(strategy)
        self._start = _now(strategy)

    def after_training(self, strategy: Any) -> list[MetricValue]:
        """Count the training and log it."""
        super().after_training(strategy)
        return self._count("training_seconds", "train", strategy)

    def before_eval(self, strategy: Any) -> None:
        """Start the clock, unless it is that of training.

        Raises:
            ValueError: the metric has measured another run.
        """
        super().before_eval(strategy)
        if not self._in_training:
            self._start = _now(strategy)

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Count the evaluation and log it, unless it is part of training."""
        return [] if self._in_training else self._count("evaluation_seconds", "test", strategy)

    def _count(self, name: str, stream: str, strategy: Any) -> list[MetricValue]:
        assert self._start is not None
        self._last[name] += _now(strategy) - self._start
        peak, before = self._peak(strategy.device), self._last["peak_memory"]
        self._last["peak_memory"] = peak if before != before else max(before, peak)
        step = strategy.clock.train_iterations
        return [
            PlacedValue(self, _NAMES[each], self._last[each], step, {"metric": each, "stream": stream})
            for each in (name, "peak_memory")
        ]

    def _peak(self, device: torch.device) -> float:
        if device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(device))
        peak = _peak_resident_memory()
        return float("nan") if peak is None else float(max(peak - self._resident, 0))


def _now(strategy: Any) -> float:
    if strategy.device.type == "cuda":
        torch.cuda.synchronize(strategy.device)  # what has been asked for is not yet done
    return time.perf_counter()


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # Linux has it, if the process may write there
        Path("/proc/self/clear_refs").write_text("5")


def _peak_resident_memory() -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return 1024 * int(found[1])
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not everywhere

    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else 1024 * peak
