"""One run of a comparison, from its functions to its outcome."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Generator
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import torch
from avalanche.training import JointTraining
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin

from avalanche_vlm._checks import check_type, wrong_value
from avalanche_vlm._processes import free_lock
from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.checkpointing._file import checkpoints_in
from avalanche_vlm.comparison.outcome import (
    FILE_NAME,
    Outcome,
    is_finished,
    is_of,
    is_plain_file,
    outcome_of,
    read_outcome,
    write_outcome,
)
from avalanche_vlm.comparison.run import Run
from avalanche_vlm.comparison.setup import Setup
from avalanche_vlm.logging import ResultsLogger
from avalanche_vlm.logging.provenance import runs_path
from avalanche_vlm.logging.results_file import RESULTS, RUNS
from avalanche_vlm.metrics import CostMetric, MemoryMetric, continual_metrics

EARLIER = "earlier"
Told = Callable[[int, int], None]


def run_folder(run: Run, folder: Path) -> Path:
    """Return the folder of a run within that of its comparison."""
    return folder / RUNS / run.folder_name


def obstacle(own: Path) -> str:
    """Return what is in the way of a run in its folder, empty if nothing is.

    What a link leads to is not the run's, and might be written to, or emptied.
    """
    if not os.path.lexists(own):
        return ""
    if own.is_symlink() or not own.is_dir():
        return f"{own} must be a folder of its own; it is {_kind(own)}. Move it away."
    for name in ("lock", "log.txt", FILE_NAME, RESULTS, runs_path(RESULTS).name):
        path = own / name
        if os.path.lexists(path) and not is_plain_file(path):
            return f"{path} must be a file of the run; it is {_kind(path)}. Move it away."
    for name in ("checkpoints", EARLIER):
        path = own / name
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
            return f"{path} must be a folder of the run; it is {_kind(path)}. Move it away."
    return ""


def make(run: Run, folder: Path, *, checkpoints: bool, tell: Told) -> Outcome:
    """Make a run, or what is left of it, and write its outcome.

    Args:
        run: the run.
        folder: of the comparison.
        checkpoints: whether to write them after each experience, and to go on from them.
        tell: called with the number of experiences that are done, and that of all.

    Returns:
        The outcome; an error in the run is one, also one that keeps it from beginning.
    """
    own = run_folder(run, folder)
    try:
        if problem := obstacle(own):
            return outcome_of(run, "failed", problem)
        own.mkdir(parents=True, exist_ok=True)
        lock = free_lock(own / "lock")
    except OSError as error:
        return outcome_of(run, "failed", _words(error))
    if lock is None:
        return outcome_of(run, "elsewhere")
    try:
        return _make_locked(run, own, checkpoints=checkpoints, tell=tell)
    except OSError as error:  # the outcome could not be written, for instance
        traceback.print_exc()
        return outcome_of(run, "failed", _words(error))
    finally:
        lock.release()


def _make_locked(run: Run, own: Path, *, checkpoints: bool, tell: Told) -> Outcome:
    before = read_outcome(own)
    if is_finished(run, before):
        return outcome_of(run, "finished")  # by another process, since this one looked
    kept = own / "checkpoints"
    if before is None or not is_of(run, before) or not checkpoints:
        # What was made of other functions, or nobody knows of which, is not gone on with.
        _remove(kept)
    if not checkpoints_in(kept):
        set_aside(own)
    write_outcome(own, outcome_of(run, "interrupted"))  # unless it comes to its end
    try:
        _train(run, own, kept if checkpoints else None, tell)
        outcome = outcome_of(run, "finished")
    except KeyboardInterrupt:
        outcome = outcome_of(run, "interrupted")
    except Exception as error:
        traceback.print_exc()
        outcome = outcome_of(run, "failed", _words(error))
    write_outcome(own, outcome)
    if outcome.state == "finished":
        with contextlib.suppress(OSError):
            _remove(kept)
    return outcome


def set_aside(own: Path) -> None:
    """Move the results that a run has in its folder to a folder of earlier ones: it begins anew."""
    present = [path for path in (own / RESULTS, runs_path(own / RESULTS)) if path.exists()]
    if not present:
        return
    place = next(place for number in count(1) if not (place := own / EARLIER / str(number)).exists())
    place.mkdir(parents=True)
    for path in present:
        path.rename(place / path.name)


def _remove(path: Path) -> None:
    """Remove a folder with all that it holds, if there is one."""
    if path.exists():
        shutil.rmtree(path)


def _kind(path: Path) -> str:
    return (
        "a link"
        if path.is_symlink()
        else "a folder"
        if path.is_dir()
        else "a file"
        if path.is_file()
        else "neither"
    )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _train(run: Run, own: Path, checkpoints: Path | None, tell: Told) -> None:
    RNGManager.set_random_seeds(run.seed)
    setup: Any = run.prepare(run.seed)
    check_type("prepare", setup, Setup, "The function of a stream returns a Setup.")
    # The seed says all: a stream that draws more or less leaves a method's numbers as they are.
    RNGManager.set_random_seeds(run.seed)
    metrics = [CostMetric(), MemoryMetric(), *continual_metrics(spaces=setup.spaces)]
    settings = {"definition": run.definition()}
    logger = ResultsLogger(
        own / RESULTS, method=run.method, benchmark=run.stream, seed=run.seed, settings=settings
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

    def send(message: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: the run goes on, and is kept
            connection.send(message)

    try:
        if problem := obstacle(own):
            send(outcome_of(run, "failed", problem))
            return
        own.mkdir(parents=True, exist_ok=True)
        log = (own / "log.txt").open("a")
    except OSError as error:
        send(outcome_of(run, "failed", _words(error)))
        return
    with _output_to(log):
        outcome = make(run, folder, checkpoints=checkpoints, tell=lambda done, total: send((done, total)))
    send(outcome)


@contextlib.contextmanager
def _output_to(log: TextIO) -> Generator[None, None, None]:
    """Let everything that this process prints, below Python too, go to the end of a file."""
    with log as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
        yield
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
