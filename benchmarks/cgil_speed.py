"""CGIL against a plain reference written from the paper's equations: time, tokens, memory, accuracy.

    python benchmarks/cgil_speed.py --output results [--part accuracy]

The reference is ``tests/reference/cgil_reference.py``; ``tests/strategies/test_cgil_reference.py`` shows
that both give the same class weights, losses and gradients. Everything is measured on one thread in
processor time, both sides in turn. Parts that the output folder has already are not measured again: a
complete run is one of an empty folder. Writes ``cgil_speed.md`` and ``cgil_speed.png`` beside this file.
"""

import argparse
import functools
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from pathlib import Path

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from matplotlib.figure import Figure
from torch.nn import functional as F
from torch.optim import AdamW

from avalanche_vlm import logging as report
from avalanche_vlm.benchmarks import class_names, small_world_benchmark, tensor_benchmark
from avalanche_vlm.embedding import embed
from avalanche_vlm.functional import last_accuracy
from avalanche_vlm.metrics import AccuracyMatrixMetric
from avalanche_vlm.models import CLIPClassifier, HybridPromptHead, OpenCLIPBackbone
from avalanche_vlm.sources import ClassVAE, LowRankGaussian
from avalanche_vlm.strategies import CGIL
from avalanche_vlm.world import HELD_OUT, all_objects

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "reference"))

from cgil_reference import ReferenceCGIL  # noqa: E402 - found from here only

SEEDS, EPOCHS, RATE, RATE_OF_GROWING = (0, 1), 20, 0.03, 0.05
PAPERS_EPOCHS, SAMPLES, BATCH, OF_EACH_CLASS, NEW_CLASSES = 60, 256, 128, 32, 20
CLASSES = (10, 20, 50, 100, 300, 1000)
MID_SIZE = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 6},
}
TOWERS = {
    "small": lambda: OpenCLIPBackbone("small-clip", pretrained="small-world"),
    "mid-size": lambda: OpenCLIPBackbone(MID_SIZE),
}
OURS = {
    "ours, VAE, batches of 128": (ClassVAE, None),
    "ours, Gaussian, batches of 128": (functools.partial(LowRankGaussian, rank=8), None),
    "ours, Gaussian, growing batches": (functools.partial(LowRankGaussian, rank=8), OF_EACH_CLASS),
}
DEFAULT = "`classes_at_once=256`, the default"
PEAKS = {"`classes_at_once=64`": 64, DEFAULT: 256, "`classes_at_once=None`": None, "reference": None}


INTRODUCTION = f"""Written by `benchmarks/cgil_speed.py`. The reference,
`tests/reference/cgil_reference.py`, is written from the paper's equations: an auto-encoder a class, one
fitted after another with torch's default Adam; prompts of 77 tokens; those of all classes seen encoded at
each step of {BATCH} draws, and for each batch of evaluation. It has no data loader, no callbacks and no
metrics, and encodes "a photo of a ..." once. Ours is the strategy `CGIL` with `HybridPromptHead`, run as
a user runs it. `tests/strategies/test_cgil_reference.py` shows that both give equal class weights, losses
and gradients. Processor seconds of one thread, on a machine that was doing other work too ({{machine}}):
read the ratios. No GPU was measured. "Growing batches" are `batch_samples_per_class={OF_EACH_CLASS}`:
{SAMPLES // OF_EACH_CLASS} steps an epoch however many classes there are. Tokens are positions counted at
the text tower's transformer."""

ACCURACY = f"""Small CLIP, small world in the style "sketch": 20 classes in 5 experiences, 30 training and
50 test images a class, {EPOCHS} epochs over {SAMPLES} draws a class, {len(SEEDS)} class orders;
evaluation on all classes seen after each experience. Every run was run to its end. Learning rate {RATE},
with growing batches {RATE_OF_GROWING}, the best of three each with the Gaussian, 30 epochs and the same
test images in another class order, where all six lay between 91.9 and 93.1; the reference has the rate of
our batches of {BATCH}. Encoding the images, the same on both sides, is left out. Seconds are means over
the orders. No rate was searched for with auto-encoders: compare their rows with each other, and those of
the Gaussian with each other."""

EXPERIENCE = f"""An experience that brings {NEW_CLASSES} new classes of 60 embeddings, with the paper's
{PAPERS_EPOCHS} epochs over {SAMPLES} draws a class and 500 passes of the auto-encoders, then an
evaluation of 20 embeddings of each class seen. Seconds. Alignment is the measured step times the number
of steps, draws the measured draw of an epoch times the epochs, the reference's auto-encoders 4 times what
5 classes take, and its evaluation what 4 batches take times the number of batches: none of these rows was
run to its end. The mid-size tower has 6 layers, width 256 and random weights: of accuracy these rows say
nothing, and that growing batches reach it was checked at 20 classes only, above. Each line but the last of
a block has what the line above has, and one thing more."""

GROWTH = f"""A step of each side at 10 to 1,000 classes seen, all measured, with a Gaussian on our side; an
epoch is the measured step times the number of steps (reference and batches of {BATCH}: 2 a class) without
the draws. The slope is that of the epoch against the line above in the double logarithm: 1 is linear, 2
quadratic. "Of it text" is what encoding the prompts alone takes, forward and backward. At 300 and 1,000
classes ours encodes in parts of 256 and computes each a second time in the backward pass, which the
forward tokens show; they also hold the sentences that are encoded once, spread over the measured steps. A
step of ours is about a + b · classes from 10 to 100 classes, and bends where both parts are equal. With
growing batches the logits themselves grow with the square of the classes: where the text has less than
half of a step, take fewer of each class."""

MEMORY = """Mid-size tower. By how much the first step of alignment raises the peak of a fresh process
(getrusage), and the seconds of that step. A batch of 32,000 is what growing batches come to at 1,000
classes."""


class Tokens:
    """Counts the positions that go through a text tower, forward and backward."""

    def __init__(self, backbone) -> None:
        self.forward = self.backward = 0
        backbone.text_tower.transformer.register_forward_hook(self._count)

    def _count(self, module, inputs, output) -> None:
        size = output.shape[0] * output.shape[1]
        self.forward += size
        if output.requires_grad:
            output.register_hook(functools.partial(self._count_backward, size))

    def _count_backward(self, size, gradient) -> None:
        self.backward += size

    def take(self) -> tuple[int, int]:
        """Return both counts and start again."""
        counts = self.forward, self.backward
        self.forward = self.backward = 0
        return counts


class Clock:
    """Processor seconds of methods, by what to call them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner, method: str, name: str) -> None:
        """Add up what this method of an object takes."""
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            start = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

        setattr(owner, method, timed)


class Stamps(SupervisedPlugin):
    """Notes the processor time after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def after_training_iteration(self, strategy, *args, **kwargs) -> None:
        """Note it."""
        self.times.append(time.process_time())


def our_strategy(backbone, names, generator, *, of_each_class=None, rate=RATE, at_once=256, **arguments):
    """Return the strategy as a user writes it."""
    head = HybridPromptHead(classes_at_once=at_once)
    model = CLIPClassifier(backbone, head, class_names=names)
    return CGIL(
        model=model,
        optimizer=AdamW(model.parameters(), lr=rate, weight_decay=0.0),
        generator=generator,
        batch_samples_per_class=of_each_class,
        train_mb_size=BATCH,
        eval_mb_size=BATCH,
        **arguments,
    )


def tensors(experience):
    """Return the embeddings and labels of an experience."""
    samples = [(x, int(y)) for x, y, *_ in experience.dataset]
    return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


# ----------------------------------------------------------------------------- whole runs, at equal accuracy


def whole_run(name: str, backbone, benchmark, seed: int) -> dict:
    """Train and evaluate over a whole stream, and return accuracy, seconds by part and tokens."""
    torch.manual_seed(seed)
    clock, tokens, names = Clock(), Tokens(backbone), class_names(benchmark)
    if name == "reference":
        data = [(tensors(train), tensors(test)) for train, test in _pairs(benchmark)]
        start = time.process_time()
        method = ReferenceCGIL(backbone, names, learning_rate=RATE, epochs=EPOCHS, batch_size=BATCH)
        clock.watch(method, "fit_generators", "generator")
        clock.watch(method, "draw", "draws")
        clock.watch(method, "predict", "evaluation")
        for number, ((x, y), _) in enumerate(data):
            method.train(x, y)
            right = [method.predict(x).eq(y) for _, (x, y) in data[: number + 1]]
        accuracy = float(torch.cat(right).float().mean())
    else:
        make, of_each_class = OURS[name]
        start = time.process_time()
        metric = AccuracyMatrixMetric("seen")
        generator = make(seed=seed)
        strategy = our_strategy(
            backbone,
            names,
            generator,
            of_each_class=of_each_class,
            rate=RATE_OF_GROWING if of_each_class else RATE,
            train_epochs=EPOCHS,
            evaluator=EvaluationPlugin(metric),
        )
        clock.watch(generator, "fit", "generator")
        clock.watch(generator, "sample", "draws")
        clock.watch(strategy, "eval", "evaluation")
        for number, experience in enumerate(benchmark.train_stream):
            strategy.train(experience)
            strategy.eval(benchmark.test_stream[: number + 1])
        accuracy = float(last_accuracy(metric.matrix(), metric.counts()))
    total = time.process_time() - start
    return {"name": name, "seed": seed, "accuracy": accuracy, "total": total, "tokens": tokens.take()} | {
        part: clock.seconds[part] for part in ("generator", "draws", "evaluation")
    }


def _pairs(benchmark):
    return zip(benchmark.train_stream, benchmark.test_stream, strict=True)


def measure_accuracy(file: Path) -> None:
    """Run every side over the small world in three class orders; runs that the file has stay as they are."""
    rows = json.loads(file.read_text()) if file.exists() else []
    done = {(row["name"], row["seed"]) for row in rows}
    for seed in SEEDS:
        for name in ("reference", *OURS):
            if (name, seed) in done:
                continue
            backbone = TOWERS["small"]()
            stream = small_world_benchmark(
                objects=HELD_OUT[:20],
                test_per_class=50,
                n_experiences=5,
                seed=seed,
                train_transform=backbone.eval_transform,
                eval_transform=backbone.eval_transform,
            )
            with tempfile.TemporaryDirectory() as folder:
                rows.append(whole_run(name, backbone, embed(stream, backbone, cache_dir=folder), seed))
            file.write_text(json.dumps(rows))


# --------------------------------------------------------------------------------- cost by number of classes


def names_of(count: int) -> list[str]:
    """Return distinct names of three or four words."""
    return [f"{size}{each.name}" for size in ("", "small ", "large ") for each in all_objects()][:count]


def clusters(classes: int, width: int, rows: int = 10):
    """Return embeddings (classes · rows, width) around one centre a class, and labels."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(classes).repeat_interleave(rows)
    x = torch.randn(classes, width, generator=generator)[y]
    return x + 0.3 * torch.randn(len(y), width, generator=generator), y


def median_step(step, *, seconds: float = 4.0, least: int = 2) -> float:
    """Return the median processor time of calls, the first left out."""
    times, start = [], time.process_time()
    while len(times) < least or time.process_time() - start < seconds:
        begin = time.process_time()
        step()
        times.append(time.process_time() - begin)
    return statistics.median(times[1:])


def reference_method(backbone, classes: int) -> ReferenceCGIL:
    """Return the reference in the state in which it aligns ``classes``."""
    method = ReferenceCGIL(backbone, names_of(classes), batch_size=BATCH)
    method.generators = dict.fromkeys(range(classes))
    return method


def reference_step(backbone, classes: int) -> tuple[float, list[int], float]:
    """Return seconds and tokens of a step, and the seconds of its text tower."""
    method = reference_method(backbone, classes)
    optimizer = AdamW([p for p in method.prompts.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    x, y = torch.randn(BATCH, backbone.embed_dim), torch.randint(classes, (BATCH,))
    tokens = Tokens(backbone)
    method.step(optimizer, x, y)
    counts = list(tokens.take())
    seconds = median_step(lambda: method.step(optimizer, x, y))
    text = seconds
    if classes <= 100:
        text = median_step(lambda: method.prompts.keys(method.seen).sum().backward(), seconds=2.0)
    return seconds, counts, text


def our_step(backbone, classes: int, of_each_class: int | None) -> tuple[float, list[int], float]:
    """Return seconds and tokens of a step of the strategy, and the seconds of its text tower."""
    steps = 30 if classes <= 100 else 6
    samples = steps * of_each_class if of_each_class else -(-steps * BATCH // classes)
    x, y = clusters(classes, backbone.embed_dim)
    benchmark = tensor_benchmark((x, y), (x, y), class_names=names_of(classes), n_experiences=1)
    stamps = Stamps()
    strategy = our_strategy(
        backbone,
        class_names(benchmark),
        LowRankGaussian(rank=8),
        of_each_class=of_each_class,
        samples_per_class=samples,
        plugins=[stamps],
        evaluator=None,
    )
    tokens = Tokens(backbone)
    strategy.train(benchmark.train_stream[0])
    counts = [count // len(stamps.times) for count in tokens.take()]
    differences = [b - a for a, b in zip(stamps.times, stamps.times[1:], strict=False)]
    model, ids = strategy.model, torch.arange(classes)
    text = median_step(lambda: model.head(backbone, ids).sum().backward(), seconds=1.0)
    return statistics.median(differences), counts, text


def evaluation(backbone, classes: int) -> dict:
    """Return seconds and tokens of evaluating 20 embeddings a class on both sides."""
    method, (x, y) = reference_method(backbone, classes), clusters(classes, backbone.embed_dim, 20)
    tokens, batches = Tokens(backbone), -(-len(x) // BATCH)
    few = x[: 4 * BATCH]
    start = time.process_time()
    method.predict(few)
    reference = (time.process_time() - start) * batches / -(-len(few) // BATCH)
    reference_tokens = tokens.take()[0] * batches // -(-len(few) // BATCH)
    benchmark = tensor_benchmark((x, y), (x, y), class_names=names_of(classes), n_experiences=1)
    strategy = our_strategy(
        backbone, class_names(benchmark), LowRankGaussian(), samples_per_class=1, evaluator=None
    )
    strategy.train(benchmark.train_stream[0])
    tokens.take()
    start = time.process_time()
    strategy.eval(benchmark.test_stream)
    ours = time.process_time() - start
    return {"reference": reference, "ours": ours, "tokens": [reference_tokens, tokens.take()[0]]}


def generators(width: int) -> dict:
    """Return seconds of fitting 20 classes, and of drawing an epoch of one class, for each generator."""
    x, y = clusters(NEW_CLASSES, width, 60)
    method = ReferenceCGIL(TOWERS["small"](), names_of(NEW_CLASSES))
    few, found = 5, {}
    start = time.process_time()
    method.fit_generators(x[y < few], y[y < few])
    fitted = time.process_time()
    method.draw()
    found["reference"] = (
        (fitted - start) * NEW_CLASSES / few,
        (time.process_time() - fitted) / few,
    )
    for name, make in (("VAE", ClassVAE), ("Gaussian", functools.partial(LowRankGaussian, rank=8))):
        generator = make()
        start = time.process_time()
        generator.fit(x, y)
        fitted = time.process_time()
        generator.sample(generator.classes, SAMPLES)
        found[name] = (fitted - start, (time.process_time() - fitted) / NEW_CLASSES)
    return found


def measure_cost(file: Path) -> None:
    """Measure steps for both towers and all numbers of classes, and what surrounds them."""
    if file.exists():
        return
    found: dict = {}
    for tower, make in TOWERS.items():
        torch.manual_seed(0)
        width = make().embed_dim
        own = found[tower] = {"generators": generators(width), "steps": {}, "evaluation": {}}
        for classes in CLASSES:
            own["steps"][str(classes)] = {
                "reference": reference_step(make(), classes),
                "batches of 128": our_step(make(), classes, None),
                "growing batches": our_step(make(), classes, OF_EACH_CLASS),
            }
        for classes in (20, 100):
            own["evaluation"][str(classes)] = evaluation(make(), classes)
    file.write_text(json.dumps(found))


# -------------------------------------------------------------------------------------------------- memory


def peak_of_step(name: str, batch: int) -> None:
    """Print by how many bytes a step at 1,000 classes raises the peak of this process."""
    torch.manual_seed(0)
    backbone, classes = TOWERS["mid-size"](), 1000
    x, y = torch.randn(batch, backbone.embed_dim), torch.randint(classes, (batch,))
    if name == "reference":
        method = reference_method(backbone, classes)
        model = method.prompts
    else:
        model = CLIPClassifier(
            backbone, HybridPromptHead(classes_at_once=PEAKS[name]), class_names=names_of(classes)
        )
        model.head.adapt(torch.ones(classes, dtype=torch.bool))
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if name == "reference":
        method.step(optimizer, x, y)
    else:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    json.dump({"bytes": 1024 * (peak - before), "seconds": seconds}, sys.stdout)


def measure_memory(file: Path) -> None:
    """Measure each way in a process of its own; those that the file has stay as they are."""
    rows = json.loads(file.read_text()) if file.exists() else []
    done = {(row["name"], row["batch"]) for row in rows}
    for name, batch in [*((name, BATCH) for name in PEAKS), (DEFAULT, OF_EACH_CLASS * 1000)]:
        if (name, batch) not in done:
            command = [sys.executable, __file__, "--peak", name, "--batch", str(batch)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"name": name, "batch": batch, **json.loads(answer)})
            file.write_text(json.dumps(rows))


# -------------------------------------------------------------------------------------------------- report

SIDES = ("reference", "batches of 128", "growing batches")


def steps_of_epoch(side: str, classes: int) -> int:
    """Return how many steps an epoch has over 256 draws a class."""
    return SAMPLES // OF_EACH_CLASS if side == "growing batches" else -(-SAMPLES * classes // BATCH)


def accuracy_table(rows: list[dict]) -> list[str]:
    """Return the lines of the table of whole runs: means over seeds."""
    lines = [
        "| | Last (%), by seed | mean | seconds | generator | draws | alignment | evaluation | "
        "tokens, forward | backward | times as fast |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    by_name = {name: [row for row in rows if row["name"] == name] for name in ("reference", *OURS)}

    def mean(name: str, part) -> float:
        return statistics.mean(part(row) for row in by_name[name])

    for name, own in by_name.items():
        total = mean(name, lambda row: row["total"])
        parts = [
            mean(name, lambda row, part=part: row[part]) for part in ("generator", "draws", "evaluation")
        ]
        times = [parts[0], parts[1], total - sum(parts), parts[2]]
        tokens = [mean(name, lambda row, side=side: row["tokens"][side]) / 1e6 for side in (0, 1)]
        last = ", ".join(f"{100 * row['accuracy']:.1f}" for row in own)
        lines.append(
            f"| {name} | {last} | "
            f"{100 * mean(name, lambda row: row['accuracy']):.1f} | {total:.1f} | "
            + " | ".join(f"{value:.1f}" for value in times)
            + f" | {tokens[0]:.2f} M | {tokens[1]:.2f} M | "
            + f"{mean('reference', lambda row: row['total']) / total:.1f} |"
        )
    return lines


def experience_table(own: dict) -> list[str]:
    """Return the lines of the table of one experience with one thing after another made better."""
    lines = [
        "| classes seen | | generator | draws | alignment | evaluation | total | times as fast | "
        "tokens, forward | backward |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    changes = (
        ("reference", "reference", "reference", "reference"),
        (
            "ours with the reference's generator: text cut, weights kept",
            "batches of 128",
            "reference",
            "ours",
        ),
        ("+ auto-encoders side by side", "batches of 128", "VAE", "ours"),
        ("+ growing batches", "growing batches", "VAE", "ours"),
        ("+ Gaussian: ours", "growing batches", "Gaussian", "ours"),
        ("ours, Gaussian, batches of 128", "batches of 128", "Gaussian", "ours"),
    )
    for classes in (20, 100):
        first = None
        for name, side, generator, evaluated in changes:
            step, (forward, backward), _ = own["steps"][str(classes)][side]
            fit, draw = own["generators"][generator]
            steps = PAPERS_EPOCHS * steps_of_epoch(side, classes)
            tested = own["evaluation"][str(classes)]
            seconds = [fit, PAPERS_EPOCHS * draw * classes, steps * step, tested[evaluated]]
            total = sum(seconds)
            first = total if first is None else first
            once = tested["tokens"][evaluated == "ours"]
            lines.append(
                f"| {classes} | {name} | "
                + " | ".join(f"{value:,.2f}" for value in seconds)
                + f" | {total:,.1f} | {first / total:.1f} | {(steps * forward + once) / 1e6:,.2f} M "
                f"| {steps * backward / 1e6:,.2f} M |"
            )
    return lines


def growth_table(own: dict) -> list[str]:
    """Return the lines of the table of steps and epochs by number of classes."""
    lines = [
        "| classes | "
        + " | ".join(f"{side}: tokens | step (ms) | of it text | epoch (s) | slope" for side in SIDES)
        + " | step, times as fast | epoch |",
        "|---|" + "---|" * (5 * len(SIDES) + 2),
    ]
    earlier = None
    for classes in CLASSES:
        cells, epochs, steps = [], [], []
        for side in SIDES:
            step, (forward, _), text = own["steps"][str(classes)][side]
            steps.append(step)
            epochs.append(step * steps_of_epoch(side, classes))
            slope = (
                "" if earlier is None else f"{slope_of(earlier, (classes, epochs[-1]), len(epochs) - 1):.2f}"
            )
            share = "" if side == "reference" and classes > 100 else f"{min(text / step, 1):.0%}"
            cells += [f"{forward:,}", f"{1e3 * step:,.1f}", share, f"{epochs[-1]:,.2f}", slope]
        cells += [f"{steps[0] / steps[1]:.1f}", f"{epochs[0] / epochs[2]:,.0f}"]
        lines.append(f"| {classes:,} | " + " | ".join(cells) + " |")
        earlier = classes, epochs
    return lines


def bends(own: dict) -> str:
    """Return where steps bend: what is fixed in them, and what a class adds."""
    told = []
    for side in SIDES:
        low, high = (own["steps"][str(classes)][side][0] for classes in (10, 100))
        by_class = (high - low) / 90
        fixed = max(low - 10 * by_class, 0)
        told.append(
            f"{side} {1e3 * fixed:.1f} + {1e3 * by_class:.2f} · classes ms, bend at {fixed / by_class:.0f}"
        )
    return f"Steps: {'; '.join(told)}."


def slope_of(earlier: tuple, now: tuple, side: int) -> float:
    """Return the slope of the curve in the double logarithm: 1 is linear, 2 quadratic."""
    return math.log(now[1] / earlier[1][side]) / math.log(now[0] / earlier[0])


def save_picture(cost: dict) -> None:
    """Draw an epoch of alignment by number of classes, a panel a tower."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    labels = {
        "reference": "reference",
        "batches of 128": "ours, batches of 128",
        "growing batches": f"ours, {OF_EACH_CLASS} of each class in a batch",
    }
    for axes, (tower, own) in zip(figure.subplots(1, 2), cost.items(), strict=True):
        for marker, side in zip("sov", SIDES, strict=True):
            seconds = [own["steps"][str(c)][side][0] * steps_of_epoch(side, c) for c in CLASSES]
            axes.plot(CLASSES, seconds, marker=marker, label=labels[side])
        axes.set(xscale="log", yscale="log", title=f"{tower} text tower", xlabel="classes seen")
        axes.set_ylabel("an epoch of alignment (s)")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize="small")
    report.save_figure(figure, HERE / "cgil_speed.png")


def write_report(found: dict) -> None:
    """Write the tables and the picture."""
    memory = [
        f"| {row['name']} | {row['batch']:,} | {row['bytes'] / 2**20:,.0f} | {row['seconds']:.1f} |"
        for row in found["memory"]
    ]
    machine = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
    lines = ["# CGIL against a plain reference, one CPU thread", "", INTRODUCTION.format(machine=machine), ""]
    lines += ["## Whole runs", "", ACCURACY, "", *accuracy_table(found["accuracy"]), ""]
    lines += ["## One experience", "", EXPERIENCE, ""]
    for tower, own in found["cost"].items():
        lines += [f"{tower} text tower:", "", *experience_table(own), ""]
    lines += ["## Cost by number of classes", "", GROWTH, ""]
    for tower, own in found["cost"].items():
        lines += [f"{tower} text tower:", "", *growth_table(own), "", bends(own), ""]
    lines += [
        "![cost by number of classes](cgil_speed.png)",
        "",
        "## Memory at 1,000 classes",
        "",
        MEMORY,
        "",
    ]
    lines += ["| | batch | peak (MiB) | seconds |", "|---|---|---|---|", *memory]
    lines = [
        line if line.startswith("|") else textwrap.fill(line, 118, break_on_hyphens=False) for line in lines
    ]
    (HERE / "cgil_speed.md").write_text("\n".join(lines) + "\n")
    save_picture(found["cost"])


PARTS = {"accuracy": measure_accuracy, "cost": measure_cost, "memory": measure_memory}


def main() -> None:
    """Measure what is missing, and write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--peak", choices=PEAKS)
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.peak:
        peak_of_step(arguments.peak, arguments.batch)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    for part in [arguments.part] if arguments.part else PARTS:
        PARTS[part](arguments.output / f"{part}.json")
    files = {part: arguments.output / f"{part}.json" for part in PARTS}
    if not arguments.part:
        write_report({part: json.loads(file.read_text()) for part, file in files.items()})


if __name__ == "__main__":
    main()
