"""The one place that knows which run a part belongs to, and which streams are those of the run.

A run is a strategy with its parts. Each has the run's mark as an attribute, and a part that has another
mark than the strategy has measured or learned in another run. The mark is bytes: checkpoints keep it on
both sides, so that what was restored belongs to the strategy that it was restored into, copies have that of
what they are copies of, and no provenance takes it for a setting.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from avalanche.benchmarks import SequenceCLStream

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import data_below, generated_on_demand, position_in_training, trained_experiences

_MARK = "_avalanche_vlm_run"
_STREAMS = "_avalanche_vlm_streams"
Streams = dict[str, dict[int, bytes]]
Reference = Callable[[], Any]


def claim(part: Any, strategy: Any, *, argument: str, advice: str, for_good: bool = True) -> None:
    """Let a part belong to the run of a strategy.

    Args:
        part: a metric, logger or plugin, which has a ``__dict__``.
        strategy: whose callbacks it is given.
        argument: the argument of the strategy that the part came in.
        advice: what to do about a part of another run.
        for_good: False only looks whether it may, while the strategy may still be refused.

    Raises:
        ValueError: it belongs to another run.
    """
    # From the system, so that no generator of the run is touched.
    mark = vars(strategy).setdefault(_MARK, os.urandom(8))
    if for_good:
        vars(part).setdefault(_MARK, mark)
    if vars(part).get(_MARK, mark) != mark:
        raise wrong_value(
            argument,
            "made of parts that no other run has used",
            f"a {type(part).__name__} that has served another strategy",
            advice,
        )


def release(part: Any) -> None:
    """Let a part that has forgotten what it kept belong to the next strategy that uses it."""
    vars(part).pop(_MARK, None)


class _Live:
    """What is known of the streams of a run in this process, beyond the content that is kept.

    Attributes:
        benchmarks: by name of a stream, the benchmarks (or streams, where they know none) it came from.
        samples: by name and position, the data set at the bottom that the first sample lies in, and its row.
        trained: by position, the benchmark trained on and the data set that its first sample lies in.
        renamed: streams that were evaluated before training and are not the run's: old name -> new name.
    """

    def __init__(self) -> None:
        self.benchmarks: dict[str, list[Reference]] = {}
        self.samples: dict[tuple[str, int], tuple[Reference, int]] = {}
        self.trained: dict[int, tuple[Reference | None, Reference]] = {}
        self.renamed: dict[str, str] = {}


_live: weakref.WeakKeyDictionary[Any, _Live] = weakref.WeakKeyDictionary()


def evaluated_stream(strategy: Any) -> str:
    """Return the name of the stream that a strategy evaluates at present, as it is in its run.

    That is the stream's own name, but for a stream that is another one than what has this name in the run:
    those of a second benchmark that a strategy is evaluated on are ``"test#2"``, ``"test#3"``, ... The run's
    is the one of the benchmark that is trained on; where a stream does not know its benchmark, the first
    that is evaluated. Streams are the same that come from the same benchmark, or hold the same samples; so is
    one that has grown, of a later benchmark that is trained on too.
    """
    experience, live = strategy.experience, _live.setdefault(strategy, _Live())
    stream, position = experience.origin_stream, int(experience.current_experience)
    streams: Streams = vars(strategy).setdefault(_STREAMS, {})
    own = stream.name
    names = [name for name in streams if name == own or name.startswith(f"{own}#")]
    source = _source(stream)
    for name in names:
        if any(known() is source for known in live.benchmarks.get(name, ())):
            if position not in streams[name]:
                streams[name][position] = _content(experience)
            return name
    content, sample = _content(experience), _first_sample(experience)
    is_trained_on = _is_trained_on(live, stream)
    mine, others = [name for name in names if name == own], [name for name in names if name != own]
    for name in [*others, *mine] if is_trained_on is False else [*mine, *others]:
        known, before = streams[name].get(position), live.samples.get((name, position))
        is_live = any(each() is not None for each in live.benchmarks.get(name, ()))
        same_sample = before is not None and before[0]() is sample[0] and before[1] == sample[1]
        if same_sample and known == content:
            break
        has_grown = is_trained_on and not _is_foreign(live, name)
        if known in (None, content) and (has_grown or not is_live) and (known or is_trained_on is not False):
            break
    else:
        name = _free_name(own, streams, foreign=is_trained_on is False)
    streams.setdefault(name, {})[position] = content
    live.benchmarks.setdefault(name, []).append(_reference(source))
    live.samples[name, position] = (_reference(sample[0]), sample[1])
    return name


def note_training(strategy: Any) -> dict[str, str]:
    """Take note of the benchmark that a strategy trains on, before an experience of it.

    Returns:
        The streams that were evaluated before the first training and are not of that benchmark: their names
        so far -> their names from now on. Empty later on.

    Raises:
        ValueError: experiences of two benchmarks have the same place in their stream.
    """
    live = _live.setdefault(strategy, _Live())
    for experience in trained_experiences(strategy):
        origin = getattr(experience, "origin_experience", None)
        origin = experience if origin is None else origin
        position, benchmark = position_in_training(experience), origin.origin_stream.benchmark
        if position in live.trained and _is_trained_on(live, origin.origin_stream) is False:
            raise wrong_value(
                "experience",
                "one of the benchmark that was trained on so far, whose experiences the metrics count",
                f"experience {position} of another one",
                "Train on another benchmark with a new strategy (its model may be the same) and new metrics.",
            )
        place = None if benchmark is None else _reference(benchmark)
        live.trained.setdefault(position, (place, _reference(_first_sample(origin)[0])))
    if getattr(getattr(strategy, "clock", None), "train_exp_counter", 1) > 0:
        return {}
    streams: Streams = vars(strategy).get(_STREAMS, {})
    for name in [name for name in streams if "#" not in name]:
        if _is_foreign(live, name):
            live.renamed[name] = other = _free_name(name, streams, foreign=True)
            streams[other] = streams.pop(name)
            live.benchmarks[other] = live.benchmarks.pop(name)
            for key in [key for key in live.samples if key[0] == name]:
                live.samples[other, key[1]] = live.samples.pop(key)
    return live.renamed


def _free_name(own: str, streams: Streams, *, foreign: bool) -> str:
    taken = {*streams, own} if foreign else set(streams)
    names = (own if number == 1 else f"{own}#{number}" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _source(stream: Any) -> Any:
    """Return what a stream came from; a slice of a stream has the benchmark of the whole."""
    benchmark = getattr(stream, "benchmark", None)
    return stream if benchmark is None else benchmark


def _related(benchmark: Any) -> set[int]:
    """Return the identities of a benchmark and of those that its streams came from."""
    streams = getattr(benchmark, "streams", {}).values()
    return {id(benchmark), *(id(_source(stream)) for stream in streams)}


def _is_foreign(live: _Live, name: str) -> bool:
    """Return whether what was evaluated under a name certainly comes from another benchmark."""
    found = [each for known in live.benchmarks.get(name, ()) if (each := known()) is not None]
    return bool(found) and all(_is_trained_on(live, each) is False for each in found)


def _is_trained_on(live: _Live, source: Any) -> bool | None:
    """Return whether a stream (or benchmark) comes from a benchmark that is trained on; None if unknown.

    Copies of a benchmark, with a validation stream for instance, share streams with it or train on its data.
    """
    benchmark = source if hasattr(source, "streams") else getattr(source, "benchmark", None)
    trained = [(place and place(), leaf()) for place, leaf in live.trained.values()]
    if benchmark is None or not trained:
        return None
    own = _related(benchmark)
    if any(each is not None and own & _related(each) for each, _ in trained):
        return True
    train = benchmark.streams.get("train")
    if isinstance(train, SequenceCLStream) and not generated_on_demand(benchmark, "train"):
        leaves = {id(leaf) for _, leaf in trained if leaf is not None}
        if any(id(_first_sample(experience)[0]) in leaves for experience in train):
            return True
    return None if any(each is None for each, _ in trained) else False


def _reference(thing: Any) -> Reference:
    """Return what gives a thing back as long as it lives."""
    try:
        return weakref.ref(thing)
    except TypeError:  # a list, for instance
        return lambda: thing


def _first_sample(experience: Any) -> tuple[Any, int]:
    """Return the data set at the bottom that the first sample of an experience lies in, and its row there."""
    node, row = experience.dataset, 0
    node = getattr(node, "_flat_data", node)
    while len(node) > 0 and (below := data_below(node, np.array([row]))):
        node, row = below[0].dataset, int(below[0].rows[0])
        node = getattr(node, "_flat_data", node)
    return node, row


def _content(experience: Any) -> bytes:
    """Return a hash of the targets of an experience."""
    dataset = experience.dataset
    targets = np.fromiter(map(int, dataset.targets), dtype=np.int64, count=len(dataset))
    return hashlib.sha256(targets.tobytes()).digest()[:8]
