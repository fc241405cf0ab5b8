"""The law of two plugins side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from avalanche.core import SupervisedPlugin

from avalanche_vlm.testing.running import Snapshot, differing, require, run


class PairVerdict(NamedTuple):
    """What came of two plugins side by side, in one order.

    Attributes:
        refusal: the sentence that the pair, or one of its plugins alone, refuses with; else empty.
        broken: the law that it breaks; else empty.
    """

    refusal: str = ""
    broken: str = ""


def check_composes(
    make_strategy: Callable[[Sequence[Any]], Any],
    make_plugins: Mapping[str, Callable[[], Any]],
    benchmark: Any,
) -> None:
    """Law: two plugins act side by side, in either order: neither displaces the other.

    Args:
        make_strategy: list of plugins -> strategy.
        make_plugins: name -> a fresh plugin; every pair is tried in both orders.
        benchmark: what is trained on, at least two experiences.

    Raises:
        LawBroken: a pair breaks it, see `composition`, or refuses.
    """
    for verdict in composition(make_strategy, make_plugins, benchmark).values():
        require(not verdict.broken, verdict.broken)
        require(not verdict.refusal, f"refused: {verdict.refusal}")


def composition(
    make_strategy: Callable[[Sequence[Any]], Any],
    make_plugins: Mapping[str, Callable[[], Any]],
    benchmark: Any,
) -> dict[tuple[str, str], PairVerdict]:
    """Return what comes of every two plugins side by side, in both orders.

    A pair breaks the law if one of the two has no effect alone, so that nothing can be checked; if it ends
    in NaN; or if it ends as one of the two alone does, so that the other was displaced. It refuses if
    it, or one of the two alone, raises `ValueError` or `TypeError`. Other errors are raised.

    The global generator is set anew at every callback, before and after each plugin's turn, so that
    a plugin whose effect is gone cannot pass by having drawn random numbers.

    Args:
        make_strategy: list of plugins -> strategy.
        make_plugins: name -> a fresh plugin.
        benchmark: what is trained on, at least two experiences.

    Returns:
        ``(first, second) -> verdict``, for the list ``[first, second]`` of plugins.
    """
    without = _run_reseeded(make_strategy, [], benchmark)
    alone: dict[str, Snapshot | str] = {}
    for name, make in make_plugins.items():
        alone[name] = _run_or_refusal(make_strategy, [make], benchmark)
    verdicts: dict[tuple[str, str], PairVerdict] = {}
    for pair in ((a, b) for a in make_plugins for b in make_plugins if a != b):
        found = [alone[name] for name in pair]
        refusals = [each for each in found if isinstance(each, str)]
        idle = [
            name
            for name, each in zip(pair, found, strict=True)
            if not isinstance(each, str) and not differing(without, each)
        ]
        if refusals:
            verdicts[pair] = PairVerdict(refusal=refusals[0])
        elif idle:
            words = f"{idle[0]} alone has no effect on this benchmark, so nothing can be checked"
            verdicts[pair] = PairVerdict(broken=words)
        else:
            both = _run_or_refusal(make_strategy, [make_plugins[name] for name in pair], benchmark)
            verdicts[pair] = _verdict(pair, [each for each in found if not isinstance(each, str)], both)
    return verdicts


def _verdict(pair: tuple[str, str], alone: Sequence[Snapshot], both: Snapshot | str) -> PairVerdict:
    if isinstance(both, str):
        return PairVerdict(refusal=both)
    words = " then ".join(pair)
    if any(bool(tensor.isnan().any()) for tensor in both.values()):
        return PairVerdict(broken=f"{words} end in NaN")
    for name, single in zip(pair, alone, strict=True):
        if not differing(single, both):
            return PairVerdict(broken=f"{words} equals {name} alone: the other was displaced")
    return PairVerdict()


def _run_or_refusal(
    make_strategy: Callable[[Sequence[Any]], Any], makers: Sequence[Callable[[], Any]], benchmark: Any
) -> Snapshot | str:
    try:
        return _run_reseeded(make_strategy, makers, benchmark)
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


class _Reseeding(SupervisedPlugin[Any]):
    """Sets the global generator at every callback of training, to a number that only time decides."""


def _reseed_at(place: int) -> Callable[..., None]:
    def reseed(self: Any, strategy: Any, *args: Any, **kwargs: Any) -> None:
        torch.manual_seed(1000 * strategy.clock.train_iterations + place)

    return reseed


for _place, _name in enumerate(
    name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))
):
    setattr(_Reseeding, _name, _reseed_at(_place))


def _run_reseeded(
    make_strategy: Callable[[Sequence[Any]], Any], makers: Sequence[Callable[[], Any]], benchmark: Any
) -> Snapshot:
    """Run with the generator set anew before and after each plugin's turn."""
    plugins: list[Any] = [_Reseeding()]
    for make in makers:
        plugins += [make(), _Reseeding()]
    return run(make_strategy(plugins), benchmark)
