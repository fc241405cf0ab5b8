"""Laws that a few experiences of training show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avalanche_vlm.testing.running import Snapshot, differing, require, run, snapshot


def check_repeatable(make_strategy: Callable[[], Any], benchmark: Any) -> None:
    """Law: the same seed gives the same parameters."""
    changed = differing(run(make_strategy(), benchmark), run(make_strategy(), benchmark))
    require(not changed, f"two runs with one seed differ in {changed[:5]}")


def check_frozen(make_strategy: Callable[[], Any], benchmark: Any, *, trains: bool = True) -> None:
    """Law: frozen parameters and buffers are bit-identical afterwards; the optimizer holds the rest.

    Args:
        make_strategy: a strategy of ours or of the host over a `CLIPClassifier`.
        benchmark: what it trains on.
        trains: whether anything is meant to change at all.
    """
    strategy = make_strategy()
    model = strategy.model
    trained = {name for name, parameter in nn.Module.named_parameters(model) if parameter.requires_grad}
    before = snapshot(model)
    after = run(strategy, benchmark)
    # Which classes were met is no weight: the classifier keeps account of it, and so do some heads.
    changed = {
        name for name in differing(before, after) if not name.rpartition(".")[2].startswith("classes_")
    }
    require(changed <= trained, f"frozen tensors have changed: {sorted(changed - trained)[:5]}")
    require(
        bool(changed) == trains, f"{'nothing' if trains else 'something'} has changed: {sorted(changed)[:5]}"
    )
    if trains:
        held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
        want = {id(p) for p in nn.Module.parameters(model) if p.requires_grad}
        require(held == want, f"the optimizer holds {len(held)} tensors, and {len(want)} train")


def check_zero_weight(
    make_strategy: Callable[[Sequence[Any]], Any], make_plugin: Callable[[], Any], benchmark: Any
) -> None:
    """Law: with all weights 0 a plugin leaves the bare strategy as it is, bit for bit.

    Args:
        make_strategy: list of plugins -> strategy.
        make_plugin: the plugin with all its weights at 0.
        benchmark: what is trained on.
    """
    changed = differing(run(make_strategy([]), benchmark), run(make_strategy([make_plugin()]), benchmark))
    require(not changed, f"with weight 0 the plugin changes {changed[:5]}")


def check_gradient(
    make_strategy: Callable[[Sequence[Any]], Any],
    make_plugin: Callable[[float], Any],
    term: Callable[[Any], Tensor],
    experience: Any,
    *,
    tolerance: float = 1e-6,
) -> None:
    """Law: the gradient at weight 1 minus that at 0 is the gradient of the term itself.

    Args:
        make_strategy: list of plugins -> strategy, each time with equal weights.
        make_plugin: weight -> plugin.
        term: strategy (in the middle of its first iteration) -> the scalar that the plugin adds.
        experience: what is trained on; only the first iteration matters.
        tolerance: largest difference in any entry; of gradients above 1 as a part of the largest, because two
            large numbers that are subtracted leave the rounding of their digits.
    """
    grads: dict[float, Snapshot] = {}
    own: Snapshot = {}

    class Reader(SupervisedPlugin[Any]):
        """Keeps the gradients of the first iteration, before the step."""

        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weight = weight

        def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            if self.weight in grads:
                return
            named = list(strategy.model.named_parameters())
            grads[self.weight] = {
                n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named
            }
            if self.weight == 1:
                parts = torch.autograd.grad(term(strategy), [p for _, p in named], allow_unused=True)
                for (name, parameter), part in zip(named, parts, strict=True):
                    own[name] = torch.zeros_like(parameter) if part is None else part

    for weight in (0.0, 1.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            make_strategy([make_plugin(weight), Reader(weight)]).train(experience)
    for name, gradient in own.items():
        error = float((grads[1.0][name] - grads[0.0][name] - gradient).abs().max())
        scale = max(1.0, float(grads[1.0][name].abs().max()))
        require(error <= tolerance * scale, f"the added gradient of {name} is off by {error:.2e}")
    require(any(bool(g.any()) for g in own.values()), "the term has no gradient, so nothing was checked")


def check_modes(call: Callable[[], Any], modules: Iterable[nn.Module]) -> None:
    """Law: train/eval modes and the grad mode are left as they were found, whatever they were.

    Args:
        call: uses the component once.
        modules: models that it touches.
    """
    roots = list(modules)
    for mode in (True, False):
        for root in roots:
            root.train(mode)
        before = [(m, m.training) for root in roots for m in root.modules()]
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                call()
                require(torch.is_grad_enabled() == grad, "the grad mode was changed")
            changed = [type(m).__name__ for m, was in before if m.training != was]
            require(not changed, f"the mode of {changed[:5]} was changed")
