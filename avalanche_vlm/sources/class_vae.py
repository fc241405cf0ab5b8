"""A variational auto-encoder for each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from avalanche_vlm._checks import check_choice, check_count, check_number
from avalanche_vlm.sources.batched_layers import flat_weights, initialise, load_flat_weights
from avalanche_vlm.sources.fitting import adam, fit_progress, grouped_rows, normalisation, rows_in_a_pass
from avalanche_vlm.sources.latents import LatentGenerator
from avalanche_vlm.sources.vae_networks import (
    NoiseScale,
    VAEDecoder,
    VAEEncoder,
    code_divergence,
    drawn_code,
    mean_of_rows,
    negative_log_likelihood,
)

_ROWS_AT_ONCE = 256
_STEPS_PER_DRAW = 16


@final
class ClassVAE(LatentGenerator):
    r"""One small variational auto-encoder a class, all classes of an experience trained side by side.

    .. math::
        L_c = \tfrac12 \|\tilde x - Dec_c(z)\|^2 + \tfrac D2 \log 2\pi
            + \tfrac12 \sum_k (e^{l_k} + m_k^2 - 1 - l_k),
        \qquad (m, l) = Enc_c(\tilde x), \; z = m + \epsilon e^{l/2}

    :math:`\tilde x` is min-max scaled and then z-scored, for each class by itself. A draw is
    :math:`s_c + a_c (Dec_c(z) + \tau \eta)` with :math:`z, \eta \sim N(0, I)` and :math:`\tau` the
    ``observation_noise``. Kept are the decoder, s and a.

    Each class has its own random numbers and its own number of steps, ``passes`` · ceil(n /
    ``batch_size``): it is fitted as if it were alone, whatever is fitted beside it. A batch that would have a
    single row, the last of a pass over a class of ``batch_size`` · k + 1 features, is left out: batch norm
    makes a constant of it.

    Args:
        passes: times that training sees each feature.
        batch_size: features of a class in a step, at least 2.
        hidden: width of the hidden layers.
        latent: width of a code.
        learning_rate: of Adam, at the start of each cosine cycle. It falls from pass to pass; the first cycle
            takes a tenth of the passes, each further one twice as many.
        noise_scale: what the noise of a code is multiplied by: ``"deviation"``, :math:`e^{l/2}`, or
            ``"variance"``, :math:`e^l`, as the authors' code does.
        observation_noise: how much of the likelihood's unit noise a draw has: 0, as the authors draw,
            or 1, as the model says. On features of CLIP draws without it have about a third of the
            deviation of what was fitted.
        classes_at_once: most classes that are trained (or drawn from) side by side; bounds the memory,
            and changes nothing else.
        dtype: how decoders are kept.
        seed: of the random numbers.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range.

    References:
        Frascaroli et al., CLIP with Generative Latent Replay, BMVC 2024, section 3; Kingma and Welling,
        Auto-Encoding Variational Bayes, ICLR 2014, section 3.

    Deviations:
        The noise of a code is scaled by its standard deviation unless ``noise_scale`` says otherwise.
        Ranges and deviations are at least 1e-6, so that single samples can be fitted. Two
        normalisation vectors are kept in place of four, which compose to the same map.

    >>> generator = ClassVAE(passes=2, hidden=8, latent=4)
    >>> generator.fit(torch.randn(20, 6), torch.arange(20) % 2)
    >>> generator.sample([0, 1], 3)[0].shape
    torch.Size([6, 6])
    """

    per_component: ClassVar[tuple[str, ...]] = ("decoder", "shift", "scale")
    decoder: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        passes: int = 500,
        batch_size: int = 64,
        hidden: int = 512,
        latent: int = 256,
        learning_rate: float = 2e-4,
        noise_scale: NoiseScale = "deviation",
        observation_noise: float = 0.0,
        classes_at_once: int = 8,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        check_count("passes", passes)
        check_count("batch_size", batch_size, at_least=2)
        check_count("hidden", hidden)
        check_count("latent", latent)
        check_number("learning_rate", learning_rate, above=0)
        check_choice("noise_scale", noise_scale, ("deviation", "variance"))
        check_number("observation_noise", observation_noise, at_least=0)
        check_count("classes_at_once", classes_at_once)
        super().__init__(dtype=dtype, seed=seed)
        self.passes = passes
        self.batch_size = batch_size
        self.hidden = hidden
        self.latent = latent
        self.learning_rate = learning_rate
        self.noise_scale: NoiseScale = noise_scale
        self.observation_noise = observation_noise
        self.classes_at_once = classes_at_once

    def _fit(self, features: Tensor, positions: Tensor, counts: Tensor) -> Mapping[str, Tensor]:
        seeds = torch.randint(2**62, counts.shape, generator=self._generator, device=self.device).tolist()
        groups = self._groups(counts)
        steps = [self.passes * self._steps_per_pass(counts[group]) for group in groups]
        order, ends = positions.argsort(stable=True), counts.cumsum(0)
        fitted: list[tuple[Tensor, Tensor, Tensor]] = []
        with fit_progress(f"Fitting {len(counts)} classes", sum(steps)) as advance:
            for group in groups:
                slots = torch.arange(int(counts[group].max()), device=self.device)
                slots = slots.minimum(counts[group, None] - 1)
                samples = features[order[(ends - counts)[group, None] + slots]]
                generators = [
                    torch.Generator(self.device).manual_seed(seeds[position]) for position in group.tolist()
                ]
                fitted.append(self._fit_group(samples, counts[group], generators, advance))
        back = torch.cat(groups).argsort()
        rows = [torch.cat(parts)[back] for parts in zip(*fitted, strict=True)]
        return dict(zip(self.per_component, rows, strict=True))

    def _steps_per_pass(self, counts: Tensor) -> int:
        return -(-int(rows_in_a_pass(counts, self.batch_size).max()) // self.batch_size)

    def _groups(self, counts: Tensor) -> list[Tensor]:
        """Return the positions of the classes that are trained side by side, of like numbers of samples."""
        # Classes of a group take the same number of steps, so that one optimizer and one schedule serve.
        order = counts.argsort(stable=True)
        steps = (rows_in_a_pass(counts[order], self.batch_size) - 1) // self.batch_size
        runs = order.split(steps.unique_consecutive(return_counts=True)[1].tolist())
        return [group for run in runs for group in run.split(self.classes_at_once)]

    def _fit_group(
        self,
        samples: Tensor,
        counts: Tensor,
        generators: list[torch.Generator],
        advance: Callable[[], object],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return decoders (K, P), shifts and scales (K, D) for samples (K, N, D), padded at the end."""
        shift, scale = normalisation(samples, counts)
        normalised = (samples - shift[:, None]) / scale[:, None]
        networks, _, width = samples.shape
        device, dtype = samples.device, samples.dtype
        with torch.enable_grad():
            encoder = VAEEncoder(networks, width, self.hidden, self.latent, device=device, dtype=dtype)
            decoder = VAEDecoder(networks, self.latent, self.hidden, width, device=device, dtype=dtype)
            initialise(encoder, generators)
            initialise(decoder, generators)
            steps_per_pass = self._steps_per_pass(counts)
            optimizer = adam([*encoder.parameters(), *decoder.parameters()], self.learning_rate)
            schedule = CosineAnnealingWarmRestarts(optimizer, T_0=max(1, self.passes // 10), T_mult=2)
            batches = self._batches(counts, steps_per_pass, generators, dtype)
            for number, (rows, noise, inside) in enumerate(batches, start=1):
                batch = normalised.gather(1, rows[..., None].expand(-1, -1, width))
                mean, log_variance = encoder(batch, inside)
                decoded = decoder(drawn_code(mean, log_variance, noise, self.noise_scale))
                losses = negative_log_likelihood(batch, decoded) + code_divergence(mean, log_variance)
                optimizer.zero_grad()
                # A sum over classes: the gradient of each is that of its own mean.
                mean_of_rows(losses, inside).sum().backward()
                optimizer.step()
                if number % steps_per_pass == 0:
                    schedule.step()
                advance()
        return flat_weights(decoder), shift, scale

    def _batches(
        self, counts: Tensor, steps_per_pass: int, generators: list[torch.Generator], dtype: torch.dtype
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows (K, B), noise (K, B, latent) and which of them are no padding, for each step."""
        sizes, used = counts.tolist(), rows_in_a_pass(counts, self.batch_size)
        most = int(used.max())
        # Some passes at once: K small draws a step would be slow on an accelerator.
        ahead = max(1, _STEPS_PER_DRAW // steps_per_pass)
        slots = torch.arange(most, device=counts.device)
        inside = slots < used[:, None]
        for first in range(0, self.passes, ahead):
            rows = torch.zeros(ahead, len(sizes), most, dtype=torch.int64, device=counts.device)
            noise = torch.zeros(ahead, len(sizes), most, self.latent, dtype=dtype, device=counts.device)
            for network, (size, generator) in enumerate(zip(sizes, generators, strict=True)):
                keys = torch.rand(ahead, size, generator=generator, device=counts.device)
                rows[:, network, :size] = keys.argsort(dim=1)[:, :most]
                noise[:, network, :size] = torch.randn(
                    ahead, size, self.latent, generator=generator, device=counts.device, dtype=dtype
                )[:, :most]
            for number in range(min(ahead, self.passes - first)):
                for start in range(0, most, self.batch_size):
                    batch = slice(start, start + self.batch_size)
                    yield rows[number, :, batch], noise[number, :, batch], inside[:, batch]

    def _sample(self, components: Tensor) -> Tensor:
        codes = self._normal(len(components), self.latent)
        drawn = codes.new_empty(len(components), self.embed_dim)
        for members, rows, inside in grouped_rows(
            components, components_at_once=self.classes_at_once, rows_at_once=_ROWS_AT_ONCE
        ):
            decoder = VAEDecoder(len(members), self.latent, self.hidden, self.embed_dim, device=self.device)
            load_flat_weights(decoder, self.decoder[members])
            scale, shift = self.scale[members, None].float(), self.shift[members, None].float()
            decoded = decoder(codes[rows])
            if self.observation_noise > 0:
                decoded += self.observation_noise * self._normal(*decoded.shape)
            drawn[rows[inside]] = (decoded * scale + shift)[inside]
        return drawn
