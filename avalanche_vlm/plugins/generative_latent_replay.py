"""Training on embeddings that a generator draws: of every class, or of those that came before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from avalanche_vlm.plugins._latent_replay import LatentReplay


@final
class GenerativeLatentReplayPlugin(LatentReplay):
    r"""Trains on synthetic embeddings of every class so far, and on nothing else.

    Before an experience is trained on, the generator p is fitted to the embeddings of its samples, and
    what the strategy then minimises is

    .. math:: E_{c \in C_{1..t}} \, E_{\hat x \sim p(\cdot \mid c)} \, L(\hat x, c)

    over ``samples_per_class`` draws of each class, which are drawn anew for each epoch. No image and no
    real embedding is kept.

    A stream of embeddings is taken as it is. Images are encoded once an experience, with their eval
    transform, by the model's image tower, which must be frozen. For several runs on the same images,
    `avalanche_vlm.embedding.embed` is the better way: images are then encoded once for all runs, and
    plugins that keep samples, such as the host's ``ReplayPlugin``, can be used beside this one.

    It replaces ``strategy.adapted_dataset`` and no loader, so that others can add to the batches. A
    strategy that trains on a list of experiences is served at once. A class that comes again, or an
    experience that is trained on again, adds components to the generator, of which it then draws in the
    ratio of their numbers of samples; so does every part of an online stream.

    Args:
        generator: what is fitted and drawn from, of `avalanche_vlm.sources`; a fresh one for each run.
            It is moved to the strategy's device.
        samples_per_class: draws of each class in an epoch.
        batch_samples_per_class: how many samples of each class a batch has on average: the batch grows
            with the classes, and an epoch has ``samples_per_class / batch_samples_per_class`` steps
            however many there are. None for the strategy's ``train_mb_size``, with which the steps of an
            epoch grow with the classes, and those of a run with their square.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number smaller than 1; in training, an image tower that trains, or a host buffer
            of images beside embeddings.

    References:
        Frascaroli et al., CLIP with Generative Latent Replay: a Strong Baseline for Incremental
        Learning, BMVC 2024 (arXiv 2407.15793), section 3.

    Deviations:
        Any generator and any model that takes embeddings; which classes compete is the criterion's
        choice. The authors' batches have 128 samples, however many classes there are.

    >>> from avalanche_vlm.sources import LowRankGaussian
    >>> plugins = [GenerativeLatentReplayPlugin(LowRankGaussian(rank=8), samples_per_class=128)]
    """

    def _chosen(
        self, features: Tensor, labels: Tensor, known: Sequence[int]
    ) -> tuple[Tensor, Tensor, list[int]]:
        return features[:0], labels[:0], self.generator.classes


@final
class PastGenerativeLatentReplayPlugin(LatentReplay):
    r"""Trains on the real embeddings of an experience beside synthetic ones of the classes before it.

    .. math:: E_{(x, c) \sim D_t} \, L(x, c) \quad \text{and} \quad
        E_{c \in C_{1..t-1}} \, E_{\hat x \sim p(\cdot \mid c)} \, L(\hat x, c)

    each sample with the same weight: choose ``samples_per_class`` near the number of real samples of a
    class. A class that comes again is drawn from all its components, the new one among them. The real
    embeddings are let go of after the experience. Everything else is as in
    `GenerativeLatentReplayPlugin`.

    Args:
        generator: see `GenerativeLatentReplayPlugin`, as for the arguments that follow.
        samples_per_class: likewise.
        batch_samples_per_class: likewise.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: as `GenerativeLatentReplayPlugin`.

    References:
        Shin et al., Continual Learning with Deep Generative Replay, NeurIPS 2017, section 3.1, with
        embeddings in place of images; Frascaroli et al., BMVC 2024, section 3, for the generator.

    Deviations:
        Labels are those that a draw was asked for, and not the old model's answer. Real embeddings are
        those of the eval transform.

    >>> from avalanche_vlm.sources import LowRankGaussian
    >>> plugins = [PastGenerativeLatentReplayPlugin(LowRankGaussian(rank=8), samples_per_class=32)]
    """

    def _chosen(
        self, features: Tensor, labels: Tensor, known: Sequence[int]
    ) -> tuple[Tensor, Tensor, list[int]]:
        return features, labels, list(known)
