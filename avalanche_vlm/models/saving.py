"""An adapted classifier as a folder of two files: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._version import __version__
from avalanche_vlm.models.backbone import EmbeddingBackbone, VisionLanguageBackbone
from avalanche_vlm.models.feature_heads import head_config, head_from_config
from avalanche_vlm.models.heads import TextHead
from avalanche_vlm.models.lora import LoRA
from avalanche_vlm.models.open_clip import OpenCLIPBackbone
from avalanche_vlm.text import ClassNames

if TYPE_CHECKING:
    from avalanche_vlm.models.classifier import CLIPClassifier

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def save_classifier(model: CLIPClassifier, path: str) -> None:
    """Write a model, all weights included; an interrupted write leaves what was there before.

    Args:
        model: a classifier whose classes have names.
        path: the folder, made if it does not exist; an earlier model in it is replaced.

    Raises:
        ValueError: ``path`` holds something else than a saved model.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or set(os.listdir(target)) - {_CONFIG, _WEIGHTS}):
        raise wrong_value("path", "a new folder or one with a saved model", f"{path!r} with other files")
    lora = model.trainable if isinstance(model.trainable, LoRA) else None
    config: dict[str, Any] = {
        "avalanche_vlm": __version__,
        "backbone": {"kind": type(model.backbone).__name__, **model.backbone.config()},
        "head": head_config(model.head),
        "trainable": model.trainable if lora is None else {"kind": "LoRA", **vars(lora)},
        "train_logit_scale": model.train_logit_scale,
        "class_names": list(model.class_names),
        "datasets": list(model.class_names.datasets),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        (fresh / _CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, fresh / _WEIGHTS)
        if target.exists():
            # A folder cannot be exchanged in one step; each file is, and they are only two.
            for name in (_WEIGHTS, _CONFIG):
                os.replace(fresh / name, target / name)
        else:
            os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_classifier(
    model_class: type[CLIPClassifier],
    path: str,
    *,
    backbone: VisionLanguageBackbone | None = None,
    head: TextHead | None = None,
) -> CLIPClassifier:
    """Read what `save_classifier` wrote; the model is returned in eval mode.

    Raises:
        ValueError: the folder holds no saved model, the weights do not fit, or the backbone or
            head is not of this package and was not given.
    """
    folder = Path(path)
    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        raise wrong_value("path", f"a folder with {_CONFIG} and {_WEIGHTS}", repr(path))
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    trainable = config["trainable"]
    if isinstance(trainable, dict):
        trainable = LoRA(**{key: value for key, value in trainable.items() if key != "kind"})
    model = model_class(
        _backbone(config["backbone"]) if backbone is None else backbone,
        head_from_config(config["head"]) if head is None else head,
        class_names=ClassNames(config["class_names"], config["datasets"]),
        trainable=trainable,
        train_logit_scale=config["train_logit_scale"],
    )
    try:
        model.load_state_dict(load_file(folder / _WEIGHTS))
    except RuntimeError as error:
        raise wrong_value("path", "weights that fit their config.json", f"{path!r}: {error}") from error
    return model.eval()


def _backbone(config: dict[str, Any]) -> VisionLanguageBackbone:
    arguments = {key: value for key, value in config.items() if key != "kind"}
    if config["kind"] == "OpenCLIPBackbone":
        return OpenCLIPBackbone.from_config(arguments)
    if config["kind"] == "EmbeddingBackbone":
        return EmbeddingBackbone(**arguments)
    raise wrong_value("backbone", "given, because the saved one is not part of this package", config["kind"])
