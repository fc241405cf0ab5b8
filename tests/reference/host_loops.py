"""Continual-learning methods as plain loops over one weight matrix, from the equations of their papers.

The model is z = s · cos(x, W) with W (C, D). A stream is a list of experiences (x, y); every function
takes the weights at the start and returns those at the end. "Seen" classes are those of the experiences
so far; where a paper has one head that grows, the loss is over them.
"""

from itertools import chain, repeat
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Run(NamedTuple):
    """What all methods share."""

    rate: float
    batch_size: int
    epochs: int
    scale: float
    seed: int


def logits(run, weight, x):
    return run.scale * F.normalize(x, dim=1) @ F.normalize(weight, dim=1).T


def accuracy(run, weight, stream):
    """Return the mean over experiences of the accuracy among all classes."""
    hits = [(logits(run, weight, x).argmax(dim=1) == y).float().mean() for x, y in stream]
    return float(torch.stack(hits).mean())


def cross_entropy(z, y, classes):
    """Cross-entropy over a list of classes; the others have probability 0."""
    outside = torch.ones(z.shape[1], dtype=torch.bool)
    outside[classes] = False
    return F.cross_entropy(z.masked_fill(outside, -torch.inf), y)


def gradient(loss, weight):
    (result,) = torch.autograd.grad(loss, weight)
    return result


def step(run, weight, loss):
    return (weight - run.rate * gradient(loss, weight)).detach().requires_grad_()


def batches(x, y, size):
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True)


def endless(size, *tensors):
    """Yield shuffled batches of a memory, again and again."""
    return chain.from_iterable(repeat(DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=True)))


def experiences(run, stream):
    """Yield (index, x, y, classes seen so far), each from a seed of its own."""
    for index, (x, y) in enumerate(stream):
        torch.manual_seed(run.seed + index)
        yield index, x, y, torch.cat([labels for _, labels in stream[: index + 1]]).unique()


def regularized(run, weight, stream, penalty=None, after=None):
    """Cross-entropy over the seen classes plus ``penalty(weight, x, z)``, one experience at a time."""
    weight = weight.clone().requires_grad_()
    for index, x, y, seen in experiences(run, stream):
        for _ in range(run.epochs):
            for batch_x, batch_y in batches(x, y, run.batch_size):
                z = logits(run, weight, batch_x)
                loss = cross_entropy(z, batch_y, seen)
                if penalty is not None and index > 0:
                    loss = loss + penalty(weight, batch_x, z)
                weight = step(run, weight, loss)
        if after is not None:
            after(weight, x, y, seen)
    return weight.detach()


def naive(run, weight, stream):
    return regularized(run, weight, stream)


def cumulative(run, weight, stream):
    """All data so far, again at every experience."""
    parts = [stream[: index + 1] for index in range(len(stream))]
    together = [tuple(map(torch.cat, zip(*part, strict=True))) for part in parts]
    return regularized(run, weight, together)


def joint(run, weight, stream):
    """All data at once."""
    return regularized(run, weight, [tuple(map(torch.cat, zip(*stream, strict=True)))])


def ewc(run, weight, stream, *, strength):
    """Kirkpatrick et al. 2017, eq. 3, one quadratic term an experience: λ Σₖ Σ Fₖ (W − Wₖ)².

    F is the diagonal of the empirical Fisher information: the mean over samples of (∂ log p(y|x) / ∂W)².
    """
    anchors = []

    def fisher(weight, x, y, seen):
        parts = [
            gradient(cross_entropy(logits(run, weight, x[i : i + 1]), y[i : i + 1], seen), weight) ** 2
            for i in range(len(x))
        ]
        anchors.append((torch.stack(parts).mean(dim=0), weight.detach()))

    def penalty(weight, x, z):
        return strength * sum((f * (weight - anchor) ** 2).sum() for f, anchor in anchors)

    return regularized(run, weight, stream, penalty, fisher)


def mas(run, weight, stream, *, strength, alpha):
    """Aljundi et al. 2018, eqs. 2 to 5: λ Σ Ω (W − W*)², Ω the mean over samples of |∂‖z(x)‖² / ∂W|.

    Importances of two experiences are mixed, Ω ← α Ω + (1 − α) Ω_new, instead of added.
    """
    kept = {}

    def importance(weight, x, y, seen):
        parts = [
            gradient(logits(run, weight, x[i : i + 1]).square().sum(), weight).abs() for i in range(len(x))
        ]
        new = torch.stack(parts).mean(dim=0)
        kept["importance"] = alpha * kept["importance"] + (1 - alpha) * new if kept else new
        kept["anchor"] = weight.detach()

    def penalty(weight, x, z):
        return strength * (kept["importance"] * (weight - kept["anchor"]) ** 2).sum()

    return regularized(run, weight, stream, penalty, importance)


def lwf(run, weight, stream, *, strength, temperature):
    """Li and Hoiem 2016, eq. 2 and 3: λ KL(p_old ‖ p), both at a temperature, over the old classes."""
    old = {}

    def remember(weight, x, y, seen):
        old.update(weight=weight.detach(), classes=seen)

    def penalty(weight, x, z):
        classes = old["classes"]
        p_old = (logits(run, old["weight"], x)[:, classes] / temperature).softmax(dim=1)
        log_ratio = p_old.log() - (z[:, classes] / temperature).log_softmax(dim=1)
        return strength * (p_old * log_ratio).sum(dim=1).mean()

    return regularized(run, weight, stream, penalty, remember)


def si(run, weight, stream, *, strength, damping=1e-7, largest=1e-3):
    """Zenke et al. 2017, eqs. 3 to 5: c Σ Ω (W − W*)² with Ω += ω / (Δ² + ξ), ω = − Σ g Δw a step.

    As Maltoni and Lomonaco 2019 do, Ω is cut off at ``largest`` and the factor is c / 2.
    """
    weight = weight.clone().requires_grad_()
    total, importance, anchor = torch.zeros_like(weight), torch.zeros_like(weight), weight.detach()
    for _, x, y, seen in experiences(run, stream):
        path, start = torch.zeros_like(weight), weight.detach()
        for _ in range(run.epochs):
            for batch_x, batch_y in batches(x, y, run.batch_size):
                loss = cross_entropy(logits(run, weight, batch_x), batch_y, seen)
                loss = loss + strength / 2 * (importance * (weight - anchor) ** 2).sum()
                slope = gradient(loss, weight)
                moved = (weight - run.rate * slope).detach().requires_grad_()
                path = path - slope * (moved - weight).detach()
                weight = moved
        anchor = weight.detach()
        total = total + path / ((anchor - start) ** 2 + damping)
        importance = total.clamp(max=largest)
    return weight.detach()


class Memory:
    """At most ``size`` samples, an equal share for each group; in a group those of highest priority.

    A priority is a random number, drawn once (reservoir sampling), or afresh at every ``add`` with
    ``redraw``, which favours what came last.
    """

    def __init__(self, size, *, redraw=False):
        self.size, self.redraw = size, redraw
        self.samples, self.group, self.priority = None, torch.zeros(0, dtype=torch.long), torch.zeros(0)

    def add(self, group, *samples):
        old = self.samples or [part[:0] for part in samples]
        self.samples = [torch.cat(pair) for pair in zip(old, samples, strict=True)]
        self.group = torch.cat([self.group, group])
        self.priority = torch.cat([self.priority, torch.rand(len(group))])
        if self.redraw:
            self.priority = torch.rand(len(self.group))
        groups = self.group.unique()
        kept = []
        for index, each in enumerate(groups):
            share = self.size // len(groups) + (index < self.size % len(groups))
            members = (self.group == each).nonzero().flatten()
            kept.append(members[self.priority[members].argsort(descending=True)[:share]])
        kept = torch.cat(kept)
        self.samples = [part[kept] for part in self.samples]
        self.group, self.priority = self.group[kept], self.priority[kept]


def replay(run, weight, stream, *, memory_size, by_class, redraw=False):
    """Each batch is joined by as many samples of a memory that is balanced by class or by experience."""
    weight, memory = weight.clone().requires_grad_(), Memory(memory_size, redraw=redraw)
    for index, x, y, seen in experiences(run, stream):
        for _ in range(run.epochs):
            past = endless(run.batch_size, *memory.samples) if index else repeat((x[:0], y[:0]))
            for batch, old in zip(batches(x, y, run.batch_size), past):  # noqa: B905 (one is endless)
                both_x, both_y = map(torch.cat, zip(batch, old, strict=True))
                weight = step(run, weight, cross_entropy(logits(run, weight, both_x), both_y, seen))
        memory.add(y if by_class else torch.full_like(y, index), x, y)
    return weight.detach()


def gdumb(run, weight, stream, *, memory_size):
    """Prabhu et al. 2020, section 3: a class-balanced memory, and a new model trained on it alone."""
    start, memory = weight, Memory(memory_size)
    for _, x, y, seen in experiences(run, stream):
        memory.add(y, x, y)
        weight = start.clone().requires_grad_()
        for _ in range(run.epochs):
            for batch_x, batch_y in batches(*memory.samples, run.batch_size):
                weight = step(run, weight, cross_entropy(logits(run, weight, batch_x), batch_y, seen))
    return weight.detach()


def agem(run, weight, stream, *, patterns, sample_size):
    """Chaudhry et al. 2019, eq. 11: g − (gᵀr / rᵀr) r if gᵀr < 0, r the gradient on a sample of memory."""
    weight, memories = weight.clone().requires_grad_(), []
    for _, x, y, seen in experiences(run, stream):
        share = sample_size // max(len(memories), 1)
        past = [endless(share, *memory) for memory in memories]
        for _ in range(run.epochs):
            for batch_x, batch_y in batches(x, y, run.batch_size):
                slope = gradient(cross_entropy(logits(run, weight, batch_x), batch_y, seen), weight)
                if past:
                    old_x, old_y = map(torch.cat, zip(*(next(each) for each in past), strict=True))
                    reference = gradient(cross_entropy(logits(run, weight, old_x), old_y, seen), weight)
                    product = (slope * reference).sum()
                    if product < 0:
                        slope = slope - product / reference.square().sum() * reference
                weight = (weight - run.rate * slope).detach().requires_grad_()
        chosen = torch.randperm(len(x))[:patterns]
        memories.append((x[chosen], y[chosen]))
    return weight.detach()


def der(run, weight, stream, *, memory_size, alpha, beta):
    """Buzzega et al. 2020, eq. 6 (DER++): + α mean (z − z_memory)² + β cross-entropy of the memory.

    All losses are over every class. The memory is class-balanced, with logits of the trained model.
    """
    weight, memory = weight.clone().requires_grad_(), Memory(memory_size)
    every = torch.arange(len(weight))
    for index, x, y, _ in experiences(run, stream):
        past = endless(run.batch_size, *memory.samples) if index else None
        for _ in range(run.epochs):
            for batch_x, batch_y in batches(x, y, run.batch_size):
                loss = cross_entropy(logits(run, weight, batch_x), batch_y, every)
                if past is not None:
                    old_x, old_y, old_z = next(past)
                    z = logits(run, weight, old_x)
                    loss = loss + alpha * (z - old_z).square().mean() + beta * cross_entropy(z, old_y, every)
                weight = step(run, weight, loss)
        memory.add(y, x, y, logits(run, weight, x).detach())
    return weight.detach()


def er_ace(run, weight, stream, *, memory_size, batch_size_memory):
    """Caccia et al. 2022, eq. 5: the batch among its own classes, the memory among all; half of each.

    The memory is class-balanced and holds the current experience from its start.
    """
    weight, memory = weight.clone().requires_grad_(), Memory(memory_size)
    every = torch.arange(len(weight))
    for index, x, y, _ in experiences(run, stream):
        memory.add(y, x, y)
        past = endless(batch_size_memory, *memory.samples) if index else None
        for _ in range(run.epochs):
            for batch_x, batch_y in batches(x, y, run.batch_size):
                z = logits(run, weight, batch_x)
                if past is None:
                    loss = cross_entropy(z, batch_y, every)
                else:
                    old_x, old_y = next(past)
                    old = cross_entropy(logits(run, weight, old_x), old_y, every)
                    loss = (cross_entropy(z, batch_y, batch_y.unique()) + old) / 2
                weight = step(run, weight, loss)
    return weight.detach()


def slda(stream, class_count, *, shrinkage):
    """Hayes and Kanan 2020, eqs. 1 to 4: running class means and covariance; returns weights and biases."""
    width = stream[0][0].shape[1]
    means, counts, covariance = torch.zeros(class_count, width), torch.zeros(class_count), torch.zeros(())
    samples = ((x, label) for xs, ys in stream for x, label in zip(xs, ys, strict=True))
    for seen, (x, label) in enumerate(samples):
        difference = x - means[label]
        update = torch.outer(difference, difference) * seen / (seen + 1)
        covariance = (seen * covariance + update) / (seen + 1)
        means[label] = (counts[label] * means[label] + x) / (counts[label] + 1)
        counts[label] += 1
    precision = torch.linalg.inv((1 - shrinkage) * covariance + shrinkage * torch.eye(width))
    weights = means @ precision
    return weights, -0.5 * (weights * means).sum(dim=1)
