"""The runs of a comparison, as data."""

from __future__ import annotations

import hashlib
import inspect
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, final

from avalanche.training.plugins import EvaluationPlugin

from avalanche_vlm._checks import check_count, check_type, wrong_type, wrong_value
from avalanche_vlm.comparison.setup import Setup

# With what stands before the first dot.
_KEPT_BY_WINDOWS = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)

Method = Callable[[Setup, EvaluationPlugin], Any]
Stream = Callable[[int], Setup]


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """One method on one stream with one seed.

    Args:
        method: name of the method.
        stream: name of the stream.
        seed: of the stream and of all that is drawn.
        build: ``(setup, evaluator) -> strategy``, a new one, not trained, with that evaluator.
        prepare: ``seed -> setup``.

    Raises:
        TypeError: an argument has another type.
        ValueError: a name is empty, or the seed negative.
    """

    method: str
    stream: str
    seed: int
    build: Method
    prepare: Stream

    def __post_init__(self) -> None:
        for argument in ("method", "stream"):
            name = getattr(self, argument)
            check_type(argument, name, str)
            if not name.strip():
                raise wrong_value(argument, "a name", repr(name))
        check_count("seed", self.seed, at_least=0)
        object.__setattr__(self, "seed", int(self.seed))  # numpy has whole numbers of its own
        for argument in ("build", "prepare"):
            if not callable(getattr(self, argument)):
                raise wrong_type(argument, "a function", getattr(self, argument))

    def __str__(self) -> str:
        return f"{self.method}, {self.stream}, seed {self.seed}"

    @property
    def folder_name(self) -> str:
        """A name for the folder of the run, which no other run has."""
        words = f"{self.stream} {self.method} {self.seed}"
        # Names may differ in what a file system does not keep apart.
        names = hashlib.sha256(repr((self.stream, self.method, self.seed)).encode()).hexdigest()[:6]
        name = re.sub(r"[^A-Za-z0-9.+]+", "-", words).strip("-.")[:80]
        # A dot at the start hides a folder, and Windows keeps some names, whatever comes after a dot.
        is_kept = _KEPT_BY_WINDOWS.match(name) is not None
        return f"{'run-' if is_kept else ''}{name}-{names}"

    def definition(self) -> str:
        """Return a hash of how the run's two functions read; what they call is not looked at."""
        return self._definition

    # Once: their file may be edited while the run is being made, by a process that has read it before.
    @cached_property
    def _definition(self) -> str:
        text = "\n".join(_source(function) for function in (self.build, self.prepare))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def check_importable(self) -> None:
        """Raise unless another process can be told this run.

        Raises:
            ValueError: it cannot.
        """
        try:
            pickle.dumps(self)
        except Exception as error:
            raise wrong_value(
                "runs",
                "functions that another process can import",
                f"{self}: {error}",
                "Define them with def at the top of a module, or take processes=0: in this process.",
            ) from error


def grid(methods: Mapping[str, Method], streams: Mapping[str, Stream], seeds: Iterable[int]) -> list[Run]:
    """Return a run for each method on each stream with each seed.

    Lists of runs are added with ``+``, where not every method goes with every stream.

    Args:
        methods: name -> ``(setup, evaluator) -> strategy``.
        streams: name -> ``seed -> setup``.
        seeds: of the streams and of all that is drawn.

    Returns:
        Runs in the order of streams, then methods, then seeds.

    >>> len(grid({"naive": print, "replay": print}, {"small world": print}, seeds=range(3)))
    6
    """
    check_type("methods", methods, Mapping)
    check_type("streams", streams, Mapping)
    if isinstance(seeds, (str, Mapping)) or not isinstance(seeds, Iterable):
        raise wrong_type("seeds", "a list of whole numbers", seeds)
    several = list(seeds)
    return [
        Run(method=method, stream=stream, seed=seed, build=build, prepare=prepare)
        for stream, prepare in streams.items()
        for method, build in methods.items()
        for seed in several
    ]


def _source(function: Any) -> str:
    if isinstance(function, partial):
        words = [repr(function.args), repr(sorted(function.keywords.items()))]
        # The address of an object is another in each process.
        return "\n".join([_source(function.func), *(re.sub(r" at 0x[0-9a-f]+", "", word) for word in words)])
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return (
            f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(type(function)))}"
        )
