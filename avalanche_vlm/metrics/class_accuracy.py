"""The accuracy of every single class, as a metric of the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_vlm._checks import check_choice, wrong_type, wrong_value
from avalanche_vlm._host import (
    experience_classes,
    position_in_training,
    strategy_columns,
    trained_experiences,
)
from avalanche_vlm.functional.label_space import LABEL_SPACES, LabelSpace, label_space_predictions
from avalanche_vlm.metrics._run_metric import StreamMetric, renamed
from avalanche_vlm.metrics.placed_value import PlacedValue


@final
class ClassAccuracyMetric(StreamMetric[dict[str, dict[int, float]]]):
    r"""Accuracy on every single class after each evaluation, in one label space.

    .. math:: a_c = \frac{1}{n_c} \sum_{i : y_i = c}
        \Bigl[ c = \operatorname*{argmax}_{k \in S} z_{i,k} \Bigr]

    over all samples of the class in the evaluated stream, for the logits z that the strategy
    computed anyway. The classes S that count are those of `AccuracyMatrixMetric`. In ``"seen"`` a
    class that has not been seen has no accuracy. That of a class is NaN where the model gives a NaN logit of
    a class in S to one of its images: NaN is no prediction and no accuracy. Streams of other benchmarks are
    kept apart as there, and a metric belongs to one run.

    At the end of an evaluation ``ClassAccuracy_<space>/eval_phase/<stream>_stream/<class>`` is
    logged for each class, by its name in ``strategy.model.class_names``, or its id if the model has
    none. A name that several data sets have is followed by that of the data set, as in
    ``lotus (flowers102)``. `avalanche_vlm.logging.ResultsLogger` writes rows with the metric
    ``class_accuracy``, the class's name, and as experience the number (from 0, in the order of
    training) of the experience that the class was first trained in; `plot_forgetting_per_class`
    draws them. Evaluations inside
    ``strategy.train`` (periodic ones) are told apart by another name of the metric,
    ``ClassAccuracy_<space>/in_training``.

    Args:
        space: which classes an image is compared with.

    Raises:
        ValueError: ``space`` is unknown; in training and evaluation, the metric has measured another
            strategy, or experiences of two benchmarks are trained on.

    >>> ClassAccuracyMetric("all")
    ClassAccuracyMetric('all')
    """

    def __init__(self, space: LabelSpace = "seen") -> None:
        check_choice("space", space, LABEL_SPACES)
        self.space: LabelSpace = space
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.space!r})"

    def _forget(self) -> None:
        self._trained: list[int] = []
        self._learned: dict[int, int] = {}
        self._last: dict[str, dict[int, float]] = {}
        self._start_evaluation()
        self._start_experience()

    def _rename(self, old: str, new: str) -> None:
        self._last = renamed(self._last, old, new)

    def result(self) -> dict[str, dict[int, float]]:
        """Return the accuracies of the last evaluation of every stream, by its name and class id.

        Evaluations inside ``strategy.train`` do not count.
        """
        return {stream: dict(values) for stream, values in self._last.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured and trained, in plain types."""
        return {
            "space": self.space,
            "trained": list(self._trained),
            "learned": dict(self._learned),
            "last": self.result(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: the state is that of another label space.
        """
        if state["space"] != self.space:
            raise wrong_value("state", f"of the label space {self.space!r}", repr(state["space"]))
        self.reset()
        self._trained = [int(position) for position in state["trained"]]
        self._learned = {int(label): int(number) for label, number in state["learned"].items()}
        self._last = {
            str(stream): {int(label): float(value) for label, value in values.items()}
            for stream, values in state["last"].items()
        }

    # Training: which classes have been learned.

    def after_training_exp(self, strategy: Any) -> None:
        """Note the classes that were just trained on."""
        for experience in trained_experiences(strategy):
            position = position_in_training(experience)
            if position not in self._trained:
                self._trained.append(position)
            for label in experience_classes(experience).tolist():
                self._learned.setdefault(label, self._trained.index(position))

    # Evaluation.

    def before_eval(self, strategy: Any) -> None:
        """Start an evaluation.

        Raises:
            ValueError: the metric has measured another run.
        """
        super().before_eval(strategy)
        self._start_evaluation()

    def before_eval_exp(self, strategy: Any) -> None:
        """Start an experience."""
        super().before_eval_exp(strategy)
        self._start_experience()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Keep the predictions, without waiting for the device."""
        logits, targets = strategy.mb_output, strategy.mb_y
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise wrong_type("strategy.mb_output", "logits (B, C) of the model", logits)
        if self._columns is None:
            self._columns = strategy_columns(strategy, self.space, logits.shape[1]).to(logits.device)
        self._targets.append(targets)
        self._predictions.append(label_space_predictions(logits, self._columns))

    def after_eval_exp(self, strategy: Any) -> None:
        """Count the correct predictions of each class."""
        if self._columns is None:
            return
        targets, predictions = torch.cat(self._targets).cpu(), torch.cat(self._predictions).cpu()
        correct = (predictions == targets).double()
        if len(self._columns):
            correct = correct.masked_fill(predictions < 0, float("nan"))
        if self.space == "seen":
            defined = torch.isin(targets, self._columns.cpu())
            targets, correct = targets[defined], correct[defined]
        stream = self._counts.setdefault(self._stream, {})
        counts = targets.bincount()
        right = targets.bincount(weights=correct)
        for label in counts.nonzero().flatten().tolist():
            before, correct_before = stream.get(label, (0, 0))
            stream[label] = (before + int(counts[label]), correct_before + float(right[label]))

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Log the accuracies of this evaluation."""
        names = _unambiguous(getattr(strategy.model, "class_names", None) or ())
        values: list[MetricValue] = []
        for stream, counts in self._counts.items():
            accuracies = {label: right / count for label, (count, right) in sorted(counts.items())}
            if accuracies and not self._in_training:
                self._last[stream] = accuracies
            for label, accuracy in accuracies.items():
                name = names[label] if label < len(names) else str(label)
                values.append(self._value(strategy, stream, label, name, accuracy))
        return values

    def _value(self, strategy: Any, stream: str, label: int, name: str, accuracy: float) -> PlacedValue:
        columns: dict[str, Any] = {"stream": stream, "class_name": name}
        if self._in_training:
            columns |= {"metric": f"ClassAccuracy_{self.space}"}
        else:
            columns |= {"metric": "class_accuracy", "space": self.space}
            columns |= {"after_experience": len(self._trained), "experience": self._learned.get(label)}
        shown = f"ClassAccuracy_{self.space}/eval_phase/{stream}_stream/{name}"
        return PlacedValue(self, shown, accuracy, strategy.clock.train_iterations, columns)

    def _start_evaluation(self) -> None:
        self._counts: dict[str, dict[int, tuple[int, float]]] = {}

    def _start_experience(self) -> None:
        self._columns: Tensor | None = None
        self._targets: list[Tensor] = []
        self._predictions: list[Tensor] = []


def _unambiguous(class_names: Sequence[Any]) -> list[str]:
    """Return the names by class id; those that occur more than once with their data set, or their id."""
    names, datasets = list(map(str, class_names)), getattr(class_names, "datasets", ())
    counts = Counter(names)
    return [
        name if counts[name] == 1 else f"{name} ({datasets[label] if datasets else label})"
        for label, name in enumerate(names)
    ]
