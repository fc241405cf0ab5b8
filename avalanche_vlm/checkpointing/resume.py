"""Go on with a run that was interrupted."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from avalanche_vlm._checks import check_type, wrong_value
from avalanche_vlm.checkpointing._data import BenchmarkData
from avalanche_vlm.checkpointing._file import (
    CheckpointFile,
    DamagedCheckpoint,
    checkpoints_in,
    in_place_of_checkpoint,
    read_checkpoint,
)
from avalanche_vlm.checkpointing._lazy_streams import settle_after_skipping
from avalanche_vlm.checkpointing._restoration import Restoration
from avalanche_vlm.checkpointing._walk import new_run
from avalanche_vlm.checkpointing.checkpoint_plugin import CheckpointPlugin, check_only_one
from avalanche_vlm.checkpointing.save import versions
from avalanche_vlm.strategies import VLMTemplate


def resume(strategy: Any, path: str | os.PathLike[str], benchmark: Any) -> int:
    """Put a strategy back to where its run was interrupted, and return the next experience.

    The strategy, its model, plugins, metrics and loggers, and the benchmark are built as for the
    run, by the same code; then this fills in what the run had learned. From there everything goes
    on as if it had never stopped: weights, optimizer, plugins, buffers, metrics, random numbers.
    Lines that the run had written to its logs after the checkpoint are taken out, because they will
    be written again: the rows of this run in the file of a ``ResultsLogger``, and the end of the
    files of other loggers, which should belong to one run. Of the host's ``CSVLogger``, which
    empties its files when it is built, the checkpoint holds the lines.

    Settings of the strategy, its plugins and optimizer that are others than in the run are told, and
    those of the run stay; other settings of the model, and other data, are refused.

    Args:
        strategy: freshly built, and not trained.
        path: a checkpoint, or the folder of a `CheckpointPlugin`, of which the newest good
            checkpoint is taken; a warning names those that are damaged.
        benchmark: freshly built.

    Returns:
        The position of the experience to train next: 0 if there is nothing to resume, or the first
        experience had not ended.

    Raises:
        TypeError: ``path`` is no path.
        ValueError: the checkpoint is damaged or of another version, or it does not belong to such
            a strategy, model or benchmark: the difference is named. The strategy is unchanged.
        OSError: the file could not be read.

    >>> resume(object(), "folder-that-does-not-exist", None)
    0
    """
    check_type("path", path, (str, os.PathLike))
    place = Path(path)
    check_only_one(strategy)
    plugin = next((p for p in getattr(strategy, "plugins", ()) if isinstance(p, CheckpointPlugin)), None)
    is_folder = place.is_dir() or (plugin is not None and plugin.writes_to(place))
    if place.is_file() or (place.suffix == ".ckpt" and not is_folder) or in_place_of_checkpoint(place):
        found, file = place, read_checkpoint(place)
    else:
        newest = _newest(place)
        if newest is None:
            if plugin is not None:
                plugin.attach(strategy, new_run(strategy, BenchmarkData(benchmark)))
            return 0
        found, file = newest
    if plugin is not None:
        plugin.check_owner(strategy)
        plugin.check_folder(str(file.header["run"]))
    _warn_of_versions(found, file)
    _warn_of_evaluations(found, file)
    run = new_run(strategy, BenchmarkData(benchmark))
    middle = None
    with _naming(found):
        start = Restoration(strategy, file.sections["state"], run)
        if "middle" in file.sections:
            middle = Restoration(strategy, file.sections["middle"], run, tell=False)
    if middle is not None and not isinstance(strategy, VLMTemplate):
        raise wrong_value("strategy", "one on VLMTemplate, as in the run", type(strategy).__name__)
    position = int(file.header["experiences"]), int(file.header["epochs"])
    inner = (start if middle is None else middle).position
    if start.position[0] != position[0] or inner[0] != position[0] or (middle and inner[1] != position[1]):
        raise DamagedCheckpoint(f"{found} is damaged: its header says {position}, and its content {inner}")
    start.apply()
    if plugin is not None:
        plugin.attach(strategy, run, resumed=file.header)
        run.built = replace(start.built, settings=start.settings)  # also for whoever resumes what follows
    settle_after_skipping(strategy, benchmark)
    # What was logged up to the middle stays; going back there a second time takes out what the
    # beginning of the experience writes again.
    (start if middle is None else middle).set_logs(benchmark)
    if middle is not None:
        _go_on_inside(strategy, start, middle, int(file.header["epochs"]), benchmark)
    return int(file.header["experiences"])


@contextlib.contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    """Let an error about the content of a checkpoint name its file."""
    try:
        yield
    except DamagedCheckpoint as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}") from error


def _go_on_inside(
    strategy: VLMTemplate, start: Restoration, middle: Restoration, epochs: int, benchmark: Any
) -> None:
    def enter() -> None:
        middle.apply()
        middle.set_logs(benchmark)

    strategy.resume_inside_experience(epochs, begin=start.apply, enter=enter)


def _newest(folder: Path) -> tuple[Path, CheckpointFile] | None:
    """Return the newest good checkpoint of a folder, None if there never was one."""
    found = checkpoints_in(folder)
    damaged: list[str] = []
    for path in found:
        try:
            file = read_checkpoint(path)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            continue
        for sentence in damaged:
            warnings.warn(f"{sentence}; {path.name} is taken instead.", stacklevel=3)
        return path, file
    if damaged:
        advice = "Remove them to begin the run anew."
        raise wrong_value("path", "a folder with a good checkpoint", "; ".join(damaged), advice)
    return None


def _warn_of_evaluations(path: Path, file: CheckpointFile) -> None:
    counts = [int(count) for count in file.header.get("evaluations", ())]
    if len(counts) > 2 and counts[-1] < counts[-2] and not file.header["epochs"]:
        warnings.warn(
            f"{path} was written after {counts[-1]} evaluations of experience {len(counts) - 2}, where there "
            f"were {counts[-2]} of the one before: evaluate what is left before training on, or its rows are "
            "missing.",
            stacklevel=3,
        )


def _warn_of_versions(path: Path, file: CheckpointFile) -> None:
    written = file.header.get("versions", {})
    changed = [
        f"{name} {written.get(name)} -> {now}" for name, now in versions().items() if written.get(name) != now
    ]
    if changed:
        warnings.warn(
            f"{path} was written with other versions ({', '.join(changed)}): the run goes on, and may differ "
            "in the last bits from one that was never interrupted.",
            stacklevel=3,
        )
