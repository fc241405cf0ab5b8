"""The head that a plugin works on."""

from __future__ import annotations

from typing import Any, TypeVar

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.models import CLIPClassifier, TextHead

Head = TypeVar("Head", bound=TextHead)


def required_head(model: Any, kind: type[Head], purpose: str = "") -> Head:
    """Return the head of a classifier; refuse a model with a head of another kind.

    Args:
        model: a strategy's model.
        kind: of the head.
        purpose: what follows its name in the error.
    """
    if not isinstance(model, CLIPClassifier) or not isinstance(model.head, kind):
        head = type(model.head).__name__ if isinstance(model, CLIPClassifier) else None
        raise wrong_value(
            "model",
            f"a CLIPClassifier with a {kind.__name__}{purpose}",
            f"one with a {head}" if head else f"a {type(model).__name__}",
            f"Wrap the head: CLIPClassifier(backbone, {kind.__name__}(head)).",
        )
    return model.head
