"""What a memory of seeds costs in an online stream, beside the host's reservoir buffer.

    AVALANCHE_VLM_DATA=folder python benchmarks/auto_seed_online.py

The training features of caltech101 come ten at a time, without boundaries (``split_online_stream``). The same
learner (two adapters, one step of ten samples and ten draws) trains without a memory, with the host's
``ReplayPlugin`` and a reservoir of real features, and with seeds that are made after every 200 samples or
after each experience. Methods take turns in three rounds in one process; the table has the median of
the milliseconds a sample, as a difference from no memory, and accuracy after the stream. Writes
``auto_seed_online.md``.
"""

import os
import statistics
import time
from pathlib import Path

import torch
from auto_seed_features import Stream
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ReservoirSamplingBuffer
from rich.progress import track
from torch.optim import AdamW

from avalanche_vlm.benchmarks import class_names
from avalanche_vlm.memory import GeneratedSeeds, KMeansSeeds, SeedBuffer
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import (
    AdaptedTextHead,
    CLIPClassifier,
    EmbeddingBackbone,
    ResidualAdapter,
    TextFeatureHead,
)
from avalanche_vlm.plugins import FeatureReplayPlugin
from avalanche_vlm.strategies import FineTune

HERE = Path(__file__).parent
SIZE = 280  # four a class
MEMORIES = {
    "no memory": lambda: [],
    "host Replay, reservoir of features": lambda: [
        ReplayPlugin(SIZE, batch_size_mem=10, storage_policy=ReservoirSamplingBuffer(SIZE))
    ],
    "host Replay, class-balanced features": lambda: [
        ReplayPlugin(SIZE, batch_size_mem=10, storage_policy=ClassBalancedBuffer(SIZE))
    ],
    "k-means seeds, every 200 samples": lambda: [
        FeatureReplayPlugin(SeedBuffer(SIZE, KMeansSeeds(4), update_every=200), batch_size=10)
    ],
    "generated seeds, every 200 samples": lambda: [
        FeatureReplayPlugin(SeedBuffer(SIZE, GeneratedSeeds(4), update_every=200), batch_size=10)
    ],
    "k-means seeds, every experience": lambda: [
        FeatureReplayPlugin(SeedBuffer(SIZE, KMeansSeeds(4)), batch_size=10)
    ],
    "host Replay of k-means seeds, every 200": lambda: [
        ReplayPlugin(
            SIZE, batch_size_mem=10, storage_policy=SeedBuffer(SIZE, KMeansSeeds(4), update_every=200)
        )
    ],
}


def run(stream: Stream, make, seed: int) -> tuple[float, float, int]:
    """Return milliseconds a sample, accuracy after the stream, and bytes of the memory."""
    torch.manual_seed(seed)
    benchmark, text = stream.benchmark(seed), TextFeatureHead(stream.text)
    model = CLIPClassifier(EmbeddingBackbone(512), AdaptedTextHead(text), image_adapter=ResidualAdapter())
    model.set_classes(class_names(benchmark))
    metrics, plugins = continual_metrics(spaces=("seen",)), make()
    strategy = FineTune(
        model=model,
        optimizer=AdamW(model.parameters(), lr=1e-3, weight_decay=0.0),
        train_mb_size=10,
        eval_mb_size=512,
        plugins=plugins,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
    )
    online = list(split_online_stream(benchmark.train_stream, 10, access_task_boundaries=False, seed=seed))
    start, samples = time.perf_counter(), sum(len(experience.dataset) for experience in online)
    for experience in online:
        strategy.train(experience)
    spent = time.perf_counter() - start
    strategy.eval(benchmark.test_stream)
    policy = getattr(plugins[0], "storage_policy", getattr(plugins[0], "buffer", None)) if plugins else None
    stored = policy.nbytes if isinstance(policy, SeedBuffer) else 2048 * len(policy.buffer) if policy else 0
    return 1000 * spent / samples, 100 * metrics[0].summary("test")["last_accuracy"], stored


def main() -> None:
    """Run three rounds and write the table."""
    torch.set_num_threads(1)
    stream, found = Stream("caltech101"), {name: [] for name in MEMORIES}
    for seed in track(range(3), description="rounds"):
        for name, make in MEMORIES.items():
            found[name].append(run(stream, make, seed))
    base = [each[0] for each in found["no memory"]]
    lines = [
        "# Seeds in an online stream\n",
        f"Written by `benchmarks/auto_seed_online.py`, {os.cpu_count()} cores, one thread. KB includes "
        "embeddings that wait for the next update (up to 200, 2 KB each).\n",
        "| memory | ms a sample | over no memory | Last | KB |",
        "|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        added = statistics.median(each[0] - none for each, none in zip(runs, base, strict=True))
        accuracy = statistics.fmean(each[1] for each in runs)
        spread = statistics.stdev(each[1] for each in runs)
        lines.append(
            f"| {name} | {statistics.median(each[0] for each in runs):.2f} | {added:+.2f} | "
            f"{accuracy:.1f} ± {spread:.1f} | {runs[0][2] / 1024:.0f} |"
        )
    (HERE / "auto_seed_online.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
