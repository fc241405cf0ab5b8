"""Zero-shot and naive fine-tuning on stored CLIP features, by the path that any user's embeddings take.

    AVALANCHE_VLM_DATA=folder python benchmarks/real_features.py

The folder holds ``clip_vitb32_features.npz``: image features of OpenAI's ViT-B/32 and text features
of class names: ``<set>/{train,val,test}_{x,y}``, ``<set>/names``, ``<set>/text``. Classes without a text
feature are left out.
Writes ``real_features.csv`` and ``real_features.md``. Training: a cosine head with scale 100 that
starts from the text features, AdamW 1e-3, no weight decay, a fresh optimizer state per experience,
batches of 128.
"""

import logging
import os
import time
from pathlib import Path

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin
from rich.progress import track
from torch.optim import AdamW

from avalanche_vlm.benchmarks import class_names, tensor_benchmark
from avalanche_vlm.logging import (
    CLASS_INCREMENTAL_COLUMNS,
    TableColumn,
    result_rows,
    results_table,
    table_text,
    write_results,
)
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.strategies import FineTune, ZeroShot

STREAMS = {
    "caltech101": (("train", "val"), 7, 30),
    "oxford_pets": (("train", "val"), 5, 30),
    "imagenet": (("train",), 10, 10),
}
HERE = Path(__file__).parent


def load(path: Path, name: str, train_parts: tuple[str, ...]):
    """Return train and test pairs, names and text features of the classes that have text."""
    with np.load(path, allow_pickle=False) as data:
        text = torch.from_numpy(data[f"{name}/text"]).float()
        with_text = text.ne(0).any(dim=1)
        new_id = torch.cumsum(with_text, 0) - 1

        def part(parts: tuple[str, ...]):
            x = torch.cat([torch.from_numpy(data[f"{name}/{p}_x"]).float() for p in parts])
            y = torch.cat([torch.from_numpy(data[f"{name}/{p}_y"]).long() for p in parts])
            kept = with_text[y]
            return x[kept], new_id[y[kept]]

        names = [str(title) for title, kept in zip(data[f"{name}/names"], with_text, strict=True) if kept]
        return part(train_parts), part(("test",)), names, text[with_text]


def unique(names: list[str]) -> list[str]:
    """Tell apart what the source names alike (ImageNet has two pairs), by the class id."""
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]


def main() -> None:
    """Run both methods on the three sets."""
    logging.captureWarnings(True)
    path = Path(os.environ["AVALANCHE_VLM_DATA"]) / "clip_vitb32_features.npz"
    results = HERE / "real_features.csv"
    results.unlink(missing_ok=True)
    seconds = []
    for name, (parts, n_experiences, epochs) in STREAMS.items():
        train, test, names, text = load(path, name, parts)
        for method in ("zero-shot", "naive"):
            torch.manual_seed(0)
            start = time.perf_counter()
            benchmark = tensor_benchmark(
                train, test, class_names=unique(names), n_experiences=n_experiences, seed=0
            )
            head = TextFeatureHead(text)
            model = CLIPClassifier(
                EmbeddingBackbone(512), head if method == "zero-shot" else CosineHead(head)
            )
            model.set_classes(class_names(benchmark))
            metrics = continual_metrics(spaces=("seen", "all"))
            common = {
                "model": model,
                "evaluator": EvaluationPlugin(*metrics),
                "train_mb_size": 128,
                "eval_mb_size": 512,
            }
            if method == "zero-shot":
                strategy = ZeroShot(**common)
            else:
                optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
                strategy = FineTune(optimizer=optimizer, train_epochs=epochs, **common)
            strategy.eval(benchmark.test_stream)
            for experience in track(benchmark.train_stream, description=f"{name}, {method}"):
                strategy.train(experience, reset_optimizer_state=True)
                strategy.eval(benchmark.test_stream)
            write_results(results, result_rows(metrics, method=method, benchmark=name, seed=0))
            seconds.append(f"{name}, {method}: {time.perf_counter() - start:.1f} s")
    pooled = TableColumn(
        "Last, pooled", "pooled_last_accuracy", "seen"
    )  # over samples, as zero-shot is quoted
    title = "OpenAI ViT-B/32 features, class-incremental"
    table = table_text(results_table(results, columns=(*CLASS_INCREMENTAL_COLUMNS, pooled), title=title))
    text = (
        f"# Real features\n\nWritten by `benchmarks/real_features.py`.\n\n```\n{table}```\n\n"
        + "; ".join(seconds)
        + "\n"
    )
    (HERE / "real_features.md").write_text(text)


if __name__ == "__main__":
    main()
