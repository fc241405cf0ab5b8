"""What studies of methods share: choices that are kept, runs that resume, numbers paired by seed."""

import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.progress import Progress
from scipy.stats import t as student_t

from avalanche_vlm.selection import choose_hyperparameters


def kept_choice(path: Path, candidates: list[dict], **arguments) -> dict:
    """Return the record of a choice of hyper-parameters, made now if the file does not have it.

    Args:
        path: where the record is kept.
        candidates: what to choose from.
        **arguments: for `choose_hyperparameters`.
    """
    if not path.exists():
        path.write_text(json.dumps(choose_hyperparameters(candidates, **arguments).describe(), indent=1))
    return json.loads(path.read_text())


def finish(runs: Iterable[tuple], folder: Path, run: Callable[..., None]) -> None:
    """Make the runs that a folder does not have; several processes may share it, with runs of their own.

    Args:
        runs: what tells each run from others, as a tuple; its parts are the arguments of ``run``.
        folder: keeps the list of finished runs.
        run: makes one.
    """
    runs = list(runs)
    with Progress() as progress:
        task = progress.add_task("runs", total=len(runs))
        for each in runs:
            progress.update(task, description=", ".join(map(str, each)))
            if not is_finished(each, folder):
                run(*each)
                with (folder / "finished.txt").open("a") as file:
                    file.write(_line(each))
            progress.advance(task)


def is_finished(run: tuple, folder: Path) -> bool:
    """Return whether a folder has a run."""
    path = folder / "finished.txt"
    return path.exists() and _line(run) in path.read_text().splitlines(keepends=True)


def _line(run: tuple) -> str:
    return "/".join(map(str, run)) + "\n"


def newest_runs(rows: list, folder: Path) -> list:
    """Return the rows of finished runs; of a run that was stopped and repeated those of the last time."""
    ids = {(row.benchmark, row.method, row.seed): row.run for row in rows if row.run}
    return [
        row
        for row in rows
        if row.run in ("", ids.get((row.benchmark, row.method, row.seed)))
        and is_finished((row.benchmark, row.method, row.seed), folder)
    ]


def paired(first: dict, second: dict) -> tuple[float, float]:
    """Return the mean difference of two methods in the same seeds, and half of its 95 % interval.

    Args:
        first: a number for each seed.
        second: likewise.
    """
    differences = [value - second[seed] for seed, value in first.items() if seed in second]
    if len(differences) < 2:
        return (differences or [math.nan])[0], math.nan
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), float(student_t.ppf(0.975, len(differences) - 1) * spread)


def paired_text(first: dict, second: dict) -> str:
    """Return such a difference as text; without an interval, and with their number, of one or two pairs."""
    pairs = len(set(first) & set(second))
    mean, half = paired(first, second)
    return (
        f"{mean:+.1f} ± {half:.1f}" if pairs > 2 else f"{mean:+.1f} ({pairs} seed{'s' if pairs > 1 else ''})"
    )


def mean_text(values: dict) -> str:
    """Return mean ± standard deviation of a number for each seed."""
    numbers = list(values.values())
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.1f}{spread}"


def copy_comparison(page: Path, script: Path) -> None:
    """Copy the page and pictures of a comparison beside the script that made it, under its name.

    Args:
        page: what `write_comparison` returned.
        script: the script.
    """
    text = page.read_text()
    for picture in sorted(page.parent.glob("*.png")):
        if f"({picture.name})" in text:
            name = f"{script.stem}_{picture.name}"
            shutil.copyfile(picture, script.with_name(name))
            text = text.replace(f"({picture.name})", f"({name})")
    heading, _, rest = text.partition("\n")
    written = f"Written by `benchmarks/{script.name}`, which says what is compared."
    script.with_suffix(".md").write_text(f"{heading}\n\n{written}\n{rest}")
