"""What a reader of a table must know of runs that are not finished, or not shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from avalanche_vlm.logging.result_row import ResultRow
from avalanche_vlm.logging.results import shown_runs

_Line = tuple[str, str]


def footnotes(rows: Sequence[ResultRow], stream: str) -> list[str]:
    """Return one sentence for each group of seeds that is unfinished, and for each run not shown.

    A method that was only measured before training counts as finished.

    Args:
        rows: all rows of the results.
        stream: name of the evaluated stream.
    """
    shown = shown_runs(rows)
    lengths: dict[_Line, int] = {}
    reached: dict[_Line, dict[int | None, int]] = {}
    hidden: dict[tuple[_Line, int | None], dict[str, int]] = {}
    for row in rows:
        # Entries of the matrix say how far a run is; a summary may be that of a matrix with holes.
        if row.metric != "accuracy" or not row.space or row.stream != stream or row.class_name:
            continue
        line, after = (row.method, row.benchmark), row.after_experience or 0
        lengths[line] = max(lengths.get(line, 0), after, (row.experience or 0) + 1)
        measured = after if row.value == row.value else 0
        if row.run and row.run != shown[row.method, row.benchmark, row.seed]:
            runs = hidden.setdefault((line, row.seed), {})
            runs[row.run] = max(runs.get(row.run, 0), measured)
        else:
            seeds = reached.setdefault(line, {})
            seeds[row.seed] = max(seeds.get(row.seed, 0), measured)
    several_benchmarks = len({row.benchmark for row in rows}) > 1
    names = {
        (method, benchmark): f"{method} on {benchmark}" if several_benchmarks and benchmark else method
        for method, benchmark in lengths
    }
    notes = [
        f"{names[line]}: {which}only after {after} of {lengths[line]} experiences"
        for line, seeds in reached.items()
        for which, after in _unfinished(seeds, lengths[line])
    ]
    for (line, seed), runs in hidden.items():
        who = names[line] if seed is None else f"{names[line]}, seed {seed}"
        for after, count in sorted(Counter(runs.values()).items()):
            what = f"another run of {who}" if count == 1 else f"{count} other runs of {who}"
            verb = "is" if count == 1 else "are"
            notes.append(f"{what}, after {after} of {lengths[line]} experiences, {verb} not shown")
    return notes


def _unfinished(seeds: dict[int | None, int], length: int) -> list[tuple[str, int]]:
    """Return how many seeds have reached which number of experiences, if not all of them."""
    counts = Counter(seeds.values())
    if counts[0] == len(seeds):
        return []
    some = len(seeds) > 1
    return [
        (f"{count} of {len(seeds)} seeds " if some else "", after)
        for after, count in sorted(counts.items())
        if after < length
    ]
