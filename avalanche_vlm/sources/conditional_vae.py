"""One variational auto-encoder for all classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from avalanche_vlm._checks import check_count, check_number
from avalanche_vlm.sources.batched_layers import flat_weights, initialise, load_flat_weights
from avalanche_vlm.sources.fitting import adam, fit_progress, rows_in_a_pass, shared_normalisation
from avalanche_vlm.sources.latents import LatentGenerator
from avalanche_vlm.sources.vae_networks import (
    VAEDecoder,
    VAEEncoder,
    code_divergence,
    drawn_code,
    negative_log_likelihood,
)

_SMALLEST_LOG_SCALE = -5.0
_ROWS_AT_ONCE = 8192


@final
class ConditionalVAE(LatentGenerator):
    r"""One variational auto-encoder for all classes: a class costs one small vector.

    .. math::
        p(\tilde x \mid z, c) = N(Dec(z, e_c), \mathrm{diag}\, \sigma^2), \qquad z \sim N(0, I)

    with a learned vector :math:`e_c` of each class and a learned :math:`\sigma` of all. New classes are
    fitted to their features, and classes before them to draws of the generator as it was, whose codes
    are known,

    .. math::
        L = \frac{K_{new}}{K} \left[ -\log p(\tilde x \mid z, c) + KL(N(m, e^l) \| N(0, I)) \right]_{new}
          + \frac{K_{old}}{K} \left[ -\log p(\hat x \mid \hat z, c) \right]_{drawn}

    so that no encoder stands between a draw and its code, and variance is not lost at each experience.
    :math:`\tilde x` is scaled as the first experience's features are; a draw has the noise
    :math:`\sigma`.

    Args:
        passes: times that training sees each feature.
        batch_size: features, and as many draws of earlier classes, in a step, at least 2. A last batch of a
            single feature is left out, as in `ClassVAE`.
        hidden: width of the hidden layers.
        latent: width of a code.
        condition_dim: width of the vector of a class.
        learning_rate: of Adam, which falls to 0 along a cosine.
        dtype: how the vectors of the classes are kept; the networks, which go on training, stay in
            float32.
        seed: of the random numbers.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range.

    References:
        Sohn et al., Learning Structured Output Representation using Deep Conditional Generative Models,
        NeurIPS 2015, section 4; Rybkin et al., Simple and Effective VAE Training with Calibrated
        Decoders, ICML 2021, section 3 (the learned scale); Shin et al., Continual Learning with Deep
        Generative Replay, NeurIPS 2017, section 3.

    Deviations:
        The prior of the code does not depend on the class. Draws of earlier classes train the decoder
        at their known codes, and not the encoder.

    >>> generator = ConditionalVAE(passes=2, hidden=8, latent=4, condition_dim=3)
    >>> generator.fit(torch.randn(20, 6), torch.arange(20) % 2)
    >>> generator.sample([0, 1], 3)[0].shape
    torch.Size([6, 6])
    """

    per_component: ClassVar[tuple[str, ...]] = ("embedding",)
    shared: ClassVar[tuple[str, ...]] = ("encoder", "decoder", "log_scale", "shift", "scale")
    embedding: Tensor
    encoder: Tensor | None
    decoder: Tensor | None
    log_scale: Tensor | None
    shift: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        *,
        passes: int = 100,
        batch_size: int = 64,
        hidden: int = 256,
        latent: int = 64,
        condition_dim: int = 64,
        learning_rate: float = 1e-3,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        check_count("passes", passes)
        check_count("batch_size", batch_size, at_least=2)
        check_count("hidden", hidden)
        check_count("latent", latent)
        check_count("condition_dim", condition_dim)
        check_number("learning_rate", learning_rate, above=0)
        super().__init__(dtype=dtype, seed=seed)
        self.passes = passes
        self.batch_size = batch_size
        self.hidden = hidden
        self.latent = latent
        self.condition_dim = condition_dim
        self.learning_rate = learning_rate
        for name in self.shared:
            setattr(self, name, None)

    def _fit(self, features: Tensor, positions: Tensor, counts: Tensor) -> Mapping[str, Tensor]:
        width, old = features.shape[1], len(self.labels)
        before = self._loaded_decoder(width) if old else None
        if self.shift is None or self.scale is None:
            self.shift, self.scale = shared_normalisation(features)
        normalised = (features - self.shift) / self.scale
        used = int(rows_in_a_pass(torch.tensor(len(features)), self.batch_size))
        steps = self.passes * -(-used // self.batch_size)
        with (
            torch.enable_grad(),
            fit_progress(f"Fitting {len(counts)} classes", steps) as advance,
        ):
            encoder, decoder, log_scale = self._networks(width)
            embedding = nn.Parameter(self._normal(len(counts), self.condition_dim))
            parameters = [*encoder.parameters(), *decoder.parameters(), log_scale, embedding]
            optimizer = adam(parameters, self.learning_rate)
            schedule = CosineAnnealingLR(optimizer, T_max=steps)
            share = len(counts) / (len(counts) + old)
            for _ in range(self.passes):
                order = torch.randperm(len(features), generator=self._generator, device=self.device)
                for rows in order[:used].split(self.batch_size):
                    condition = embedding[positions[rows]]
                    loss = share * self._bound(encoder, decoder, log_scale, normalised[rows], condition)
                    if before is not None:
                        codes, drawn = self._replayed(before)
                        replayed = negative_log_likelihood(drawn, decoder(codes)[0], log_scale)
                        loss = loss + (1 - share) * replayed.mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    with torch.no_grad():  # residuals can vanish: one sample, a constant dimension
                        log_scale.clamp_(min=_SMALLEST_LOG_SCALE)
                    advance()
        self.encoder, self.decoder = flat_weights(encoder), flat_weights(decoder)
        self.log_scale = log_scale.detach()
        return {"embedding": embedding.detach()}

    def _bound(
        self, encoder: VAEEncoder, decoder: VAEDecoder, log_scale: Tensor, x: Tensor, condition: Tensor
    ) -> Tensor:
        """Return the mean negative evidence bound of x (B, D) under the vectors (B, E) of its classes."""
        inside = torch.ones(1, len(x), dtype=torch.bool, device=x.device)
        mean, log_variance = encoder(torch.cat([x, condition], dim=1)[None], inside)
        code = drawn_code(mean, log_variance, self._normal(*mean.shape), "deviation")
        decoded = decoder(torch.cat([code, condition[None]], dim=2))
        return (negative_log_likelihood(x, decoded, log_scale) + code_divergence(mean, log_variance)).mean()

    @torch.no_grad()
    def _replayed(self, decoder: VAEDecoder) -> tuple[Tensor, Tensor]:
        """Return codes (1, B, Z + E) and normalised draws (B, D) of components fitted before."""
        size = (self.batch_size,)
        members = torch.randint(len(self.labels), size, generator=self._generator, device=self.device)
        return self._drawn(decoder, members)

    def _drawn(self, decoder: VAEDecoder, members: Tensor) -> tuple[Tensor, Tensor]:
        if self.log_scale is None:  # sample_for has checked that classes were fitted
            raise RuntimeError("fit comes first")
        codes = torch.cat([self._normal(len(members), self.latent), self.embedding[members].float()], dim=1)
        decoded = decoder(codes[None])[0]
        return codes[None], decoded + self.log_scale.exp() * self._normal(*decoded.shape)

    def _networks(self, width: int) -> tuple[VAEEncoder, VAEDecoder, nn.Parameter]:
        """Return what is trained: the networks as they were left, or new ones."""
        if self.encoder is not None and self.log_scale is not None:
            encoder = self._new_encoder(width)
            load_flat_weights(encoder, self.encoder)
            return encoder, self._loaded_decoder(width), nn.Parameter(self.log_scale.clone())
        encoder, decoder = self._new_encoder(width), self._new_decoder(width)
        initialise(encoder, [self._generator])
        initialise(decoder, [self._generator])
        return encoder, decoder, nn.Parameter(torch.zeros(width, device=self.device))

    def _new_encoder(self, width: int) -> VAEEncoder:
        return VAEEncoder(1, width + self.condition_dim, self.hidden, self.latent, device=self.device)

    def _new_decoder(self, width: int) -> VAEDecoder:
        return VAEDecoder(1, self.latent + self.condition_dim, self.hidden, width, device=self.device)

    def _loaded_decoder(self, width: int) -> VAEDecoder:
        if self.decoder is None:  # sample_for has checked that classes were fitted
            raise RuntimeError("fit comes first")
        decoder = self._new_decoder(width)
        load_flat_weights(decoder, self.decoder)
        return decoder

    def _sample(self, components: Tensor) -> Tensor:
        if self.shift is None or self.scale is None:  # sample_for has checked that classes were fitted
            raise RuntimeError("fit comes first")
        decoder = self._loaded_decoder(self.embed_dim)
        drawn = [self._drawn(decoder, members)[1] for members in components.split(_ROWS_AT_ONCE)]
        return torch.cat(drawn) * self.scale + self.shift
