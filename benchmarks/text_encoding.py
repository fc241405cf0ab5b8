"""What cutting text at its end and keeping class weights bring, on a ViT-B-32 with random weights.

    python benchmarks/text_encoding.py

Writes ``text_encoding.md`` beside this file. Times are of one run on one machine; read the ratios.
"""

import copy
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from avalanche_vlm.models import CLIPClassifier, LoRA, OpenCLIPBackbone
from avalanche_vlm.world import all_objects

HERE = Path(__file__).parent


def seconds(function, *, repeats: int = 5) -> float:
    """Return the median time of a call, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def full_length(backbone: OpenCLIPBackbone, tokens: Tensor) -> Tensor:
    """Encode all 77 positions, as the model's own text tower does."""
    return backbone.text_tower(tokens)


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = [each.name for each in all_objects()[:100]]
    backbone = OpenCLIPBackbone("ViT-B-32").eval()
    tokens = backbone.tokenize([f"a photo of a {name}." for name in names])[:16]
    rows: list[tuple[str, str]] = []
    with torch.no_grad():
        difference = (backbone.encode_text(tokens) - full_length(backbone, tokens)).abs().max()
        rows.append(
            ("largest difference of a text feature, cut against full length", f"{float(difference):.1e}")
        )
        size = full_length(backbone, tokens).abs().max()
        rows.append(("largest text feature", f"{float(size):.2f}"))
        cut = seconds(lambda: backbone.encode_text(tokens))
        full = seconds(lambda: full_length(backbone, tokens))
    rows.append(("positions, cut and full", f"{int(backbone.text_lengths(tokens).max())} and 77"))
    rows.append(("forward of 16 texts, full / cut", f"{full:.3f} s / {cut:.3f} s = {full / cut:.1f}"))

    backbone.text_tower.requires_grad_(True)
    cut = seconds(lambda: backbone.encode_text(tokens).sum().backward(), repeats=3)
    full = seconds(lambda: full_length(backbone, tokens).sum().backward(), repeats=3)
    rows.append(("forward and backward, full / cut", f"{full:.3f} s / {cut:.3f} s = {full / cut:.1f}"))

    backbone.requires_grad_(False)
    model = CLIPClassifier(backbone, class_names=names).eval()
    batches = torch.rand(4, 8, 3, 224, 224)

    def evaluate(*, keep: bool) -> None:
        with torch.no_grad():
            for batch in batches:
                if not keep:
                    model.head.forget()
                model(batch)

    kept = seconds(lambda: evaluate(keep=True), repeats=3)
    anew = seconds(lambda: evaluate(keep=False), repeats=3)
    rows.append(
        (
            "zero-shot on 4 batches of 8 images, 100 classes, re-encoded / kept",
            f"{anew:.2f} s / {kept:.2f} s = {anew / kept:.1f}",
        )
    )
    images = batches[0]
    original = copy.deepcopy(backbone)
    adapted = CLIPClassifier(backbone, class_names=names, trainable=LoRA(rank=32, factors=("B",))).eval()
    # In eval mode torch's own attention takes a fused kernel for images, which rounds otherwise.
    for path, fused in (("torch's fused kernel off", False), ("torch's fused kernel on", True)):
        torch.backends.mha.set_fastpath_enabled(fused)
        with torch.no_grad():
            for tower, was, now in (
                ("image", original.encode_image(images), backbone.encode_image(images)),
                ("text", original.encode_text(tokens), backbone.encode_text(tokens)),
            ):
                name = f"separate projections and fresh LoRA against the original, {tower} features, {path}"
                difference, largest = float((was - now).abs().max()), float(was.abs().max())
                rows.append((name, f"{difference:.1e} of {largest:.2f}"))
    rows.append(
        ("LoRA, rank 32, B only, weights that train", f"{sum(p.numel() for p in adapted.parameters()):,}")
    )
    lines = ["| measured | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    title = "# Text encoding, ViT-B-32 with random weights, one CPU thread"
    head = [title, "", "Written by `benchmarks/text_encoding.py`.", ""]
    (HERE / "text_encoding.md").write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
