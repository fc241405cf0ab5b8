"""The state of a strategy as bytes."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import AGEMPlugin, MIRPlugin

from avalanche_vlm.checkpointing._bytes import to_bytes
from avalanche_vlm.checkpointing._graph import MODEL, CannotBeSaved
from avalanche_vlm.checkpointing._logs import log_positions
from avalanche_vlm.checkpointing._model import model_state
from avalanche_vlm.checkpointing._module_attributes import changed_attributes
from avalanche_vlm.checkpointing._random import random_state
from avalanche_vlm.checkpointing._walk import (
    Run,
    encode_roots,
    encode_transforms,
    encoder_of,
    group_names,
    parts,
    trained_strategy,
)


def capture(strategy: Any, run: Run) -> bytes:
    """Return the state of a strategy between two experiences or two epochs.

    Raises:
        CannotBeSaved: a plugin holds something that has no place in a checkpoint.
    """
    try:
        return _capture(strategy, run)
    except RecursionError as error:
        raise CannotBeSaved(
            "The strategy holds things in things a thousand deep (a chain of objects, most likely), which a "
            "checkpoint cannot hold. Keep them in a list."
        ) from error


def _capture(strategy: Any, run: Run) -> bytes:
    built = trained_strategy(strategy, run.data) if run.built is None else run.built
    encoder = encoder_of(strategy, run.data, built)
    groups = strategy.optimizer.param_groups
    optimized = [parameter for group in groups for parameter in group["params"]]
    model = model_state(strategy.model, optimized, built.model, run.fingerprints)
    roots = encode_roots(strategy, encoder)
    attributes = changed_attributes(encoder, strategy.model, MODEL, built.model.attributes)
    transforms = encode_transforms(run.data, encoder)
    encoder.views.put_places(encoder.nodes)
    state = {
        "experiences": int(strategy.clock.train_exp_counter),
        "epochs": int(strategy.clock.train_exp_epochs),
        "kinds": built.kinds,
        "settings": built.settings,
        "model settings": built.model.settings,
        "model": model,
        "groups": built.groups,
        "roots": roots,
        "optimized": group_names(strategy),
        "attributes": attributes,
        "transforms": transforms,
        "nodes": encoder.nodes,
        "data": run.data.described(),
        "logs": log_positions(strategy),
        "random": random_state(),
    }
    return to_bytes(state)


def check_middle(strategy: Any) -> None:
    """Raise if a plugin draws from something that cannot be stored in the middle of an experience."""
    for plugin in parts(strategy):
        if isinstance(plugin, (AGEMPlugin, MIRPlugin)):
            raise CannotBeSaved(
                f"{type(plugin).__name__} draws from an endless loader, whose place cannot be stored between "
                "two epochs. Leave every_n_epochs out."
            )
