"""How far what a model says of old classes has drifted in an experience, as a metric of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_vlm._checks import check_number, wrong_type
from avalanche_vlm._host import experience_classes, position_in_training, trained_experiences
from avalanche_vlm.functional.semantic_drift import SemanticDrift, semantic_drift
from avalanche_vlm.metrics._run_metric import StreamMetric, renamed
from avalanche_vlm.metrics.placed_value import PlacedValue


@final
class SemanticDriftMetric(StreamMetric[dict[str, SemanticDrift]]):
    r"""Drift of the image-text distribution over old classes, near the boundary to new ones and far from it.

    .. math:: D = \frac1n \sum_i JS\bigl( \mathrm{softmax}_{c \in old} z_i^{t-1}, \;
                                         \mathrm{softmax}_{c \in old} z_i^t \bigr)

    over the evaluated samples of classes learned before experience t, with the logits z of the evaluation
    before training on it and of the one after it: `functional.semantic_drift` says which samples are
    boundary and which are core. z are the similarities of images and text, whatever else the head takes
    into its logits. So evaluate the same stream after every experience; of one that has grown, what was
    evaluated before is compared. Where no class is new (classes that come again) there is no drift to tell.

    ``SemanticDrift_boundary/eval_phase/<stream>_stream``, ``SemanticDrift_core/...`` and
    ``SemanticDrift_everywhere/...`` are logged, in bits, in [0, 1]; `ResultsLogger` writes rows with the
    metrics ``drift_boundary``, ``drift_core`` and ``drift_everywhere``, which `plot_semantic_drift` draws.
    Evaluations inside ``strategy.train`` do not count. The images of an evaluation pass the model once
    more, so that it takes up to twice as long; the logits of one evaluation are kept until the next.
    Streams of other benchmarks are kept apart as in `AccuracyMatrixMetric`, and a metric belongs to one run.

    Args:
        fraction: the share of the samples that is boundary, and that is core, in (0, 0.5].

    Raises:
        ValueError: a fraction out of its range; in training and evaluation, the metric has measured another
            strategy, or experiences of two benchmarks are trained on.

    References:
        SeGP-CL (arXiv 2603.12055), the finding that drift gathers at the boundary.

    Deviations:
        Those of `functional.semantic_drift`.

    >>> SemanticDriftMetric().result()
    {}
    """

    def __init__(self, *, fraction: float = 0.25) -> None:
        check_number("fraction", fraction, above=0, at_most=0.5)
        self.fraction = fraction
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(fraction={self.fraction})"

    def _forget(self) -> None:
        self._trained = torch.zeros(0, dtype=torch.int64)
        self._positions: set[int] = set()
        self._before: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._drifts: dict[str, SemanticDrift] = {}
        self._start_evaluation()

    def _rename(self, old: str, new: str) -> None:
        self._before, self._drifts = renamed(self._before, old, new), renamed(self._drifts, old, new)

    def result(self) -> dict[str, SemanticDrift]:
        """Return the drift of the last experience, by the name of the stream; empty before the second."""
        return dict(self._drifts)

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured, in plain types and tensors."""
        return {
            "trained": self._trained,
            "positions": sorted(self._positions),
            "before": {stream: list(kept) for stream, kept in self._before.items()},
            "drifts": {stream: list(drift) for stream, drift in self._drifts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.reset()
        self._trained, self._positions = state["trained"], set(map(int, state["positions"]))
        self._before = {stream: (kept[0], kept[1], kept[2]) for stream, kept in state["before"].items()}
        self._drifts = {stream: SemanticDrift(*drift) for stream, drift in state["drifts"].items()}

    def after_training_exp(self, strategy: Any) -> None:
        """Note which classes were trained on."""
        found = [experience_classes(each) for each in trained_experiences(strategy)]
        self._trained = torch.cat([self._trained, *found]).unique()
        self._positions.update(map(position_in_training, trained_experiences(strategy)))

    def before_eval(self, strategy: Any) -> None:
        """Start an evaluation.

        Raises:
            ValueError: the metric has measured another run.
        """
        super().before_eval(strategy)
        self._start_evaluation()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Keep the similarities of the images of a batch."""
        if self._in_training:
            return
        similarities = getattr(strategy.model, "similarities", None)
        if similarities is None:
            raise wrong_type(
                "strategy.model", "a CLIPClassifier, which compares images with text", strategy.model
            )
        with torch.no_grad():
            logits: Tensor = similarities(strategy.mb_x).float().cpu()
        kept = self._seen.setdefault(self._stream, ([], []))
        kept[0].append(logits)
        kept[1].append(strategy.mb_y.cpu())

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Compare with the evaluation before, and log."""
        values: list[MetricValue] = []
        for stream, (parts, labels) in self._seen.items():
            now, targets = torch.cat(parts), torch.cat(labels)
            before, targets_before, old = self._before.get(stream, (now, targets, self._trained))
            self._before[stream] = now, targets, self._trained
            # A stream may have grown, and so may the names: what was there before is compared.
            samples, names = before.shape
            new = self._trained[~torch.isin(self._trained, old) & (self._trained < names)]
            known = torch.isin(targets_before, old)
            same = torch.equal(targets[:samples], targets_before)
            if not same or len(new) == 0 or not bool(known.any()):
                continue
            after = now[:samples, :names]
            drift = semantic_drift(before[known], after[known], old, new, fraction=self.fraction)
            self._drifts[stream] = drift
            values += [self._value(strategy, stream, *part) for part in drift._asdict().items()]
        self._start_evaluation()
        return values

    def _value(self, strategy: Any, stream: str, part: str, drift: float) -> PlacedValue:
        columns = {"stream": stream, "metric": f"drift_{part}", "after_experience": len(self._positions)}
        name = f"SemanticDrift_{part}/eval_phase/{stream}_stream"
        return PlacedValue(self, name, drift, strategy.clock.train_iterations, columns)

    def _start_evaluation(self) -> None:
        self._seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
