"""Write the state of a strategy to a file."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avalanche_vlm._checks import check_type
from avalanche_vlm.checkpointing._capture import capture
from avalanche_vlm.checkpointing._data import BenchmarkData
from avalanche_vlm.checkpointing._file import write_checkpoint
from avalanche_vlm.checkpointing._walk import Run
from avalanche_vlm.logging.provenance import package_version

_PACKAGES = ("avalanche-vlm", "avalanche-lib", "torch", "numpy")


def save(strategy: Any, path: str | os.PathLike[str], benchmark: Any = None) -> None:
    """Write a checkpoint of a strategy that is between two experiences.

    `CheckpointPlugin` does this by itself; this is for a script that wants to say when.

    Args:
        strategy: a strategy of ours or of the host; not while it trains or evaluates.
        path: the file, which is replaced if it exists.
        benchmark: what the strategy trains on: samples in its buffers are stored by their place in
            it, and `resume` refuses another one. None for strategies that hold no samples.

    Raises:
        TypeError: ``path`` is no path, or a plugin holds something that cannot be stored.
        OSError: the file could not be written; what was there before still is.

    >>> import tempfile, torch
    >>> from avalanche_vlm.checkpointing import resume
    >>> from avalanche_vlm.strategies import FineTune
    >>> from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
    >>> def build():
    ...     model = tiny_classifier(trainable="image")
    ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ...     return FineTune(model=model, optimizer=optimizer, train_mb_size=8, evaluator=None)
    >>> benchmark, strategy = tiny_benchmark(), build()
    >>> _ = strategy.train(benchmark.train_stream[0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(strategy, f"{folder}/run.ckpt", benchmark)
    ...     resume(build(), f"{folder}/run.ckpt", benchmark)
    1
    """
    check_type("path", path, (str, os.PathLike))
    run = Run(data=BenchmarkData(benchmark))
    write_state(strategy, Path(path), {"state": capture(strategy, run)}, run=run)


def write_state(
    strategy: Any, path: Path, sections: Mapping[str, bytes], *, run: Run, epochs: int = 0
) -> None:
    """Write captured states to a file, with what a reader wants to know first."""
    header = {
        "experiences": int(strategy.clock.train_exp_counter),
        "epochs": epochs,
        "run": run.id,
        "evaluations": run.evaluations,
        "strategy": type(strategy).__name__,
        "versions": versions(),
    }
    write_checkpoint(path, header, sections)


def versions() -> dict[str, str]:
    """Return the versions of what decides whether a run can be repeated bit for bit."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: package_version(name) or "unknown" for name in _PACKAGES}}
