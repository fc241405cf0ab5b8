"""Train the small CLIP on the rendered world, write its weights, and measure what it recognises.

Run by hand, from the root of the repository; neither tests nor CI run it:

    python benchmarks/train_small_clip.py                  # train, write the weights, measure
    python benchmarks/train_small_clip.py --measure-only   # measure the weights that are there

Only the objects of ``TRAINED``, in the styles of ``TRAINING_STYLES``, are ever rendered or named in
training. Three things make a few minutes on two cores enough: each image is told apart from the
captions of *all* training objects, not only of those that share its batch; half of the captions are
paraphrases; and every image is also matched with captions that name one attribute alone.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm.models.small_clip import SMALL_CLIP_CONFIG, SMALL_CLIP_PREPROCESS, SmallTokenizer
from avalanche_vlm.text import DEFAULT_TEMPLATE
from avalanche_vlm.world import (
    COLORS,
    HELD_OUT,
    SHAPES,
    STYLES,
    TEXTURES,
    TRAINED,
    TRAINING_STYLES,
    WorldObject,
    all_objects,
    caption,
    render,
)

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "avalanche_vlm" / "models" / "small_clip.safetensors"
TABLE = ROOT / "benchmarks" / "small_clip"

# The captions that name one attribute alone, and the columns that each attribute takes.
ATTRIBUTE_CAPTIONS = [
    *(f"a photo of a {shape}." for shape in SHAPES),
    *(f"a photo of a {color} object." for color in COLORS),
    *(f"a photo of a {texture} object." for texture in TEXTURES),
]
ATTRIBUTE_SIZES = (len(SHAPES), len(COLORS), len(TEXTURES))


def pixels(pictures: Tensor) -> Tensor:
    """Turn uint8 pictures into what the image tower takes."""
    mean = torch.tensor(SMALL_CLIP_PREPROCESS["mean"])[:, None, None]
    std = torch.tensor(SMALL_CLIP_PREPROCESS["std"])[:, None, None]
    return (pictures.float() / 255.0 - mean) / std


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Encode tokens up to the last end token: under a causal mask the rest changes nothing."""
    length = int(tokens.argmax(dim=1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    x = x[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection
    return F.normalize(x, dim=-1)


def parameter_groups(model: CLIP, weight_decay: float) -> list[dict]:
    """Decay matrices only: not gains, biases and the temperature."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def train(arguments: argparse.Namespace) -> tuple[CLIP, float]:
    """Return a trained model and the seconds that it took."""
    torch.manual_seed(arguments.seed)  # the initial weights, which open_clip draws globally
    generator = torch.Generator().manual_seed(arguments.seed)
    model, tokenize = CLIP(**SMALL_CLIP_CONFIG), SmallTokenizer()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, arguments.weight_decay), lr=arguments.learning_rate, betas=(0.9, 0.98)
    )

    def rate(step: int) -> float:
        if step < arguments.warm_up_steps:
            return (step + 1) / arguments.warm_up_steps
        done = (step - arguments.warm_up_steps) / (arguments.steps - arguments.warm_up_steps)
        return 0.5 * (1.0 + math.cos(math.pi * done))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    plain = [caption(each) for each in TRAINED]
    attributes = torch.tensor(
        [[SHAPES.index(o.shape), COLORS.index(o.color), TEXTURES.index(o.texture)] for o in TRAINED]
    )
    start = time.perf_counter()
    for step in range(arguments.steps):
        style = TRAINING_STYLES[step % len(TRAINING_STYLES)]
        # Without replacement: an object twice in a batch would be its own negative.
        rows = torch.randperm(len(TRAINED), generator=generator)[: arguments.batch_size]
        pictures = render([TRAINED[int(row)] for row in rows], style=style, generator=generator)
        keep_plain = torch.rand(len(TRAINED), generator=generator) < 0.5
        captions = [
            plain[row] if keep_plain[row] else caption(TRAINED[row], generator=generator)
            for row in range(len(TRAINED))
        ]
        images = F.normalize(model.encode_image(pixels(pictures)), dim=-1)
        texts = encode_text(model, tokenize([*captions, *ATTRIBUTE_CAPTIONS]))
        logits = model.logit_scale.exp() * images @ texts.T
        over_objects, over_attributes = logits[:, : len(TRAINED)], logits[:, len(TRAINED) :]
        loss = F.cross_entropy(over_objects, rows)
        loss = loss + F.cross_entropy(over_objects[:, rows].T, torch.arange(len(rows)))
        for index, columns in enumerate(over_attributes.split(ATTRIBUTE_SIZES, dim=1)):
            loss = loss + arguments.attribute_weight * F.cross_entropy(columns, attributes[rows, index])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100.0))
        if step % 50 == 0 or step + 1 == arguments.steps:
            accuracy = (over_objects.argmax(dim=1) == rows).float().mean()
            seconds = time.perf_counter() - start
            print(
                f"step {step:5d}  loss {loss.item():6.3f}  batch accuracy {accuracy:.3f}  {seconds:4.0f} s",
                flush=True,
            )
    return model, time.perf_counter() - start


@torch.no_grad()
def zero_shot(
    model: CLIP,
    objects: Sequence[WorldObject],
    named: Sequence[WorldObject],
    *,
    each: int,
    style: str = "photo",
    permutations: int = 0,
) -> float:
    """Return the accuracy over the names of ``named``, or its mean over wrong orders of them."""
    generator = torch.Generator().manual_seed(20_000 + STYLES.index(style))
    pictures = render(list(objects) * each, style=style, generator=generator)
    labels = torch.tensor([named.index(each) for each in objects]).repeat(each)
    images = torch.cat([model.encode_image(chunk) for chunk in pixels(pictures).split(512)])
    texts = encode_text(model, SmallTokenizer()([DEFAULT_TEMPLATE(each.name) for each in named]))
    predicted = (images @ texts.T).argmax(dim=1)
    orders = [torch.randperm(len(named), generator=generator) for _ in range(permutations)]
    names = [order[predicted] for order in orders] or [predicted]
    return float(torch.stack([(name == labels).float().mean() for name in names]).mean())


def measure(model: CLIP, metadata: dict[str, str]) -> list[tuple[str, str]]:
    """Return the rows of the table."""
    model.eval()
    everything = all_objects()
    shuffled = "held-out names shuffled, mean of 20 orders (chance: 0.016)"
    accuracies = {
        "zero-shot, held-out objects, their 64 names": zero_shot(model, HELD_OUT, HELD_OUT, each=32),
        "zero-shot, held-out objects, all 384 names": zero_shot(model, HELD_OUT, everything, each=32),
        "zero-shot, training objects, their 320 names": zero_shot(model, TRAINED, TRAINED, each=8),
        "zero-shot, all objects, all 384 names": zero_shot(model, everything, everything, each=8),
        shuffled: zero_shot(model, HELD_OUT, HELD_OUT, each=32, permutations=20),
    }
    for style in STYLES:
        if style not in TRAINING_STYLES:
            label = f"zero-shot, held-out objects, their 64 names, unseen style: {style}"
            accuracies[label] = zero_shot(model, HELD_OUT, HELD_OUT, style=style, each=32)
    return [
        *((name, f"{value:.3f}") for name, value in accuracies.items()),
        ("logit scale", f"{model.logit_scale.exp().item():.1f}"),
        ("parameters", str(sum(parameter.numel() for parameter in model.parameters()))),
        ("file size, bytes", str(WEIGHTS.stat().st_size)),
        ("training steps", metadata["steps"]),
        ("images seen in training", str(int(metadata["steps"]) * int(metadata["batch_size"]))),
        (f"wall-clock seconds of training, {metadata['threads']} CPU threads", metadata["seconds"]),
    ]


def main() -> None:
    """Train, write the weights, measure them as they were written, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warm-up-steps", type=int, default=60)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--attribute-weight", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure-only", action="store_true", help="measure the weights that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.measure_only:
        model, seconds = train(arguments)
        state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
        metadata = {"format": "pt", "trained_on": "avalanche_vlm.world", "seconds": f"{seconds:.0f}"}
        metadata |= {key: str(value) for key, value in vars(arguments).items()}
        save_file(state, WEIGHTS, metadata=metadata)
        WEIGHTS.chmod(0o644)  # it is part of a package, and was written for its writer alone
    with safe_open(WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    model = CLIP(**SMALL_CLIP_CONFIG)
    model.load_state_dict(load_file(WEIGHTS))
    rows = measure(model, metadata)
    lines = ["| measured | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    heading = (
        "# The small CLIP, measured\n\n"
        "Written by `benchmarks/train_small_clip.py`, on freshly rendered pictures (photo style unless "
        "said\notherwise) and the template `a photo of a {}.`. Seconds include whatever else the "
        "machine did.\n\n"
    )
    TABLE.with_suffix(".md").write_text(heading + "\n".join(lines) + "\n")
    with TABLE.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("measured", "value"), *rows])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
