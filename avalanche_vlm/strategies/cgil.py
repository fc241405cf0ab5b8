"""CGIL: prompts aligned with what a generator remembers of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.plugins import GenerativeLatentReplayPlugin
from avalanche_vlm.sources import LatentGenerator, LowRankGaussian
from avalanche_vlm.strategies.template import VLMTemplate
from avalanche_vlm.strategies.template_arguments import TemplateArguments, check_plugins


@final
class CGIL(VLMTemplate):
    r"""Fit a generator to the embeddings of each new class; train on draws of all classes so far.

    .. math:: L = - E_{c \in C_{1..t}} \, E_{\hat x \sim p(\cdot \mid c)} \,
        \log \frac{e^{s \cos(\hat x, k_c)}}{\sum_{c' \in C_{1..t}} e^{s \cos(\hat x, k_{c'})}}

    with the class weights k of the model's head: `HybridPromptHead` in the paper, and any head that
    learns, or a text tower, here. The image tower is frozen. The state of the optimizer is fresh in each
    experience. Beyond the strategy itself it is `GenerativeLatentReplayPlugin`, which says more.

    Args:
        model: the classifier; something in its head or text tower trains.
        optimizer: made of ``model.parameters()``; AdamW without weight decay in the paper.
        generator: what is fitted to the embeddings; None for a fresh ``LowRankGaussian(rank=8)``. The
            paper's is ``ClassVAE()``.
        samples_per_class: draws of each class in an epoch, drawn anew for each.
        batch_samples_per_class: see `GenerativeLatentReplayPlugin`; None for batches of
            ``train_mb_size``.
        plugins: further plugins of ours or the host's.
        **template: the host's arguments; ``train_mb_size`` is 128 unless it is given.

    Raises:
        TypeError: ``model`` is not a `CLIPClassifier`, or another argument has a wrong type.
        ValueError: a number smaller than 1; in training, an image tower that trains, or nothing that
            does.

    References:
        Frascaroli et al., CLIP with Generative Latent Replay: a Strong Baseline for Incremental
        Learning, BMVC 2024 (arXiv 2407.15793), section 3; `presets.cgil` has its settings.

    Deviations:
        The default generator is a Gaussian of rank 8 a class, which takes no training: on features of
        CLIP it is as accurate as the paper's variational auto-encoders, in 1/140 of their memory.
        ``SharedCovarianceGaussian()`` keeps less still, and was a point better on Oxford Pets and half
        a point worse on Caltech-101.
        ``ClassVAE`` scales the noise of a code by its standard deviation, the authors' code by its
        variance: ``ClassVAE(noise_scale="variance")``. What their code does in place of batch
        normalisation in the prompt generator, an affine map, is `HybridPromptHead`'s business. Classes
        compete with those seen so far in training, and with all named classes in ``model(x)``; the
        label space of the metrics says which count in evaluation.
    """

    _fresh_optimizer_state = True

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        optimizer: Optimizer,
        generator: LatentGenerator | None = None,
        samples_per_class: int = 256,
        batch_samples_per_class: int | None = None,
        plugins: Sequence[Any] = (),
        **template: Unpack[TemplateArguments],
    ) -> None:
        check_plugins(plugins)
        replay = GenerativeLatentReplayPlugin(
            LowRankGaussian(rank=8) if generator is None else generator,
            samples_per_class=samples_per_class,
            batch_samples_per_class=batch_samples_per_class,
        )
        template.setdefault("train_mb_size", 128)
        super().__init__(model=model, optimizer=optimizer, plugins=[*plugins, replay], **template)
