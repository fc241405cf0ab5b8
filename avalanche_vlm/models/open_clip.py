"""CLIP-like models of open_clip behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn

from avalanche_vlm._checks import check_choice, check_function, check_type, wrong_value
from avalanche_vlm.functional.anchors import PixelSpace
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.open_clip_configuration import check_own_preprocessing
from avalanche_vlm.models.open_clip_loading import (
    PREPROCESSING,
    build_model,
    check_saved_backbone,
    model_configuration,
    needs_quick_gelu,
    refuse_unsupported,
    tag_facts,
    unsupported,
)
from avalanche_vlm.models.preprocessing import ImageTransform
from avalanche_vlm.models.small_clip import SMALL_CLIP_NAME, SmallTokenizer

Tokenizer = Callable[[Sequence[str]], Tensor]


class OpenCLIPBackbone(VisionLanguageBackbone):
    """A model of open_clip's `CLIP` or `CustomTextCLIP` family, SigLIP-style models included.

    Both families are built as `CustomTextCLIP`, which keeps each tower in a module of its own;
    open_clip renames the weights of the other family while it loads them.

    Args:
        model: a model name of open_clip (``"ViT-B-16"``), ``"small-clip"`` (the model in this
            package), or a model configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``, ...).
        pretrained: a tag of open_clip (``"openai"``; ``"small-world"`` for the small model), a
            local file (safetensors, or a state dict, read with ``weights_only=True``), or None for
            random weights.
        quick_gelu: activation for weights from a *file*, which cannot say which one they were
            trained with (OpenAI's need True); None takes the architecture's own. A tag knows its
            activation, and a value that contradicts it is refused.
        preprocess: what differs from the usual preprocessing of images: any of ``mean``, ``std``,
            ``interpolation``, ``resize_mode``, ``fill_color``. None takes what the tag says, or what
            all tags of the architecture agree on.
        tokenizer: texts -> token ids (N, L); None takes the one that belongs to the model.
        cache_dir: where open_clip keeps downloaded weights; None for its default.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an unknown model or tag (close ones are named), a tower kind that is not
            supported, weights that do not fit, an activation that contradicts the tag.
        RuntimeError: the weights of a tag cannot be downloaded.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021;
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023; the open_clip library.

    Deviations:
        open_clip only warns when a tag's activation differs from the architecture's, and goes on
        with the wrong one; here the tag decides. Text is cut after the last end-of-text token
        where attention is causal, which changes nothing but the time.

    >>> backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    >>> backbone.encode_text(backbone.tokenize(["a photo of a red striped circle."])).shape
    torch.Size([1, 128])
    """

    image_tower: nn.Module
    text_tower: TextTransformer

    def __init__(
        self,
        model: str | Mapping[str, Any],
        pretrained: str | Path | None = None,
        *,
        quick_gelu: bool | None = None,
        preprocess: Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        check_type("model", model, (str, Mapping))
        check_type("pretrained", pretrained, (str, Path, type(None)))
        check_type("quick_gelu", quick_gelu, (bool, type(None)))
        check_type("preprocess", preprocess, (Mapping, type(None)))
        for key in preprocess or ():
            check_choice("preprocess", key, PREPROCESSING)
        check_own_preprocessing(preprocess or {})
        check_type("cache_dir", cache_dir, (str, type(None)))
        if tokenizer is not None:
            check_function("tokenizer", tokenizer, "a function of texts")
        self.model_name = model if isinstance(model, str) else "custom"
        self.pretrained = None if pretrained is None else str(pretrained)
        configuration = model_configuration(model)
        refuse_unsupported(configuration, self.model_name)
        tag = None if self.pretrained is None else tag_facts(self.model_name, self.pretrained)
        if tag is not None and quick_gelu is not None and quick_gelu != needs_quick_gelu(tag, configuration):
            raise wrong_value(
                "quick_gelu",
                f"{not quick_gelu} for the tag {self.pretrained!r}",
                quick_gelu,
                "Leave it out: a tag knows its activation.",
            )
        if tag is not None:
            quick_gelu = needs_quick_gelu(tag, configuration)
        if quick_gelu is not None:
            configuration["quick_gelu"] = quick_gelu
        self._configuration = configuration
        clip, facts = build_model(self.model_name, configuration, self.pretrained, tag, cache_dir)
        if not isinstance(clip.text, TextTransformer) or clip.text.cls_emb is not None:
            raise unsupported(f"text tower {type(clip.text).__name__}", self.model_name)

        self.logit_scale_parameter: nn.Parameter = clip.logit_scale
        self.logit_bias_parameter: nn.Parameter | None = clip.logit_bias
        self.image_tower = clip.visual
        self.text_tower = clip.text
        self.requires_grad_(False)
        self.embed_dim = int(configuration["embed_dim"])
        self.token_dim = int(self.text_tower.width)
        self._set_preprocessing({**facts, **(preprocess or {})})
        # The tokenizers of SigLIP and others come from a hub: fetched when first needed.
        self._own_tokenizer = tokenizer is not None
        self._tokenizer = (
            SmallTokenizer() if self.model_name == SMALL_CLIP_NAME and tokenizer is None else tokenizer
        )
        self._start_length: int | None = None

    def _set_preprocessing(self, facts: Mapping[str, Any]) -> None:
        self._preprocess = dict(facts)
        size = facts["size"]
        self.image_size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.eval_transform = ImageTransform(image_transform_v2(PreprocessCfg(**facts), is_train=False))
        self.train_transform = ImageTransform(image_transform_v2(PreprocessCfg(**facts), is_train=True))

    @property
    def logit_scale(self) -> Tensor:
        """Exp of the model's scale parameter, a scalar."""
        return self.logit_scale_parameter.exp()

    @property
    def logit_bias(self) -> Tensor | float:
        """The bias of SigLIP-style models, 0 for others."""
        return 0.0 if self.logit_bias_parameter is None else self.logit_bias_parameter

    @property
    def raw_dim(self) -> int | None:
        """Width of the pooled features before the projection; None for ResNets, which have none."""
        tower = self.image_tower
        if isinstance(tower, TimmModel):
            return int(tower.trunk.num_features)  # pyright: ignore[reportArgumentType]
        if not isinstance(tower, VisionTransformer):
            return None
        return int(tower.output_dim if tower.proj is None else tower.proj.shape[0])

    @property
    def pixel_space(self) -> PixelSpace:
        """The mean and standard deviation that images are normalised with."""
        return PixelSpace(*(tuple(map(float, self._preprocess[part])) for part in ("mean", "std")))

    def encode_image_raw(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the pooled features (B, D_raw) before the projection."""
        tower = self.image_tower
        if isinstance(tower, VisionTransformer):
            # The tower's own forward runs these three steps and then projects.
            hidden = tower.transformer(tower._embeds(images))  # pyright: ignore[reportPrivateUsage]
            return tower._pool(hidden)[0]  # pyright: ignore[reportPrivateUsage]
        if isinstance(tower, TimmModel):
            return tower.trunk(images)
        raise unsupported(f"raw features of the image tower {type(tower).__name__}", self.model_name)

    def project_image(self, raw: Tensor) -> Tensor:
        """Map raw visual features (B, D_raw) to embeddings (B, D)."""
        tower = self.image_tower
        if isinstance(tower, TimmModel):
            return tower.head(raw)
        projection = getattr(tower, "proj", None)
        return raw if projection is None else raw @ projection

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to embeddings (B, D)."""
        if isinstance(self.image_tower, (VisionTransformer, TimmModel)):
            return super().encode_image(images)
        return self.image_tower(images)  # towers that pool and project in one step, such as ResNets

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Map N texts to token ids (N, L), int64, on the device of the text tower."""
        if self._tokenizer is None:
            if self.model_name == "custom":
                self._tokenizer = open_clip.SimpleTokenizer(context_length=self.text_tower.context_length)
            else:
                self._tokenizer = open_clip.get_tokenizer(self.model_name)
        return self._tokenizer(list(texts)).to(self.text_tower.positional_embedding.device)

    @property
    def start_length(self) -> int:
        """1 if the tokenizer begins every text with the same token, 0 otherwise."""
        if self._start_length is None:
            first = self.tokenize(["a", "b"])[:, 0]
            self._start_length = int(first[0] == first[1])
        return self._start_length

    @property
    def is_causal(self) -> bool:
        """Whether no position can see a later one and the text is read off at its end."""
        text = self.text_tower
        return text.attn_mask is not None and text.pool_type in ("argmax", "eos")

    def text_lengths(self, tokens: Tensor) -> Tensor:
        """Return for each text (N, L) the number of positions that its embedding depends on."""
        if not self.is_causal:
            return torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        is_end = tokens if self.text_tower.pool_type == "argmax" else (tokens == self.text_tower.eos_id).int()
        return is_end.argmax(dim=1) + 1

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Map token ids (N, L) to token embeddings (N, L, W), without positions."""
        return self.text_tower.token_embedding(tokens).to(self.text_tower.transformer.get_cast_dtype())

    def without_padding(self, tokens: Tensor) -> Tensor:
        """Return token ids (N, L) without the last positions that no embedding depends on."""
        return tokens[:, : int(self.text_lengths(tokens).max())]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (N, L) to text embeddings (N, D)."""
        tokens = self.without_padding(tokens)  # spares the look-up of what is cut anyway
        return self.encode_token_embeddings(self.embed_tokens(tokens), tokens)

    def encode_token_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Map token embeddings (N, L, W) to text embeddings (N, D); see the base class."""
        text = self.text_tower
        length = int(self.text_lengths(tokens).max())
        tokens, hidden = tokens[:, :length], embeddings[:, :length]
        hidden = hidden + text.positional_embedding[:length].to(hidden.dtype)
        mask = None if text.attn_mask is None else text.attn_mask[:length, :length]
        hidden = text.ln_final(text.transformer(hidden, attn_mask=mask))
        pooled = text_global_pool(hidden, tokens, text.pool_type, eos_token_id=text.eos_id)
        projection = text.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection

    def config(self) -> dict[str, Any]:
        """Return the model's name and full configuration."""
        return {
            "model": self.model_name,
            "configuration": self._configuration,
            "pretrained": self.pretrained,
            "preprocess": self._preprocess,
            "own_tokenizer": self._own_tokenizer,
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, tokenizer: Tokenizer | None = None
    ) -> OpenCLIPBackbone:
        """Rebuild the architecture that `config` describes, with random weights.

        Args:
            config: what `config()` returned.
            tokenizer: needed if the model was given one of the caller's own.

        Raises:
            ValueError: it is needed and missing; or ``config`` says something that `config()` does not,
                or that would be fetched from elsewhere.
        """
        check_saved_backbone(config)
        if config["own_tokenizer"] and tokenizer is None:
            raise wrong_value(
                "backbone",
                "given, because the saved one has a tokenizer of its own",
                None,
                "Build it with its tokenizer and pass it: its weights are then replaced by the saved ones.",
            )
        name = config["model"]
        backbone = cls(
            config["configuration"] if name == "custom" else name,
            quick_gelu=config["configuration"].get("quick_gelu"),
            tokenizer=tokenizer,
        )
        backbone.pretrained = config["pretrained"]
        # The tag's mean and standard deviation belong to the weights, not to the architecture.
        backbone._set_preprocessing(config["preprocess"])
        return backbone
