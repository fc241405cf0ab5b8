"""One run of a comparison, from its functions to its outcome."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from avalanche.training import JointTraining
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin

from avalanche_vlm._checks import check_type, wrong_value
from avalanche_vlm._processes import free_lock
from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.comparison.outcome import Outcome, is_finished, outcome_of, read_outcome, write_outcome
from avalanche_vlm.comparison.run import Run
from avalanche_vlm.comparison.setup import Setup
from avalanche_vlm.logging import ResultsLogger
from avalanche_vlm.metrics import CostMetric, MemoryMetric, continual_metrics

RESULTS = "results.csv"
Told = Callable[[int, int], None]


def run_folder(run: Run, folder: Path) -> Path:
    """Return the folder of a run within that of its comparison."""
    return folder / "runs" / run.folder_name


def make(run: Run, folder: Path, *, checkpoints: bool, tell: Told) -> Outcome:
    """Make a run, or what is left of it, and write its outcome.

    Args:
        run: the run.
        folder: of the comparison.
        checkpoints: whether to write them after each experience, and to go on from them.
        tell: called with the number of experiences that are done, and that of all.

    Returns:
        The outcome; an error in the run is one.
    """
    own = run_folder(run, folder)
    own.mkdir(parents=True, exist_ok=True)
    lock = free_lock(own / "lock")
    if lock is None:
        return outcome_of(run, "elsewhere")
    try:
        before = read_outcome(own)
        if is_finished(run, before):
            return outcome_of(run, "finished")  # by another process, since this one looked
        if before is not None and before.definition != run.definition():
            shutil.rmtree(own / "checkpoints", ignore_errors=True)
        write_outcome(own, outcome_of(run, "interrupted"))  # unless it comes to its end
        try:
            _train(run, folder, own / "checkpoints" if checkpoints else None, tell)
            outcome = outcome_of(run, "finished")
            shutil.rmtree(own / "checkpoints", ignore_errors=True)
        except KeyboardInterrupt:
            outcome = outcome_of(run, "interrupted")
        except Exception as error:
            traceback.print_exc()
            words = " ".join(str(error).split())
            outcome = outcome_of(run, "failed", f"{type(error).__name__}: {words}")
        write_outcome(own, outcome)
        return outcome
    finally:
        lock.release()


def _train(run: Run, folder: Path, checkpoints: Path | None, tell: Told) -> None:
    RNGManager.set_random_seeds(run.seed)
    setup: Any = run.prepare(run.seed)
    check_type("prepare", setup, Setup, "The function of a stream returns a Setup.")
    # The seed says all: a stream that draws more or less leaves a method's numbers as they are.
    RNGManager.set_random_seeds(run.seed)
    metrics = [CostMetric(), MemoryMetric(), *continual_metrics(spaces=setup.spaces)]
    settings = {"definition": run.definition()}
    logger = ResultsLogger(
        folder / RESULTS, method=run.method, benchmark=run.stream, seed=run.seed, settings=settings
    )
    evaluator = EvaluationPlugin(*metrics, loggers=[logger])
    strategy = run.build(setup, evaluator)
    if getattr(strategy, "evaluator", None) is not evaluator:
        raise wrong_value(
            "build",
            "a strategy with the evaluator that it was given",
            repr(strategy),
            "Pass evaluator=evaluator.",
        )
    benchmark = setup.benchmark
    start = 0
    if checkpoints is not None:
        strategy.plugins.append(CheckpointPlugin(checkpoints, keep=1))
        start = resume(strategy, checkpoints, benchmark)
    # Avalanche's joint training takes all experiences at once.
    pieces = [benchmark.train_stream] if isinstance(strategy, JointTraining) else list(benchmark.train_stream)
    tell(start, len(pieces))
    if start == 0:
        strategy.eval(benchmark.test_stream)
    for done, experience in enumerate(pieces[start:], start=start + 1):
        strategy.train(experience, **setup.train_arguments)
        strategy.eval(benchmark.test_stream)
        tell(done, len(pieces))


def make_in_process(
    run: Run, folder: Path, checkpoints: bool, threads: int, connection: Any
) -> None:  # pragma: no cover (another process)
    """Make a run in a process of its own, which says through a connection how far it is."""
    torch.set_num_threads(min(threads, torch.get_num_threads()))  # OMP_NUM_THREADS may say less
    own = run_folder(run, folder)
    own.mkdir(parents=True, exist_ok=True)

    def send(message: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: the run goes on, and is kept
            connection.send(message)

    with _output_to(own / "log.txt"):
        outcome = make(run, folder, checkpoints=checkpoints, tell=lambda done, total: send((done, total)))
    send(outcome)


@contextlib.contextmanager
def _output_to(path: Path) -> Generator[None, None, None]:
    """Let everything that this process prints, below Python too, go to the end of a file."""
    with path.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
        yield
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
