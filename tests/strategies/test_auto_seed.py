"""Auto-Seed: whole runs, stopped and resumed, on online streams, and beside other methods."""

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.training import Naive
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from torch.optim import SGD, AdamW

from avalanche_vlm.memory import GeneratedSeeds, KMeansSeeds, SeedBuffer
from avalanche_vlm.models import (
    AdaptedTextHead,
    GaussianDiscriminantHead,
    LinearHead,
    ResidualAdapter,
    ZeroShotHead,
)
from avalanche_vlm.plugins import (
    FeatureReplayPlugin,
    GaussianDiscriminantPlugin,
    GenerativeLatentReplayPlugin,
    LabelSpaceCrossEntropy,
    RegularizerPlugin,
)
from avalanche_vlm.regularizers import SeedConsistency
from avalanche_vlm.sources import DiagonalGaussian
from avalanche_vlm.strategies import AutoSeed, FineTune
from avalanche_vlm.testing import (
    check_composes,
    check_frozen,
    check_repeatable,
    check_resumable,
    tiny_benchmark,
    tiny_classifier,
)
from avalanche_vlm.testing.running import differing, run

IMAGES = tiny_benchmark()
EMBEDDED = tiny_benchmark(embedded=tiny_classifier())
BENCHMARKS = {"images": IMAGES, "embedded": EMBEDDED}


def adapters(head=None):
    return tiny_classifier(AdaptedTextHead() if head is None else head, image_adapter=ResidualAdapter())


def memory(source=None, **arguments):
    return SeedBuffer(12, GeneratedSeeds(2, steps=2) if source is None else source, **arguments)


def strategy_of(kind=AutoSeed, plugins=(), head=None, **arguments):
    model = adapters(head)
    return kind(
        model=model,
        optimizer=AdamW(model.parameters(), lr=1e-2),
        plugins=[*plugins],
        train_mb_size=4,
        evaluator=None,
        **arguments,
    )


RUNS = {
    "as it is": lambda: strategy_of(buffer=memory()),
    "consistency": lambda: strategy_of(buffer=memory(), consistency_weight=0.5),
    "all terms": lambda: strategy_of(
        buffer=memory(
            GeneratedSeeds(
                2, steps=2, contrast_weight=1.0, matching_weight=1.0, outer_weight=1.0, meta_rate=0.5
            )
        ),
        consistency_weight=0.5,
        validation_fraction=0.25,
    ),
    "waiting": lambda: strategy_of(buffer=memory(update_every=12)),
    "k-means": lambda: strategy_of(buffer=memory(KMeansSeeds(2), dtype="float16")),
}


@pytest.mark.parametrize("stream", BENCHMARKS)
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_run_never_stopped(name, stream):
    check_resumable(RUNS[name], BENCHMARKS[stream])


@pytest.mark.parametrize("name", RUNS)
def test_adapters_train_and_the_rest_does_not_and_runs_repeat(name):
    check_frozen(RUNS[name], EMBEDDED)
    check_repeatable(RUNS[name], EMBEDDED)


class KeptReplay(ReplayPlugin):
    """The host's, which has no state of its own to store, with that of its memory."""

    def state_dict(self):
        return self.storage_policy.state_dict()

    def load_state_dict(self, state):
        self.storage_policy.load_state_dict(state)


@pytest.mark.parametrize("update_every", [1, 12])
def test_the_hosts_replay_of_seeds_resumes_too(update_every):
    def make():
        replay = KeptReplay(mem_size=12, storage_policy=memory(update_every=update_every))
        return strategy_of(Naive, [replay], eval_mb_size=4, criterion=LabelSpaceCrossEntropy("seen"))

    check_resumable(make, EMBEDDED)


@pytest.mark.parametrize("update_every", [1, 8])
@pytest.mark.parametrize("stream", BENCHMARKS)
def test_an_online_stream(stream, update_every):
    buffer = memory(update_every=update_every)
    strategy = strategy_of(buffer=buffer, validation_fraction=0.25)
    for experience in split_online_stream(
        BENCHMARKS[stream].train_stream, experience_size=3, access_task_boundaries=True
    ):
        strategy.train(experience)
    buffer.flush(strategy.model)
    assert buffer.classes == list(range(6))
    assert len(buffer) <= 12
    assert all(bool(parameter.isfinite().all()) for parameter in strategy.model.parameters())


def test_it_is_fine_tuning_with_two_plugins():
    def by_hand():
        buffer = memory()
        consistency = SeedConsistency(buffer, batch_size=16, seed=1)
        plugins = [FeatureReplayPlugin(buffer, 0.7, batch_size=16), RegularizerPlugin(consistency, 0.3)]
        return strategy_of(FineTune, plugins)

    ours = strategy_of(buffer=memory(), replay_weight=0.7, consistency_weight=0.3, replay_batch_size=16)
    theirs = by_hand()
    theirs._fresh_optimizer_state = True
    assert not differing(run(ours, EMBEDDED), run(theirs, EMBEDDED))


def test_without_a_weight_it_is_fine_tuning_with_a_fresh_optimizer():
    def plain():
        model = adapters()
        return FineTune(
            model=model, optimizer=SGD(model.parameters(), lr=0.1), train_mb_size=4, evaluator=None
        )

    def ours():
        model = adapters()
        optimizer = SGD(model.parameters(), lr=0.1)
        return AutoSeed(
            model=model,
            optimizer=optimizer,
            buffer=memory(),
            replay_weight=0,
            train_mb_size=4,
            evaluator=None,
        )

    assert not differing(run(plain(), EMBEDDED), run(ours(), EMBEDDED))


OTHERS = {
    "Replay": lambda: ReplayPlugin(mem_size=6),
    "Replay of seeds": lambda: ReplayPlugin(mem_size=12, storage_policy=memory(KMeansSeeds(2))),
    "LwF": lambda: LwFPlugin(alpha=1.0, temperature=2.0),
    "EWC": lambda: EWCPlugin(ewc_lambda=1e3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_beside_the_hosts_plugins(name):
    plugins = {"seeds": lambda: FeatureReplayPlugin(memory()), name: OTHERS[name]}
    check_composes(lambda chosen: strategy_of(FineTune, chosen), plugins, EMBEDDED)
    with_it, alone = (
        run(strategy_of(buffer=memory(), plugins=plugins), EMBEDDED) for plugins in ([OTHERS[name]()], [])
    )
    assert differing(with_it, alone)


@pytest.mark.parametrize("stream", BENCHMARKS)
def test_beside_generative_replay(stream):
    def strategy(chosen):
        return strategy_of(FineTune, chosen, LinearHead(ZeroShotHead()))

    plugins = {
        "seeds": lambda: FeatureReplayPlugin(memory(KMeansSeeds(2))),
        "generators": lambda: GenerativeLatentReplayPlugin(
            DiagonalGaussian(), samples_per_class=8, batch_samples_per_class=2
        ),
    }
    check_composes(strategy, plugins, BENCHMARKS[stream])


def test_beside_the_gaussian_discriminant():
    buffer, model = memory(KMeansSeeds(2)), tiny_classifier(GaussianDiscriminantHead(), trainable="text")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    strategy = AutoSeed(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        buffer=buffer,
        plugins=[GaussianDiscriminantPlugin()],
        train_mb_size=4,
        evaluator=None,
    )
    run(strategy, EMBEDDED)
    assert buffer.classes == list(range(6))
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert not all(map(torch.equal, before, model.parameters()))


def test_its_seed_is_that_of_both_draws():
    def ends(seed):
        model = tiny_classifier(AdaptedTextHead(), image_adapter=ResidualAdapter())
        return run(
            AutoSeed(
                model=model,
                optimizer=SGD(model.parameters(), lr=0.1),
                buffer=SeedBuffer(max_size=12, source=KMeansSeeds(2)),
                consistency_weight=0.5,
                replay_batch_size=4,
                seed=seed,
                evaluator=None,
            ),
            EMBEDDED,
        )

    strategy = AutoSeed(
        model=(m := tiny_classifier(AdaptedTextHead())), optimizer=SGD(m.parameters(), lr=0.1), seed=6
    )
    replay, consistency = (plugin.regularizer for plugin in strategy.plugins[:2])
    assert [each._generator.initial_seed() for each in (replay, consistency)] == [6, 7]
    assert not differing(ends(0), ends(0))
    assert differing(ends(0), ends(1))
