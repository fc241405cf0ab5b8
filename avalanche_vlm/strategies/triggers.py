"""The host's triggers of callbacks, without the cost of an evaluator that does not listen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.training.plugins import EvaluationPlugin


def trigger_of(event: str) -> Callable[..., None]:
    """Return the host's trigger of a callback, but for an evaluator in which nothing listens to it.

    The host's evaluator copies the experience at every callback of every batch, metrics or not.

    Args:
        event: the name of the callback, ``"after_forward"`` for instance.
    """

    def trigger(strategy: Any, **kwargs: Any) -> None:
        for plugin in strategy.plugins:
            if plugin is not strategy.evaluator or _listens(strategy.evaluator, event):
                callback = getattr(plugin, event, None)
                if callback is not None:
                    callback(strategy, **kwargs)

    return trigger


def _listens(evaluator: EvaluationPlugin, event: str) -> bool:
    if type(evaluator) is not EvaluationPlugin or len(evaluator.loggers) > 0:
        return True
    silent = getattr(PluginMetric, event, None)
    callbacks = (getattr(metric, event, None) for metric in evaluator.metrics)
    return any(getattr(callback, "__func__", None) is not silent for callback in callbacks)
