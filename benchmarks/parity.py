"""Pieces of the package that were corrected, beside loops in float64 that are written from the equations.

    python benchmarks/parity.py

Compared are, on small random data: `ClassVAE` where a last batch would have one row; losses and gradients
of distillations and of `PromptOrthogonality`; what `WeightEnsemblePlugin` averages; which gradients pass a
`HybridPromptHead` with `LatestLearnedVectors`. The loops share no arithmetic with the package: they take
from it features, copies of weights, and losses of a model that was moved a little. A bound is 1e-9 in
float64 and 1e-6 in float32, times the largest value where that is above 1; what is to be exactly zero has
the bound 0. Prints a table, writes it to ``parity.md`` beside this file, and has exit code 1 where a bound
is exceeded, or all is zero and the bound is not. Takes less than a minute on one thread.
"""

import functools
import itertools
import math
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from avalanche_vlm import regularizers
from avalanche_vlm.models import GeneratedContext, HybridPromptHead, LatestLearnedVectors, LearnedVectors
from avalanche_vlm.plugins import WeightEnsemblePlugin
from avalanche_vlm.regularizers.pairs import PairFeatures
from avalanche_vlm.sources import ClassVAE
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier, tiny_images

KINDS = ("ImageOnly", "TextOnly", "ImageToText", "TextToImage", "Feature", "Reference")
TAU, RATE, PASSES, BATCH, WIDTH, HIDDEN, LATENT = 1.5, 0.01, 20, 4, 4, 6, 3
AHEAD = 8  # passes over two batches whose random numbers a ClassVAE draws together
PRECISION = {torch.float64: 1e-9, torch.float32: 1e-6}
ROWS: list[tuple[str, str, float, float, float]] = []


gradients = functools.partial(torch.autograd.grad, retain_graph=True, materialize_grads=True)


def note(piece: str, compared: str, found, expected, dtype: torch.dtype, zero: bool = False) -> None:
    """Keep a row of the table: the largest difference of tensors, and the largest value of the loop."""
    found, expected = (torch.cat([w.detach().double().flatten() for w in each]) for each in (found, expected))
    largest = float(expected.abs().max())
    bound = 0.0 if zero else PRECISION[dtype] * max(1.0, largest)
    what = f"{compared}, {str(dtype)[6:]}"
    ROWS.append((piece, what, float((found - expected).abs().max()), largest, bound))


def note_loss(piece: str, of: str, loss, leaves, plain, own) -> None:
    """Keep a row for a loss, and one for its gradients to the leaves."""
    note(piece, "loss", [loss], [plain], loss.dtype)
    note(piece, f"gradients to {of}", gradients(loss, leaves), gradients(plain, own), loss.dtype)


def doubled(tensors):
    """Return copies in float64 that take gradients of their own."""
    return [each.detach().double().clone().requires_grad_() for each in tensors]


def shaken(model, amount: float, seed: int = 0):
    """Move all that trains."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data += amount * torch.randn(weight.shape, generator=generator).to(weight.dtype)
    return model


def layers(sizes, generator, norm: bool):
    """Return linear layers, between them batch norms if asked for, and leaky ReLUs."""
    stack = []
    for a, b in itertools.pairwise(sizes):
        linear, drawn = nn.Linear(a, b).double(), torch.empty(a, b).double()
        linear.weight.data = drawn.uniform_(-(a**-0.5), a**-0.5, generator=generator).T
        linear.bias.data.uniform_(-(a**-0.5), a**-0.5, generator=generator)
        stack += [linear, *[nn.BatchNorm1d(b).double()] * norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*stack[: -1 - norm])


def vae_loss(encoder, decoder, x, noise, share: float):
    """Return the loss of a batch, row by row; noise is scaled by the variance to the power of the share."""
    rows = zip(x, *encoder(x).chunk(2, dim=1), noise, strict=True)
    total = WIDTH * math.log(2 * math.pi) * len(x)
    for row, m, log_v, drawn in rows:
        total = total + sum((row - decoder(m + drawn * torch.exp(share * log_v))) ** 2)
        total = total + sum(torch.exp(log_v) + m**2 - 1 - log_v)
    return total / 2 / len(x)


def vae_by_loop(x, generator, share: float):
    """Return decoder, shift and scale of a class."""
    encoder = layers((WIDTH, HIDDEN, HIDDEN, 2 * LATENT), generator, True)
    decoder = layers((LATENT, HIDDEN, HIDDEN, WIDTH), generator, False)
    low, span = x.amin(dim=0), x.amax(dim=0) - x.amin(dim=0)
    mean = sum((x - low) / span) / len(x)
    deviation = (sum(((x - low) / span - mean) ** 2) / (len(x) - 1)).sqrt()
    x, begin, cycle = ((x - low) / span - mean) / deviation, 0, PASSES // 10
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])
    for number in range(PASSES):
        if number % AHEAD == 0:
            keys = torch.rand(AHEAD, len(x), generator=generator).tolist()
            noise = torch.randn(AHEAD, len(x), LATENT, generator=generator, dtype=x.dtype)
        if number - begin == cycle:
            begin, cycle = number, 2 * cycle
        adam.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * (number - begin) / cycle)) / 2
        order = sorted(range(len(x)), key=keys[number % AHEAD].__getitem__)
        for start in range(0, len(x) - 1, BATCH):  # a last batch of one row is left out
            batch = x[order[start:][:BATCH]], noise[number % AHEAD, start:][:BATCH]
            adam.zero_grad()
            vae_loss(encoder, decoder, *batch, share).backward()
            adam.step()
    return [w.T if w.ndim == 2 else w for w in decoder.parameters()], low + span * mean, span * deviation


def class_vae(noise_scale: str, share: float) -> None:
    """Compare the training of a class of 2 · batch_size + 1 rows."""
    settings = {"passes": PASSES, "batch_size": BATCH, "hidden": HIDDEN, "latent": LATENT}
    vae = ClassVAE(**settings, learning_rate=RATE, noise_scale=noise_scale)
    one, other = (torch.Generator().manual_seed(1) for _ in range(2))
    x = 3 + torch.randn(2 * BATCH + 1, WIDTH, dtype=torch.float64)
    found = vae._fit_group(x[None], torch.tensor([len(x)]), [one], lambda: None)
    decoder, *others = vae_by_loop(x, other, share)
    what = f"{len(x)} rows, batches of {BATCH}, {PASSES} passes, noise by {noise_scale}"
    note("ClassVAE", f"{what}: decoder", found[:1], decoder, x.dtype)
    note("ClassVAE", f"{what}: shift and scale", found[1:], others, x.dtype)


def divergence(own, taught):
    """Return τ² KL(teacher, student), the mean over rows."""
    p, q = ([row / sum(row) for row in torch.exp(each / TAU)] for each in (own, taught))
    return TAU**2 * sum(sum(b * torch.log(b / a)) for a, b in zip(p, q, strict=True)) / len(own)


def distillation_by_loop(kind: str, f, g, s, f_, g_, s_):
    """Return the loss for image features, text features and scales of student and teacher."""
    f, g, f_, g_ = (torch.stack([row / sum(row**2).sqrt() for row in each]) for each in (f, g, f_, g_))
    if kind == "Feature":
        return sum(sum(sum((a - b) ** 2)) / a.numel() for a, b in ((f, f_), (g, g_)))
    images, texts = f_ if kind == "TextOnly" else f, g_ if kind in ("ImageOnly", "Reference") else g
    own, taught = s * images @ texts.T, s_ * f_ @ g_.T
    rows, columns = divergence(own, taught), divergence(own.T, taught.T)
    return {"ImageToText": rows, "TextToImage": columns}.get(kind, rows + columns)


def distillation(kind: str, dtype: torch.dtype) -> None:
    """Compare a distillation on 7 images and 4 texts, with a teacher that has another scale."""
    both = [tiny_classifier(trainable="both", train_logit_scale=True).to(dtype) for _ in range(2)]
    (model, teacher), settings = (shaken(each, 0.05) for each in both), {"temperature": TAU}
    texts = [f"a {name}." for name in TINY_CLASSES]
    pairs = regularizers.ReferencePairs(tiny_images()[0].to(dtype), texts, batch_size=7, texts_per_batch=4)
    term = getattr(regularizers, f"{kind}Distillation")(pairs, **(settings if kind != "Feature" else {}))
    agent, none = nn.Module(), torch.zeros(0)
    agent.model = model
    term.pre_adapt(agent, object())
    said = term.encode(shaken(model, 0.1, seed=1), none, none)
    f, g = leaves = [each.detach().requires_grad_() for each in (said.images, said.texts)]
    loss = term.compare(model, PairFeatures(said.batch, f, lambda: g, said.scale.detach(), 0.0))
    tower, own = teacher.backbone, doubled(leaves)
    taught = teacher.encode(said.batch.images), tower.encode_text(said.batch.texts), tower.logit_scale
    plain = distillation_by_loop(kind, *own, said.scale.detach().double(), *doubled(taught))
    note_loss(f"{kind}Distillation", "image and text features", loss, leaves, plain, own)


def orthogonality(dtype: torch.dtype) -> None:
    """Compare the term of two vectors a class, where three classes were seen."""
    head = HybridPromptHead(context=[LearnedVectors(2), GeneratedContext()])
    model = shaken(tiny_classifier(head).to(dtype), 0.3)
    model.classes_seen[[0, 1, 4]] = True
    leaves = [head.context[0].vectors]
    loss, own = regularizers.PromptOrthogonality()(model, *[torch.zeros(0)] * 3), doubled(leaves)
    rows = [vector for c in (0, 1, 4) for vector in own[0][c]]
    entries = [sum(u * v) - float(i == j) for i, u in enumerate(rows) for j, v in enumerate(rows)]
    plain = sum(entry**2 for entry in entries) / len(entries)
    note_loss("PromptOrthogonality", "vectors", loss, leaves, plain, own)


def weight_ensemble(first: int | None, members: list[int]) -> None:
    """Compare the weights after 210 steps with the mean of copies that a hook of the optimizer takes."""
    model, settings = tiny_classifier(trainable="both"), {"train_mb_size": 4, "train_iterations": 210}
    optimizer, copies = torch.optim.SGD(model.parameters(), lr=0.01), [doubled(model.parameters())]
    optimizer.register_step_post_hook(lambda *args: copies.append(doubled(model.parameters())))
    plugins = [WeightEnsemblePlugin(100, first=first)]
    strategy = FineTune(model=model, optimizer=optimizer, plugins=plugins, evaluator=None, **settings)
    strategy.train(tiny_benchmark().train_stream[0])
    mean = copies[members[0]]
    for number, step in enumerate(members[1:], start=2):
        mean = [m + (weight - m) / number for m, weight in zip(mean, copies[step], strict=True)]
    moved, mean = ([a - b for a, b in zip(w, copies[0], strict=True)] for w in (model.parameters(), mean))
    what = f"`first={first}`: change of the weights in {len(copies) - 1} steps, members {members}"
    note("WeightEnsemblePlugin", what, moved, mean, torch.float32)


def hybrid_prompts() -> None:
    """Compare gradients in the second of three experiences: classes 0 and 1 are earlier, 2 and 3 newest."""
    head, (x, y) = HybridPromptHead(context=[LatestLearnedVectors(), GeneratedContext()]), tiny_images()
    model, stream = tiny_classifier(head).double().train(), tiny_benchmark().train_stream
    model.adaptation(stream[0])
    shaken(model, 0.1).adaptation(stream[1])
    logits, leaves = model(x.double()), list(model.parameters())
    found, zeros = (
        gradients(nn.functional.cross_entropy(logits, y), leaves),
        [torch.zeros_like(w) for w in leaves],
    )
    what, slopes, vectors = "gradient of the loss to vectors of", zeros[0][2:4].clone(), leaves[0].data[2:4]
    for place in itertools.product(*map(range, vectors.shape)):
        before = vectors[place].clone()
        for at, factor in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
            vectors[place] = before + 1e-4 * at
            slopes[place] += 1e4 * factor * nn.functional.cross_entropy(model(x.double()), y).detach()
        vectors[place] = before
    piece, through = "HybridPromptHead", gradients(logits[:, :2].square().sum(), leaves)
    note(piece, f"{what} earlier classes", found[0][:2], zeros[0][:2], logits.dtype, zero=True)
    note(piece, "gradient through earlier logits to all that trains", through, zeros, logits.dtype, zero=True)
    note(piece, f"{what} the newest, and differences", found[0][2:4], slopes, logits.dtype)


def main() -> int:
    """Compare, print and write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    class_vae("deviation", 0.5)
    class_vae("variance", 1.0)
    for dtype in PRECISION:
        for kind in KINDS:
            distillation(kind, dtype)
        orthogonality(dtype)
    weight_ensemble(None, [0, 100, 200])
    weight_ensemble(1, [0, 1, 101, 201])
    hybrid_prompts()
    head = "| piece | what is compared | largest absolute difference | largest value compared | bound |"
    lines = [f"| {piece} | {what} | {a:.1e} | {b:.2g} | {bound:.0e} |" for piece, what, a, b, bound in ROWS]
    title = ["# Corrected pieces beside loops in float64", "", "Written by `benchmarks/parity.py`.", ""]
    table = "\n".join([*title, head, "|---|---|---|---|---|", *lines])
    (Path(__file__).parent / "parity.md").write_text(f"{table}\n")
    print(table)
    return int(any(not a <= bound or (b == 0) != (bound == 0) for _, _, a, b, bound in ROWS))


if __name__ == "__main__":
    sys.exit(main())
