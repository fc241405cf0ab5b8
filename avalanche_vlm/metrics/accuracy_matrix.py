"""The accuracy matrix of a run and its summaries, as a metric of the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import (
    default_metric_name_template,
    generic_get_metric_name,
    get_metric_name,
)
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_sequence, close_names, wrong_type, wrong_value
from avalanche_vlm._host import (
    experience_classes,
    position_in_training,
    strategy_columns,
    trained_experiences,
)
from avalanche_vlm.functional.accuracy_matrix import accuracy_matrix_summary
from avalanche_vlm.functional.label_space import (
    LABEL_SPACES,
    LabelSpace,
    label_space_predictions,
)
from avalanche_vlm.metrics._run_metric import StreamMetric, renamed
from avalanche_vlm.metrics._stream_accuracies import StreamAccuracies


@final
class AccuracyMatrixMetric(StreamMetric[dict[str, Tensor]]):
    r"""Accuracy on every experience after training on every experience, in one label space.

    .. math:: a_{t,j} = \frac{1}{n_j} \sum_{i=1}^{n_j}
        \Bigl[ y_i = \operatorname*{argmax}_{c \in S} z_{i,c} \Bigr]

    for the logits z that the strategy computed anyway (``strategy.mb_output``), so that several of
    these metrics report class-incremental, task-incremental and CI-Transfer accuracy from a single
    forward pass. Which classes S count:

    ========== =================================================================================
    space      S
    ========== =================================================================================
    seen       ``strategy.model.classes_seen``. An experience none of whose classes has been seen
               has no accuracy (NaN); samples of single unseen classes are simply wrong.
    all        every column of the logits
    experience the classes among the targets of the evaluated experience
    dataset    every class of the data sets that those belong to, by
               ``strategy.model.class_names.datasets``
    ========== =================================================================================

    A row t is the number of different experiences trained on so far: row 0 is measured before any
    training, the pieces of an online stream count as the experience that they were cut from (each
    for itself if they mix experiences), and the host's ``JointTraining`` fills row T at once, since
    it trains on the whole stream in one go. Evaluating again without training in between overwrites
    the row; evaluations inside ``strategy.train`` (periodic ones) log accuracies and leave the
    matrix alone. Columns are in the order of training, then in the order of the stream: the order
    of the stream itself, unless somebody trained in another. Streams (train, test, ...) have a
    matrix each. A stream of another benchmark than the one that is trained on has one of its own, under
    the name ``"test#2"`` if the run has a ``"test"`` already.

    NaN is no prediction and no accuracy: where the model gives a NaN logit of a class in S to an image, the
    accuracy on its experience is NaN, and with it every summary that the entry is part of.

    After each evaluated experience ``Accuracy_<space>`` is logged, and at the end of an evaluation
    the summaries of `avalanche_vlm.functional.accuracy_matrix_summary` that are defined, of the
    stream as if it ended after the experiences trained on so far: ``LastAccuracy_<space>``,
    ``Forgetting_<space>`` and so on; one that was logged and is not defined any more is NaN.

    A metric belongs to one run. Build new ones for each strategy, or call `reset` in between.

    Args:
        space: which classes an image is compared with.

    Raises:
        ValueError: ``space`` is unknown; in training and evaluation, the metric has measured another
            strategy, or experiences of two benchmarks are trained on.

    >>> metric = AccuracyMatrixMetric("all")
    >>> metric
    AccuracyMatrixMetric('all')

    References:
        Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017.

    Deviations:
        The matrix has a row before training, and the host's ``AccuracyMatrixPluginMetric`` is
        square.
    """

    def __init__(self, space: LabelSpace = "seen") -> None:
        check_choice("space", space, LABEL_SPACES)
        self.space: LabelSpace = space
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.space!r})"

    def _forget(self) -> None:
        self._streams: dict[str, StreamAccuracies] = {}
        self._trained: list[int] = []
        self._evaluated: list[str] = []
        self._logged: set[str] = set()
        self._start_experience()

    def _rename(self, old: str, new: str) -> None:
        self._streams = renamed(self._streams, old, new)

    def result(self) -> dict[str, Tensor]:
        """Return the matrix (T+1, T) of every stream by its name."""
        return {name: self.matrix(name) for name in self._streams}

    def matrix(self, stream: str = "test") -> Tensor:
        """Return the float64 accuracies (T+1, T) of a stream, NaN where not measured or defined.

        Raises:
            ValueError: the stream has not been evaluated.
        """
        return self._accuracies(stream).matrix(self._trained)

    def counts(self, stream: str = "test") -> Tensor:
        """Return the int64 number of samples (T,) of each experience, 0 if never evaluated.

        Raises:
            ValueError: the stream has not been evaluated.
        """
        return self._accuracies(stream).sample_counts(self._trained)

    @property
    def experiences_trained(self) -> int:
        """Number of different experiences trained on."""
        return len(self._trained)

    def summary(self, stream: str = "test") -> dict[str, float]:
        """Return the summaries of a stream as if it ended after the experiences trained on so far.

        Before any training that is the zero-shot accuracy alone, which is known of the whole stream
        from the start. NaN where a summary is not defined.

        Raises:
            ValueError: the stream has not been evaluated.
        """
        matrix, counts, trained = self.matrix(stream), self.counts(stream), len(self._trained)
        summary = accuracy_matrix_summary(matrix, space=self.space)
        zero_shot = {name: value for name, value in summary.items() if name == "zero_shot_accuracy"}
        if trained == 0:
            return zero_shot
        so_far = accuracy_matrix_summary(
            matrix[: trained + 1, :trained], space=self.space, counts=counts[:trained]
        )
        return {**so_far, **zero_shot}

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured and trained, in plain types."""
        streams = {name: stream.state_dict() for name, stream in self._streams.items()}
        return {"space": self.space, "trained": list(self._trained), "streams": streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: the state is that of another label space.
        """
        if state["space"] != self.space:
            raise wrong_value("state", f"of the label space {self.space!r}", repr(state["space"]))
        self.reset()
        self._trained = [int(position) for position in state["trained"]]
        self._streams = {
            name: StreamAccuracies.from_state_dict(stream) for name, stream in state["streams"].items()
        }

    def _accuracies(self, name: str) -> StreamAccuracies:
        if name not in self._streams:
            advice = close_names(name, self._streams) if self._streams else "Call `strategy.eval` first."
            if self._in_training:
                known = f" {advice}" if self._streams else ""
                advice = (
                    "Evaluations inside `strategy.train`, and those after an interrupted one, do not "
                    f"count until a training has ended.{known}"
                )
            raise wrong_value("stream", "the name of an evaluated stream", repr(name), advice)
        return self._streams[name]

    # Training: which row is being measured.

    def after_training_exp(self, strategy: Any) -> None:
        """Open the row of the experience that was just trained on."""
        for experience in trained_experiences(strategy):
            position = position_in_training(experience)
            if position not in self._trained:
                self._trained.append(position)
        # A further piece of the same experience, of an online stream, makes its row out of date.
        for stream in self._streams.values():
            stream.rows.pop(len(self._trained), None)

    # Evaluation.

    def before_eval(self, strategy: Any) -> None:
        """Start an evaluation.

        Raises:
            ValueError: the metric has measured another run.
        """
        super().before_eval(strategy)
        self._evaluated = []

    def before_eval_exp(self, strategy: Any) -> None:
        """Start the counts of an experience."""
        super().before_eval_exp(strategy)
        self._start_experience()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Count correct predictions, without waiting for the device."""
        logits, targets = strategy.mb_output, strategy.mb_y
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise wrong_type("strategy.mb_output", "logits (B, C) of the model", logits)
        if self._columns is None:
            columns = strategy_columns(strategy, self.space, logits.shape[1])
            current = experience_classes(strategy.experience)
            self._defined = self.space != "seen" or bool(torch.isin(current, columns).any())
            self._columns = columns.to(logits.device)
        predictions = label_space_predictions(logits, self._columns)
        correct = (predictions == targets).sum()
        without = (predictions < 0).any()
        self._correct = correct if self._correct is None else self._correct + correct
        self._without = without if self._without is None else self._without | without
        self._count += len(targets)

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Write the entry of the matrix, and log it."""
        if self._correct is None:
            return []
        # Without classes nothing is predicted; with them that is so where logits are NaN.
        is_number = self._defined and not (self._columns is not None and len(self._columns) and self._without)
        accuracy = float(self._correct) / self._count if is_number else float("nan")
        experience = strategy.experience
        if not self._in_training:
            stream = self._streams.setdefault(self._stream, StreamAccuracies())
            position = int(experience.current_experience)
            stream.length = max(stream.length, position + 1, _stream_length(experience))
            stream.rows.setdefault(len(self._trained), {})[position] = accuracy
            stream.counts[position] = self._count
            if self._stream not in self._evaluated:
                self._evaluated.append(self._stream)
        if not self._defined:
            return []
        name = get_metric_name(f"Accuracy_{self.space}", strategy, add_experience=True, add_task=True)
        name = name.replace(f"/{experience.origin_stream.name}_stream", f"/{self._stream}_stream")
        return [MetricValue(self, name, accuracy, strategy.clock.train_iterations)]

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Log the summaries that are defined by now."""
        named = {
            self._summary_name(metric, stream): value
            for stream in self._evaluated
            for metric, value in self.summary(stream).items()
        }
        # The host hands out the last value of each name: what is not defined any more must not stay.
        told = {name: value for name, value in named.items() if value == value or name in self._logged}
        self._logged.update(told)
        step = strategy.clock.train_iterations
        return [MetricValue(self, name, value, step) for name, value in told.items()]

    def _start_experience(self) -> None:
        self._columns: Tensor | None = None
        self._defined = True
        self._correct: Tensor | None = None
        self._without: Tensor | None = None
        self._count = 0

    def _summary_name(self, metric: str, stream: str) -> str:
        words = "".join(word.capitalize() for word in metric.split("_")).replace("CiTransfer", "CITransfer")
        name: dict[str, Any] = {
            "metric_name": f"{words}_{self.space}",
            "phase_name": "eval",
            "stream_name": stream,
        }
        return generic_get_metric_name(default_metric_name_template, name)


def continual_metrics(*, spaces: Sequence[LabelSpace] = ("seen", "all")) -> list[AccuracyMatrixMetric]:
    """Return one `AccuracyMatrixMetric` per label space, for the host's ``EvaluationPlugin``.

    Args:
        spaces: label spaces, each once. ``("seen", "all")`` gives class-incremental accuracy and
            CI-Transfer, ``("dataset",)`` gives MTIL's Transfer, Avg and Last.

    Raises:
        TypeError: ``spaces`` is a single word.
        ValueError: a space is unknown, or listed twice.

    >>> continual_metrics(spaces=("dataset",))
    [AccuracyMatrixMetric('dataset')]
    """
    if isinstance(spaces, str):
        raise wrong_type("spaces", "a sequence of label spaces", spaces, f"Write ({spaces!r},).")
    check_sequence("spaces", spaces, str, "label spaces")
    for space in spaces:
        check_choice("spaces", space, LABEL_SPACES)
    if len(set(spaces)) != len(spaces):
        raise wrong_value("spaces", "label spaces without duplicates", tuple(spaces))
    return [AccuracyMatrixMetric(space) for space in spaces]


def _stream_length(experience: Any) -> int:
    """Return how many experiences the stream has, 0 if it does not know (lazy streams)."""
    stream = experience.origin_stream
    return len(stream) if hasattr(stream, "__len__") else 0
