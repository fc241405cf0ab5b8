"""The host's own strategies on a `CLIPClassifier`, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from avalanche.training import (
    AGEM,
    DER,
    ER_ACE,
    EWC,
    Cumulative,
    JointTraining,
    LwF,
    Naive,
    Replay,
)
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ParametricBuffer
from avalanche.training.templates import SupervisedTemplate

from avalanche_vlm._checks import check_count
from avalanche_vlm.plugins import GDumbPlugin, LabelSpaceCrossEntropy, MASPlugin, SynapticIntelligencePlugin

#: A function of the host's arguments that returns one of its strategies.
StrategyBuilder = Callable[..., SupervisedTemplate[Any, Any, Any]]


def host_baselines(*, memory_size: int, n_experiences: int) -> dict[str, StrategyBuilder]:
    """Return how to build each of the host's strategies that a table of results should have.

    A builder takes the host's arguments (``model``, ``optimizer``, ``plugins``, ``train_mb_size``,
    ``evaluator``, ...), and its own by name to replace the values that stand here. The criterion is
    ``LabelSpaceCrossEntropy("seen")`` unless another is given. All take one experience at a time, but
    for ``"joint training"``, which takes the whole stream.

    ====================== =========================================== ============================
    name                   strategy                                    strength, and its value here
    ====================== =========================================== ============================
    naive                  ``Naive``
    EWC                    ``EWC``                                     ``ewc_lambda=100``
    MAS                    ``Naive``, `MASPlugin`                      ``lambda_reg=1``
    LwF                    ``LwF``, temperature 2                      ``alpha=5``
    SI                     ``Naive``, `SynapticIntelligencePlugin`     ``si_lambda=100``
    AGEM                   ``AGEM``, with an equal share of the
                           memory for each experience
    GDumb                  ``Naive``, `GDumbPlugin`
    DER                    ``DER``, beta 0.5, at most 32 of the        ``alpha=0.1``
                           memory a batch
    ER-ACE                 ``ER_ACE``, the same
    replay                 ``Replay``: balanced over experiences
    replay, class-balanced ``Naive``, ``ReplayPlugin``,
                           ``ClassBalancedBuffer``
    replay, parametric     ``Naive``, ``ReplayPlugin``,
                           ``ParametricBuffer`` by class
    cumulative             ``Cumulative``: all data so far
    joint training         ``JointTraining``: all data at once
    ====================== =========================================== ============================

    The values are starting points and not tuned: see `avalanche_vlm.selection`. Those of EWC and MAS
    belong to a batch size, because the host takes the gradient of a batch for that of a sample.
    DER and ER-ACE compute their losses over all named classes once they have a memory, whatever the
    criterion. MAS, SI and GDumb are built of this package's plugins, which mend the host's. After training
    take ``strategy.model``: GDumb trains copies. Left out is
    ``StreamingLDA``, which trains no model: give it ``slda_model=model.backbone.image_tower`` on
    images, or ``torch.nn.Identity()`` on embeddings.

    Args:
        memory_size: number of samples that the strategies with a memory keep in all.
        n_experiences: number of experiences in the stream.

    Raises:
        ValueError: ``memory_size`` or ``n_experiences`` is smaller than 1.

    >>> sorted(host_baselines(memory_size=200, n_experiences=5))[:4]
    ['AGEM', 'DER', 'ER-ACE', 'EWC']
    """
    check_count("memory_size", memory_size)
    check_count("n_experiences", n_experiences)
    by_class = partial(ParametricBuffer, groupby="class")
    # Where the memory is smaller than this, these two never replay, and say nothing.
    memory_batch = min(memory_size, 32)
    builders: dict[str, StrategyBuilder] = {
        "naive": Naive,
        "EWC": partial(EWC, ewc_lambda=100.0),
        "MAS": partial(_memory_aware_synapses, lambda_reg=1.0),
        "SI": partial(_synaptic_intelligence, si_lambda=100.0),
        "LwF": partial(LwF, alpha=5.0, temperature=2.0),
        "AGEM": partial(AGEM, patterns_per_exp=max(memory_size // n_experiences, 1), sample_size=64),
        "GDumb": partial(_gdumb, memory_size),
        "DER": partial(DER, mem_size=memory_size, batch_size_mem=memory_batch, alpha=0.1, beta=0.5),
        "ER-ACE": partial(ER_ACE, mem_size=memory_size, batch_size_mem=memory_batch),
        "replay": partial(Replay, mem_size=memory_size),
        "replay, class-balanced": partial(_replay, ClassBalancedBuffer, memory_size),
        "replay, parametric": partial(_replay, by_class, memory_size),
        "cumulative": Cumulative,
        "joint training": JointTraining,
    }
    return {name: partial(_with_criterion, builder) for name, builder in builders.items()}


def _with_criterion(builder: StrategyBuilder, **arguments: Any) -> SupervisedTemplate[Any, Any, Any]:
    # A new one for each strategy: it learns its classes from the strategy that it belongs to.
    arguments.setdefault("criterion", LabelSpaceCrossEntropy("seen"))
    return builder(**arguments)


def _replay(
    policy: Callable[[int], Any], memory_size: int, *, plugins: Sequence[Any] = (), **arguments: Any
) -> Naive:
    memory = ReplayPlugin(memory_size, storage_policy=policy(memory_size))
    return Naive(plugins=[*plugins, memory], **arguments)


def _gdumb(memory_size: int, *, plugins: Sequence[Any] = (), **arguments: Any) -> Naive:
    return Naive(plugins=[*plugins, GDumbPlugin(memory_size)], **arguments)


def _synaptic_intelligence(*, si_lambda: float, plugins: Sequence[Any] = (), **arguments: Any) -> Naive:
    return Naive(plugins=[*plugins, SynapticIntelligencePlugin(si_lambda)], **arguments)


def _memory_aware_synapses(
    *, lambda_reg: float, alpha: float = 0.5, plugins: Sequence[Any] = (), **arguments: Any
) -> Naive:
    return Naive(plugins=[*plugins, MASPlugin(lambda_reg, alpha=alpha)], **arguments)
