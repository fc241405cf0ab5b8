"""Hyper-parameters chosen on validation data and class orders that no reported number comes from."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from avalanche.benchmarks import CLScenario

from avalanche_vlm._checks import (
    check_count,
    check_function,
    check_number,
    check_type,
    wrong_type,
    wrong_value,
)
from avalanche_vlm._host import experience_classes
from avalanche_vlm._processes import progress_line
from avalanche_vlm.benchmarks import class_names
from avalanche_vlm.selection.choice import CandidateScores, Choice
from avalanche_vlm.selection.hidden_streams import HiddenStreamError, hide_reported_streams

ClassOrder = tuple[frozenset[Any], ...]


def choose_hyperparameters(
    candidates: Iterable[Mapping[str, Any]],
    *,
    make_benchmark: Callable[[int], Any],
    train_and_score: Callable[..., float],
    selection_seeds: Sequence[int],
    reported_seeds: Sequence[int],
    validation_fraction: float = 0.1,
) -> Choice:
    """Return the candidate with the highest mean validation score, and the record of the choice.

    Every candidate meets the same selection seeds. For each of them a validation stream is cut from
    the train stream of ``make_benchmark(seed)``, and every other stream is taken away: a run that
    asks for ``benchmark.test_stream`` stops everything with `HiddenStreamError`. A candidate that
    raises another error, or whose score is not finite, is recorded as failed; the others go on.
    Each call gets a copy of its candidate, nested values included, so that what is recorded is what
    was given. The benchmark and its experiences cannot be pickled, their data sets can.

    Neither the seeds nor the class orders of selection may be reported ones: hyper-parameters that
    were chosen on an order fit that order. For this comparison the benchmark of each seed, reported
    ones included, is built once more, and the classes of its train experiences are read; of a
    reported benchmark nothing else is looked at. Where all experiences have the same classes there
    is no order, and only the seeds are compared.

    Args:
        candidates: dictionaries of hyper-parameters, for instance
            ``sklearn.model_selection.ParameterGrid({"lr": [0.1, 0.01], "epochs": [1, 5]})``.
        make_benchmark: seed -> benchmark, with a class order that depends on the seed.
        train_and_score: called as ``train_and_score(benchmark, seed=seed, **candidate)``; trains on
            ``benchmark.train_stream`` and returns a score on ``benchmark.valid_stream``, higher is
            better. It sets whatever random state it uses from the seed. That it takes these arguments
            is checked before anything runs.
        selection_seeds: seeds to choose on.
        reported_seeds: seeds of the numbers that will be reported.
        validation_fraction: see `with_validation_stream`.

    Raises:
        TypeError: an argument is of a wrong type, or ``train_and_score`` does not take a candidate.
        ValueError: no candidate or one that cannot be copied, seeds or class orders in both groups, a
            fraction out of range.
        RuntimeError: all candidates failed; its cause is the first error among them.
        HiddenStreamError: ``train_and_score`` asked for a stream other than the two.

    >>> import torch
    >>> from avalanche_vlm.benchmarks import tensor_benchmark
    >>> pair = (torch.eye(8), [0, 1, 2, 3, 0, 1, 2, 3])
    >>> def make_benchmark(seed):
    ...     return tensor_benchmark(pair, pair, class_names=list("abcd"), n_experiences=4, seed=seed)
    >>> def train_and_score(benchmark, *, seed, lr):
    ...     return 1 - abs(lr - 0.1)  # train on benchmark.train_stream, score on benchmark.valid_stream
    >>> choice = choose_hyperparameters(
    ...     [{"lr": 1.0}, {"lr": 0.1}], make_benchmark=make_benchmark, train_and_score=train_and_score,
    ...     selection_seeds=[10, 11], reported_seeds=[0, 1, 2])
    >>> choice.best
    {'lr': 0.1}
    """
    checked = _check_candidates(candidates)
    check_number("validation_fraction", validation_fraction, above=0, below=1)
    for name, function in (("make_benchmark", make_benchmark), ("train_and_score", train_and_score)):
        check_function(name, function)
    _check_call(train_and_score, checked)
    seeds = _check_seeds("selection_seeds", selection_seeds)
    reported = _check_seeds("reported_seeds", reported_seeds)
    shared = sorted(set(seeds) & set(reported))
    if shared:
        raise wrong_value("selection_seeds", "seeds that are not reported", f"{shared} in both")
    compared = _check_class_orders(make_benchmark, seeds, reported)
    scores: list[CandidateScores] = []
    first_error: Exception | None = None
    with progress_line("Candidates", len(checked) * len(seeds), "runs") as line:
        for index, candidate in enumerate(checked):
            by_seed: dict[int, float] = {}
            failure = None
            for seed in seeds:
                benchmark = hide_reported_streams(_made(make_benchmark, seed), validation_fraction, seed)
                score, failure, error = _score(train_and_score, benchmark, seed, candidate)
                if first_error is None:
                    first_error = error
                if failure is not None:
                    break
                by_seed[seed] = score
                line.advance()
            scores.append(CandidateScores(candidate, by_seed, failure))
            line.set_done((index + 1) * len(seeds))
    ranked = [(each.mean, each.hyperparameters) for each in scores if each.mean is not None]
    if not ranked:
        reasons = "; ".join(f"{each.hyperparameters}: {each.failure}" for each in scores[:5])
        message = f"All {len(scores)} candidates failed, so none can be chosen. {reasons}"
        raise RuntimeError(message) from first_error
    best = max(ranked, key=lambda pair: pair[0])[1]  # the first of equals
    return Choice(best, tuple(scores), seeds, reported, float(validation_fraction), compared)


def _check_candidates(candidates: Any) -> list[dict[str, Any]]:
    if isinstance(candidates, (Mapping, str)) or not isinstance(candidates, Iterable):
        advice = "For a grid: sklearn.model_selection.ParameterGrid(...)."
        raise wrong_type("candidates", "a list of dictionaries", candidates, advice)
    checked: list[dict[str, Any]] = []
    for candidate in candidates:
        if not isinstance(candidate, Mapping):
            raise wrong_type("candidates", "a list of dictionaries", candidate)
        taken = [name for name in candidate if not isinstance(name, str) or name in ("benchmark", "seed")]
        if taken:
            expected = "dictionaries from names of arguments, other than 'benchmark' and 'seed', to values"
            raise wrong_value("candidates", expected, repr(taken[0]))
        try:
            checked.append(deepcopy(dict(candidate)))
        except Exception as error:
            expected = "dictionaries of values that copy.deepcopy can copy"
            advice = "Pass what the value is made from, and make it in train_and_score."
            raise wrong_value("candidates", expected, f"{candidate!r:.80} ({error})", advice) from error
    if not checked:
        raise wrong_value("candidates", "at least one dictionary", "none")
    return checked


def _check_call(train_and_score: Callable[..., Any], candidates: Sequence[dict[str, Any]]) -> None:
    """Refuse a function that cannot take a candidate: a slip of its author, and no failed candidate."""
    try:
        # What it wraps may take other arguments than it does.
        signature = inspect.signature(train_and_score, follow_wrapped=False)
    except (TypeError, ValueError):  # some functions that are not written in Python tell nothing
        return
    for candidate in candidates:
        try:
            signature.bind(None, seed=0, **candidate)
        except TypeError as error:
            wanted = ", ".join(["benchmark", "seed=seed", *(f"{name}=..." for name in candidate)])
            raise wrong_type(
                "train_and_score",
                f"a function that can be called as train_and_score({wanted})",
                train_and_score,
                f"The call would fail: {error}.",
            ) from None


def _check_seeds(argument: str, seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise wrong_type(argument, "a list of whole numbers", seeds)
    checked: list[int] = []
    for seed in seeds:
        check_count(argument, seed, at_least=0)
        checked.append(int(seed))
    if not checked or len(set(checked)) < len(checked):
        raise wrong_value(argument, "at least one seed, and none twice", checked)
    return tuple(checked)


def _made(make_benchmark: Callable[[int], Any], seed: int) -> CLScenario[Any]:
    benchmark = make_benchmark(seed)
    check_type("make_benchmark", benchmark, CLScenario, "It returns a benchmark for a seed.")
    return benchmark


def _check_class_orders(
    make_benchmark: Callable[[int], Any], seeds: Sequence[int], reported: Sequence[int]
) -> bool:
    """Refuse a class order in both groups; return whether there is any order to compare."""
    orders: dict[ClassOrder, int] = {}
    for seed in reported:
        orders.setdefault(_class_order(_made(make_benchmark, seed)), seed)
    compared = False
    for seed in seeds:
        order = _class_order(_made(make_benchmark, seed))
        if len(set(order)) == 1:
            continue  # the same classes throughout
        compared = True
        if order in orders:
            raise wrong_value(
                "selection_seeds",
                "seeds whose class orders are not reported",
                f"seed {seed}, with the class order of the reported seed {orders[order]}",
                "Take another seed. If make_benchmark gives every seed the same order, as a preset does, let "
                "it draw other orders for the seeds of selection.",
            )
    return compared


def _class_order(benchmark: CLScenario[Any]) -> ClassOrder:
    stream = benchmark.streams["train"]
    order = [experience_classes(experience).tolist() for experience in stream]
    try:
        names = class_names(stream)
    except ValueError:  # a benchmark whose classes have no names
        return tuple(map(frozenset, order))
    # By name: a stream over several data sets counts class ids as they arrive, whatever arrives.
    known = list(zip(names.datasets or [""] * len(names), names, strict=True))
    return tuple(frozenset(known[each] for each in classes) for classes in order)


def _score(
    train_and_score: Callable[..., Any], benchmark: Any, seed: int, candidate: dict[str, Any]
) -> tuple[float, str | None, Exception | None]:
    """Return the score, why it does not count or None, and the error behind that or None."""
    try:
        score = float(train_and_score(benchmark, seed=seed, **deepcopy(candidate)))
    except HiddenStreamError:
        raise
    except Exception as error:
        _forget_locals(error)
        return math.nan, f"{type(error).__name__} with seed {seed}: {error}", error
    return score, None if math.isfinite(score) else f"score {score} with seed {seed}", None


def _forget_locals(error: BaseException) -> None:
    """Keep the lines of a traceback, but not what they held: a failed candidate's model fills the memory."""
    seen: set[int] = set()  # `raise error from error` is its own cause
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
