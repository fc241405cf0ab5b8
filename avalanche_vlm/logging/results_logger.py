"""The host's logger that keeps every number of a run, and what is needed to repeat the run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from avalanche.logging import BaseLogger
from torch import Tensor

from avalanche_vlm._checks import check_type
from avalanche_vlm._host import position_in_training, trained_experiences
from avalanche_vlm._runs import claim, evaluated_stream, release
from avalanche_vlm.logging._benchmark_facts import benchmark_facts, trained_facts
from avalanche_vlm.logging._own_rows import count_rows, cut_rows, rename_rows
from avalanche_vlm.logging._written_matrices import WrittenMatrices
from avalanche_vlm.logging.metric_name import metric_name_parts
from avalanche_vlm.logging.provenance import check_settings, provenance, replace_run, write_run
from avalanche_vlm.logging.result_row import MOST, ResultRow, check_names
from avalanche_vlm.logging.results_file import check_results_file, write_results

_MOST_ROWS_KEPT = 20_000


@runtime_checkable
class RunMatrixMetric(Protocol):
    """A metric that `ResultsLogger` writes as a matrix, such as ``AccuracyMatrixMetric``."""

    space: Any

    @property
    def experiences_trained(self) -> int:
        """Number of experiences trained on."""
        ...

    def result(self) -> dict[str, Tensor]:
        """Return the accuracies (T+1, T) of every stream by its name."""
        ...

    def summary(self, stream: str = "test") -> dict[str, float]:
        """Return the summaries of a stream so far, NaN where not defined."""
        ...


class ResultsLogger(BaseLogger):
    """Appends every number that the host's evaluator publishes to a CSV file, one row a number.

    Rows are appended at the end of each evaluation and of each training, so that a run that is
    killed has left everything up to its last evaluation. An existing file is appended to.

    Rows of a stream that is another one than what has its name in the run (the test stream of a second
    benchmark) are those of ``"test#2"``, whichever metric they are of.

    *Accuracy matrices* (``AccuracyMatrixMetric``) are written as `result_rows` writes them: after
    each evaluation its row of the matrix, whole, with NaN where nothing was measured or is defined;
    whatever else of the matrix has changed since it was last written (a further piece of an online
    experience makes its row NaN until it is evaluated again); and all summaries of the experiences
    trained on so far, NaN where not defined. So a table, a picture or `result_matrix` can be made of
    the file at any time, and ends as the metric itself does.

    *Metric values that say where they belong* (an attribute ``columns``, a mapping of columns of
    `ResultRow`) are written there: ``ClassAccuracyMetric`` and ``MemoryMetric`` do so.

    *All other metrics*, those of the host and of users, keep their name. Of
    ``Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp003`` the metric is ``Top1_Acc_Exp``, the
    stream ``test``, the experience 3. A task other than 0, a phase that the stream does not give
    away (evaluation on the training stream) and whatever else the name has stay parts of the
    metric's name. What a metric logs at each iteration is told apart by ``step``; what it logs
    several times at one step of one evaluation is numbered ``#2``, ``#3``, ... Evaluating the same
    again without training in between replaces, for `as_rows`, what was there.

    *Evaluations inside* ``strategy.train`` (periodic ones) leave the matrices alone, and replace
    nothing: whatever they log has ``/in_training`` at the end of the metric's name.

    Only numbers are kept, tensors of one element among them. Images, confusion matrices, text and
    weights are skipped.

    Before the first evaluation or training the logger notes what is needed to repeat the run (see
    `provenance`) beside the file, for `read_runs`; its id is in the column ``run``. One logger
    belongs to one run, and refuses a second strategy. A run that is resumed in a new process goes on
    under its id if the state of its logger (`state_dict`) is carried over. A second run of the same
    method, benchmark and seed in one file replaces the first in tables and pictures from its first row
    on, also while it is unfinished; `results_table` says so below the table, and the rows of both stay
    in the file.

    Args:
        path: the CSV file; its folder must exist.
        method: name of the method; None takes that of the strategy's class.
        benchmark: name of the benchmark, if the file has several.
        seed: seed of the run.
        settings: further facts for the provenance, anything that fits into JSON.

    Raises:
        TypeError: an argument has another type, or ``settings`` does not fit into JSON.
        ValueError: ``method`` is empty; before anything is trained or evaluated: the folder does not
            exist, or the file has another header.

    >>> ResultsLogger("results.csv", method="LoRA", seed=0, settings={"preset": "setting-a"})
    ResultsLogger('results.csv')
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        method: str | None = None,
        benchmark: str = "",
        seed: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_type("path", path, (str, os.PathLike))
        check_names(method=method, benchmark=benchmark, seed=seed)
        self.path = Path(path)
        self.method = method
        self.benchmark = benchmark
        self.seed = seed
        self.settings = check_settings(settings)
        self.run = ""
        # What is public says what this process has built, and a checkpoint sets none of it but the id.
        self.facts: dict[str, Any] | None = None
        self.begins_at: int | None = None
        self.is_checked = False
        self._is_noted = False
        self._rows: int | None = 0
        self._rows_before = 0
        self._data: dict[str, Any] = {}
        self._trained: set[int] = set()
        self._in_training = False
        self._in_evaluation = False
        self._evaluated: list[str] = []
        self._stream = ("", "")
        self._written = WrittenMatrices()
        self._columns: list[dict[str, Any]] = []
        self._newest = 0
        self._names: dict[tuple[Any, ...], str] = {}
        self._repeats: Counter[tuple[Any, ...]] = Counter()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the run and the experiences trained on, in plain types."""
        return {"run": self.run, "method": self.method, "trained": sorted(self._trained)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, under the same id."""
        release(self)
        self.run, self.method = str(state["run"]), state["method"]
        self._is_noted, self._rows = True, None
        self._trained = {int(position) for position in state["trained"]}

    # What the host tells.

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        """Keep the numbers until the end of this evaluation or training."""
        if len(self._columns) > _MOST_ROWS_KEPT and self.run:
            self._write()
        self._newest = len(self._columns)
        for value in metric_values:
            if isinstance(value.origin, RunMatrixMetric) and not self._in_training:
                continue  # written as a matrix at the end of the evaluation
            several = value.value if isinstance(value.value, dict) else {"": value.value}
            for key, content in several.items():
                number = _number(content)
                if number is not None:
                    name = f"{value.name}/{key}" if key else value.name
                    self._columns.append({**self._place(value, name), "value": number})

    def before_training(self, strategy: Any, metric_values: Any = (), **kwargs: Any) -> None:
        """Note that evaluations are periodic ones until training has ended."""
        self._prepare(strategy)
        self._in_training, self._in_evaluation = True, False
        self._repeats.clear()

    def before_train_dataset_adaptation(self, strategy: Any, metric_values: Any = (), **kwargs: Any) -> None:
        """Begin the run, before anything is trained."""
        trained = trained_experiences(strategy)
        self._begin(strategy, trained)
        self._note_training(strategy, trained)

    def after_training_exp(self, strategy: Any, metric_values: Sequence[MetricValue], **kwargs: Any) -> None:
        """Count the experience that was just trained on."""
        self._trained.update(map(position_in_training, trained_experiences(strategy)))
        # What was logged at the end of the experience was measured after it.
        for columns in self._columns[self._newest :]:
            columns["after_experience"] = len(self._trained)

    def after_training(self, strategy: Any, metric_values: Any = (), **kwargs: Any) -> None:
        """Append what training has logged."""
        self._in_training = self._in_evaluation = False
        self._begin(strategy)
        self._add_matrices(strategy, evaluated=())
        self._write()

    def before_eval(self, strategy: Any, metric_values: Any = (), **kwargs: Any) -> None:
        """Start an evaluation."""
        self._claim(strategy)
        if not self._in_training:
            self._prepare(strategy)
        self._in_evaluation = True
        self._evaluated = []
        self._repeats.clear()

    def before_eval_dataset_adaptation(self, strategy: Any, metric_values: Any = (), **kwargs: Any) -> None:
        """Begin the run, if it begins with an evaluation."""
        self._begin(strategy)

    def before_eval_exp(self, strategy: Any, metric_values: Any = (), **kwargs: Any) -> None:
        """Note which stream is being evaluated."""
        self._stream = strategy.experience.origin_stream.name, evaluated_stream(strategy)
        if self._stream[1] not in self._evaluated:
            self._evaluated.append(self._stream[1])

    def after_eval(self, strategy: Any, metric_values: Any = (), **kwargs: Any) -> None:
        """Append what the evaluation has logged."""
        self._begin(strategy)
        if not self._in_training:
            self._add_matrices(strategy, evaluated=self._evaluated)
        self._in_evaluation = False
        self._write()

    # What becomes of it.

    def _claim(self, strategy: Any) -> None:
        advice = "Build a new ResultsLogger and a new EvaluationPlugin for each run."
        claim(self, strategy, argument="evaluator", advice=advice)

    def describe(self, strategy: Any) -> dict[str, Any]:
        """Return what the strategy is, taken down before plugins have filled what they hold."""
        if self.facts is None:
            self.facts = provenance(
                strategy,
                method=self.method,
                benchmark=self.benchmark,
                seed=self.seed,
                settings=self.settings,
            )
        return self.facts

    def position(self) -> tuple[str, int, int]:
        """Return the id of the run, how many rows it has in the file, and how many bytes the file has."""
        if self.run and self._rows is None:
            self._rows = count_rows(self.path, self.run)
        return self.run, self._rows or 0, self.path.stat().st_size if self.path.exists() else 0

    def go_on(self, run: str, rows: int, *, is_noted: bool) -> None:
        """Go on with a run of which there are so many rows in the file; `resume` calls this.

        Args:
            run: its id; empty for a run that has none yet.
            rows: how many rows the file has of it.
            is_noted: whether it keeps this id, whatever data it trains on.
        """
        self.run, self._rows = run, rows
        self._is_noted = self._is_noted or is_noted

    def _prepare(self, strategy: Any) -> None:
        """Refuse what cannot be, and take down what the strategy is, before anything is done."""
        self._claim(strategy)
        check_results_file(self.path)
        if not self.run:
            self.describe(strategy)
        if self.method is None:
            self.method = type(strategy).__name__

    def _begin(self, strategy: Any, trained: Sequence[Any] = ()) -> None:
        if not self.is_checked:
            write_results(self.path, [])  # a file that cannot be written to stops the run here
            self.is_checked = True
        if self.run:
            return
        # Which data it runs on is not known any earlier.
        self._data = benchmark_facts(trained[0] if trained else strategy.experience, trained=trained)
        self.run = write_run(self.path, self._facts(strategy))
        self._rows = self._rows_before = self._rows_of_others()
        self._is_noted = bool(trained)

    def _note_training(self, strategy: Any, trained: Sequence[Any]) -> None:
        """Note what is trained on, if the evaluations so far were on streams that did not say so."""
        if self._is_noted:
            return
        self._is_noted = True
        data = {**self._data, **trained_facts(trained)}
        if data == self._data:
            return
        self._data = data
        # Another run may have been noted under that id before.
        old, only_ours = self.run, self._rows_before == 0
        facts = self._facts(strategy)
        self.run = replace_run(self.path, old, facts) if only_ours else write_run(self.path, facts)
        before = self._rows_of_others()
        rename_rows(self.path, old, self.run, keep=self._rows_before)
        self._rows, self._rows_before = count_rows(self.path, self.run), before

    def _facts(self, strategy: Any) -> dict[str, Any]:
        facts = self.describe(strategy)
        return {**facts, "benchmark": {**facts["benchmark"], **self._data}}

    def _rows_of_others(self) -> int:
        """Cut what an interrupted process has written of this run, and return how many rows it has before."""
        if self.begins_at is not None:
            return cut_rows(self.path, {self.run}, after=self.begins_at)
        return count_rows(self.path, self.run)

    def _place(self, value: MetricValue, name: str) -> dict[str, Any]:
        """Return the columns of a metric value, so that no other number has the same."""
        columns = getattr(value, "columns", None)
        if columns is None:
            columns = metric_name_parts(name)
            if self._in_evaluation and columns["stream"] == self._stream[0]:
                columns["stream"] = self._stream[1]
            place = (columns["metric"], columns["stream"], columns["experience"])
            if self._names.setdefault(place, name) != name:
                columns["metric"] = name  # two names that differ in what has no column
        if self._in_training and self._in_evaluation:
            columns = {**columns, "metric": f"{columns['metric']}/in_training"}
        step = _step(value.x_plot)
        columns = {key: _kept(text) if isinstance(text, str) else text for key, text in columns.items()}
        place = {"after_experience": len(self._trained), "step": step, **columns}
        key = tuple(sorted((name, str(content)) for name, content in place.items()))
        self._repeats[key] += 1
        if self._repeats[key] > 1:
            place["metric"] = f"{place['metric']}#{self._repeats[key]}"
        return place

    def _add_matrices(self, strategy: Any, evaluated: Sequence[str]) -> None:
        """Keep what has changed in the accuracy matrices, and the summaries of evaluated streams."""
        step = int(strategy.clock.train_iterations)
        for metric in getattr(getattr(strategy, "evaluator", None), "metrics", ()):
            if not isinstance(metric, RunMatrixMetric):
                continue
            trained = metric.experiences_trained
            for stream, matrix in metric.result().items():
                where: dict[str, Any] = {"space": metric.space, "stream": stream}
                whole = trained if stream in evaluated else None
                for after, experience, number in self._written.changes((metric.space, stream), matrix, whole):
                    self._columns.append(
                        {
                            **where,
                            "metric": "accuracy",
                            "after_experience": after,
                            "experience": experience,
                            "step": step if after == trained else None,
                            "value": number,
                        }
                    )
                for name, number in metric.summary(stream).items() if stream in evaluated else ():
                    entry = {"metric": name, "after_experience": trained, "step": step, "value": number}
                    self._columns.append({**where, **entry})

    def _write(self) -> None:
        run = {"run": self.run, "method": self.method, "benchmark": self.benchmark, "seed": self.seed}
        rows = [ResultRow(**run, **entry) for entry in self._columns]
        if rows:
            write_results(self.path, rows)
            self._rows = None if self._rows is None else self._rows + len(rows)
        self._columns, self._newest = [], 0


def _step(place: Any) -> int | None:
    """Return where a number belongs on the axis of iterations, None if that is no such place."""
    number = float(place) if isinstance(place, Real) else -1.0
    return int(number) if 0 <= number < MOST else None


def _kept(name: str) -> str:
    """Return a name as a file of results can hold it: a run does not end because of a letter."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _number(value: Any) -> float | None:
    """Return a value as a number, None if it is none."""
    if isinstance(value, AlternativeValues):
        value = value.best_supported_value(float, int, Tensor)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return float(value) if isinstance(value, Real) else None
