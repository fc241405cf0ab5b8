"""Whether the host's early stopping ever sees the metric that it waits for."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from avalanche.training.plugins import EarlyStoppingPlugin
from avalanche.training.templates.base_sgd import PeriodicEval

from avalanche_vlm._checks import close_names


def check_early_stopping(strategy: Any) -> None:
    """Warn where the plugin sees no value, or an old one for ever, which the host does without a word.

    Args:
        strategy: after an epoch and the periodic evaluation that follows it.
    """
    waiting = [plugin for plugin in strategy.plugins if isinstance(plugin, EarlyStoppingPlugin)]
    if not waiting:
        return
    evaluates = any(isinstance(each, PeriodicEval) and each.eval_every > 0 for each in strategy.plugins)
    published: Iterable[str] = strategy.evaluator.get_last_metrics()
    for plugin in waiting:
        if not evaluates:
            advice = "Give the strategy eval_every=1, and its train() eval_streams=[a validation stream]."
            reason = "nothing is evaluated while an experience is trained"
        elif any(name.startswith(plugin.metric_key) for name in published):
            continue
        else:
            reason = f"no evaluation inside of training has published {plugin.metric_key!r}"
            advice = close_names(plugin.metric_key, {_beginning(name) for name in published})
            advice += " Metrics of a whole run, such as Last, are made when an experience is over."
        warnings.warn(f"EarlyStoppingPlugin sees no new value: {reason}. {advice}", stacklevel=2)


def _beginning(name: str) -> str:
    """Return metric, phase and stream of a name: what the plugin compares with."""
    return "/".join(part for part in name.split("/")[:4] if not part.startswith(("Task", "Exp")))
