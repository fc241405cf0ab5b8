"""CLIP-like models of open_clip behind one interface; the only module that imports open_clip."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn

from avalanche_vlm._checks import check_choice, check_type, close_names, wrong_type, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.preprocessing import ImageTransform
from avalanche_vlm.models.small_clip import (
    SMALL_CLIP_CONFIG,
    SMALL_CLIP_NAME,
    SMALL_CLIP_PREPROCESS,
    SMALL_CLIP_TAG,
    SmallTokenizer,
    small_clip_weights,
)

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
            check_choice("preprocess", key, _PREPROCESSING)
        check_type("cache_dir", cache_dir, (str, type(None)))
        if tokenizer is not None and not callable(tokenizer):
            raise wrong_type("tokenizer", "a function of texts", tokenizer)
        self.model_name = model if isinstance(model, str) else "custom"
        self.pretrained = None if pretrained is None else str(pretrained)
        configuration = _configuration(model)
        _refuse_unsupported(configuration, self.model_name)
        tag = None if self.pretrained is None else _tag_facts(self.model_name, self.pretrained)
        if tag is not None and quick_gelu is not None and quick_gelu != _needs_quick_gelu(tag, configuration):
            raise wrong_value(
                "quick_gelu",
                f"{not quick_gelu} for the tag {self.pretrained!r}",
                quick_gelu,
                "Leave it out: a tag knows its activation.",
            )
        if tag is not None:
            quick_gelu = _needs_quick_gelu(tag, configuration)
        if quick_gelu is not None:
            configuration["quick_gelu"] = quick_gelu
        self._configuration = configuration
        clip, facts = _build(self.model_name, configuration, self.pretrained, tag, cache_dir)
        if not isinstance(clip.text, TextTransformer) or clip.text.cls_emb is not None:
            raise _unsupported(f"text tower {type(clip.text).__name__}", self.model_name)

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

    def encode_image_raw(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the pooled features (B, D_raw) before the projection."""
        tower = self.image_tower
        if isinstance(tower, VisionTransformer):
            # The tower's own forward runs these three steps and then projects.
            hidden = tower.transformer(tower._embeds(images))  # pyright: ignore[reportPrivateUsage]
            return tower._pool(hidden)[0]  # pyright: ignore[reportPrivateUsage]
        if isinstance(tower, TimmModel):
            return tower.trunk(images)
        raise _unsupported(f"raw features of the image tower {type(tower).__name__}", self.model_name)

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

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (N, L) to text embeddings (N, D)."""
        tokens = tokens[:, : int(self.text_lengths(tokens).max())]  # spares the look-up of what is cut anyway
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
            ValueError: it is needed and missing.
        """
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


def _configuration(model: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return an own copy of the configuration of a model."""
    if not isinstance(model, str):
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(model)
        if missing:
            raise wrong_value(
                "model",
                "a configuration with embed_dim, vision_cfg and text_cfg",
                f"one without {sorted(missing)}",
            )
        return copy.deepcopy(dict(model))
    if model == SMALL_CLIP_NAME:
        return copy.deepcopy(SMALL_CLIP_CONFIG)
    known = [SMALL_CLIP_NAME, *open_clip.list_models()]
    configuration = None if ":" in model else open_clip.get_model_config(model.replace("/", "-"))
    if configuration is None:
        raise wrong_value(
            "model", "a model name of open_clip, or 'small-clip'", repr(model), close_names(model, known)
        )
    return copy.deepcopy(configuration)


def _unsupported(what: str, name: str) -> ValueError:
    return wrong_value(
        "model",
        "a CLIP or CustomTextCLIP model of open_clip with its own text transformer",
        f"{name!r} with the {what}",
        "Choose a ViT model such as 'ViT-B-16', or subclass VisionLanguageBackbone for this one.",
    )


def _refuse_unsupported(configuration: Mapping[str, Any], name: str) -> None:
    """Refuse what can be told from the configuration before anything is downloaded."""
    if "multimodal_cfg" in configuration:
        raise _unsupported("captioning tower CoCa", name)
    hub_text = configuration["text_cfg"].get("hf_model_name")
    if hub_text and "timm" not in hub_text:
        raise _unsupported(f"text tower HFTextEncoder ({hub_text})", name)


def _tag_facts(name: str, pretrained: str) -> dict[str, Any] | None:
    """Return what is known of a tag, or None if ``pretrained`` is a file."""
    if name == SMALL_CLIP_NAME and pretrained == SMALL_CLIP_TAG:
        return {}
    facts = {} if name == "custom" else open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained)
    if facts:
        return facts
    if Path(pretrained).is_file():
        return None
    tags = [SMALL_CLIP_TAG] if name == SMALL_CLIP_NAME else _tags(name)
    raise wrong_value(
        "pretrained",
        f"a tag of {name!r} or the path of an existing file",
        repr(pretrained),
        close_names(pretrained, tags) if tags else "This model has no tags: give a file.",
    )


def _tags(name: str) -> list[str]:
    return open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))


_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode", "fill_color")


def _usual_preprocessing(name: str) -> dict[str, Any]:
    """Return what all tags of an architecture agree on: weights without a tag most likely follow them."""
    tags = [open_clip.get_pretrained_cfg(name.replace("/", "-"), tag) for tag in _tags(name)]
    facts: dict[str, Any] = {}
    for key in _PREPROCESSING:
        values = [tag.get(key) for tag in tags]
        if values and values[0] is not None and all(value == values[0] for value in values):
            facts[key] = values[0]
    return facts


def _needs_quick_gelu(tag: Mapping[str, Any], configuration: Mapping[str, Any]) -> bool:
    # An architecture that sets the flag is right where its tag forgets it (roberta-ViT-B-32).
    return bool(tag.get("quick_gelu")) or bool(configuration.get("quick_gelu"))


def _build(
    name: str,
    configuration: Mapping[str, Any],
    pretrained: str | None,
    tag: Mapping[str, Any] | None,
    cache_dir: str | None,
) -> tuple[CustomTextCLIP, dict[str, Any]]:
    """Return the model with its weights and the facts of its preprocessing."""
    if name in (SMALL_CLIP_NAME, "custom"):
        try:
            model = CustomTextCLIP(
                **{key: configuration[key] for key in configuration if key != "custom_text"}
            )
        except TypeError as error:
            raise wrong_value("model", "a configuration that open_clip knows", str(error)) from error
        facts: dict[str, Any] = {**vars(PreprocessCfg()), "size": configuration["vision_cfg"]["image_size"]}
        facts |= SMALL_CLIP_PREPROCESS if name == SMALL_CLIP_NAME else {}
        path = str(small_clip_weights()) if pretrained == SMALL_CLIP_TAG else pretrained
    else:
        model = _create(name, configuration, None if tag is None else pretrained, cache_dir)
        facts = dict(getattr(model.visual, "preprocess_cfg"))  # noqa: B009 (a plain attribute of a module)
        facts |= _usual_preprocessing(name) if tag is None else {}
        path = pretrained if tag is None else None
    if path is not None:
        _load_file(model, path, name)
    return model, facts


def _create(
    name: str, configuration: Mapping[str, Any], tag: str | None, cache_dir: str | None
) -> CustomTextCLIP:
    """Return a model that open_clip knows by name, with the weights of a tag or random ones."""
    quick_gelu = bool(configuration.get("quick_gelu"))
    overrides: dict[str, Any] = {"force_quick_gelu": True} if quick_gelu else {"quick_gelu": False}
    try:
        with warnings.catch_warnings():
            # The one pair whose tag forgets the flag that its architecture sets.
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            model = open_clip.create_model(
                name, pretrained=tag, force_custom_text=True, cache_dir=cache_dir, **overrides
            )
    except RuntimeError as error:
        if tag is None or "download" not in str(error):
            raise
        raise RuntimeError(
            f"The weights {tag!r} of {name!r} could not be downloaded ({error}). Connect to the network "
            "once, or fetch the file elsewhere and pass its path as `pretrained` (with "
            f"`quick_gelu={quick_gelu}`)."
        ) from error
    if not isinstance(model, CustomTextCLIP):
        raise _unsupported(f"model class {type(model).__name__}", name)
    return model


def _load_file(model: CustomTextCLIP, path: str, name: str) -> None:
    """Load weights from a local file, strictly."""
    try:
        open_clip.load_checkpoint(model, path, strict=True, weights_only=True, device="cpu")
    except RuntimeError as error:
        if "state_dict" not in str(error):
            raise _unreadable(path) from error
        raise wrong_value(
            "pretrained",
            f"a file of weights that fit {name!r}",
            f"{path!r}, whose tensors are others: {str(error)[:300]}",
            "Check that the model name belongs to these weights.",
        ) from error
    except Exception as error:
        raise _unreadable(path) from error


def _unreadable(path: str) -> ValueError:
    return wrong_value(
        "pretrained",
        "a safetensors file, or a state dict of tensors that loads with weights_only=True",
        f"{path!r}, which is neither",
        "Convert a TorchScript archive or a pickled model to safetensors where you trust it, with "
        "safetensors.torch.save_file(model.state_dict(), ...).",
    )
