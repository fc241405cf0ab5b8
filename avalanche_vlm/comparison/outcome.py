"""What became of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, final

from avalanche_vlm._files import replacing
from avalanche_vlm.comparison.run import Run

State = Literal["finished", "failed", "interrupted", "elsewhere", "not begun"]
FILE_NAME = "outcome.json"


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
        reason=reason,
        definition=run.definition(),
    )


def is_finished(run: Run, outcome: Outcome | None) -> bool:
    """Return whether a run as it reads now is the one that has come to its end."""
    return outcome is not None and outcome.state == "finished" and outcome.definition == run.definition()


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write an outcome into the folder of its run."""
    with replacing(folder / FILE_NAME) as temporary:
        temporary.write_text(json.dumps(asdict(outcome), indent=1, ensure_ascii=False) + "\n")


def read_outcome(folder: Path) -> Outcome | None:
    """Return the outcome in the folder of a run, None if there is none, or one that is damaged."""
    path = folder / FILE_NAME
    try:
        return Outcome(**json.loads(path.read_text())) if path.exists() else None
    except (ValueError, TypeError):
        return None
