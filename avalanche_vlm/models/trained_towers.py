"""Which towers of a backbone train, in full or by low-rank updates."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from avalanche_vlm._checks import close_names, wrong_type, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.lora import LoRA, add_lora, set_lora_mode, thaw_lora
from avalanche_vlm.models.parts import part_config

Trainable = Literal["nothing", "image", "text", "both"]
_TOWERS_OF: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "image": ("image",),
    "text": ("text",),
    "both": ("image", "text"),
}


def check_trainable(trainable: Any) -> None:
    """Raise unless this says what trains: one of the four words, or a `LoRA`."""
    if isinstance(trainable, LoRA):
        return
    if not isinstance(trainable, str):
        raise wrong_type("trainable", f"one of {tuple(_TOWERS_OF)} or a LoRA", trainable)
    if trainable not in _TOWERS_OF:
        expected = f"one of {', '.join(map(repr, _TOWERS_OF))}, or a LoRA(...)"
        raise wrong_value("trainable", expected, repr(trainable), close_names(trainable, _TOWERS_OF))


def trainable_config(trainable: Trainable | LoRA) -> str | dict[str, Any]:
    """Return what trains as a plain value: the word, or a `LoRA` by its arguments."""
    return part_config(trainable) if isinstance(trainable, LoRA) else trainable


def adapt_towers(
    backbone: VisionLanguageBackbone, trainable: Trainable | LoRA, train_logit_scale: bool
) -> None:
    """Check that what is to train exists, and add LoRA layers.

    Args:
        backbone: whose towers they are.
        trainable: as in `CLIPClassifier`.
        train_logit_scale: likewise.

    Raises:
        ValueError: a tower, or a scale that could train, is not there.
    """
    for name, tower in _trained_towers(backbone, trainable):
        if tower is None:
            raise wrong_value(
                "trainable",
                "'nothing' for a backbone without towers",
                f"{trainable!r}, which needs the {name} tower",
                "Train a head instead, e.g. CosineHead or LearnedContextHead.",
            )
        if isinstance(trainable, LoRA):
            add_lora(tower, trainable)
    if train_logit_scale and not _logit_parameters(backbone):
        expected = f"False for a {type(backbone).__name__}, whose scale is fixed"
        raise wrong_value("train_logit_scale", expected, True)


def thaw_backbone(
    backbone: VisionLanguageBackbone, trainable: Trainable | LoRA, train_logit_scale: bool
) -> None:
    """Let exactly that in a frozen backbone require a gradient which is to train; arguments as before."""
    for _, tower in _trained_towers(backbone, trainable):
        if isinstance(trainable, LoRA):
            thaw_lora(tower, trainable)
        else:
            tower.requires_grad_(True)
    for parameter in _logit_parameters(backbone) if train_logit_scale else ():
        parameter.requires_grad_(True)


def set_tower_modes(backbone: VisionLanguageBackbone, trainable: Trainable | LoRA, mode: bool) -> None:
    """Set the mode of what trains in a backbone, and eval mode for all else in it.

    Args:
        backbone: whose towers they are.
        trainable: as in `CLIPClassifier`.
        mode: whether what trains is in training mode.
    """
    backbone.train(False)
    for _, tower in _trained_towers(backbone, trainable):
        if tower is None:
            continue
        if isinstance(trainable, LoRA):
            set_lora_mode(tower, mode)
        else:
            tower.train(mode)


def _trained_towers(backbone: VisionLanguageBackbone, trainable: Trainable | LoRA) -> list[tuple[str, Any]]:
    names = trainable.towers if isinstance(trainable, LoRA) else _TOWERS_OF[trainable]
    return [(name, getattr(backbone, f"{name}_tower")) for name in names]


def _logit_parameters(backbone: VisionLanguageBackbone) -> list[nn.Parameter]:
    own = backbone.named_parameters(recurse=False)
    return [parameter for name, parameter in own if name.startswith("logit_")]
