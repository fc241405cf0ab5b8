"""What became of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, final, get_args

from avalanche_vlm._files import parsed_json, replacing
from avalanche_vlm.comparison.run import Run

State = Literal["finished", "failed", "interrupted", "elsewhere", "not begun"]
FILE_NAME = "outcome.json"
_MOST_REASON = 10_000
_MOST_BYTES = 1 << 20


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
        method: name of the method.
        stream: name of the stream.
        seed: seed of the run.
        state: ``"finished"``; ``"failed"``; ``"interrupted"`` by Ctrl-C; ``"elsewhere"``, another process is
            making it now; or ``"not begun"``.
        reason: why it failed, in a line; else empty.
        definition: see `Run.definition`.
    """

    method: str
    stream: str
    seed: int
    state: State
    reason: str = ""
    definition: str = ""


def outcome_of(run: Run, state: State, reason: str = "") -> Outcome:
    """Return an outcome of a run."""
    return Outcome(
        method=run.method,
        stream=run.stream,
        seed=run.seed,
        state=state,
        reason=reason[:_MOST_REASON],
        definition=run.definition(),
    )


def is_finished(run: Run, outcome: Outcome | None) -> bool:
    """Return whether a run as it reads now is the one that has come to its end."""
    return outcome is not None and outcome.state == "finished" and is_of(run, outcome)


def is_of(run: Run, outcome: Outcome) -> bool:
    """Return whether an outcome is that of a run as it reads now."""
    names = (outcome.method, outcome.stream, outcome.seed)
    return names == (run.method, run.stream, run.seed) and outcome.definition == run.definition()


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write an outcome into the folder of its run."""
    with replacing(folder / FILE_NAME) as temporary:
        # Other letters as escapes: a reason may hold halves of surrogate pairs, of the name of a file.
        temporary.write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="ascii")


def read_outcome(folder: Path) -> Outcome | None:
    """Return the outcome in the folder of a run, None if there is none, or one that is damaged."""
    path = folder / FILE_NAME
    try:
        if folder.is_symlink() or not is_plain_file(path) or path.stat().st_size > _MOST_BYTES:
            return None
        found = parsed_json(path.read_bytes().decode())
    except (OSError, ValueError):
        return None
    return Outcome(**found) if _is_outcome(found) else None


def is_plain_file(path: Path) -> bool:
    """Return whether there is a file itself: not a folder, a link or a pipe."""
    return path.is_file() and not path.is_symlink()


def _is_outcome(found: Any) -> bool:
    if not isinstance(found, dict) or found.keys() != {field.name for field in fields(Outcome)}:  # pyright: ignore[reportUnknownMemberType]
        return False
    texts: list[Any] = [found[name] for name in ("method", "stream", "reason", "definition")]
    seed: Any = found["seed"]
    is_plain = all(isinstance(text, str) for text in texts) and type(seed) is int and seed >= 0
    return is_plain and found["state"] in get_args(State)
