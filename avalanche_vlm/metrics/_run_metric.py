"""What our metrics have in common: each belongs to one run, and counts its streams."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

from avalanche.evaluation import PluginMetric

from avalanche_vlm._runs import claim, evaluated_stream, note_training, release

Result = TypeVar("Result")


class RunMetric(PluginMetric[Result]):
    """A metric of one run: another strategy is refused until it has been reset."""

    def __init__(self) -> None:
        super().__init__()
        self._in_training = False
        self._forget()

    @abstractmethod
    def _forget(self) -> None:
        """Set everything that is measured to what it is before a run."""

    def reset(self) -> None:
        """Forget everything; the metric may then be used in another run."""
        release(self)
        self._in_training = False
        self._forget()

    def before_training(self, strategy: Any) -> None:
        """Note that evaluations are periodic ones until training has ended.

        Raises:
            ValueError: the metric has measured another run.
        """
        self._claim(strategy)
        # The host has no public word for it, and JointTraining never clears `_eval_streams`. Should
        # training be interrupted, evaluations go on not to count: no row describes such a model.
        self._in_training = True

    def after_training(self, strategy: Any) -> Any:
        """Note that evaluations count again."""
        self._in_training = False

    def before_eval(self, strategy: Any) -> None:
        """Start an evaluation.

        Raises:
            ValueError: the metric has measured another run.
        """
        self._claim(strategy)

    def _claim(self, strategy: Any) -> None:
        advice = f"Build new metrics and a new EvaluationPlugin for each run, or call reset() of {self!r}."
        claim(self, strategy, argument="evaluator", advice=advice)


class StreamMetric(RunMetric[Result]):
    """A metric of the streams of one run, which keeps those of other benchmarks apart.

    Attributes:
        _stream: name of the stream that is being evaluated; see `evaluated_stream`.
    """

    _stream = ""

    @abstractmethod
    def _rename(self, old: str, new: str) -> None:
        """Give a stream that was evaluated before training another name."""

    def before_training_exp(self, strategy: Any) -> None:
        """Set apart what was evaluated of another benchmark before this one was trained on.

        Raises:
            ValueError: this is an experience of another benchmark than those before.
        """
        for old, new in note_training(strategy).items():
            self._rename(old, new)

    def before_eval_exp(self, strategy: Any) -> None:
        """Take down which stream is being evaluated."""
        self._stream = evaluated_stream(strategy)


def renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return a dictionary with another key for one that it may have, in the same order."""
    return {new if key == old and new not in values else key: value for key, value in values.items()}
