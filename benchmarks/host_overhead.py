"""What the host and this package add to a bare training loop on embeddings, as ratios.

    python benchmarks/host_overhead.py

Writes ``host_overhead.md`` beside this file. One thread, in processor time; each row is the best of
several rounds in which all rows take turns, so that a busy machine slows all of them alike.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.metrics import AccuracyMatrixMetric
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.plugins import FastLoadingPlugin, LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune

HERE = Path(__file__).parent
SAMPLES, WIDTH, CLASSES, EXPERIENCES = 50_000, 512, 100, 10
BATCH, EPOCHS, MEMORY, ROUNDS = 128, 2, 2_000, 4
NAMES = [f"class {index}" for index in range(CLASSES)]

Times = tuple[float, float]


def cosine_model(x: Tensor, y: Tensor) -> CLIPClassifier:
    """Return a classifier of embeddings with trainable class weights that start at class means."""
    means = torch.stack([x[y == index].mean(dim=0) for index in range(CLASSES)])
    head = CosineHead(TextFeatureHead(means))
    return CLIPClassifier(EmbeddingBackbone(WIDTH), head, class_names=NAMES)


def linear_model(x: Tensor, y: Tensor) -> nn.Module:
    """Return a plain linear layer."""
    return nn.Linear(WIDTH, CLASSES)


def bare(
    make_model: Callable[..., nn.Module], benchmark: Any, x: Tensor, y: Tensor, *, memory_size: int = 0
) -> Times:
    """Train and evaluate with nothing but PyTorch: the loss over the seen classes, tensors indexed."""
    memory = torch.zeros(0, dtype=torch.int64)
    model = make_model(x, y)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    linear = isinstance(model, nn.Linear)
    iterations = 0
    start = time.process_time()
    for number, experience in enumerate(benchmark.train_stream):
        columns = torch.arange((number + 1) * CLASSES // EXPERIENCES)
        rows = torch.isin(y, torch.tensor(sorted(experience.classes_in_this_experience))).nonzero().flatten()
        model.train()
        for _ in range(EPOCHS):
            for batch in rows[torch.randperm(len(rows))].split(BATCH):
                if len(memory):
                    batch = torch.cat([batch, memory[torch.randint(len(memory), (BATCH,))]])
                optimizer.zero_grad()
                logits = model(x.index_select(0, batch))
                chosen = logits if linear else logits.index_select(1, columns)
                loss = F.cross_entropy(chosen, y.index_select(0, batch))
                loss.backward()
                optimizer.step()
                iterations += 1
        if memory_size:
            memory = torch.cat([memory, rows])
            memory = memory[torch.randperm(len(memory))[:memory_size]]
    trained = time.process_time()
    model.eval()
    with torch.no_grad():
        for rows in torch.arange(len(x)).split(SAMPLES // EXPERIENCES):
            correct = torch.tensor(0)
            for batch in rows.split(BATCH):
                logits, labels = model(x.index_select(0, batch)), y.index_select(0, batch)
                correct = correct + (logits.argmax(dim=1) == labels).sum()
                F.cross_entropy(logits, labels)
            float(correct)
    end = time.process_time()
    return (trained - start) / iterations, (end - trained) / (len(x) / BATCH)


def hosted(
    kind: Any,
    make_model: Callable[..., nn.Module],
    benchmark: Any,
    x: Tensor,
    y: Tensor,
    *,
    metrics: Callable[[], Any] | None = None,
    plugins: Callable[[], list[Any]] = list,
) -> Times:
    """Train and evaluate with a strategy."""
    model = make_model(x, y)
    evaluator = None if metrics is None else EvaluationPlugin(metrics())
    arguments: dict[str, Any] = {"eval_mb_size": BATCH, "train_mb_size": BATCH, "train_epochs": EPOCHS}
    if not isinstance(model, nn.Linear):
        arguments["criterion"] = LabelSpaceCrossEntropy("seen")
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    strategy = kind(model=model, optimizer=optimizer, plugins=plugins(), evaluator=evaluator, **arguments)
    iterations = 0
    start = time.process_time()
    for experience in benchmark.train_stream:
        strategy.train(experience)
        iterations += strategy.clock.train_exp_iterations
    trained = time.process_time()
    strategy.eval(benchmark.test_stream)
    end = time.process_time()
    return (trained - start) / iterations, (end - trained) / (len(x) / BATCH)


def our_metrics() -> list[Any]:
    """Return the accuracy matrix."""
    return [AccuracyMatrixMetric("seen")]


def host_metrics() -> list[Any]:
    """Return the host's accuracy, by epoch, experience and stream."""
    return [accuracy_metrics(epoch=True, experience=True, stream=True)]


def replay() -> list[Any]:
    """Return the host's replay."""
    return [ReplayPlugin(MEMORY)]


def rows() -> dict[str, Callable[..., Times]]:
    """Return what is timed, by what to call it; the bare loop of each model comes first."""

    def of(kind: Any, model: Any, **arguments: Any) -> Callable[..., Times]:
        return lambda benchmark, x, y: hosted(kind, model, benchmark, x, y, **arguments)

    def fast(plugins: Callable[[], list[Any]] = list) -> Callable[[], list[Any]]:
        return lambda: [*plugins(), FastLoadingPlugin()]

    def bare_loop(model: Any, **arguments: Any) -> Callable[..., Times]:
        return lambda benchmark, x, y: bare(model, benchmark, x, y, **arguments)

    strategies = {"`FineTune`": FineTune, "`Naive` of the host": Naive}
    found = {"cosine head, bare loop": bare_loop(cosine_model)}
    for name, kind in strategies.items():
        found[f"cosine head, {name}"] = of(kind, cosine_model)
        found[f"cosine head, {name}, `AccuracyMatrixMetric`"] = of(kind, cosine_model, metrics=our_metrics)
        found[f"cosine head, {name}, `accuracy_metrics`"] = of(kind, cosine_model, metrics=host_metrics)
    found["cosine head, replay, bare loop"] = bare_loop(cosine_model, memory_size=MEMORY)
    for name, kind in strategies.items():
        found[f"cosine head, replay, {name}"] = of(kind, cosine_model, plugins=replay)
    found["linear layer, bare loop"] = bare_loop(linear_model)
    found["linear layer, `Naive`, `FastLoadingPlugin`"] = of(Naive, linear_model, plugins=fast())
    found["linear layer, `Naive` of the host"] = of(Naive, linear_model)
    return found


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    x, y = torch.randn(SAMPLES, WIDTH), torch.arange(SAMPLES) % CLASSES
    benchmark = tensor_benchmark((x, y), (x, y), class_names=NAMES, n_experiences=EXPERIENCES)
    functions = rows()
    best = {name: (float("inf"), float("inf")) for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            times = function(benchmark, x, y)
            best[name] = (min(best[name][0], times[0]), min(best[name][1], times[1]))
    lines = [
        f"# Host overhead on {SAMPLES:,} x {WIDTH} embeddings, one CPU thread",
        "",
        f"Written by `benchmarks/host_overhead.py`: {CLASSES} classes in {EXPERIENCES} experiences, batches "
        f"of {BATCH}, {EPOCHS} epochs, best of {ROUNDS} rounds. Milliseconds of processor time an iteration, "
        "and the ratio to the bare loop above it, which indexes the same tensors, computes the same loss "
        "with the same model and optimizer, and in evaluation counts what is right. What an experience costs "
        f"before its first iteration is counted in. Replay has a memory of {MEMORY:,}, and batches of twice "
        "the size from the second experience on.",
        "",
        "| row | training | ratio | evaluation | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, (train, evaluate) in best.items():
        if name.endswith("bare loop"):
            reference = (train, evaluate)
        ratios = train / reference[0], evaluate / reference[1]
        lines.append(
            f"| {name} | {1e3 * train:.2f} | {ratios[0]:.2f} | {1e3 * evaluate:.2f} | {ratios[1]:.2f} |"
        )
    (HERE / "host_overhead.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
