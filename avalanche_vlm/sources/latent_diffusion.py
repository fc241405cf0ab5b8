"""A diffusion model of what the embeddings of a class differ from their mean by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from avalanche_vlm._checks import check_count, check_number
from avalanche_vlm.sources._moments import means_and_deviations
from avalanche_vlm.sources.batched_layers import (
    BatchedLinear,
    flat_weights,
    initialise,
    load_flat_weights,
)
from avalanche_vlm.sources.fitting import adam, fit_progress
from avalanche_vlm.sources.latents import LatentGenerator

_TIME_DIM = 64
_ROWS_AT_ONCE = 4096


class Denoiser(nn.Module):
    """Residual network from a noisy x, a time and a condition to the velocity v.

    Its last layer begins at 0: untrained, it says that x is normally distributed.

    Args:
        width: D, of x and of the condition.
        hidden: width of the hidden layers.
        blocks: number of residual blocks.
        device: of the weights.
    """

    def __init__(self, width: int, hidden: int, blocks: int, *, device: torch.device | None = None) -> None:
        super().__init__()
        self.noisy = BatchedLinear(1, width, hidden, device=device)
        self.time = BatchedLinear(1, _TIME_DIM, hidden, device=device)
        self.condition = BatchedLinear(1, width, hidden, device=device)
        self.first = nn.ModuleList(BatchedLinear(1, hidden, hidden, device=device) for _ in range(blocks))
        self.second = nn.ModuleList(BatchedLinear(1, hidden, hidden, device=device) for _ in range(blocks))
        self.last = BatchedLinear(1, hidden, width, device=device)

    def start(self, generator: torch.Generator) -> None:
        """Fill the weights."""
        initialise(self, [generator])
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return v (B, D) of x (B, D) at times (B,) in [0, 1] under conditions (B, D)."""
        half = torch.arange(_TIME_DIM // 2, device=x.device)
        angles = 1000 * time[:, None] * torch.exp(half * (-math.log(10000) / len(half)))
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        context = self.time(waves[None]) + self.condition(condition[None])
        h = self.noisy(x[None]) + context
        for first, second in zip(self.first, self.second, strict=True):
            step = F.silu(first(F.silu(F.layer_norm(h, h.shape[-1:]) + context)))
            h = h + second(step)
        return self.last(F.silu(h))[0]


def cosine_signal(steps: int) -> Tensor:
    r"""Return :math:`\bar\alpha_0, ..., \bar\alpha_T`, float64 (T + 1,), which falls from 1 to almost 0.

    .. math:: \bar\alpha_t = f(t) / f(0), \quad f(t) = \cos^2\left(\frac{t / T + s}{1 + s}\frac\pi2\right),
        \quad s = 0.008

    >>> cosine_signal(2)[0]
    tensor(1., dtype=torch.float64)
    """
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    signal = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
    return (signal / signal[0]).clamp(min=1e-5)


@final
class LatentDiffusion(LatentGenerator):
    r"""A mean for each class, and one diffusion model of the whitened rest for all of them.

    .. math::
        r = \Sigma^{-1/2} (x - \mu_c), \qquad
        L = E \| v_\theta(\sqrt{\bar\alpha_t} r + \sqrt{1 - \bar\alpha_t} \epsilon, t, \mu_c)
            - (\sqrt{\bar\alpha_t} \epsilon - \sqrt{1 - \bar\alpha_t} r) \|^2

    Σ is the covariance within classes, pooled over all experiences, with a ridge. Untrained, the model
    draws from :math:`N(\mu_c, \Sigma)`; training adds what is not normal or not common to all classes.
    A class costs its mean. When new classes arrive, classes before them are trained on through
    ``draws_per_class`` draws of the generator as it was.

    Args:
        passes: times that training sees each feature and each draw.
        batch_size: features and draws in a step.
        hidden: width of the denoiser.
        blocks: number of its residual blocks.
        diffusion_steps: T, of the noise in training and of drawing.
        draws_per_class: draws of each earlier component in the fit of an experience.
        ridge: the share of the mean variance that is added to every variance in Σ.
        learning_rate: of Adam, which falls to 0 along a cosine.
        dtype: how the means are kept; the denoiser, which goes on training, and the sums that Σ is made
            of stay in float32.
        seed: of the random numbers.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range.

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020, algorithms 1 and 2; Nichol and
        Dhariwal, Improved Denoising Diffusion Probabilistic Models, ICML 2021, equation 17 (schedule);
        Salimans and Ho, Progressive Distillation, ICLR 2022, section 4 (velocity); Shin et al.,
        Continual Learning with Deep Generative Replay, NeurIPS 2017, section 3.

    Deviations:
        Diffusion is of whitened differences from class means, and conditioned on these means.

    >>> generator = LatentDiffusion(passes=2, hidden=8, diffusion_steps=5)
    >>> generator.fit(torch.randn(20, 6), torch.arange(20) % 2)
    >>> generator.sample([0, 1], 3)[0].shape
    torch.Size([6, 6])
    """

    per_component: ClassVar[tuple[str, ...]] = ("means",)
    shared: ClassVar[tuple[str, ...]] = ("scatter", "degrees_of_freedom", "denoiser")
    means: Tensor
    scatter: Tensor | None
    denoiser: Tensor | None

    def __init__(
        self,
        *,
        passes: int = 10,
        batch_size: int = 64,
        hidden: int = 256,
        blocks: int = 2,
        diffusion_steps: int = 50,
        draws_per_class: int = 16,
        ridge: float = 1e-3,
        learning_rate: float = 1e-3,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        check_count("passes", passes)
        check_count("batch_size", batch_size)
        check_count("hidden", hidden)
        check_count("blocks", blocks)
        check_count("diffusion_steps", diffusion_steps)
        check_count("draws_per_class", draws_per_class)
        check_number("ridge", ridge, above=0)
        check_number("learning_rate", learning_rate, above=0)
        super().__init__(dtype=dtype, seed=seed)
        self.passes = passes
        self.batch_size = batch_size
        self.hidden = hidden
        self.blocks = blocks
        self.diffusion_steps = diffusion_steps
        self.draws_per_class = draws_per_class
        self.ridge = ridge
        self.learning_rate = learning_rate
        self.scatter = None
        self.denoiser = None
        self.degrees_of_freedom = torch.zeros((), dtype=torch.int64)

    def _fit(self, features: Tensor, positions: Tensor, counts: Tensor) -> Mapping[str, Tensor]:
        means, deviations = means_and_deviations(features, positions, counts)
        conditions, width = means.float()[positions], features.shape[1]
        rest = deviations * _unbiased(counts)[positions, None]
        if len(self.labels) > 0:
            old = torch.arange(len(self.labels), device=self.device).repeat_interleave(self.draws_per_class)
            places, drawn = (
                torch.arange(len(old), device=self.device) // self.draws_per_class,
                self._deviations(old),
            )
            sizes = old.bincount()
            # The mean of few draws is not 0, and would be learned as if it belonged to the class.
            _, drawn = means_and_deviations(drawn, places, sizes)
            rest = torch.cat([rest, drawn * _unbiased(sizes)[places, None]])
            conditions = torch.cat([conditions, self.means[old].float()])
        scatter = deviations.T @ deviations
        self.scatter = (scatter if self.scatter is None else self.scatter + scatter).float()
        self.degrees_of_freedom = self.degrees_of_freedom + (counts - 1).sum()
        whitened = (rest @ self._root(-0.5)).float()
        self.denoiser = self._trained(whitened, _conditions(conditions), self._denoiser(width))
        return {"means": means}

    def _trained(self, x: Tensor, conditions: Tensor, denoiser: Denoiser) -> Tensor:
        """Return the weights of the denoiser after training on x (N, D) under conditions (N, D)."""
        signal = cosine_signal(self.diffusion_steps).to(self.device, torch.float32)
        steps = self.passes * -(-len(x) // self.batch_size)
        with torch.enable_grad(), fit_progress("Fitting the denoiser", steps) as advance:
            optimizer = adam(denoiser.parameters(), self.learning_rate)
            schedule = CosineAnnealingLR(optimizer, T_max=steps)
            for _ in range(self.passes):
                order = torch.randperm(len(x), generator=self._generator, device=self.device)
                for rows in order.split(self.batch_size):
                    time = torch.randint(
                        1, self.diffusion_steps + 1, rows.shape, generator=self._generator, device=self.device
                    )
                    clean, noise, share = x[rows], self._normal(len(rows), x.shape[1]), signal[time, None]
                    noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
                    velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
                    predicted = denoiser(noisy, time / self.diffusion_steps, conditions[rows])
                    optimizer.zero_grad()
                    F.mse_loss(predicted, velocity).backward()
                    optimizer.step()
                    schedule.step()
                    advance()
        return flat_weights(denoiser)

    def _sample(self, components: Tensor) -> Tensor:
        return self._deviations(components) + self.means[components].float()

    def _deviations(self, components: Tensor) -> Tensor:
        """Draw what features differ from the means of their components by, float32 (B, D)."""
        denoiser, root = self._denoiser(self.embed_dim), self._root(0.5).float()
        parts = [self._denoised(denoiser, _conditions(self.means[part].float())) @ root
                 for part in components.split(_ROWS_AT_ONCE)]  # fmt: skip
        return torch.cat(parts)

    @torch.no_grad()
    def _denoised(self, denoiser: Denoiser, conditions: Tensor) -> Tensor:
        """Draw whitened differences (B, D) from noise, by ancestral sampling."""
        signal = cosine_signal(self.diffusion_steps).tolist()
        x = self._normal(*conditions.shape)
        for step in range(self.diffusion_steps, 0, -1):
            now, then = signal[step], signal[step - 1]
            time = torch.full((len(x),), step / self.diffusion_steps, device=self.device)
            velocity = denoiser(x, time, conditions)
            clean = now**0.5 * x - (1 - now) ** 0.5 * velocity
            kept = now / then
            x = (then**0.5 * (1 - kept) * clean + kept**0.5 * (1 - then) * x) / (1 - now)
            if step > 1:
                # Of the paper's two variances the one that is exact for normal data, as these nearly are.
                x += (1 - kept) ** 0.5 * self._normal(*x.shape)
        return x

    def _root(self, power: float) -> Tensor:
        """Return a power of Σ with its ridge, float64 (D, D)."""
        if self.scatter is None:  # sample_for has checked that classes were fitted
            raise RuntimeError("fit comes first")
        values, vectors = torch.linalg.eigh(self.scatter.double() / self.degrees_of_freedom.clamp(min=1))
        values = values.clamp(min=0)
        values = (values + self.ridge * values.mean()).clamp(min=1e-12)
        return (vectors * values**power) @ vectors.T

    def _denoiser(self, width: int) -> Denoiser:
        denoiser = Denoiser(width, self.hidden, self.blocks, device=self.device)
        if self.denoiser is None:
            denoiser.start(self._generator)
        else:
            load_flat_weights(denoiser, self.denoiser)
        return denoiser


def _unbiased(counts: Tensor) -> Tensor:
    """Return what deviations from the mean of n samples fall short of those from the true mean by."""
    return (counts / (counts - 1).clamp(min=1)).sqrt()


def _conditions(means: Tensor) -> Tensor:
    return F.layer_norm(means, means.shape[-1:])
