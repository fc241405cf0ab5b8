"""An adapted classifier as one file in a folder: weights, and in its header how to rebuild the model.

A file may come from anywhere. Nothing in it is called, fetched or opened: it names parts out of a list
(`saved_parts`), says their arguments, and has all their weights. All of it is checked, and the tensors are
compared with those that such a model has, before one is made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._files import parsed_json
from avalanche_vlm._version import __version__
from avalanche_vlm.models._fields import Check, check_fields, choice, flag, listed, text, wrong_field
from avalanche_vlm.models.adapters import EmbeddingAdapter
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.closed_form_head import ClosedFormHead
from avalanche_vlm.models.fingerprint import fingerprint
from avalanche_vlm.models.heads import TextHead
from avalanche_vlm.models.lora import LoRA
from avalanche_vlm.models.open_clip import OpenCLIPBackbone
from avalanche_vlm.models.open_clip_configuration import position_count
from avalanche_vlm.models.parts import part_config, part_from_config
from avalanche_vlm.models.saved_parts import SAVED_PARTS, Needs, Shape, Sizes, check_part, part_needs
from avalanche_vlm.models.tensor_file import StoredTensor, read_header, read_tensor, write_tensors
from avalanche_vlm.models.trained_towers import adapt_towers, trainable_config
from avalanche_vlm.text import ClassNames

if TYPE_CHECKING:
    from avalanche_vlm.models.classifier import CLIPClassifier

_FILE, _KEY, _CHECKSUM = "model.safetensors", "avalanche_vlm", "checksum"
_FORMAT = 2  # the first one had no number, and no checksum
_BESIDE = 2**28  # bytes that building may always take beside the weights: tokens and texts
_BESIDE_SHARE = 4  # or so many times the bytes of the file


def save_classifier(model: CLIPClassifier, path: str) -> None:
    """Write a model, all weights included; an interrupted write leaves what was there before.

    Args:
        model: a classifier whose classes have names.
        path: the folder, made if it does not exist; an earlier model in it is replaced.

    Raises:
        ValueError: ``path`` is a file, or holds something else than a saved model; or the model has a weight
            that is NaN or infinite, or settings that `load_classifier` would refuse.
        OSError: the file could not be written; the error names it, and an earlier model stays.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and all(map(_is_ours, os.listdir(target)))):
        raise wrong_value("path", "a new folder or one with a saved model", f"{path!r} with other files")
    config: dict[str, Any] = {
        "format": _FORMAT,
        "version": __version__,
        "backbone": part_config(model.backbone),
        "head": part_config(model.head),
        "image_adapter": None if model.image_adapter is None else part_config(model.image_adapter),
        "trainable": trainable_config(model.trainable),
        "train_logit_scale": model.train_logit_scale,
        "class_names": list(model.class_names),
        "datasets": list(model.class_names.datasets),
    }
    told = json.dumps(config)
    # What would be refused is not written: the model is there now, and can be mended.
    try:
        _check_config(parsed_json(told), given={name for name in _PARTS if _is_foreign(config[name])})
    except ValueError as error:
        raise wrong_value("model", "one whose settings can be read again", str(error)) from error
    for part in model.head.modules():
        if isinstance(part, ClosedFormHead):
            part.settle(model.backbone)  # rows that wait are not written
    weights = model.state_dict()
    _check_finite(model, weights, "model")
    target.mkdir(parents=True, exist_ok=True)
    # Names and weights are in one file, so that one replacement exchanges both.
    write_tensors(target / _FILE, weights, {_KEY: told, _CHECKSUM: _checksum(told, weights)})


def _is_ours(name: str) -> bool:
    """Return whether a file of a folder is a saved model, or one that is or was just being written."""
    return name == _FILE or (name.startswith(f".{_FILE}.") and name.endswith(".tmp"))


def _is_foreign(config: dict[str, Any] | None) -> bool:
    """Return whether a part, or a part in it, is not of this package."""
    if config is None:
        return False
    kind = SAVED_PARTS.get(config["kind"])
    return kind is None or any(
        _is_foreign(part)
        for name in kind.parts
        for part in (config[name] if isinstance(config[name], list) else [config[name]])
    )


def _checksum(told: str, weights: Mapping[str, Tensor]) -> str:
    """Return what changes with any bit of the weights, and of what is told of them."""
    return hashlib.sha256(f"{fingerprint(weights)} {told}".encode()).hexdigest()


def _check_finite(model: CLIPClassifier, weights: Mapping[str, Tensor], argument: str) -> None:
    """Raise unless all weights are finite numbers."""
    # A backbone of another package may keep masks, which are minus infinity where nothing is to be seen.
    own = type(model.backbone).__name__ in SAVED_PARTS
    masks = set() if own else {f"backbone.{name}" for name, _ in nn.Module.named_buffers(model.backbone)}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            continue
        good = tensor.isfinite() | (tensor == float("-inf")) if name in masks else tensor.isfinite()
        if not bool(good.all()):
            raise wrong_value(argument, "a model whose weights are finite", f"NaN or infinity in {name!r}")


class _SavedFile(NamedTuple):
    """What a file says, checked; its tensors are still in it."""

    file: BufferedReader
    config: dict[str, Any]
    told: str
    checksum: str | None
    tensors: dict[str, StoredTensor]

    def weights(self) -> dict[str, Tensor]:
        """Read the tensors."""
        return {name: read_tensor(self.file, stored) for name, stored in self.tensors.items()}


_HEAD = "head."
_PARTS = {"backbone": "VisionLanguageBackbone", "head": "TextHead", "image_adapter": "EmbeddingAdapter"}
_TRAINABLE = choice("nothing", "image", "text", "both")


def _trainable(name: str, value: Any) -> None:
    if isinstance(value, dict):
        check_part(value, "LoRA", name, name)
    else:
        _TRAINABLE(name, value)


def _anything(name: str, value: Any) -> None:
    """Let a value pass that is checked elsewhere."""


_FIELDS: dict[str, Check] = {
    "version": text(200),
    **dict.fromkeys(_PARTS, _anything),
    "trainable": _trainable,
    "train_logit_scale": flag,
    "class_names": listed(text(), 1),
    "datasets": listed(text()),
}


def _check_config(config: Any, given: set[str]) -> None:
    """Check what a file says of a model, but for those parts that are given."""
    fields = _FIELDS
    if isinstance(config, dict) and "format" in config:
        if config["format"] != _FORMAT or type(config["format"]) is not int:
            written = "written by avalanche-vlm " + repr(config.get("version"))[:40]
            raise wrong_field("format", f"{_FORMAT}, or missing ({written})", config["format"])
        fields = {**_FIELDS, "format": _anything}
    # Files of the first format may be older than adapters of images.
    optional = {"image_adapter"} if fields is _FIELDS else set[str]()
    check_fields("", config, fields, required=[name for name in fields if name not in optional])
    ClassNames(config["class_names"], config["datasets"])
    for name, base in _PARTS.items():
        if name not in given and config.get(name) is not None:
            check_part(config[name], base, name, name)
        elif name not in given and name != "image_adapter":
            raise wrong_field(name, "an object with a text 'kind'", None)


def load_classifier(
    model_class: type[CLIPClassifier],
    path: str,
    *,
    backbone: VisionLanguageBackbone | None = None,
    head: TextHead | None = None,
    image_adapter: EmbeddingAdapter | None = None,
) -> CLIPClassifier:
    """Read what `save_classifier` wrote; the model is returned in eval mode.

    Nothing is fetched but the tokenizer of a model that open_clip knows by name and that has one of a hub.

    Raises:
        ValueError: the folder holds no saved model, the file is damaged or says what cannot be, the weights
            do not fit, or the backbone, head or image adapter is not of this package and was not given.
    """
    place = Path(path) / _FILE
    if not place.is_file():
        raise wrong_value("path", f"a folder with {_FILE}", repr(path))
    parts = {"backbone": backbone, "head": head, "image_adapter": image_adapter}
    given = {name: part for name, part in parts.items() if part is not None}
    with place.open("rb") as file:
        saved = _understood(path, lambda: _read(file, set(given)))
        expected = _understood(path, lambda: _expected(saved, given))
        _understood(path, lambda: _compare(expected, saved.tensors, given))
        weights = _understood(path, lambda: _verified(saved))
    model = _understood(path, lambda: _built(model_class, saved.config, given))
    _understood(path, lambda: _fill(model, weights))
    return model.eval()


def _understood(path: str, step: Callable[[], Any]) -> Any:
    """Do a step of reading; an error names the path."""
    try:
        return step()
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).rstrip(".")
        raise wrong_value(
            "path",
            "a folder that save_pretrained wrote",
            f"{path!r}, whose {_FILE} is another or damaged, or needs a part to be given: {reason}",
        ) from error


def _read(file: BufferedReader, given: set[str]) -> _SavedFile:
    metadata, tensors = read_header(file)
    told = metadata.get(_KEY)
    if told is None:
        raise ValueError("it does not say how its model is built")
    config = parsed_json(told)
    _check_config(config, given)
    checksum = metadata.get(_CHECKSUM)
    if checksum is None and "format" in config:
        raise ValueError("its checksum is missing")
    if checksum is not None and set(metadata) != {_KEY, _CHECKSUM}:
        raise ValueError(f"it also says {sorted(set(metadata) - {_KEY, _CHECKSUM})!r:.80}")
    return _SavedFile(file, config, told, checksum, tensors)


def _verified(saved: _SavedFile) -> dict[str, Tensor]:
    weights = saved.weights()
    if saved.checksum is not None and _checksum(saved.told, weights) != saved.checksum:
        raise ValueError("its checksum is another: a weight or a setting has changed since it was written")
    return weights


class _Expected(NamedTuple):
    """Shapes of tensors by name, and the beginnings of names that nobody can know before building."""

    shapes: dict[str, Shape]
    unknown: tuple[str, ...]


def _expected(saved: _SavedFile, given: Mapping[str, nn.Module]) -> _Expected:
    """Return which tensors the file of such a model has, after bounding what building it takes."""
    config = saved.config
    shapes: dict[str, Shape] = {"classes_seen": (len(config["class_names"]),)}
    _compare(_Expected(shapes, ("",)), saved.tensors, {})  # as many names as there is data for
    backbone: Any = given.get("backbone")
    if backbone is None:
        backbone = _outline(saved)
        shapes |= {f"backbone.{name}": tuple(each.shape) for name, each in backbone.state_dict().items()}
    names = sum(map(len, config["class_names"]))
    sizes = Sizes(len(config["class_names"]), backbone.embed_dim, backbone.token_dim, backbone.raw_dim, names)
    needs = Needs()
    for name in ("head", "image_adapter"):
        if name not in given and config.get(name) is not None:
            part = part_needs(config[name], sizes)
            needs += Needs({f"{name}.{own}": shape for own, shape in part.shapes.items()}, part.beside)
    size = os.fstat(saved.file.fileno()).st_size
    if needs.beside > max(_BESIDE, _BESIDE_SHARE * size):
        raise ValueError(
            f"building it would take {needs.beside} bytes beside its weights, for a file of {size} bytes"
        )
    return _Expected({**shapes, **needs.shapes}, tuple(f"{name}." for name in given))


def _outline(saved: _SavedFile) -> VisionLanguageBackbone:
    """Return the backbone of a file without numbers: what it has, and in which shapes."""
    config, entries = saved.config["backbone"], os.fstat(saved.file.fileno()).st_size
    layers, positions = 0, 0
    if config["kind"] == OpenCLIPBackbone.__name__:
        told = config["configuration"]
        layers = _layers(told["vision_cfg"].get("layers", 12)) + told["text_cfg"].get("layers", 12)
        if told["vision_cfg"].get("timm_model_name"):
            layers = told["text_cfg"].get("layers", 12)
        positions = position_count(told)
    # Each layer has several tensors. Without this, the outline itself could be made to take long.
    if layers > len(saved.tensors) or positions > entries:
        raise ValueError(f"it has {len(saved.tensors)} tensors, too few or too small for {layers} layers")
    with torch.device("meta"):
        backbone = part_from_config(config, VisionLanguageBackbone, "backbone")
        trainable = saved.config["trainable"]
        if isinstance(trainable, dict):
            lora = part_from_config(trainable, LoRA, "trainable")
            adapt_towers(backbone, lora, saved.config["train_logit_scale"])
    return backbone


def _layers(layers: int | list[int]) -> int:
    return layers if isinstance(layers, int) else sum(layers)


def _compare(expected: _Expected, tensors: Mapping[str, StoredTensor], given: Mapping[str, Any]) -> None:
    """Raise unless a file has the tensors of its model, and no others."""
    for name, shape in expected.shapes.items():
        if name not in tensors:
            raise ValueError(f"it lacks {name!r}")
        found = tensors[name].shape
        if len(found) != len(shape) or any(b not in (-1, a) for a, b in zip(found, shape, strict=True)):
            raise ValueError(f"{name!r} has the shape {found}, and its model {shape}")
    for name in tensors:
        if name not in expected.shapes and not name.startswith(expected.unknown):
            raise ValueError(f"it has {name[:80]!r}, which its model has not")


def _built(
    model_class: type[CLIPClassifier], config: dict[str, Any], given: Mapping[str, Any]
) -> CLIPClassifier:
    trainable = config["trainable"]
    if isinstance(trainable, dict):
        trainable = part_from_config(trainable, LoRA, "trainable")
    adapter, backbone, head = (given.get(name) for name in ("image_adapter", "backbone", "head"))
    if adapter is None and config.get("image_adapter") is not None:
        adapter = part_from_config(config["image_adapter"], EmbeddingAdapter, "image_adapter")
    if backbone is None:
        backbone = part_from_config(config["backbone"], VisionLanguageBackbone, "backbone")
    return model_class(
        backbone,
        part_from_config(config["head"], TextHead, "head") if head is None else head,
        class_names=ClassNames(config["class_names"], config["datasets"]),
        trainable=trainable,
        train_logit_scale=config["train_logit_scale"],
        image_adapter=adapter,
    )


def _fill(model: CLIPClassifier, weights: dict[str, Tensor]) -> None:
    """Give a model its weights, all of them or none."""
    head = {name: weights.pop(name) for name in list(weights) if name.startswith(_HEAD)}
    head = model.head.state_of_now({name.removeprefix(_HEAD): each for name, each in head.items()})
    weights |= {_HEAD + name: each for name, each in head.items()}
    own = model.state_dict()
    stored = {name: StoredTensor(tensor.dtype, tuple(tensor.shape), 0) for name, tensor in weights.items()}
    _compare(_Expected({name: tuple(tensor.shape) for name, tensor in own.items()}, ()), stored, {})
    for name, tensor in own.items():
        found = weights[name].dtype
        if found != tensor.dtype and not (found.is_floating_point and tensor.is_floating_point()):
            raise ValueError(f"{name!r} is of {found}, and in its model of {tensor.dtype}")
    _check_finite(model, weights, "path")
    model.load_state_dict(weights)
