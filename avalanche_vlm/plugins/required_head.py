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
    expected = f"a CLIPClassifier with a {kind.__name__}{purpose}"
    advice = f"Wrap the head: CLIPClassifier(backbone, {kind.__name__}(head))."
    if not isinstance(model, CLIPClassifier):
        raise wrong_value("model", expected, f"a {type(model).__name__}", advice)
    if isinstance(model.head, kind):
        return model.head
    got = f"one with a {type(model.head).__name__}"
    if any(isinstance(part, kind) for part in model.head.modules()):
        got += f" around a {kind.__name__}"
        advice = (
            "Of two heads that fuse text with what was seen only the outer one is asked and fed: leave one "
            "of them out, with its plugin."
        )
    raise wrong_value("model", expected, got, advice)
