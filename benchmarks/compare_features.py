"""Everything that runs on features against everything: stored features of a real CLIP, three orders.

    AVALANCHE_VLM_DATA=folder python benchmarks/compare_features.py --output results

Streams of caltech101 (7 experiences), oxford_pets (5) and imagenet with 4 shots (10), in three class orders;
see ``real_features.py``. One learner for all that train: a cosine head with scale 100 that starts from the
text features, AdamW 1e-3 without weight decay, fresh in each experience, batches of 128, 30 epochs
(imagenet: 10); "adapters" are `AdaptedTextHead` and `ResidualAdapter` in its place, Auto-Seed's own learner.
Memories hold five samples or seeds a class. Generators draw 32 samples a class, in batches of four of each
class seen (imagenet: of one, and three epochs; some methods are left out there, for their time).

Strengths of EWC, MAS, SI, LwF and DER, and of the closed form, are those that validation on other class
orders chose for ``host_baselines.md`` and ``cgil_features.md``; imagenet takes the former of caltech101. Of a
combination each part has the strength that it has alone. The output folder keeps runs; the same command
goes on.

Copies tables and pictures beside this script: ``compare_features.md`` and ``compare_features_*.png``.
"""

import argparse
import logging
import os
from functools import partial
from pathlib import Path

from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from real_features import STREAMS, load, unique
from study import copy_comparison
from torch.optim import AdamW

from avalanche_vlm import sources
from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.comparison import Setup, compare, grid, write_comparison
from avalanche_vlm.logging import TableColumn
from avalanche_vlm.memory import GeneratedSeeds, KMeansSeeds, SeedBuffer
from avalanche_vlm.models import (
    AdaptedTextHead,
    CosineHead,
    DualPathHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    ResidualAdapter,
    TextFeatureHead,
)
from avalanche_vlm.plugins import (
    FeatureReplayPlugin,
    GaussianDiscriminantPlugin,
    LabelSpaceCrossEntropy,
    PastGenerativeLatentReplayPlugin,
    PrototypePlugin,
    SynapticIntelligencePlugin,
)
from avalanche_vlm.strategies import CGIL, AutoSeed, FineTune, GaussianDiscriminant, ZeroShot, host_baselines

STRENGTHS = {
    "caltech101": {"EWC": 1e10, "MAS": 0.01, "SI": 1e4, "LwF": 500.0, "DER": 2.0},
    "oxford_pets": {"EWC": 1e8, "MAS": 0.1, "SI": 1e4, "LwF": 500.0, "DER": 0.1},
}
STRENGTHS["imagenet"] = STRENGTHS["caltech101"]
ARGUMENTS = {"EWC": "ewc_lambda", "MAS": "lambda_reg", "SI": "si_lambda", "LwF": "alpha", "DER": "alpha"}
FUSION = {"caltech101": 0.02, "oxford_pets": 2.0, "imagenet": 0.05}
PER_CLASS = 5
LEFT_OUT = (  # on a thousand classes, for their time
    *(
        "Auto-Seed",
        "seeds in Replay",
        "generators",
        "prototypes",
        "seeds + EWC",
        "seeds + SI",
        "seeds + Replay",
    ),
    *("generators + seeds", "generators + Replay", "replay, class-balanced", "cumulative"),
)
COLUMNS = (
    TableColumn("Average", "pooled_average_incremental_accuracy", "seen"),
    TableColumn("Last", "pooled_last_accuracy", "seen"),
    TableColumn("Forgetting", "forgetting", "seen"),
    TableColumn("Transfer", "ci_transfer", "all"),
)


def prepare(seed: int, name: str) -> Setup:
    """Return the features of a data set in the class order of a seed, among which text has been encoded."""
    parts, n_experiences, _ = STREAMS[name]
    path = Path(os.environ["AVALANCHE_VLM_DATA"]) / "clip_vitb32_features.npz"
    train, test, names, text = load(path, name, parts)
    stream = {"class_names": unique(names), "n_experiences": n_experiences, "seed": seed}
    return Setup(
        benchmark=tensor_benchmark(train, test, **stream),
        backbone=EmbeddingBackbone(512),
        head=partial(TextFeatureHead, text),
        seed=seed,
        train_arguments={"reset_optimizer_state": True},
    )


def learner(setup: Setup, evaluator, name: str, head=None, epochs: int | None = None, **arguments) -> dict:
    """Return the arguments that all have that train."""
    model = setup.model(CosineHead(setup.head()) if head is None else head, **arguments)
    return {
        "model": model,
        "optimizer": AdamW(model.parameters(), lr=1e-3, weight_decay=0.0),
        "train_mb_size": 128,
        "eval_mb_size": 512,
        "train_epochs": epochs or STREAMS[name][2],
        "evaluator": evaluator,
    }


def size_of(setup: Setup) -> int:
    """Return how many samples or seeds a memory holds."""
    return PER_CLASS * setup.benchmark.n_classes


def zero_shot(setup, evaluator, name):
    """Train nothing."""
    return ZeroShot(model=setup.model(), eval_mb_size=512, evaluator=evaluator)


def closed_form(setup, evaluator, name):
    """Fuse zero-shot with a Gaussian discriminant; train nothing."""
    model = setup.model(GaussianDiscriminantHead(setup.head(), fusion_weight=FUSION[name], mean_prior="none"))
    return GaussianDiscriminant(model=model, eval_mb_size=512, evaluator=evaluator)


def host(setup, evaluator, name, method):
    """Return one of Avalanche's own methods."""
    strength = {ARGUMENTS[method]: STRENGTHS[name][method]} if method in ARGUMENTS else {}
    builders = host_baselines(memory_size=size_of(setup), n_experiences=STREAMS[name][1])
    return builders[method](**learner(setup, evaluator, name), **strength)


def cgil(setup, evaluator, name, generator, fused=False):
    """Train on draws of generators, and with a discriminant on top where it is asked for."""
    head = CosineHead(setup.head())
    if fused:
        head = GaussianDiscriminantHead(head, fusion_weight=FUSION[name], mean_prior="none")
    large = name == "imagenet"
    common = learner(setup, evaluator, name, head, epochs=3 if large else None)
    if fused:
        common["optimizer"] = AdamW(common["model"].parameters(), lr=1e-4, weight_decay=0.0)
        common["train_epochs"] = 3
    own = {"samples_per_class": 32, "batch_samples_per_class": 1 if large else 4}
    plugins = [GaussianDiscriminantPlugin()] if fused else []
    return CGIL(generator=generator(seed=setup.seed), plugins=plugins, **own, **common)


def auto_seed(setup, evaluator, name, source):
    """Replay seeds beside Auto-Seed's own learner."""
    adapters = {"head": AdaptedTextHead(setup.head()), "image_adapter": ResidualAdapter()}
    buffer = SeedBuffer(size_of(setup), source(PER_CLASS, seed=setup.seed), seed=setup.seed)
    return AutoSeed(buffer=buffer, **learner(setup, evaluator, name, **adapters))


def naive_adapters(setup, evaluator, name):
    """Train that learner without a memory."""
    return FineTune(
        **learner(setup, evaluator, name, AdaptedTextHead(setup.head()), image_adapter=ResidualAdapter())
    )


def parts(setup, evaluator, name, names):
    """Return fine-tuning of the cosine head with a list of plugins of any origin."""
    head = CosineHead(setup.head())
    if "prototypes" in names:
        head = DualPathHead(head, fusion_weight=0.5, visual_space="embedding")
    if "discriminant" in names:
        head = GaussianDiscriminantHead(head, fusion_weight=FUSION[name], mean_prior="none")
    strengths, size, seed = STRENGTHS[name], size_of(setup), setup.seed
    make = {
        "seeds": lambda: FeatureReplayPlugin(SeedBuffer(size, KMeansSeeds(PER_CLASS, seed=seed), seed=seed)),
        "seeds in Replay": lambda: ReplayPlugin(
            size, storage_policy=SeedBuffer(size, KMeansSeeds(PER_CLASS, seed=seed), seed=seed)
        ),
        "generators": lambda: PastGenerativeLatentReplayPlugin(
            sources.LowRankGaussian(rank=8, seed=seed), samples_per_class=32
        ),
        "prototypes": PrototypePlugin,
        "discriminant": GaussianDiscriminantPlugin,
        "LwF": lambda: LwFPlugin(alpha=strengths["LwF"], temperature=2.0),
        "EWC": lambda: EWCPlugin(ewc_lambda=strengths["EWC"]),
        "SI": lambda: SynapticIntelligencePlugin(strengths["SI"]),
        "Replay": lambda: ReplayPlugin(size),
    }
    common = learner(setup, evaluator, name, head) | {"criterion": LabelSpaceCrossEntropy("seen")}
    return FineTune(plugins=[make[each]() for each in names], **common)


def methods(name: str) -> dict:
    """Return the methods on a data set, by name."""
    hosts = [each for each in host_baselines(memory_size=1, n_experiences=1) if each != "replay, parametric"]
    lists = [
        *(("seeds",), ("seeds in Replay",), ("generators",), ("prototypes",)),
        *(("seeds", "LwF"), ("seeds", "EWC"), ("seeds", "SI"), ("seeds", "Replay")),
        *(("generators", "seeds"), ("generators", "Replay"), ("seeds", "discriminant")),
    ]
    low_rank = partial(sources.LowRankGaussian, rank=8)
    own = {
        "zero-shot": zero_shot,
        "closed form": closed_form,
        "CGIL, rank-8 Gaussians": partial(cgil, generator=low_rank),
        "CGIL, shared covariance": partial(cgil, generator=sources.SharedCovarianceGaussian),
        "CGIL on the closed form": partial(cgil, generator=sources.SharedCovarianceGaussian, fused=True),
        "adapters, naive": naive_adapters,
        "Auto-Seed": partial(auto_seed, source=GeneratedSeeds),
        "Auto-Seed, k-means": partial(auto_seed, source=KMeansSeeds),
        **{" + ".join(each): partial(parts, names=each) for each in lists},
        **{each: partial(host, method=each) for each in hosts},
    }
    left_out = LEFT_OUT if name == "imagenet" else ()
    return {method: partial(build, name=name) for method, build in own.items() if method not in left_out}


def main() -> None:
    """Make the runs that the output folder does not have, and the tables of all."""
    parser = argparse.ArgumentParser(description="Methods on features of a real CLIP.")
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    runs = [
        run
        for name in arguments.streams
        for run in grid(methods(name), {name: partial(prepare, name=name)}, arguments.seeds)
    ]
    compare(runs, arguments.output, processes=arguments.processes)
    title = "Everything on features of OpenAI's ViT-B/32, three class orders"
    copy_comparison(write_comparison(runs, arguments.output, columns=COLUMNS, title=title), Path(__file__))


if __name__ == "__main__":
    main()
