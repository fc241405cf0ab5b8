"""CGIL on rendered and handwritten images with the small CLIP: replay, generators and prompts taken apart.

    python benchmarks/cgil_images.py --output results

Streams of the small world (20 objects that the small CLIP never saw, in a style that it never saw; 5
experiences) and of scikit-learn's digits (5 experiences), in five class orders each. Prompts train by AdamW
without weight decay, fresh in each experience, on draws of all classes so far: 64 a class in an epoch, 8 a
class in a batch, 15 epochs. Joint training has the same prompts, and batches of the same size of all real
embeddings. The learning rate of both, and the weight of the Gaussian discriminant, are chosen by
`choose_hyperparameters` on two class orders that are not reported and validation images cut from the training
images; every other row takes what CGIL chose. Two rows on digits train three times as long. Prompts that
depend on the image see one draw a class in a batch. The image tower is frozen, so that images are encoded
once for all runs (`embed`); one run a stream goes through images. Runs that the output folder has already
are not repeated.

Writes ``cgil_images.csv`` to the output folder; beside this script a short file of it, and from that file
and the choices alone the tables ``cgil_images.md`` and pictures.
"""

import argparse
import json
import logging
import statistics
from functools import partial
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from matplotlib.figure import Figure
from rich.progress import Progress
from torch.optim import AdamW

from avalanche_vlm import logging as report
from avalanche_vlm import models
from avalanche_vlm.benchmarks import class_names, digits_benchmark, small_world_benchmark
from avalanche_vlm.embedding import embed
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, GeneratedContext, LearnedVectors
from avalanche_vlm.selection import choose_hyperparameters
from avalanche_vlm.sources import LowRankGaussian, SharedCovarianceGaussian
from avalanche_vlm.strategies import CGIL, FineTune, GaussianDiscriminant, ZeroShot, host_baselines
from avalanche_vlm.world import HELD_OUT

SEEDS, SELECTION_SEEDS = (0, 1, 2, 3, 4), (100, 101)
HERE = Path(__file__).parent
PER_BATCH = 8


def hybrid(seed: int, **arguments):
    """Return the prompts of the paper: a vector of each class, and one that a network makes."""
    parts = [LearnedVectors(seed=seed), GeneratedContext(seed=seed)]
    return models.HybridPromptHead(context=parts, **arguments)


ABLATIONS = {
    "CGIL": hybrid,
    "CGIL, learned vectors only": lambda seed: models.HybridPromptHead(context=[LearnedVectors(seed=seed)]),
    "CGIL, generated vectors only": lambda seed: models.HybridPromptHead(
        context=[GeneratedContext(seed=seed)]
    ),
    "CGIL, one shared vector": lambda seed: models.HybridPromptHead(
        context=[LearnedVectors(sharing="shared", seed=seed)]
    ),
    "CGIL, shared vector, image-conditioned": lambda seed: models.ImageConditionedPromptHead(
        context=[LearnedVectors(sharing="shared", seed=seed)], seed=seed
    ),
    "CGIL, only current learned vectors train": lambda seed: models.HybridPromptHead(
        context=[models.LatestLearnedVectors(seed=seed), GeneratedContext(seed=seed)]
    ),
}
OFFICIAL = "CGIL, unseen text not normalised"
IMAGES = "CGIL, through images"
CLOSED, JOINT, SHARED = "zero-shot + discriminant", "joint training", "CGIL, shared-covariance Gaussian"
LONGER = {f"{method}, three times the epochs": method for method in ("CGIL", JOINT)}  # on digits only
HEADS = {
    "zero-shot": lambda seed: models.ZeroShotHead(),
    "naive": hybrid,
    **ABLATIONS,
    SHARED: hybrid,
    CLOSED: lambda seed, **settings: models.GaussianDiscriminantHead(mean_prior="none", **settings),
    JOINT: hybrid,
    OFFICIAL: lambda seed: hybrid(seed, unseen=models.UnnormalisedZeroShotHead("a photo of a {}")),
    IMAGES: hybrid,
    **dict.fromkeys(LONGER, hybrid),
}
# Every image has prompts of its own: batches are smaller, and the table says how many orders were run.
CONDITIONED = "CGIL, shared vector, image-conditioned"
ORDERS = {IMAGES: SEEDS[:1], CONDITIONED: SEEDS[:2]}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
GRIDS = {
    "CGIL": [{"lr": rate} for rate in RATES],
    JOINT: [{"lr": rate} for rate in RATES],
    CLOSED: [{"fusion_weight": weight} for weight in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)],
}
EPOCHS = 15
JOINT_EPOCHS = {"small-world": 150, "digits": 40}  # about as many steps as CGIL takes in all experiences
WRITTEN = {"average_incremental_accuracy", "last_accuracy", "forgetting", "ci_transfer"}
CURVES = ("zero-shot", "naive", "CGIL", CLOSED, JOINT)
STREAMS = {
    "small-world": partial(small_world_benchmark, objects=HELD_OUT[:20]),
    "digits": digits_benchmark,
}


class Stream:
    """Images of one kind, and their embeddings."""

    def __init__(self, name: str, cache: Path) -> None:
        self.name, self.cache = name, cache
        self.backbone = models.OpenCLIPBackbone("small-clip", pretrained="small-world")
        transform = self.backbone.eval_transform
        self.images = partial(
            STREAMS[name], n_experiences=5, train_transform=transform, eval_transform=transform
        )

    def benchmark(self, seed: int):
        """Return the embedded stream in the class order of a seed."""
        return embed(self.images(seed=seed), self.backbone, cache_dir=self.cache)


def build(stream: Stream, method: str, benchmark, seed: int, settings: dict, **arguments):
    """Return the strategy of a method."""
    factor, method = 3 if method in LONGER else 1, LONGER.get(method, method)
    head = HEADS[method](seed, **settings) if method == CLOSED else HEADS[method](seed)
    names = class_names(benchmark)
    arguments["model"] = model = CLIPClassifier(stream.backbone, head, class_names=names)
    if method == "zero-shot":
        return ZeroShot(**arguments)
    if method == CLOSED:
        return GaussianDiscriminant(**arguments)
    arguments["optimizer"] = AdamW(model.parameters(), lr=settings["lr"], weight_decay=0.0)
    arguments["train_epochs"] = factor * (JOINT_EPOCHS[stream.name] if method == JOINT else EPOCHS)
    if method == JOINT:
        joint = host_baselines(memory_size=1, n_experiences=1)[JOINT]
        return joint(train_mb_size=PER_BATCH * len(names), **arguments)
    if method == "naive":
        return FineTune(train_mb_size=PER_BATCH * len(names) // 5, **arguments)
    draws = 1 if method == CONDITIONED else PER_BATCH
    return CGIL(
        generator=SharedCovarianceGaussian(seed=seed)
        if method == SHARED
        else LowRankGaussian(rank=8, seed=seed),
        samples_per_class=8 * draws,
        batch_samples_per_class=draws,
        **arguments,
    )


def run(stream: Stream, method: str, benchmark, seed: int, settings: dict, test: str, loggers: list):
    """Train a method, evaluate it after each experience on the stream ``test``, and return its metrics."""
    torch.manual_seed(seed)
    metrics = continual_metrics(spaces=("seen", "all"))
    evaluator = EvaluationPlugin(*metrics, loggers=loggers)
    strategy = build(stream, method, benchmark, seed, settings, evaluator=evaluator, eval_mb_size=256)
    evaluated = getattr(benchmark, f"{test}_stream")
    strategy.eval(evaluated)
    at_once = LONGER.get(method, method) == JOINT
    for experience in [benchmark.train_stream] if at_once else benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        strategy.eval(evaluated)
    return metrics


def choose(stream: Stream, method: str) -> dict:
    """Return the settings of a method, chosen on class orders that are not reported, and how."""

    def train_and_score(benchmark, *, seed: int, **settings: float) -> float:
        metrics = run(stream, method, benchmark, seed, settings, "valid", [])
        return metrics[0].summary("valid")["last_accuracy"]

    choice = choose_hyperparameters(
        GRIDS[method],
        make_benchmark=stream.benchmark,
        train_and_score=train_and_score,
        selection_seeds=SELECTION_SEEDS,
        reported_seeds=SEEDS,
        validation_fraction=0.25,
    )
    return choice.describe()


def by_seed(rows: list, metric: str, space: str) -> dict:
    """Return the values of a metric by stream, method and seed."""
    found: dict = {}
    for row in rows:
        if row.metric == metric and row.space == space:
            found.setdefault((row.benchmark, row.method), {})[row.seed] = row.value
    return found


def summary(values: list) -> str:
    """Return mean ± standard deviation of one or more numbers."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def write_tables(results: Path, choices: dict) -> None:
    """Write the committed table, pictures and short file."""
    rows = report.read_results(results)
    # A run that was stopped has been repeated: its rows are those of an earlier id.
    ids = {(row.benchmark, row.method, row.seed): row.run for row in rows}
    kept = [
        row
        for row in rows
        if row.run == ids[row.benchmark, row.method, row.seed]
        and (
            (row.metric == "accuracy" and row.space == "seen" and row.method in (*CURVES, IMAGES))
            or (row.metric in WRITTEN and row.after_experience == 5 and row.method != OFFICIAL)
            or (row.metric == "ci_transfer" and row.after_experience == 5)
        )
    ]
    short = HERE / "cgil_images.csv"
    short.unlink(missing_ok=True)
    report.write_results(short, kept)
    columns = (
        *report.CLASS_INCREMENTAL_COLUMNS[:3],
        report.TableColumn("CI-Transfer", "ci_transfer", "all"),
    )
    title = f"CGIL through images and prompts, {len(SEEDS)} class orders"
    table = report.table_text(report.results_table(short, columns=columns, title=title), width=110)
    fewer = "; ".join(f"{method}: {len(seeds)}" for method, seeds in ORDERS.items())
    chosen = "".join(
        f"| {stream} | {method} | {choice['best']} | "
        + ", ".join(f"{each['mean']:.3f}" for each in choice["candidates"])
        + " |\n"
        for (stream, method), choice in choices.items()
    )
    (HERE / "cgil_images.md").write_text(
        "# CGIL through images and prompts, with the small CLIP\n\nWritten by `benchmarks/cgil_images.py`, "
        f"from `cgil_images.csv`.\n\n{findings(kept)}\n```\n{table}```\n\nNumber of class orders, where "
        f"smaller: {fewer}.\n\n{paired_table(kept)}\n{images_beside_embeddings(kept)}\n\n"
        "![Last accuracy of each kind of prompt](cgil_images.png)\n\nChosen by validation on the orders of "
        f"the seeds {SELECTION_SEEDS}; scores in the order of the candidates:\n\n"
        f"| stream | method | chosen | scores |\n|---|---|---|---|\n{chosen}"
    )
    for name in STREAMS:
        own = [row for row in kept if row.method in CURVES]
        curves = report.plot_accuracy_over_experiences(own, benchmark=name)
        report.save_figure(curves, HERE / f"cgil_images_{name.replace('-', '_')}.png")
    save_picture(kept)


def paired_table(rows: list) -> str:
    """Return each method beside joint training and zero-shot in the same class orders."""
    last, transfer = by_seed(rows, "last_accuracy", "seen"), by_seed(rows, "ci_transfer", "all")
    lines = [
        "In the same class orders: Last as percent of that of joint training, with the lowest of the orders, "
        "and CI-Transfer less that of zero-shot, which is measured in the same label space (all classes):\n",
        "| method | " + " | ".join(f"{name}, Last | lowest | CI-Transfer" for name in STREAMS) + " |",
        "|---|" + "---|---|---|" * len(STREAMS),
    ]
    for method in HEADS:
        cells = []
        for name in STREAMS:
            joint, zero_shot = last[name, JOINT], transfer[name, "zero-shot"]
            shares = [100 * value / joint[seed] for seed, value in last.get((name, method), {}).items()]
            gains = [
                100 * (value - zero_shot[seed])
                for seed, value in transfer.get((name, method), {}).items()
                if value == value
            ]
            cells += [summary(shares), f"{min(shares):.1f}"] if shares else ["", ""]
            cells.append(summary(gains) if gains else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def images_beside_embeddings(rows: list) -> str:
    """Return how far the run through images is from that of the same seed on embeddings."""
    told = []
    for name in STREAMS:
        entries: dict = {IMAGES: {}, "CGIL": {}}
        for row in rows:
            compared = row.method in entries and row.benchmark == name and row.seed in ORDERS[IMAGES]
            if compared and row.metric == "accuracy" and row.value == row.value:
                entries[row.method][row.after_experience, row.experience] = row.value
        pairs = [(value, entries["CGIL"][key]) for key, value in entries[IMAGES].items()]
        equal = sum(first == second for first, second in pairs)
        furthest = max(abs(first - second) for first, second in pairs)
        told.append(f"{name}, {equal} of {len(pairs)} equal, the furthest {100 * furthest:.1f} percent apart")
    return (
        "Accuracies of one run through images beside those of the same run on embeddings, experience by "
        f"experience: {'; '.join(told)}."
    )


def save_picture(rows: list) -> None:
    """Draw last accuracy of the prompts and generators, a panel a stream: a dot an order, a bar the mean."""
    last = by_seed(rows, "last_accuracy", "seen")
    methods = [method for method in HEADS if method not in (IMAGES, OFFICIAL, *LONGER)]
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, len(STREAMS), sharey=True)
    for axes, name in zip(panels, STREAMS, strict=True):
        for height, method in enumerate(reversed(methods)):
            values = [100 * value for value in last[name, method].values()]
            colour = "C1" if method in ABLATIONS else "0.35"
            axes.plot(values, [height] * len(values), "o", color=colour, alpha=0.45, markersize=5)
            axes.plot(
                [statistics.fmean(values)], [height], "|", color=colour, markersize=18, markeredgewidth=2.5
            )
        joint = 100 * statistics.fmean(last[name, JOINT].values())
        axes.axvline(joint, color="0.6", linestyle="--", linewidth=1, zorder=0)
        axes.set(
            title=name, xlabel="last accuracy (%)", yticks=range(len(methods)), yticklabels=methods[::-1]
        )
        axes.grid(axis="x", color="#E5E5E5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    report.save_figure(figure, HERE / "cgil_images.png")


def findings(rows: list) -> str:
    """Return what the tables say."""
    last, transfer = by_seed(rows, "last_accuracy", "seen"), by_seed(rows, "ci_transfer", "all")

    def both(method: str, of: dict = last) -> str:
        """Return the means on the two streams."""
        values = [[100 * value for value in of[name, method].values()] for name in STREAMS]
        return " and ".join(f"{statistics.fmean(each):.1f}" for each in values)

    shares = [
        statistics.fmean(100 * value / last[name, JOINT][seed] for seed, value in last[name, "CGIL"].items())
        for name in STREAMS
    ]
    longer = [100 * statistics.fmean(last["digits", method].values()) for method in LONGER]
    longer.append(100 * longer[0] / longer[1])
    learned, generated, shared, conditioned, current = list(ABLATIONS)[1:]
    return (
        f"Numbers are Last on {' and '.join(STREAMS)} unless said otherwise.\n\n"
        f"- The closed form, without prompts and without a gradient, has {both(CLOSED)}, joint prompt tuning "
        f"on real embeddings {both(JOINT)}: where it is ahead, prompts are the limit and not the replay.\n"
        f"- CGIL has {both('CGIL')}, {shares[0]:.1f} and {shares[1]:.1f} percent of joint prompt tuning in "
        f"the same class orders. The same prompts without replay have {both('naive')}, zero-shot "
        f"{both('zero-shot')}. On digits, three times the epochs give CGIL {longer[0]:.1f} and joint "
        f"prompt tuning {longer[1]:.1f} ({longer[2]:.1f} percent).\n"
        f"- What a class has of its own is what counts: one vector for all classes has {both(shared)}, and "
        f"{both(conditioned)} where it depends on the image too. Learned vectors alone have {both(learned)}, "
        f"generated ones alone {both(generated)}. Training only the current classes' learned vectors, beside "
        f"the generator of the others, has {both(current)}.\n"
        f"- CI-Transfer of CGIL is {both('CGIL', transfer)}, that of zero-shot in the same label space "
        f"{both('zero-shot', transfer)}. With unseen classes' text as long as the text tower gives it, as in "
        f"the paper's code, it is {both(OFFICIAL, transfer)}: their length lifts unseen classes above seen "
        f"ones, and the number does not compare with zero-shot's. On digits zero-shot is at chance, and "
        f"there is nothing to keep.\n"
    )


def main() -> None:
    """Run what the output folder does not have yet, then write the tables."""
    parser = argparse.ArgumentParser(description="CGIL through images and prompts.")
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--methods", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results, chosen = arguments.output / "cgil_images.csv", arguments.output / "choices.json"
    finished = arguments.output / "finished.txt"
    done = set(finished.read_text().splitlines()) if finished.exists() else set()
    read = json.loads(chosen.read_text()) if chosen.exists() else {}
    choices = {tuple(key.split("/")): value for key, value in read.items()}
    runs = [
        (name, method, seed)
        for name in arguments.streams
        for method in arguments.methods
        for seed in ORDERS.get(method, SEEDS)
        if method not in LONGER or name == "digits"
    ]
    streams = {name: Stream(name, arguments.output / "embeddings") for name in arguments.streams}
    with Progress() as progress:
        task = progress.add_task("runs", total=len(runs))
        for name, method, seed in runs:
            progress.update(task, description=f"{name}, {method}, {seed}")
            stream, tuned = streams[name], LONGER.get(method, method)
            tuned = tuned if tuned in GRIDS else "CGIL"
            if (name, tuned) not in choices:
                choices[name, tuned] = choose(stream, tuned)
                chosen.write_text(json.dumps({"/".join(k): v for k, v in choices.items()}, indent=1))
            settings = {} if method == "zero-shot" else choices[name, tuned]["best"]
            if f"{name}/{method}/{seed}" not in done:
                logger = report.ResultsLogger(
                    results, method=method, benchmark=name, seed=seed, settings={"chosen": settings}
                )
                benchmark = stream.images(seed=seed) if method == IMAGES else stream.benchmark(seed)
                run(stream, method, benchmark, seed, settings, "test", [logger])
                with finished.open("a") as file:
                    file.write(f"{name}/{method}/{seed}\n")
            progress.advance(task)
    write_tables(results, choices)


if __name__ == "__main__":
    main()
