"""A context vector made by a network from the text feature of the class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avalanche_vlm._checks import check_count
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.prompt_context import PromptContext
from avalanche_vlm.models.seeded_layers import ChannelAffine, seeded_linear
from avalanche_vlm.models.zero_shot_head import UnnormalisedZeroShotHead
from avalanche_vlm.text import ClassNames, PromptTemplate


class GeneratedContext(PromptContext):
    r"""One vector for each class, which a network shared by all classes makes of its text feature.

    .. math:: h_c = W_4\, g_3(g_2(g_1(f_T(t(c))))) + b_4, \qquad
              g_i(u) = \mathrm{SELU}(\gamma_i \odot (W_i u + b_i) + \beta_i)

    with the un-normalised text feature :math:`f_T(t(c)) \in R^D` of the template, :math:`W_1, W_2` of
    shape (D, D), :math:`W_3` (W, D) and :math:`W_4` (W, W). Text features are encoded once for as long
    as the text tower does not change; if it trains, the gradient reaches it through them too.

    Args:
        template: a sentence with one ``{}`` for the class name.
        seed: of the network's random start.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: ``template`` without or with two fields, ``seed`` below 0.

    References:
        Frascaroli et al., CLIP with Generative Latent Replay: a Strong Baseline for Incremental
        Learning, BMVC 2024, and its code: the generator of class-specific prompts.

    Deviations:
        That code puts batch norms where :math:`\gamma, \beta` are and leaves them in eval mode with
        the statistics that they start with (mean 0, variance 1): they only multiply each channel by
        :math:`\gamma / \sqrt{1 + 10^{-5}}` and add :math:`\beta`. Here this is a layer of its own,
        and the constant :math:`1 / \sqrt{1 + 10^{-5}} \approx 1 - 5 \cdot 10^{-6}` is left out.

    >>> GeneratedContext().length
    1
    """

    def __init__(self, *, template: str = "a photo of a {}", seed: int = 0) -> None:
        super().__init__()
        self.template = PromptTemplate(template)
        check_count("seed", seed, at_least=0)
        self.seed = seed
        self.length = 1
        self.text_features = UnnormalisedZeroShotHead(self.template)
        self.network: nn.Sequential | None = None

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone, *, added: bool) -> None:
        """Take the names; the network is made when there are some for the first time."""
        self.text_features.set_classes(class_names, backbone)
        if self.network is None:
            device = backbone.logit_scale.device
            self.network = self._make_network(backbone.embed_dim, backbone.token_dim).to(device)

    def _make_network(self, embed_dim: int, token_dim: int) -> nn.Sequential:
        generator = torch.Generator().manual_seed(self.seed)
        layers: list[nn.Module] = []
        for outputs in (embed_dim, embed_dim, token_dim):
            layers += [seeded_linear(embed_dim, outputs, generator), ChannelAffine(outputs), nn.SELU()]
        return nn.Sequential(*layers, seeded_linear(token_dim, token_dim, generator))

    def forward(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the vectors (K, 1, W) of classes."""
        if self.network is None:  # the head has checked that names are set
            raise RuntimeError("set_classes comes first")
        features = self.text_features(backbone, class_ids)
        return self.network(features.to(next(self.network.parameters()).dtype))[:, None]

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"template": self.template.text, "seed": self.seed}
