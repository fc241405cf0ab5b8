"""Kill runs at random moments, resume them, and compare their ends; measure the size of checkpoints.

    python benchmarks/kill_and_resume.py

Each run is trained once without a break, then again with ``SIGKILL`` at random moments (seeded), each
time resumed in a new process until it ends. Writes ``kill_and_resume.md`` beside this file. Needs
``fork``, so Linux or macOS.
"""

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training import DER, ER_ACE, EWC, LwF, Naive, Replay
from avalanche.training.plugins import EvaluationPlugin, LwFPlugin, ReplayPlugin
from torch.optim import SGD, Adam

from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.logging import ResultsLogger
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    LearnedContextHead,
    LoRA,
    OpenCLIPBackbone,
    ZeroShotHead,
)
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

HERE = Path(__file__).parent
KILLS = 4
EPOCHS = 6
EXPERIENCES = 3


def cosine():
    """Return a classifier whose class weights train."""
    return tiny_classifier(CosineHead(ZeroShotHead()))


def lora():
    """Return a classifier with LoRA in both towers."""
    return tiny_classifier(trainable=LoRA(rank=2, dropout=0.1))


METHODS = {
    "FineTune, image tower": (FineTune, lambda: tiny_classifier(trainable="image"), {}),
    "FineTune, LoRA": (FineTune, lora, {}),
    "FineTune, LoRA, inside experiences": (FineTune, lora, {"every_n_epochs": 1}),
    "FineTune, LoRA, replay and LwF, inside": (
        FineTune,
        lora,
        {"every_n_epochs": 2, "more": lambda: [ReplayPlugin(10), LwFPlugin()]},
    ),
    "Naive": (Naive, cosine, {}),
    "Replay": (Replay, cosine, {"mem_size": 10}),
    "EWC": (EWC, cosine, {"ewc_lambda": 10.0}),
    "LwF": (LwF, cosine, {"alpha": 1.0, "temperature": 2.0}),
    "DER": (DER, cosine, {"mem_size": 12, "batch_size_mem": 4}),
    "ER_ACE": (ER_ACE, cosine, {"mem_size": 12, "batch_size_mem": 4}),
}


def run(name, folder):
    """Run a method to its end, from where an earlier process was killed; called in a new process."""
    warnings.simplefilter("ignore")
    kind, make_model, own = METHODS[name]
    own = dict(own)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    checkpoints = folder / "checkpoints"
    plugins = [
        *own.pop("more", list)(),
        CheckpointPlugin(checkpoints, every_n_epochs=own.pop("every_n_epochs", None)),
    ]
    model, benchmark = make_model(), tiny_benchmark(n_experiences=EXPERIENCES, per_class=8)
    evaluator = EvaluationPlugin(
        continual_metrics(),
        accuracy_metrics(epoch=True, experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
        loggers=[ResultsLogger(folder / "results.csv", method=name, seed=0)],
    )
    strategy = kind(
        model=model,
        optimizer=Adam(model.parameters(), lr=0.01),
        criterion=LabelSpaceCrossEntropy("seen"),
        train_mb_size=4,
        train_epochs=EPOCHS,
        eval_mb_size=8,
        plugins=plugins,
        evaluator=evaluator,
        **own,
    )
    counter = os.open(folder / "iterations", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    strategy.optimizer.register_step_post_hook(lambda *_: os.write(counter, b"."))
    start = resume(strategy, checkpoints, benchmark)
    if start == 0:
        strategy.eval(benchmark.test_stream)
    for experience in benchmark.train_stream[start:]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    tensors = [*torch.nn.Module.named_parameters(model), *model.named_buffers()]
    matrices = {metric.space: metric.matrix() for metric in evaluator.metrics if hasattr(metric, "matrix")}
    ended = {
        "tensors": {key: tensor.detach() for key, tensor in tensors},
        "optimizer": [list(state.values()) for state in strategy.optimizer.state_dict()["state"].values()],
        "matrices": matrices,
        "host metrics": dict(evaluator.get_all_metrics()),
    }
    torch.save(ended, folder / "ended.tmp")
    os.replace(folder / "ended.tmp", folder / "ended.pt")


def start_run(name, folder):
    """Start a process of its own, which shares nothing but the imported modules."""
    folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=run, args=(name, folder))
    process.start()
    return process


def wait_for(file, size, process):
    """Wait until a file has grown to a size, or the process has ended."""
    while process.is_alive() and (file.stat().st_size if file.exists() else 0) < size:
        time.sleep(0.001)


def same(first, second):
    """Return whether two results are equal in every bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first.nan_to_num(), second.nan_to_num())
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def kill_and_compare(name, root, draw):
    """Return the row of the table for a method."""
    whole = root / name / "whole"
    process = start_run(name, whole)
    process.join()
    killed = root / name / "killed"
    counter, kills = killed / "iterations", 0
    total = (whole / "iterations").stat().st_size
    while not (killed / "ended.pt").exists():
        before = counter.stat().st_size if counter.exists() else 0
        process = start_run(name, killed)
        if kills < KILLS:
            # After some of what is left in the run, and a moment that may lie in an evaluation or a write.
            wait_for(counter, before + draw.randint(0, total // 2), process)
            time.sleep(draw.uniform(0, 0.1))
        else:
            process.join()
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{name}: a process ended with {process.exitcode}")
    first, second = (torch.load(folder / "ended.pt", weights_only=False) for folder in (whole, killed))
    csv = (whole / "results.csv").read_bytes() == (killed / "results.csv").read_bytes()
    iterations = [(folder / "iterations").stat().st_size for folder in (whole, killed)]
    equal = [same(first[key], second[key]) for key in ("tensors", "optimizer", "matrices", "host metrics")]
    extra = iterations[1] - iterations[0]
    bound = kills * iterations[0] / EXPERIENCES
    return name, kills, *equal, csv, iterations[0], iterations[1], extra <= bound


def sizes(root):
    """Return rows on the size of a checkpoint on a ViT-B-32 with random weights."""
    from avalanche_vlm.benchmarks import tensor_benchmark

    rows = []
    x, y = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    for label, head, trainable in (
        ("LoRA of rank 8", None, LoRA(rank=8)),
        ("16 learned prompt tokens", LearnedContextHead(context_length=16), "nothing"),
    ):
        for optimizer in (Adam, SGD):
            model = CLIPClassifier(
                OpenCLIPBackbone("ViT-B-32"), head, class_names=["cat", "dog"], trainable=trainable
            )
            folder = root / f"{label} {optimizer.__name__}"
            momentum = {"momentum": 0.9} if optimizer is SGD else {}
            strategy = FineTune(
                model=model,
                optimizer=optimizer(model.parameters(), lr=0.01, **momentum),
                train_mb_size=2,
                plugins=[CheckpointPlugin(folder)],
                evaluator=EvaluationPlugin(continual_metrics(), loggers=[ResultsLogger(root / "sizes.csv")]),
            )
            benchmark = tensor_benchmark((x, y), (x, y), class_names=["cat", "dog"], n_experiences=1)
            strategy.train(benchmark.train_stream[0])
            strategy.eval(benchmark.test_stream)
            state = strategy.optimizer.state.values()
            trained = sum(p.nbytes for p in model.parameters())
            kept = sum(t.nbytes for each in state for t in each.values() if isinstance(t, torch.Tensor))
            written = (folder / "experience-0001.ckpt").stat().st_size
            rows.append(
                (
                    label,
                    optimizer.__name__,
                    trained,
                    kept,
                    written,
                )
            )
            head = None if head is None else LearnedContextHead(context_length=16)
    return rows


def main():
    """Kill, compare, measure, and write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    draw = random.Random(0)
    root = Path(tempfile.mkdtemp())
    lines = ["# Killed and resumed runs", "", "Written by `benchmarks/kill_and_resume.py`.", ""]
    lines += [
        f"{EXPERIENCES} experiences, {EPOCHS} epochs each, tiny models, Adam; `SIGKILL` at random moments,",
        "then resumed in a new process. *Same*: equal in every bit to the run that was never killed.",
        "",
        "| run | kills | weights | optimizer | matrices | host's metrics | CSV | iterations | with kills |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    total, all_same = 0, True
    for name in METHODS:
        name, kills, *equal, whole, killed, bounded = kill_and_compare(name, root, draw)
        total, all_same = total + kills, all_same and all(equal) and bounded
        words = " | ".join("same" if each else "**differs**" for each in equal)
        more = "" if bounded else " (more than an experience a kill)"
        lines.append(f"| {name} | {kills} | {words} | {whole} | {killed}{more} |")
    lines += ["", f"{total} kills in all. {'Nothing differs.' if all_same else '**Something differs.**'}", ""]
    lines += [
        "## Size of a checkpoint, ViT-B-32 with random weights (605 MB)",
        "",
        "After one step on two images; two label spaces measured, a `ResultsLogger`.",
        "",
        "| what trains | optimizer | weights, bytes | its state, bytes | checkpoint, bytes | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for label, optimizer, trained, kept, written in sizes(root):
        ratio = written / (trained + kept)
        lines.append(f"| {label} | {optimizer} | {trained:,} | {kept:,} | {written:,} | {ratio:.2f} |")
    (HERE / "kill_and_resume.md").write_text("\n".join(lines) + "\n")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
