"""Names and probabilities for pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_count, wrong_type, wrong_value
from avalanche_vlm.models.modes import in_eval_mode

if TYPE_CHECKING:
    from avalanche_vlm.models.classifier import CLIPClassifier


class Prediction(NamedTuple):
    """What `CLIPClassifier.predict` returns; row i belongs to image i, best class first."""

    names: list[list[str]]
    probabilities: Tensor
    class_ids: Tensor


@torch.no_grad()
def predict(
    model: CLIPClassifier, images: Any, *, top_k: int, space: Literal["all", "seen"], batch_size: int
) -> Prediction:
    """Name images, with probabilities: what `CLIPClassifier.predict` does, which says the rest."""
    check_choice("space", space, ("all", "seen"))
    check_count("batch_size", batch_size)
    scale = model.backbone.logit_scale
    if isinstance(images, np.ndarray) and images.ndim == 2 and images.dtype.kind == "f":
        images = torch.from_numpy(images)  # embeddings
    if not (isinstance(images, Tensor) and images.is_floating_point()):
        images = torch.stack([model.eval_transform(image) for image in _as_list(images)])
    columns = (
        torch.arange(len(model.class_names))
        if space == "all"
        else model.classes_seen.nonzero().flatten().cpu()
    )
    check_count("top_k", top_k)
    if len(columns) == 0:
        raise wrong_value("space", "'all', because no class has been trained on yet", repr(space))
    if top_k > len(columns):
        raise wrong_value("top_k", f"at most {len(columns)}, the classes of space {space!r}", top_k)
    model.head.forget_what_trains(model.backbone)
    images = images.to(scale.dtype)
    with in_eval_mode(model):
        logits = torch.cat([model(part.to(scale.device)).float().cpu() for part in images.split(batch_size)])
    logits = logits[:, columns]
    if not bool(logits.isfinite().all()):
        raise _not_finite(images, logits)
    best = logits.softmax(dim=1).topk(top_k)
    class_ids = columns[best.indices]
    names = [[model.class_names[index] for index in row] for row in class_ids.tolist()]
    return Prediction(names, best.values, class_ids)


def _not_finite(images: Tensor, logits: Tensor) -> ValueError:
    """Return the error for logits that name no class, which says whether that is of the images."""
    bad = ~logits.isfinite().all(dim=1)
    broken = bad & ~images.flatten(1).isfinite().all(dim=1).cpu()
    kind = "images" if images.ndim == 4 else "embeddings"
    if bool(broken.any()):
        rows = ", ".join(map(str, broken.nonzero().flatten().tolist()[:5]))
        got = f"{int(broken.sum())} of {len(images)} {kind} with NaN or infinity (numbers {rows})"
        return wrong_value("images", "of finite numbers", got, "Look at where they come from.")
    return wrong_value(
        "model",
        "one whose logits are finite",
        f"logits with NaN or infinity for {int(bad.sum())} of {len(images)} {kind}, which are finite",
        "NaN names no class. Look at the weights of the model, or train it again with a lower learning rate.",
    )


def _as_list(images: Any) -> Iterable[Any]:
    """Return one picture or a batch of them as an iterable of pictures."""
    if isinstance(images, Image.Image) or getattr(images, "ndim", 0) in (2, 3):
        return [images]
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        advice = (
            "Open a file with PIL.Image.open; make a tensor of an array of embeddings with torch.from_numpy."
        )
        raise wrong_type("images", "a picture, a list of pictures or a float tensor", images, advice)
    pictures = list(images)
    if not pictures:
        raise wrong_value("images", "at least one image", "none")
    return pictures
