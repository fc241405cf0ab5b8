"""Which backbones can be embedded with, and what tells one from another."""

from __future__ import annotations

from typing import Any

from avalanche_vlm._checks import check_type, wrong_value
from avalanche_vlm.embedding.transform_description import describe_transform
from avalanche_vlm.models import CLIPClassifier, LoRA, VisionLanguageBackbone
from avalanche_vlm.models.fingerprint import fingerprint

_WATCHES = {"transform_name": ""}


def frozen_backbone(backbone: Any) -> VisionLanguageBackbone:
    """Return the backbone of a backbone or classifier whose image tower is there and does not train.

    Raises:
        TypeError: it is neither.
        ValueError: it has no image tower, or one that trains.
    """
    check_type("backbone", backbone, (VisionLanguageBackbone, CLIPClassifier))
    encoder = backbone.backbone if isinstance(backbone, CLIPClassifier) else backbone
    if encoder.image_tower is None:
        got = f"a {type(encoder).__name__}, which has none"
        raise wrong_value("backbone", "one with an image tower", got, "Its streams are embeddings already.")
    trains = any(p.requires_grad for p in _image_side(encoder, dict(encoder.named_parameters())).values())
    if isinstance(backbone, CLIPClassifier):
        kind = backbone.trainable
        trains = trains or (("image" in kind.towers) if isinstance(kind, LoRA) else kind in ("image", "both"))
    if trains:
        raise wrong_value(
            "backbone",
            "one whose image tower is frozen",
            "one whose image tower trains: its embeddings would be out of date after the first step",
            "Train the text tower or a head on embeddings, or train on the images themselves.",
        )
    return encoder


def backbone_facts(backbone: VisionLanguageBackbone) -> dict[str, Any]:
    """Return what embeddings of images depend on in a backbone, as plain values.

    Raises:
        ValueError: a forward hook that cannot be told from others.
    """
    # Where the weights came from does not matter: they are told by what they are.
    config = {name: value for name, value in backbone.config().items() if name != "pretrained"}
    weights = backbone.state_dict()
    facts: dict[str, Any] = {
        "backbone": f"{type(backbone).__module__}.{type(backbone).__qualname__}",
        "configuration": config,
        "weights": fingerprint(_image_side(backbone, weights)),
    }
    # These two only where there are any, which keeps the files of all other backbones valid.
    unsaved = {name: buffer for name, buffer in backbone.named_buffers() if name not in weights}
    if unsaved := _image_side(backbone, unsaved):
        facts["unsaved buffers"] = fingerprint(unsaved)
    if hooks := _hooks(backbone):
        facts["hooks"] = hooks
    return facts


def _hooks(backbone: VisionLanguageBackbone) -> list[Any]:
    """Return what the forward hooks of the image side are, but for those that only watch."""
    # With the point that ends the names of a module's tensors.
    modules = _image_side(backbone, {f"{name}.": module for name, module in backbone.named_modules()})
    found: list[Any] = []
    for place, module in modules.items():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            try:
                told = describe_transform(hook)
            except TypeError:
                raise wrong_value(
                    "backbone",
                    "one without forward hooks on its image side, or with hooks that have a name",
                    f"the hook {hook!r} on `{place[:-1]}`",
                    "Embeddings are kept under what makes them. Remove it meanwhile, or set "
                    "`hook.transform_name = 'some text'`, and another text whenever you change what it "
                    "does; the empty text for a hook that only watches.",
                ) from None
            if told != _WATCHES:
                found.append([place[:-1], told])
    return found


def _image_side(backbone: VisionLanguageBackbone, tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the named tensors of a backbone that embeddings of images may depend on.

    That is all but the text tower and the scale and bias of the logits, which may train meanwhile.
    """
    text = backbone.text_tower
    prefixes = [
        f"{name}." for name, module in backbone.named_modules() if text is not None and module is text
    ]
    not_image = ("logit_", *prefixes)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(not_image)}
