"""Embeddings that you already have: no image and no encoder is needed to compare methods on them.

    python from_embeddings.py --features clip_vitb32_features.npz --dataset caltech101

The file holds image embeddings and labels of a set (``<set>/train_x``, ``<set>/train_y``, the same with
``val`` and ``test``), and its class names with their text embeddings (``<set>/names``, ``<set>/text``).
"""

import argparse
import logging
import os
from pathlib import Path

import numpy as np
import torch
from avalanche.training import LwF
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from rich import print as show
from rich.progress import track

from avalanche_vlm.benchmarks import class_names, tensor_benchmark
from avalanche_vlm.logging import ResultsLogger, plot_accuracy_over_experiences, results_table, save_figure
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune, ZeroShot

METHODS = ("zero-shot", "naive fine-tuning", "LwF", "replay")
DEFAULT = Path(os.environ.get("AVALANCHE_VLM_DATA", ".")) / "clip_vitb32_features.npz"


def load(path: Path, name: str):
    """Return train and test pairs, names and text embeddings of the classes that have one."""
    with np.load(path, allow_pickle=False) as data:
        if f"{name}/text" not in data:
            raise SystemExit(f"no {name} in {path}, but {sorted({key.split('/')[0] for key in data})}")
        arrays = {key.partition("/")[2]: data[key] for key in data if key.startswith(f"{name}/")}
    text = torch.from_numpy(arrays["text"]).float()
    kept = text.any(dim=1)
    new_ids = kept.cumsum(0) - 1

    def pair(*parts: str):
        x = torch.cat([torch.from_numpy(arrays[f"{part}_x"]).float() for part in parts])
        y = torch.cat([torch.from_numpy(arrays[f"{part}_y"]).long() for part in parts])
        return x[kept[y]], new_ids[y[kept[y]]]

    train = pair("train", "val") if "val_x" in arrays else pair("train")
    return train, pair("test"), arrays["names"][kept.numpy()].tolist(), text[kept]


def main() -> None:
    """Run four methods on one stream of embeddings."""
    parser = argparse.ArgumentParser(description="Four methods on stored embeddings.")
    parser.add_argument("--features", type=Path, default=DEFAULT)
    parser.add_argument("--dataset", default="caltech101")
    parser.add_argument("--experiences", type=int, default=7, help="must divide the number of classes")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of class order and training")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that everything runs")
    arguments = parser.parse_args()
    if not arguments.features.is_file():
        parser.error(f"there is no file {arguments.features}: pass --features, or set AVALANCHE_VLM_DATA")
    logging.captureWarnings(True)  # the host's notes on its own next version
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = arguments.output / "results.csv"
    for old in arguments.output.glob("results.*"):
        old.unlink()  # the logger appends
    train, test, names, text = load(arguments.features, arguments.dataset)
    epochs = 1 if arguments.smoke else arguments.epochs

    for seed in [0] if arguments.smoke else arguments.seeds:
        for method in METHODS:
            torch.manual_seed(seed)
            stream = {"class_names": names, "n_experiences": arguments.experiences, "seed": seed}
            benchmark = tensor_benchmark(train, test, **stream)
            model = CLIPClassifier(EmbeddingBackbone(text.shape[1]), CosineHead(TextFeatureHead(text)))
            model.set_classes(class_names(benchmark))
            logger = ResultsLogger(results, method=method, benchmark=arguments.dataset, seed=seed)
            evaluator = EvaluationPlugin(continual_metrics(spaces=("seen", "all")), loggers=[logger])
            common = {"model": model, "train_mb_size": 128, "eval_mb_size": 512, "evaluator": evaluator}
            common |= {"train_epochs": epochs, "criterion": LabelSpaceCrossEntropy("seen")}
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
            if method == "zero-shot":
                strategy = ZeroShot(**common)
            elif method == "LwF":
                strategy = LwF(optimizer=optimizer, alpha=5.0, temperature=2.0, **common)
            else:
                memory = [ReplayPlugin(mem_size=4 * len(names))] if method == "replay" else []
                strategy = FineTune(optimizer=optimizer, plugins=memory, **common)
            strategy.eval(benchmark.test_stream)
            for experience in track(benchmark.train_stream, description=f"{method}, seed {seed}"):
                strategy.train(experience)
                strategy.eval(benchmark.test_stream)
    show(results_table(results, title=f"{arguments.features.stem}: {arguments.dataset}"))
    save_figure(plot_accuracy_over_experiences(results), arguments.output / "accuracy_over_experiences.png")


if __name__ == "__main__":
    main()
