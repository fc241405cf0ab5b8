"""Where loggers were in their files, and how to go back there.

A run that is killed has written lines after its last checkpoint; resumed, it writes them again.

A checkpoint is a file that anybody may have written. Of the files of loggers it changes only what the run
itself owns: the rows that have the id of the run that this process has built, and the end of files that
loggers of this process hold open. What it says is checked before anything of the strategy is changed.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from avalanche.logging import CSVLogger

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import generated_on_demand
from avalanche_vlm.logging._benchmark_facts import benchmark_facts
from avalanche_vlm.logging._own_rows import count_rows, cut_rows
from avalanche_vlm.logging.provenance import read_runs, run_id, runs_path
from avalanche_vlm.logging.results_logger import ResultsLogger

_MOST_BYTES_KEPT = 1 << 20
_RUN = re.compile(r"[0-9a-f]{12}")
# What the host's CSVLogger writes: its headers, and numbers.
_HEADERS = {
    "training_file": b"training_exp,epoch,training_accuracy,val_accuracy,training_loss,val_loss",
    "eval_file": b"eval_exp,training_exp,eval_accuracy,eval_loss,forgetting",
}
_CELL = rb"(?:-?\d+(?:\.\d+)?|nan|-?inf|None)"
# What may be other than in the process that began a run, without its being another run.
_OF_THE_MACHINE = ("versions", "device")


class CheckedRows(NamedTuple):
    """Where a `ResultsLogger` was.

    Attributes:
        run: the id of the run; empty before its first row.
        rows: how many rows the run had.
        length: how many bytes the file had.
        own: the ids under which this process may have written rows.
        is_same: whether ``run`` is one of them, or was noted with the same facts.
    """

    run: str
    rows: int
    length: int
    own: frozenset[str]
    is_same: bool


class CheckedFiles(NamedTuple):
    """Where any other logger was: attribute -> length of the file, and its content if it may be emptied."""

    positions: Mapping[str, tuple[int, bytes | None]]


def log_positions(strategy: Any) -> list[Any]:
    """Return of each logger how far its files have been written. No file of results is read for it."""
    positions: list[Any] = []
    for logger in _loggers(strategy):
        if isinstance(logger, ResultsLogger):
            positions.append(("rows", *logger.position()))
        else:
            found = {name: _position(logger, name, file) for name, file in _files(logger).items()}
            positions.append(("files", found))
    return positions


def check_log_positions(
    strategy: Any, positions: Any, benchmark: Any = None
) -> list[CheckedRows | CheckedFiles]:
    """Return what a checkpoint says of logs, checked against the strategy as constructors made it.

    Args:
        strategy: freshly built; neither it nor any file is changed.
        positions: what `log_positions` returned, from a file.
        benchmark: what the run trains on.

    Raises:
        ValueError: the positions are not what `log_positions` returns for these loggers, or they are those
            of another run.
    """
    loggers = _loggers(strategy)
    if not isinstance(positions, (list, tuple)) or len(positions) != len(loggers):
        raise _odd(f"the positions of {len(loggers)} loggers", positions)
    checked: list[CheckedRows | CheckedFiles] = []
    for logger, position in zip(loggers, positions, strict=True):
        kind = "rows" if isinstance(logger, ResultsLogger) else "files"
        if not isinstance(position, (list, tuple)) or not position or position[0] != kind:
            raise _odd(f"the {kind} of a {type(logger).__name__}", position)
        if isinstance(logger, ResultsLogger):
            checked.append(_checked_rows(logger, strategy, position, benchmark))
        else:
            checked.append(_checked_files(logger, position))
    return checked


def set_log_positions(strategy: Any, positions: Sequence[Any], benchmark: Any) -> None:
    """Take out of the loggers' files what was written later; lines of other runs stay.

    Args:
        strategy: the strategy, into which the state was put.
        positions: what `check_log_positions` returned.
        benchmark: what the run trains on.
    """
    if not all(isinstance(each, (CheckedRows, CheckedFiles)) for each in positions):
        positions = check_log_positions(strategy, positions, benchmark)
    for logger, position in zip(_loggers(strategy), positions, strict=True):
        if isinstance(position, CheckedRows):
            _go_back_in_rows(logger, position)
        else:
            for name, file in _files(logger).items():
                if name in position.positions:
                    _go_back(file, *position.positions[name])


# Rows of results.


def _checked_rows(logger: ResultsLogger, strategy: Any, position: Any, benchmark: Any) -> CheckedRows:
    if len(position) != 4 or not isinstance(position[1], str):
        raise _odd("the id of a run, its rows and the length of its file", position)
    run, rows, length = position[1:]
    if run and _RUN.fullmatch(run) is None:
        raise _odd("the id of a run", run)
    for number in (rows, length):
        if type(number) is not int or number < 0:
            raise _odd("whole numbers of at least 0 for the places in logs", number)
    facts = logger.describe(strategy)
    several = [{**facts, "benchmark": {**facts["benchmark"], **data}} for data in _data_of(benchmark)]
    own = frozenset(run_id(each) for each in several)
    count_rows(logger.path, run)  # a damaged file is found before anything is changed
    if run == "" or run in own:
        return CheckedRows(run, rows, length, own, is_same=True)
    noted = _noted(logger.path).get(run)
    if noted is not None:
        _check_owner(logger, facts, noted)
    is_same = noted is not None and any(_of_the_run(noted) == _of_the_run(each) for each in several)
    return CheckedRows(run, rows, length, own, is_same=is_same)


def _data_of(benchmark: Any) -> list[dict[str, Any]]:
    """Return the data that a logger may note of a run on a benchmark, by the stream that it begins with."""
    found: list[dict[str, Any]] = []
    for name, stream in getattr(benchmark, "streams", {}).items():
        known = [benchmark_facts(stream)]
        is_made = hasattr(stream, "__len__") and not generated_on_demand(benchmark, name)
        if is_made and hasattr(stream, "__getitem__") and len(stream) > 0:
            known.append(benchmark_facts(stream[0]))  # a piece of an online stream: what it was cut from
        found += [facts for facts in known if facts not in found]
    return found or [{}]


def _noted(path: Path) -> dict[str, dict[str, Any]]:
    return read_runs(path) if runs_path(path).exists() else {}


def _check_owner(logger: ResultsLogger, facts: Mapping[str, Any], noted: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a run has been noted that is not of the same method, benchmark and seed."""
    for name in ("method", "seed"):
        if noted.get(name) != facts[name]:
            raise _other_run(logger, f"the {name} {noted.get(name)!r}", facts[name])
    benchmark: Any = noted.get("benchmark")
    name = benchmark.get("name") if isinstance(benchmark, Mapping) else None
    if name != facts["benchmark"]["name"]:
        raise _other_run(logger, f"the benchmark {name!r}", facts["benchmark"]["name"])


def _of_the_run(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fact for name, fact in facts.items() if name not in _OF_THE_MACHINE}


def _go_back_in_rows(logger: ResultsLogger, position: CheckedRows) -> None:
    run, path = position.run, logger.path
    if not run:
        # Its id follows from how the run is set up, and from the data that it begins with.
        cut_rows(path, position.own, after=position.length)
        logger.begins_at = position.length
        logger.go_on("", 0, is_noted=False)
        return
    if position.is_same:
        left = cut_rows(path, {run}, keep=position.rows)
        if left < position.rows and path.exists():
            warnings.warn(
                f"{path} has {left} rows of the run {run}, and had {position.rows} when the checkpoint was "
                "written: earlier results are gone.",
                stacklevel=5,
            )
    else:
        left = count_rows(path, run)
        if left > position.rows:
            warnings.warn(
                f"{path} has {left} rows of the run {run}, {left - position.rows} of them from after the "
                "checkpoint. They stay, because that run was set up in another way than this one; the same "
                "numbers count as they are written last.",
                stacklevel=5,
            )
    logger.go_on(run, left, is_noted=run not in position.own)


# Files of other loggers.


def _checked_files(logger: Any, position: Any) -> CheckedFiles:
    found: Any = position[1] if len(position) == 2 else None
    if not isinstance(found, Mapping):
        raise _odd("the lengths of files by name", position)
    for name, place in found.items():
        if not isinstance(name, str) or not isinstance(place, (list, tuple)) or len(place) != 2:
            raise _odd("the lengths of files by name", position)
        length, content = place
        if type(length) is not int or length < 0:
            raise _odd("whole numbers of at least 0 for the places in logs", length)
        if content is not None and not _is_written_by_csv_logger(logger, name, content):
            raise _odd(f"what the {name} of a {type(logger).__name__} may hold", content)
        if content is not None and len(content) != length:
            raise _odd(f"{length} bytes of the {name} of a {type(logger).__name__}", len(content))
    return CheckedFiles({name: (place[0], place[1]) for name, place in found.items()})


def _is_written_by_csv_logger(logger: Any, name: str, content: Any) -> bool:
    """Return whether the host's CSVLogger may have written all of this: its header, and lines of numbers."""
    if not isinstance(logger, CSVLogger) or name not in _HEADERS:
        return False
    if not isinstance(content, bytes) or len(content) > _MOST_BYTES_KEPT:
        return False
    header = _HEADERS[name]
    end = rb"\r?\n"
    row = _CELL + rb"(?:," + _CELL + rb"){%d}" % header.count(b",") + end
    return re.fullmatch(re.escape(header) + end + rb"(?:" + row + rb")*", content) is not None


def _files(logger: Any) -> dict[str, Any]:
    """Return the open files of a logger that lie on a disk, by attribute."""
    found: dict[str, Any] = {}
    attributes: dict[str, Any] = vars(logger)
    for name, value in attributes.items():
        if isinstance(value, io.IOBase) and _is_on_disk(value):
            found[name] = value
    return found


def _is_on_disk(file: Any) -> bool:
    if not isinstance(getattr(file, "name", None), str) or file.closed or not file.writable():
        return False
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # a file that the system knows nothing of
        return False


def _position(logger: Any, name: str, file: Any) -> tuple[int, bytes | None]:
    """Return the length of a file, and its content if it is one that the host's CSVLogger empties."""
    file.flush()
    known = os.fstat(file.fileno())
    if not isinstance(logger, CSVLogger) or "w" not in str(getattr(file, "mode", "")):
        return known.st_size, None
    path = Path(file.name)
    if known.st_size > _MOST_BYTES_KEPT or not path.exists() or not os.path.samestat(known, path.stat()):
        return known.st_size, None
    content = path.read_bytes()
    return len(content), content if _is_written_by_csv_logger(logger, name, content) else None


def _go_back(file: Any, length: int, content: bytes | None) -> None:
    # By the open file, not by its name: the script may have gone to another folder since.
    file.flush()
    present = os.fstat(file.fileno()).st_size
    if content is not None:
        os.ftruncate(file.fileno(), 0)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        left = memoryview(content)
        while left:
            left = left[os.write(file.fileno(), left) :]
    elif present >= length:
        os.ftruncate(file.fileno(), length)
    else:
        warnings.warn(
            f"{file.name} has {present} bytes, and had {length} when the checkpoint was written: earlier "
            "lines are gone. Open the file of a logger with mode 'a' in a run that may be resumed.",
            stacklevel=5,
        )
    file.seek(0, os.SEEK_END)


def _loggers(strategy: Any) -> Sequence[Any]:
    return getattr(getattr(strategy, "evaluator", None), "loggers", ())


def _odd(expected: str, got: Any) -> ValueError:
    return wrong_value("path", f"a checkpoint with {expected}", f"{got!r:.80}".replace("\n", " "))


def _other_run(logger: ResultsLogger, expected: str, got: Any) -> ValueError:
    return wrong_value(
        "strategy.evaluator",
        f"one whose ResultsLogger has {expected}, as in the run of the checkpoint",
        f"{got!r} for {logger.path}",
        "Build the logger as for the run.",
    )
