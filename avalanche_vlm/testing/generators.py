"""The laws of a generator of embeddings."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnF

from avalanche_vlm.sources import LatentGenerator
from avalanche_vlm.testing.running import require

_WIDTH = 12
_SIZES = {3: 1, 5: 8, 11: 40, 400: 30}
_CONSTANT = 11
_DRAWS = 256


def check_latent_generator(make: Callable[[], LatentGenerator]) -> None:
    """Law: a generator of embeddings is sound, repeatable, can be stored, and keeps no real feature.

    It is fitted eight times, to 79 features of width 12 or to fewer: give it settings with which it
    fits such a set well, and in a second or so.

    What is drawn is finite, also of classes with one sample and with constant dimensions, and has
    the mean of its class. A draw belongs to the caller, and arguments are left as they were. Two
    generators of one seed draw the same, and nothing from a global generator. The state goes through
    a file that is read with ``weights_only=True``, and goes on bit for bit. `nbytes` counts the tensors
    of the state, but for that of the random numbers. A class that comes again is drawn from both fits
    by their numbers of samples. Errors name their argument, and a refusal changes nothing. The modes
    of torch stay as they were. Copies of a class's features are not kept (see `check_no_features`).

    Args:
        make: makes the generator, afresh at every call, always with the same settings.

    Raises:
        LawBroken: with a sentence that says which law.
    """
    features, labels = _features()
    first = _check_repeatable(make, features, labels)
    _check_draws(first, features, labels)
    _check_refusals(first)
    _check_bytes(first)
    check_no_features(first, features, labels)
    _check_modes(make, features, labels)
    _check_comes_again(make)
    _check_state(make, first)


def check_no_features(generator: LatentGenerator, features: Tensor, labels: Tensor) -> None:
    """Law: nothing that is as wide as a feature, in any attribute, is a feature that was fitted.

    The mean of a few features may lie nearer to each than they do to each other, that of two at half
    their distance. What is nearer than a quarter of the smallest distance in the class is a copy, if a
    rounded one. Classes with fewer than 8 samples are left out.

    Args:
        generator: fitted to the features, and to no others of these classes.
        features: (N, D).
        labels: (N,).

    Raises:
        LawBroken: a row is a feature.
    """
    width = features.shape[1]
    kept = [
        (name, tensor.detach().cpu().double().reshape(-1, width))
        for name, tensor in _tensors(vars(generator), "")
        if tensor.is_floating_point() and tensor.numel() % width == 0
    ]
    norms = [rows.norm(dim=1) for _, rows in kept]
    for label, size in zip(*(each.tolist() for each in labels.unique(return_counts=True)), strict=True):
        if size < 8:
            continue
        real = features[labels == label].double()
        limit = torch.pdist(real).min() / 4
        low, high = real.norm(dim=1).aminmax()
        for (name, rows), norm in zip(kept, norms, strict=True):
            # Two vectors are at least as far from each other as their norms are.
            near = rows[(norm >= low - limit) & (norm <= high + limit)]
            if len(near) == 0:
                continue
            distance = torch.cdist(near, real).min()
            require(
                bool(distance >= limit),
                f"a row of {name} is at {float(distance):.2g} of a feature of class {label}, whose "
                f"features are {float(4 * limit):.2g} apart: it keeps a copy",
            )


def _features() -> tuple[Tensor, Tensor]:
    """Return shuffled features of one class for each size, one of which is partly constant."""
    generator = torch.Generator().manual_seed(20240722)
    labels = torch.tensor([label for label, size in _SIZES.items() for _ in range(size)])
    centres = torch.randn(500, _WIDTH, generator=generator)
    scales = torch.rand(500, _WIDTH, generator=generator) * 0.3 + 0.1
    features = centres[labels] + scales[labels] * torch.randn(len(labels), _WIDTH, generator=generator)
    features[labels == _CONSTANT, :3] = torch.tensor([0.0, 0.1, -7.0])
    order = torch.randperm(len(labels), generator=generator)
    return features[order], labels[order]


def _global_states() -> tuple[bytes, ...]:
    return tuple(map(pickle.dumps, (torch.get_rng_state().numpy(), random.getstate(), np.random.get_state())))


def _check_repeatable(
    make: Callable[[], LatentGenerator], features: Tensor, labels: Tensor
) -> LatentGenerator:
    before = _global_states()
    given = features.clone(), labels.clone()
    first = make()
    first.fit(*given)
    drawn = first.sample([5, 11], 4)[0]
    name = type(first).__name__
    require(_global_states() == before, f"{name} draws from a global generator; give it one of its own")
    unchanged = torch.equal(given[0], features) and torch.equal(given[1], labels)
    require(unchanged, f"{name}.fit writes into its arguments")
    second = make()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(987654321)
        second.fit(features, labels)
        again = second.sample([5, 11], 4)[0]
    require(torch.equal(drawn, again), f"two {name} of the same seed differ")
    return first


def _check_draws(generator: LatentGenerator, features: Tensor, labels: Tensor) -> None:
    name = type(generator).__name__
    classes = sorted(_SIZES)
    require(generator.classes == classes, f"{name}.classes is {generator.classes}, not {classes}")
    require(generator.embed_dim == _WIDTH, f"{name}.embed_dim is {generator.embed_dim}, not {_WIDTH}")
    wanted = classes[::-1]
    drawn, drawn_labels = generator.sample(wanted, _DRAWS)
    shape = (len(wanted) * _DRAWS, _WIDTH)
    require(drawn.shape == shape, f"{name}.sample gives {tuple(drawn.shape)} and not {shape}")
    require(drawn.dtype == torch.float32, f"{name}.sample gives {drawn.dtype} and not float32")
    expected = torch.tensor(wanted).repeat_interleave(_DRAWS)
    require(torch.equal(drawn_labels.cpu(), expected), f"{name}.sample gives other labels than asked for")
    for label in wanted:
        rows = drawn[drawn_labels == label].cpu()
        require(bool(rows.isfinite().all()), f"{name} draws what is not finite, of class {label}")
        cosine = nnF.cosine_similarity(rows.mean(dim=0), features[labels == label].mean(dim=0), dim=0)
        require(
            bool(cosine > 0.95),
            f"{name}: the mean of what is drawn of class {label} has the cosine {float(cosine):.3f} "
            "with that of its features, not above 0.95",
        )
    mixed = generator.sample_for(torch.tensor([11, 3, 11, 400]))
    require(mixed.shape == (4, _WIDTH), f"{name}.sample_for gives {tuple(mixed.shape)} and not (4, {_WIDTH})")
    near = torch.cdist(mixed.cpu().double(), _means(features, labels)).argmin(dim=1)
    require(near.tolist() == [2, 0, 2, 3], f"{name}.sample_for does not keep the order of the labels")
    state = _copied(generator.state_dict())
    for tensor in (drawn, drawn_labels, mixed):
        tensor.zero_()
    require(_same(state, generator.state_dict()), f"{name}: writing into a draw changes the generator")


def _means(features: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([features[labels == label].double().mean(dim=0) for label in labels.unique()])


def _check_refusals(generator: LatentGenerator) -> None:
    name = type(generator).__name__
    state = _copied(generator.state_dict())
    bad = torch.ones(3, _WIDTH)
    bad[1, 2] = float("nan")
    labels = torch.zeros(3, dtype=torch.int64)
    _check_refused("features", f"{name}.fit with NaN", lambda: generator.fit(bad, labels))
    bad[1, 2] = float("inf")
    _check_refused("features", f"{name}.fit with infinity", lambda: generator.fit(bad, labels))
    wide = torch.ones(3, _WIDTH + 1)
    _check_refused("features", f"{name}.fit with another width", lambda: generator.fit(wide, labels))
    _check_refused("labels", f"{name}.fit with a label too few", lambda: generator.fit(bad, labels[:2]))
    _check_refused("classes", f"{name}.sample of an unknown class", lambda: generator.sample([11, 99], 1))
    _check_refused("count", f"{name}.sample of 0", lambda: generator.sample([11], 0))
    require(_same(state, generator.state_dict()), f"{name}: something that was refused has changed it")


def _check_refused(argument: str, what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except (TypeError, ValueError) as error:
        require(f"`{argument}`" in str(error), f"{what}: the error does not name `{argument}`: {error}")
    else:
        require(False, f"{what} is accepted")


def _check_bytes(generator: LatentGenerator) -> None:
    state = {key: value for key, value in generator.state_dict().items() if key != "generator"}
    counted = sum(tensor.numel() * tensor.element_size() for _, tensor in _tensors(state, ""))
    name = type(generator).__name__
    require(
        generator.nbytes == counted,
        f"{name}.nbytes is {generator.nbytes}; the tensors of its state have {counted} bytes",
    )


def _check_modes(make: Callable[[], LatentGenerator], features: Tensor, labels: Tensor) -> None:
    generator = make()
    name = type(generator).__name__
    with torch.inference_mode():
        generator.fit(features.clone(), labels.clone())
        generator.sample([5], 2)
        require(torch.is_inference_mode_enabled(), f"{name} leaves inference mode")
    modes = [torch.is_grad_enabled()]
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            drawn = generator.sample([5], 2)[0]
            modes.append(torch.is_grad_enabled() == mode)
        require(not drawn.requires_grad, f"what {name} draws requires a gradient")
    require(all(modes), f"{name} changes the grad mode")
    for key, tensor in _tensors(generator.state_dict(), ""):
        require(not tensor.requires_grad, f"{key} of {name} requires a gradient")
        require(not tensor.is_inference(), f"{key} of {name}, fitted in inference mode, is of no other use")


def _check_comes_again(make: Callable[[], LatentGenerator]) -> None:
    noise = torch.randn(80, _WIDTH, generator=torch.Generator().manual_seed(1)) * 0.1
    generator = make()
    labels = torch.full((80,), 6)
    generator.fit(noise[:20] + 1, labels[:20])
    generator.fit(noise[20:] - 1, labels[20:])
    share = float((generator.sample([6], 400)[0].mean(dim=1) < 0).float().mean())
    name = type(generator).__name__
    # Five standard deviations of the share of 400 draws, at 3 in 4.
    require(
        abs(share - 0.75) < 0.11,
        f"{name}: of a class that came with 20 and with 60 features, {share:.2f} of the draws are of the "
        "second kind, not 0.75",
    )


def _check_state(make: Callable[[], LatentGenerator], generator: LatentGenerator) -> None:
    name = type(generator).__name__
    file = BytesIO()
    torch.save(generator.state_dict(), file)
    file.seek(0)
    restored = make()
    restored.load_state_dict(torch.load(file, weights_only=True))
    twin = copy.deepcopy(generator)
    new = torch.randn(10, _WIDTH, generator=torch.Generator().manual_seed(2))
    labels = torch.full((10,), 8)
    ways = {"read from a file": restored, "copied": twin}
    for when in ("draws", "draws after another fit"):
        expected = generator.sample([400, 11], 5)[0]
        for way, other in ways.items():
            same = torch.equal(other.sample([400, 11], 5)[0], expected)
            require(same, f"{name}: {when} differ once it was {way}")
        generator.fit(new, labels)
        for other in ways.values():
            other.fit(new, labels)
    _check_refused("state", f"{name}.load_state_dict of nothing", lambda: make().load_state_dict({}))


def _tensors(thing: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested attributes, collections and modules, with where they are."""
    if isinstance(thing, Tensor):
        yield name, thing
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield from _tensors(value, f"{name}.{key}".removeprefix("."))
    elif isinstance(thing, (list, tuple)):
        for index, value in enumerate(thing):
            yield from _tensors(value, f"{name}[{index}]")
    elif hasattr(thing, "__dict__") and not isinstance(thing, type):
        yield from _tensors(vars(thing), name)


def _copied(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in _tensors(state, "")}


def _same(before: Mapping[str, Tensor], state: Mapping[str, Any]) -> bool:
    after = {name: tensor for name, tensor in _tensors(state, "") if name != "generator"}
    before = {name: tensor for name, tensor in before.items() if name != "generator"}
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
