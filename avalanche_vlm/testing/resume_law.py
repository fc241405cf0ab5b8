"""The law of a run that is stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from typing import Any

import torch

from avalanche_vlm.testing.running import differing, require, snapshot


def check_resumable(make_strategy: Callable[[], Any], benchmark: Any) -> None:
    """Law: stopped after any experience and resumed in fresh objects, a run ends as if never stopped.

    What is carried over is the ``state_dict`` of the model, the optimizer and every plugin that has
    one, read back with ``weights_only=True``, and the global generator's state. Iterations are
    counted over both parts, so that starting from zero does not pass.
    """

    def train(strategy: Any, experiences: Iterable[Any]) -> int:
        iterations = 0
        for experience in experiences:
            strategy.train(experience)
            iterations += strategy.clock.train_exp_iterations
        return iterations

    stream = list(benchmark.train_stream)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = make_strategy()
        whole_iterations = train(whole, stream)
        expected = snapshot(whole.model)
        for stop in range(1, len(stream)):
            torch.manual_seed(0)
            first = make_strategy()
            iterations = train(first, stream[:stop])
            file = BytesIO()
            torch.save({**_state(first), "generator": torch.get_rng_state()}, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
            second = make_strategy()
            # The host fills its optimizer at the first training; the state needs its groups.
            second.make_optimizer(reset_optimizer_state=True)
            _load_state(second, state)
            torch.set_rng_state(state["generator"])
            iterations += train(second, stream[stop:])
            changed = differing(expected, snapshot(second.model))
            require(not changed, f"resumed after experience {stop}, the run ends with other {changed[:5]}")
            require(iterations == whole_iterations, f"{iterations} iterations instead of {whole_iterations}")


def _state(strategy: Any) -> dict[str, Any]:
    plugins = [p.state_dict() if hasattr(p, "state_dict") else {} for p in strategy.plugins]
    return {
        "model": strategy.model.state_dict(),
        "optimizer": strategy.optimizer.state_dict(),
        "plugins": plugins,
    }


def _load_state(strategy: Any, state: Mapping[str, Any]) -> None:
    strategy.model.load_state_dict(state["model"])
    strategy.optimizer.load_state_dict(state["optimizer"])
    # The host resets the optimizer when it does not know its parameters yet.
    strategy.optimized_param_id = dict(strategy.model.named_parameters())
    for plugin, plugin_state in zip(strategy.plugins, state["plugins"], strict=True):
        if hasattr(plugin, "load_state_dict"):
            plugin.load_state_dict(plugin_state)
