"""Make the runs of a comparison, side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from avalanche_vlm._checks import check_count, check_sequence, check_type, wrong_value
from avalanche_vlm.comparison._one_run import make, make_in_process, obstacle, run_folder
from avalanche_vlm.comparison.outcome import Outcome, is_finished, outcome_of, read_outcome, write_outcome
from avalanche_vlm.comparison.run import Run


def compare(
    runs: Sequence[Run],
    folder: str | os.PathLike[str],
    *,
    processes: int = 1,
    checkpoints: bool = True,
) -> list[Outcome]:
    """Make all runs that a folder does not have yet, and keep what came out of each.

    A run seeds everything, prepares its stream, builds the strategy, evaluates it, and then trains on one
    experience after another (joint training on all at once), with an evaluation of the test stream after
    each. Each run has a folder of its own, ``runs/<run>``, with its ``results.csv`` (see
    `avalanche_vlm.logging.ResultsLogger`) and what is needed to repeat it; `write_comparison` makes tables
    and pictures of them, and whatever takes a file of results takes ``folder`` too, such as
    `avalanche_vlm.logging.results_table`.

    *Interrupted* (Ctrl-C, a kill, the power cut), the same call goes on: finished runs stay, the others
    go on from their last checkpoint and end as if they had never stopped. A run whose two functions read
    differently from when it was made is made again, and so is one whose outcome cannot be read; what it had
    measured is moved to ``runs/<run>/earlier``, where no table looks. What the two functions *call* is not
    looked at, so that after a change there the folder ``runs`` has to be deleted.

    *Failed*: an error in a run, or the death of its process, ends that run alone; so does a file or a link
    where the folder of a run should be. Its outcome has the reason, ``runs/<run>/log.txt`` all that was
    printed, and the same call tries it again.

    *Several processes*: each run has a process of its own, which imports afresh and shares nothing with
    the others, so that its peak memory is its own. Processes are started by a server that has imported this
    package and done nothing else, where the system allows it. A script needs
    ``if __name__ == "__main__":`` around its call then, as with all of Python's processes. The same
    script may be started twice on one folder: runs are locked while they are made.

    Args:
        runs: what to make; see `grid`.
        folder: where all of it goes; it is made if it does not exist.
        processes: how many runs at a time; the threads of torch are shared out among them. 0 makes them
            one after another in this process, with their output on the terminal: for functions that cannot
            be imported (in a notebook), and to look for an error.
        checkpoints: whether to write a checkpoint after each experience. Without, a run that was interrupted
            begins anew; take it where a part of a run cannot be saved.

    Returns:
        An outcome for each run, in their order.

    Raises:
        TypeError: an argument has another type.
        ValueError: there are no runs, two of one name, or functions that cannot be imported;
            nothing is made then.
        KeyboardInterrupt: Ctrl-C, after the processes have ended: at the next end of an epoch or
            experience, at once if it is pressed twice.
    """
    check_sequence("runs", runs, Run, "runs")
    check_type("checkpoints", checkpoints, bool)
    runs = list(runs)
    _check(runs, processes)
    check_type("folder", folder, (str, os.PathLike))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    left = [run for run in runs if not is_finished(run, read_outcome(run_folder(run, folder)))]
    lines = _Lines(len(runs), len(runs) - len(left))
    with lines.progress:
        if processes == 0:
            made = _here(left, folder, checkpoints, lines)
        else:
            made = _Processes(folder, checkpoints, processes, lines).make(left)
    new = {run.folder_name: outcome for run, outcome in zip(left, made, strict=True)}
    return [new.get(run.folder_name) or outcome_of(run, "finished") for run in runs]


def _check(runs: Sequence[Run], processes: int) -> None:
    check_count("processes", processes, at_least=0)
    if not runs:
        raise wrong_value("runs", "at least one run", "none")
    for run in runs:
        check_type("runs", run, Run)
        run.definition()  # as its functions read now
        if processes:
            run.check_importable()
    counts = Counter((run.stream, run.method, run.seed) for run in runs)
    twice = [run for run in runs if counts[run.stream, run.method, run.seed] > 1]
    if twice:
        raise wrong_value("runs", "runs of different names", f"{twice[0]} twice")


def _here(runs: Sequence[Run], folder: Path, checkpoints: bool, lines: _Lines) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for run in runs:
        task = lines.begin(run)
        tell = partial(lines.tell, task)
        outcome = make(run, folder, checkpoints=checkpoints, tell=tell)
        outcomes.append(outcome)
        lines.end(task, outcome)
        if outcome.state == "interrupted":
            raise KeyboardInterrupt
    return outcomes


class _Processes:
    """Makes runs in processes of their own."""

    def __init__(self, folder: Path, checkpoints: bool, count: int, lines: _Lines) -> None:
        methods = multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self.context.set_forkserver_preload(["__main__", "avalanche_vlm.comparison._one_run"])
        self.folder = folder
        self.checkpoints = checkpoints
        self.count = count
        self.threads = max((os.cpu_count() or 1) // count, 1)
        self.lines = lines
        self.active: dict[Connection, tuple[Run, Any, TaskID]] = {}
        self.outcomes: dict[str, Outcome] = {}  # by the folder of the run

    def make(self, runs: Sequence[Run]) -> list[Outcome]:
        waiting = list(runs)
        try:
            while waiting or self.active:
                while waiting and len(self.active) < self.count:
                    self._begin(waiting.pop(0))
                self._listen()
                # Ctrl-C that a process has heard is meant for all.
                if any(each.state == "interrupted" for each in self.outcomes.values()):
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            # The terminal has told the processes too: they stop where they can be resumed.
            try:
                while self.active:
                    self._listen()
            except KeyboardInterrupt:
                for _, process, _ in self.active.values():
                    process.terminate()
            raise
        return [self.outcomes[run.folder_name] for run in runs]

    def _begin(self, run: Run) -> None:
        receiver, sender = self.context.Pipe(duplex=False)
        arguments = (run, self.folder, self.checkpoints, self.threads, sender)
        process = self.context.Process(target=make_in_process, args=arguments)
        process.start()
        sender.close()  # the end in this process: so the death of the other is heard
        self.active[receiver] = run, process, self.lines.begin(run)

    def _listen(self) -> None:
        for receiver in wait(list(self.active)):
            assert isinstance(receiver, Connection)
            run, process, task = self.active[receiver]
            try:
                message = receiver.recv()
            except (EOFError, OSError):  # it ended, maybe amid a message
                process.join()
                message = self._of_the_dead(run, process.exitcode)
            if not isinstance(message, Outcome):
                self.lines.tell(task, *message)
                continue
            del self.active[receiver]
            receiver.close()
            process.join()
            self.outcomes[run.folder_name] = message
            self.lines.end(task, message)

    def _of_the_dead(self, run: Run, exit_code: int) -> Outcome:
        name = signal.Signals(-exit_code).name if exit_code < 0 else f"code {exit_code}"
        own = run_folder(run, self.folder)
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        where = "; see log.txt of the run"
        if not (own / "log.txt").exists():
            where = ' before it began; a script needs if __name__ == "__main__": around its call'
        outcome = outcome_of(run, "failed", f"its process ended with {name}{hint}{where}")
        if not obstacle(own):
            with contextlib.suppress(OSError):  # a full disk, which may be what it died of
                own.mkdir(parents=True, exist_ok=True)
                write_outcome(own, outcome)
        return outcome


class _Lines:
    """A line of progress for all runs, and one for each that is being made."""

    def __init__(self, total: int, done: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.all = self.progress.add_task("runs", total=total, completed=done)
        self.failed = 0

    def begin(self, run: Run) -> TaskID:
        return self.progress.add_task(str(run).replace("[", r"\["), total=None)

    def tell(self, task: TaskID, done: int, total: int) -> None:
        self.progress.update(task, completed=done, total=total)

    def end(self, task: TaskID, outcome: Outcome) -> None:
        self.progress.remove_task(task)
        self.failed += outcome.state == "failed"
        words = f"runs, {self.failed} failed" if self.failed else "runs"
        self.progress.update(self.all, advance=1, description=words)
