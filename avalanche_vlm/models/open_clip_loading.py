"""How a model of open_clip is found, built and given its weights."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPVisionCfg, CustomTextCLIP
from open_clip.transform import PreprocessCfg

from avalanche_vlm._checks import close_names, wrong_value
from avalanche_vlm.models._fields import Check, check_fields, flag, optional, text, wrong_field
from avalanche_vlm.models.open_clip_configuration import (
    check_saved_configuration,
    check_saved_preprocessing,
    pair,
    refuse_fetching,
)
from avalanche_vlm.models.small_clip import (
    SMALL_CLIP_CONFIG,
    SMALL_CLIP_NAME,
    SMALL_CLIP_PREPROCESS,
    SMALL_CLIP_TAG,
    small_clip_weights,
)


def model_configuration(model: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return an own copy of the configuration of a model."""
    if not isinstance(model, str):
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(model)
        if missing:
            raise wrong_value(
                "model",
                "a configuration with embed_dim, vision_cfg and text_cfg",
                f"one without {sorted(missing)}",
            )
        refuse_fetching(model)
        return copy.deepcopy(dict(model))
    configuration = known_configuration(model)
    if configuration is None:
        known = [SMALL_CLIP_NAME, *open_clip.list_models()]
        raise wrong_value(
            "model", "a model name of open_clip, or 'small-clip'", repr(model), close_names(model, known)
        )
    return configuration


def unsupported(what: str, name: str) -> ValueError:
    """Return the error for a tower kind that is not supported, by its name."""
    return wrong_value(
        "model",
        "a CLIP or CustomTextCLIP model of open_clip with its own text transformer",
        f"{name!r} with the {what}",
        "Choose a ViT model such as 'ViT-B-16', or subclass VisionLanguageBackbone for this one.",
    )


def refuse_unsupported(configuration: Mapping[str, Any], name: str) -> None:
    """Refuse what can be told from the configuration before anything is downloaded."""
    if "multimodal_cfg" in configuration:
        raise unsupported("captioning tower CoCa", name)
    hub_text = configuration["text_cfg"].get("hf_model_name")
    if hub_text:
        raise unsupported(f"text tower HFTextEncoder ({hub_text})", name)


def tag_facts(name: str, pretrained: str) -> dict[str, Any] | None:
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


def known_configuration(name: str) -> dict[str, Any] | None:
    """Return the configuration of a model by its name, or None if this version knows no such model."""
    if name == SMALL_CLIP_NAME:
        return copy.deepcopy(SMALL_CLIP_CONFIG)
    return None if ":" in name else open_clip.get_model_config(name.replace("/", "-"))


def _tags(name: str) -> list[str]:
    return open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))


PREPROCESSING = ("mean", "std", "interpolation", "resize_mode", "fill_color")


def _usual_preprocessing(name: str) -> dict[str, Any]:
    """Return what all tags of an architecture agree on: weights without a tag most likely follow them."""
    tags = [open_clip.get_pretrained_cfg(name.replace("/", "-"), tag) for tag in _tags(name)]
    facts: dict[str, Any] = {}
    for key in PREPROCESSING:
        values = [tag.get(key) for tag in tags]
        if values and values[0] is not None and all(value == values[0] for value in values):
            facts[key] = values[0]
    return facts


def needs_quick_gelu(tag: Mapping[str, Any], configuration: Mapping[str, Any]) -> bool:
    """Return whether the weights of a tag were trained with QuickGELU."""
    # An architecture that sets the flag is right where its tag forgets it (roberta-ViT-B-32).
    return bool(tag.get("quick_gelu")) or bool(configuration.get("quick_gelu"))


def build_model(
    name: str,
    configuration: Mapping[str, Any],
    pretrained: str | None,
    tag: Mapping[str, Any] | None,
    cache_dir: str | None,
) -> tuple[CustomTextCLIP, dict[str, Any]]:
    """Return the model with its weights and the facts of its preprocessing.

    With "meta" as torch's device for what is made, the model is an outline: names and shapes without numbers.
    """
    outline = torch.get_default_device().type == "meta"
    if name in (SMALL_CLIP_NAME, "custom") or outline:
        try:
            model = CustomTextCLIP(
                **{key: configuration[key] for key in configuration if key != "custom_text"}
            )
        except (TypeError, AssertionError) as error:
            raise wrong_value("model", "a configuration that open_clip knows", str(error)) from error
        size = configuration["vision_cfg"].get("image_size", CLIPVisionCfg.image_size)
        facts: dict[str, Any] = {**vars(PreprocessCfg()), "size": size}
        facts |= SMALL_CLIP_PREPROCESS if name == SMALL_CLIP_NAME else {}
        path = str(small_clip_weights()) if pretrained == SMALL_CLIP_TAG else pretrained
    else:
        model = _create(name, configuration, None if tag is None else pretrained, cache_dir)
        facts = dict(getattr(model.visual, "preprocess_cfg"))  # noqa: B009 (a plain attribute of a module)
        facts |= _usual_preprocessing(name) if tag is None else {}
        path = pretrained if tag is None else None
    if path is not None and not outline:
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
        raise unsupported(f"model class {type(model).__name__}", name)
    return model


def _load_file(model: CustomTextCLIP, path: str, name: str) -> None:
    """Load weights from a local file, strictly."""
    try:
        if Path(path).suffix not in (".safetensors", ".npz", ".npy"):
            # open_clip asks for this too, but answers a TypeError by loading once more without it.
            torch.load(path, map_location="cpu", weights_only=True)
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


_SAVED: dict[str, Check] = {
    "model": text(200),
    "configuration": check_saved_configuration,
    "pretrained": optional(text()),
    "preprocess": check_saved_preprocessing,
    "own_tokenizer": flag,
}


def check_saved_backbone(config: Any, name: str = "backbone") -> None:
    """Check what a file says of an `OpenCLIPBackbone`; it names nothing that would be fetched.

    A model with a name is built as this version of open_clip knows it, its tokenizer included: what the file
    says of it must be the same.

    Args:
        config: as from ``OpenCLIPBackbone.config()``, perhaps through JSON.
        name: what it is called in errors.

    Raises:
        ValueError: a field that is unknown, missing or out of its bounds.
    """
    check_fields(name, config, _SAVED)
    configuration, model = config["configuration"], config["model"]
    refuse_unsupported(configuration, model)
    size = configuration["vision_cfg"].get("image_size", CLIPVisionCfg.image_size)
    if pair(told := config["preprocess"]["size"]) != pair(size):
        raise wrong_field(f"{name}.preprocess.size", f"the model's image size {size}", told)
    if model == "custom":
        return
    known = known_configuration(model)
    if known is None:
        raise wrong_field(
            f"{name}.model", "a model name that this version of open_clip knows, or 'custom'", model
        )
    for key in sorted({*known, *configuration} - {"quick_gelu"}):
        if json.loads(json.dumps(known.get(key))) != json.loads(json.dumps(configuration.get(key))):
            raise wrong_value(
                f"{name}.configuration.{key}",
                f"that of {model!r} as this version of open_clip knows it",
                "another",
                "Pass `backbone`: its weights are then replaced by the saved ones.",
            )
