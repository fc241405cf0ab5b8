"""Your own folder of images: zero-shot and replay on a stream of its classes, a table, and a model to keep.

    python own_images.py --images pictures --backbone ViT-B-16 --pretrained openai --device cuda

``pictures`` has one folder of images a class, and the folder's name is the class's name. Without
``--images`` a folder of rendered objects is drawn first, so that the example runs offline.
"""

import argparse
import logging
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from PIL import Image
from rich import print as show
from rich.progress import track

from avalanche_vlm.benchmarks import class_names, folder_benchmark
from avalanche_vlm.logging import ResultsLogger, results_table
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.models import CLIPClassifier, LoRA, OpenCLIPBackbone
from avalanche_vlm.strategies import FineTune, ZeroShot
from avalanche_vlm.world import HELD_OUT, render


def draw_pictures(folder: Path, per_class: int) -> Path:
    """Draw a stand-in for your images: eight objects, one folder each."""
    generator = torch.Generator().manual_seed(0)
    for thing in HELD_OUT[:8]:
        target = folder / thing.name.replace(" ", "_")
        target.mkdir(parents=True, exist_ok=True)
        pictures = render([thing] * per_class, style="sketch", generator=generator)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(target / f"{number:03}.png")
    return folder


def main() -> None:
    """Run both methods, then name one picture with the model that replay trained."""
    parser = argparse.ArgumentParser(description="Zero-shot and replay on your own images.")
    parser.add_argument("--images", type=Path, help="a folder with one folder of images a class")
    parser.add_argument("--backbone", default="small-clip", help="a model name of open_clip")
    parser.add_argument("--pretrained", default="small-world", help="a tag of open_clip or a file of weights")
    parser.add_argument("--experiences", type=int, default=4, help="into which the classes are dealt out")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that everything runs")
    arguments = parser.parse_args()
    logging.captureWarnings(True)  # the host's notes on its own next version
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = arguments.output / "results.csv"
    for old in arguments.output.glob("results.*"):
        old.unlink()  # the logger appends
    images = arguments.images or draw_pictures(arguments.output / "pictures", 5 if arguments.smoke else 40)

    for method in ("zero-shot", "replay"):
        torch.manual_seed(arguments.seed)
        backbone = OpenCLIPBackbone(arguments.backbone, pretrained=arguments.pretrained)
        model = CLIPClassifier(backbone, trainable=LoRA(rank=8))
        benchmark = folder_benchmark(
            images,
            n_experiences=arguments.experiences,
            seed=arguments.seed,
            train_transform=model.train_transform,
            eval_transform=model.eval_transform,
        )
        model.set_classes(class_names(benchmark))
        logger = ResultsLogger(results, method=method, benchmark=images.name, seed=arguments.seed)
        common = {"model": model, "train_mb_size": 32, "eval_mb_size": 64, "device": arguments.device}
        common["evaluator"] = EvaluationPlugin(continual_metrics(spaces=("seen", "all")), loggers=[logger])
        if method == "zero-shot":
            strategy = ZeroShot(**common)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
            memory = ReplayPlugin(mem_size=5 * len(model.class_names))
            epochs = 1 if arguments.smoke else arguments.epochs
            strategy = FineTune(optimizer=optimizer, plugins=[memory], train_epochs=epochs, **common)
        strategy.eval(benchmark.test_stream)
        for experience in track(benchmark.train_stream, description=f"{method:9}"):
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)

    show(results_table(results, title=f"{arguments.backbone} on {images.name}"))
    model.save_pretrained(str(arguments.output / "model"))
    again = CLIPClassifier.from_pretrained(str(arguments.output / "model"))
    picture = next(path for path in sorted(images.rglob("*")) if path.is_file())
    named = again.predict(Image.open(picture).convert("RGB"), top_k=3)
    for name, probability in zip(named.names[0], named.probabilities[0], strict=True):
        show(f"{picture.parent.name}/{picture.name}: {name} {probability:.0%}")


if __name__ == "__main__":
    main()
