"""What a configuration of open_clip may say: known names, types and bounds, and nothing to be fetched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import timm

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.models._fields import (
    Check,
    check_fields,
    choice,
    count,
    either,
    flag,
    listed,
    number,
    optional,
    text,
    wrong_field,
)

MOST_LAYERS = 1000
_WIDTH = count(at_most=2**16)
_SIDE = count(at_most=2**13)
_LENGTH = count(at_most=2**12)  # a mask of this many positions squared is made
_TOKENS = count(at_most=2**24)
_TOKENIZER_ARGUMENTS: dict[str, Check] = {"clean": text(30), "strip_sep_token": flag}


def _arguments(fields: Mapping[str, Check]) -> Check:
    """Return the check for arguments that open_clip passes on to a layer."""
    return lambda name, value: check_fields(name, value, fields, required=())


def _nothing_fetched(name: str, value: Any) -> None:
    if value:
        raise wrong_field(name, "left out, because nothing is fetched for a configuration", value)


def _timm_name(name: str, value: Any) -> None:
    """Check the name of an architecture of timm: a source before it ("hf-hub:...") would be asked."""
    architecture = value.partition(".")[0] if isinstance(value, str) else ""
    known = isinstance(value, str) and not set(value) & set(":/\\") and timm.is_model(architecture)
    if not known:
        raise wrong_field(name, "the name of an architecture in timm, without a source before it", value)


_BLOCK: dict[str, Check] = {
    "ls_init_value": optional(number()),
    "output_tokens": flag,
    "act_kwargs": optional(_arguments({"approximate": choice("none", "tanh")})),
    "norm_kwargs": optional(
        _arguments({"eps": number(at_least=0, at_most=1), "elementwise_affine": flag, "bias": flag})
    ),
    "block_type": choice(None, "default", "custom"),
    "qk_norm": flag,
    "scaled_cosine_attn": flag,
    "scale_heads": flag,
    "scale_attn_inner": flag,
    "scale_attn": flag,
    "scale_fc": flag,
    "final_ln_after_pool": flag,
    "mlp_ratio": number(above=0, at_most=64),
    "width": _WIDTH,
}
_SIZE = either("one side or two, whole numbers of pixels", _SIDE, listed(_SIDE, 2, 2))
_LAYERS = either(
    f"a whole number from 1 to {MOST_LAYERS}, or four of them",
    count(at_most=MOST_LAYERS),
    listed(count(at_most=MOST_LAYERS), 4, 4),
)
_VISION: dict[str, Check] = {
    **_BLOCK,
    "layers": _LAYERS,
    "head_width": _WIDTH,
    "patch_size": optional(_SIZE),
    "image_size": _SIZE,
    "patch_dropout": number(at_least=0, at_most=1),
    "attentional_pool": choice(True, False, "parallel", "cascade"),
    "attn_pooler_queries": _LENGTH,
    "attn_pooler_heads": _WIDTH,
    "no_ln_pre": flag,
    "pos_embed_type": choice("learnable", "sin_cos_2d"),
    "pool_type": choice("tok", "avg", "none"),
    "timm_model_name": optional(_timm_name),
    "timm_model_pretrained": _nothing_fetched,
    "timm_pool": text(30),
    "timm_proj": optional(text(30)),
    "timm_proj_bias": flag,
    "timm_drop": number(at_least=0, at_most=1),
    "timm_drop_path": optional(number(at_least=0, at_most=1)),
}
_TEXT: dict[str, Check] = {
    **_BLOCK,
    "layers": count(at_most=MOST_LAYERS),
    "context_length": _LENGTH,
    "vocab_size": _TOKENS,
    # A model that is named by its configuration has open_clip's plain tokenizer: these are not used.
    "hf_tokenizer_name": optional(text(200)),
    "tokenizer_mode": optional(text(30)),
    "tokenizer_kwargs": optional(_arguments(_TOKENIZER_ARGUMENTS)),
    "heads": _WIDTH,
    "embed_cls": flag,
    "pad_id": count(at_least=0, at_most=2**24),
    "eos_id": count(at_least=0, at_most=2**24),
    "no_causal_mask": flag,
    "pool_type": choice("first", "last", "argmax", "eos", "none"),
    "proj_bias": flag,
    "proj_type": optional(choice("linear", "none")),
    "hf_model_name": _nothing_fetched,
    "hf_model_pretrained": flag,
    "hf_proj_type": optional(text(30)),
    "hf_pooler_type": optional(text(30)),
}
_MODEL: dict[str, Check] = {
    "embed_dim": _WIDTH,
    "vision_cfg": lambda name, value: check_fields(name, value, _VISION, required=()),
    "text_cfg": lambda name, value: check_fields(name, value, _TEXT, required=()),
    "quick_gelu": flag,
    "custom_text": flag,
    "init_logit_scale": number(at_least=-100, at_most=100),
    "init_logit_bias": optional(number()),
    "nonscalar_logit_scale": flag,
    "cast_dtype": choice(None),
    "output_dict": flag,
}
_COLOUR = count(at_least=0, at_most=255)
_COLOURS = listed(number(at_least=-1e6, at_most=1e6), 3, 3)
_PREPROCESS: dict[str, Check] = {
    "size": _SIZE,
    "mode": choice("RGB"),
    "mean": _COLOURS,
    "std": listed(number(above=0, at_most=1e6), 3, 3),
    "interpolation": choice("bicubic", "bilinear", "random"),
    "resize_mode": choice("shortest", "longest", "squash"),
    "fill_color": either("a whole number from 0 to 255, or three of them", _COLOUR, listed(_COLOUR, 3, 3)),
}


def check_saved_configuration(name: str, value: Any) -> None:
    """Check a whole configuration that a file says."""
    check_fields(name, value, _MODEL, required=("embed_dim", "vision_cfg", "text_cfg"))


def check_saved_preprocessing(name: str, value: Any) -> None:
    """Check how a file says that images are preprocessed."""
    check_fields(name, value, _PREPROCESS)


def check_own_preprocessing(value: Mapping[str, Any]) -> None:
    """Check what a caller wants to be different about how images are preprocessed."""
    check_fields("preprocess", dict(value), _PREPROCESS, required=())


def refuse_fetching(configuration: Mapping[str, Any]) -> None:
    """Refuse a configuration of the caller that names something to be fetched.

    Raises:
        ValueError: a tower of a hub, or weights of one.
    """
    vision, words = configuration.get("vision_cfg"), configuration.get("text_cfg")
    for key, part in (("vision_cfg", vision), ("text_cfg", words)):
        if not isinstance(part, Mapping):
            raise wrong_value("model", f"a configuration whose {key} is a mapping", f"{part!r:.60}")
        for field in ("timm_model_name", "timm_model_pretrained"):
            if part.get(field):
                _VISION[field](f"model[{key!r}][{field!r}]", part[field])


def position_count(configuration: Mapping[str, Any]) -> int:
    """Return how many positions of how many channels the image tower has, 0 where timm builds it."""
    vision = configuration["vision_cfg"]
    layers, patch = vision.get("layers", 12), vision.get("patch_size", 16)
    if vision.get("timm_model_name") or isinstance(layers, (list, tuple)) or patch is None:
        return 0
    grid = [
        image // each for image, each in zip(pair(vision.get("image_size", 224)), pair(patch), strict=True)
    ]
    return math.prod(grid) * vision.get("width", 768)


def pair(size: Any) -> tuple[int, int]:
    """Return the two sides of a size that may be given as one."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
