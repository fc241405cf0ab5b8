"""One variational auto-encoder of one class, from the equations, in float64 and with loops.

Nothing here knows of several classes: no padding, no mask, no batched product.
"""

import math

import torch
from torch import nn


def normalised(samples):
    """Min-max scale to [0, 1], then z-score, one dimension after another."""
    columns = []
    for column in samples.double().T:
        span = max(float(column.max() - column.min()), 1e-6)
        scaled = (column - column.min()) / span
        mean = float(sum(scaled)) / len(scaled)
        deviation = math.sqrt(sum((float(v) - mean) ** 2 for v in scaled) / max(len(scaled) - 1, 1))
        columns.append((scaled - mean) / max(deviation, 1e-6))
    return torch.stack(columns, dim=1)


def divergence(mean, log_variance):
    """KL(N(m, e^l) || N(0, 1)) of one row, by the closed form of each dimension."""
    total = 0.0
    for m, log_v in zip(mean, log_variance, strict=True):
        total = total + 0.5 * (torch.exp(log_v) + m**2 - 1 - log_v)
    return total


def likelihood_loss(x, mean, log_scale=None):
    """-log of the density of N(mean, exp(log_scale)²) at one row x, dimension by dimension."""
    total = 0.0
    for d, (value, centre) in enumerate(zip(x, mean, strict=True)):
        scale = 1.0 if log_scale is None else torch.exp(log_scale[d])
        density = -0.5 * ((value - centre) / scale) ** 2 - 0.5 * math.log(2 * math.pi)
        total = total - (density - (0.0 if log_scale is None else log_scale[d]))
    return total


class PlainVAE:
    """Encoder and decoder of ordinary layers, trained with Adam and warm restarts written out."""

    def __init__(self, width, hidden, latent):
        def block(a, b):
            return [nn.Linear(a, b), nn.BatchNorm1d(b), nn.LeakyReLU(0.2)]

        self.encoder = nn.Sequential(
            *block(width, hidden), *block(hidden, hidden), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, width),
        )
        self.encoder.double()
        self.decoder.double()
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.losses = []
        self.gradients = []

    def linears(self):
        return [m for m in [*self.encoder, *self.decoder] if isinstance(m, nn.Linear)]

    def loss(self, x, noise, official):
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        scale = torch.exp(log_variance) if official else torch.exp(log_variance / 2)
        decoded = self.decoder(mean + noise * scale)
        rows = [
            likelihood_loss(x[i], decoded[i]) + divergence(mean[i], log_variance[i]) for i in range(len(x))
        ]
        return sum(rows) / len(rows)

    def train(self, samples, batches, *, rate, first_cycle, steps_per_pass, official=False):
        """Take one step of Adam for each (rows, noise) of the batches; cycles are counted in passes."""
        samples = normalised(samples)
        begin, cycle = 0, first_cycle
        for step, (rows, noise) in enumerate(batches):
            done = step // steps_per_pass
            if done - begin == cycle:
                begin, cycle = done, 2 * cycle
            current = rate * (1 + math.cos(math.pi * (done - begin) / cycle)) / 2
            loss = self.loss(samples[rows], noise, official)
            gradients = torch.autograd.grad(loss, self.parameters)
            self.losses.append(float(loss.detach()))
            self.gradients.append(gradients)
            with torch.no_grad():
                for p, g, (m, v) in zip(self.parameters, gradients, self.moments, strict=True):
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g**2)
                    first, second = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                    p.sub_(current * first / (second.sqrt() + 1e-8))
