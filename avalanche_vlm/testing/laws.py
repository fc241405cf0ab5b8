"""The laws that every component keeps, as checks that authors outside can run.

Each check raises `LawBroken` with a sentence, or returns None. They need no test framework.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

Snapshot = dict[str, Tensor]


class LawBroken(AssertionError):
    """A component breaks a law; the message says which and where."""


def require(condition: bool, message: str) -> None:
    """Raise `LawBroken` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise LawBroken(message)


def snapshot(model: nn.Module) -> Snapshot:
    """Return copies of all parameters and buffers, the non-persistent ones included."""
    tensors = [*nn.Module.named_parameters(model), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def differing(before: Snapshot, after: Snapshot) -> list[str]:
    """Return the names that are in one only, or whose values differ in any bit."""
    names = before.keys() | after.keys()
    return sorted(
        name
        for name in names
        if name not in before or name not in after or not torch.equal(before[name], after[name])
    )


def run(strategy: Any, benchmark: Any, *, seed: int = 0) -> Snapshot:
    """Train a strategy on every experience, evaluating after each, and return its model's tensors.

    The global generator, from which the host shuffles, is seeded and put back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
    return snapshot(strategy.model)


def check_callbacks(plugin: Any) -> None:
    """Law: own ``before_*``/``after_*`` names are the host's, and each takes ``**kwargs``.

    The host only warns of a misspelt callback, and then never calls it.
    """
    known = {name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))}
    for name, method in inspect.getmembers(type(plugin), inspect.isfunction):
        if not name.startswith(("before_", "after_")):
            continue
        require(
            name in known,
            f"{type(plugin).__name__}.{name} is no callback of the host; known: {sorted(known)}",
        )
        kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}
        require(
            inspect.Parameter.VAR_KEYWORD in kinds,
            f"{type(plugin).__name__}.{name} must take **kwargs, which strategy.train passes on",
        )


def check_documented(component: type) -> None:
    """Law: the docstring names its source and its deviations from it."""
    text = inspect.getdoc(component) or ""
    for section in ("References:", "Deviations:"):
        require(section in text, f"the docstring of {component.__name__} has no section {section!r}")


def check_arguments(
    component: Callable[..., Any],
    wrong: Mapping[str, Any],
    *,
    valid: Mapping[str, Any] | None = None,
    exempt: Collection[str] = (),
) -> None:
    """Law: each constructor argument, given one wrong value, is named in the error.

    Args:
        component: the class or function.
        wrong: a wrong value for every argument.
        valid: values for the arguments that have no default.
        exempt: arguments for which every value is right (``**kwargs`` that are passed on).
    """
    parameters = inspect.signature(component).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = {parameter.name for parameter in parameters if parameter.kind not in kinds}
    missing = names - set(wrong) - set(exempt)
    require(not missing, f"{component.__name__}: no wrong value is given for {sorted(missing)}")
    for name, value in wrong.items():
        try:
            component(**{**(valid or {}), name: value})
        except (TypeError, ValueError) as error:
            named = re.search(rf"\b{re.escape(name)}\b", str(error))
            require(
                named is not None,
                f"{component.__name__}({name}={value!r}): the error does not name it: {error}",
            )
        else:
            raise LawBroken(f"{component.__name__} accepts {name}={value!r}")


def check_seeded(make: Callable[[], Any]) -> None:
    """Law: constructing draws nothing from the global generator, and gives the same twice over.

    Args:
        make: makes the component, afresh at every call.
    """
    before = torch.get_rng_state()
    first = make()
    require(
        torch.equal(before, torch.get_rng_state()),
        f"{type(first).__name__} draws from the global generator; give it one of its own",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(987654321)
        second = make()
    if isinstance(first, nn.Module):
        changed = differing(snapshot(first), snapshot(second))
        require(not changed, f"two {type(first).__name__} of the same seed differ in {changed[:5]}")


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
        tolerance: largest difference in any entry.
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
        require(error <= tolerance, f"the added gradient of {name} is off by {error:.2e}")
    require(any(bool(g.any()) for g in own.values()), "the term has no gradient, so nothing was checked")


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


def check_resumable(make_strategy: Callable[[], Any], benchmark: Any) -> None:
    """Law: stopped after any experience and resumed in fresh objects, a run ends as if never stopped.

    What is carried over is the ``state_dict`` of the model, the optimizer and every plugin that has
    one, read back with ``weights_only=True``, and the global generator's state. Iterations are
    counted over both parts, so that starting from zero does not pass.
    """

    def train(strategy: Any, experiences: Iterable[Any]) -> int:
        iterations = 0
        for experience in experiences:
            strategy.train(experience)
            iterations += strategy.clock.train_exp_iterations
        return iterations

    stream = list(benchmark.train_stream)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = make_strategy()
        whole_iterations = train(whole, stream)
        expected = snapshot(whole.model)
        for stop in range(1, len(stream)):
            torch.manual_seed(0)
            first = make_strategy()
            iterations = train(first, stream[:stop])
            file = BytesIO()
            torch.save({**_state(first), "generator": torch.get_rng_state()}, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
            second = make_strategy()
            # The host fills its optimizer at the first training; the state needs its groups.
            second.make_optimizer(reset_optimizer_state=True)
            _load_state(second, state)
            torch.set_rng_state(state["generator"])
            iterations += train(second, stream[stop:])
            changed = differing(expected, snapshot(second.model))
            require(not changed, f"resumed after experience {stop}, the run ends with other {changed[:5]}")
            require(iterations == whole_iterations, f"{iterations} iterations instead of {whole_iterations}")


def _state(strategy: Any) -> dict[str, Any]:
    plugins = [p.state_dict() if hasattr(p, "state_dict") else {} for p in strategy.plugins]
    return {
        "model": strategy.model.state_dict(),
        "optimizer": strategy.optimizer.state_dict(),
        "plugins": plugins,
    }


def _load_state(strategy: Any, state: Mapping[str, Any]) -> None:
    strategy.model.load_state_dict(state["model"])
    strategy.optimizer.load_state_dict(state["optimizer"])
    # The host resets the optimizer when it does not know its parameters yet.
    strategy.optimized_param_id = dict(strategy.model.named_parameters())
    for plugin, plugin_state in zip(strategy.plugins, state["plugins"], strict=True):
        if hasattr(plugin, "load_state_dict"):
            plugin.load_state_dict(plugin_state)
