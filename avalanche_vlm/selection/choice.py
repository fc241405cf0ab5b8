"""A choice of hyper-parameters, and how it was made."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class CandidateScores:
    """What one candidate reached.

    Args:
        hyperparameters: the candidate.
        by_seed: selection seed -> score, those that were reached before a failure.
        failure: why it cannot be chosen, or None.
    """

    hyperparameters: dict[str, Any]
    by_seed: dict[int, float] = field(default_factory=dict[int, float])
    failure: str | None = None

    @property
    def mean(self) -> float | None:
        """Mean score over the seeds; None after a failure."""
        return None if self.failure else statistics.fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        """Standard deviation of the sample of seeds; None after a failure and for a single seed."""
        return None if self.failure or len(self.by_seed) < 2 else statistics.stdev(self.by_seed.values())


@dataclass(frozen=True)
class Choice:
    """The chosen hyper-parameters, and how they were chosen.

    Args:
        best: the candidate of the highest mean score.
        scores: what each candidate reached, in their order.
        selection_seeds: seeds that the scores come from.
        reported_seeds: seeds that were kept apart.
        validation_fraction: share of each class of each train experience that was validated on.
        class_orders_compared: False where every experience has the same classes, so that there is
            no class order.
    """

    best: dict[str, Any]
    scores: tuple[CandidateScores, ...]
    selection_seeds: tuple[int, ...]
    reported_seeds: tuple[int, ...]
    validation_fraction: float
    class_orders_compared: bool

    def describe(self) -> dict[str, Any]:
        """Return all of it for a JSON file; values that JSON does not know are written by `repr`."""
        orders = "none equals a reported one" if self.class_orders_compared else "no order: classes recur"
        description = {
            "best": self.best,
            "rule": "highest mean validation score over the selection seeds; of equals the earlier one",
            "selection_seeds": self.selection_seeds,
            "reported_seeds": self.reported_seeds,
            "class_orders_of_selection": orders,
            "validation_fraction": self.validation_fraction,
            "test_stream": "not available during selection",
            "candidates": [
                {
                    "hyperparameters": each.hyperparameters,
                    "scores": {str(seed): score for seed, score in each.by_seed.items()},
                    "mean": each.mean,
                    "std": each.std,
                    "failure": each.failure,
                }
                for each in self.scores
            ],
        }
        return json.loads(json.dumps(description, default=repr))

    def table(self, *, title: str | None = None) -> Table:
        """Return a table with one line a candidate: ``rich.print(table)``, or `logging.table_text`."""
        table = Table(
            title=None if title is None else Text(title, style="table.title"),
            caption=Text("validation score, mean ± standard deviation over seeds", style="table.caption"),
            box=box.SIMPLE_HEAD,
        )
        names = list(dict.fromkeys(name for each in self.scores for name in each.hyperparameters))
        for name in names:
            table.add_column(Text(name), overflow="fold")
        table.add_column("Score", justify="right", no_wrap=True)
        table.add_column("", overflow="fold")
        chosen = next(each for each in self.scores if each.hyperparameters is self.best)
        for each in self.scores:
            values = [
                Text(str(each.hyperparameters[name])) if name in each.hyperparameters else Text("–")
                for name in names
            ]
            note = "chosen" if each is chosen else each.failure or ""
            table.add_row(*values, Text(_score_text(each)), Text(note))
        return table


def _score_text(each: CandidateScores) -> str:
    if each.mean is None:
        return "–"
    return f"{each.mean:.4g}" if each.std is None else f"{each.mean:.4g} ± {each.std:.2g}"
