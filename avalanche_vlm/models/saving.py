"""An adapted classifier as one file in a folder: weights, and in its header how to rebuild the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._files import replacing
from avalanche_vlm._version import __version__
from avalanche_vlm.models.adapters import EmbeddingAdapter
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.heads import TextHead
from avalanche_vlm.models.lora import LoRA
from avalanche_vlm.models.parts import part_config, part_from_config
from avalanche_vlm.models.trained_towers import trainable_config
from avalanche_vlm.text import ClassNames

if TYPE_CHECKING:
    from avalanche_vlm.models.classifier import CLIPClassifier

_FILE, _KEY = "model.safetensors", "avalanche_vlm"


def save_classifier(model: CLIPClassifier, path: str) -> None:
    """Write a model, all weights included; an interrupted write leaves what was there before.

    Args:
        model: a classifier whose classes have names.
        path: the folder, made if it does not exist; an earlier model in it is replaced.

    Raises:
        ValueError: ``path`` is a file, or holds something else than a saved model.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and all(map(_is_ours, os.listdir(target)))):
        raise wrong_value("path", "a new folder or one with a saved model", f"{path!r} with other files")
    config: dict[str, Any] = {
        "version": __version__,
        "backbone": part_config(model.backbone),
        "head": part_config(model.head),
        "image_adapter": None if model.image_adapter is None else part_config(model.image_adapter),
        "trainable": trainable_config(model.trainable),
        "train_logit_scale": model.train_logit_scale,
        "class_names": list(model.class_names),
        "datasets": list(model.class_names.datasets),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    target.mkdir(parents=True, exist_ok=True)
    # Names and weights are in one file, so that one replacement exchanges both.
    with replacing(target / _FILE) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask gives; safetensors makes private files
        save_file(weights, temporary, metadata={_KEY: json.dumps(config)})
        temporary.chmod(mode)


def _is_ours(name: str) -> bool:
    """Return whether a file of a folder is a saved model, or one that is or was just being written."""
    return name == _FILE or (name.startswith(f".{_FILE}.") and name.endswith(".tmp"))


def load_classifier(
    model_class: type[CLIPClassifier],
    path: str,
    *,
    backbone: VisionLanguageBackbone | None = None,
    head: TextHead | None = None,
    image_adapter: EmbeddingAdapter | None = None,
) -> CLIPClassifier:
    """Read what `save_classifier` wrote; the model is returned in eval mode.

    Raises:
        ValueError: the folder holds no saved model, the weights do not fit, or the backbone, head or
            image adapter is not of this package and was not given.
    """
    file = Path(path) / _FILE
    if not file.is_file():
        raise wrong_value("path", f"a folder with {_FILE}", repr(path))
    try:
        with safe_open(file, framework="pt") as opened:
            config = json.loads((opened.metadata() or {})[_KEY])
        weights = load_file(file)
    except (SafetensorError, KeyError, ValueError) as error:
        raise wrong_value(
            "path", "a folder that save_pretrained wrote", f"{path!r}, whose {_FILE} is another or damaged"
        ) from error
    trainable = config["trainable"]
    if isinstance(trainable, dict):
        trainable = part_from_config(trainable, LoRA, "trainable")
    adapter = config.get("image_adapter")  # files of earlier versions have none
    if adapter is not None and image_adapter is None:
        image_adapter = part_from_config(adapter, EmbeddingAdapter, "image_adapter")
    if backbone is None:
        backbone = part_from_config(config["backbone"], VisionLanguageBackbone, "backbone")
    model = model_class(
        backbone,
        part_from_config(config["head"], TextHead, "head") if head is None else head,
        class_names=ClassNames(config["class_names"], config["datasets"]),
        trainable=trainable,
        train_logit_scale=config["train_logit_scale"],
        image_adapter=image_adapter,
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise wrong_value("path", "weights that fit what is saved with them", f"{path!r}: {error}") from error
    return model.eval()
