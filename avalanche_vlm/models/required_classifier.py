"""The classifier that a plugin or regularizer works on."""

from __future__ import annotations

from typing import Any

from avalanche_vlm._checks import wrong_type
from avalanche_vlm.models.classifier import CLIPClassifier


def required_classifier(model: Any, purpose: str, advice: str = "") -> CLIPClassifier:
    """Return a strategy's model if it is a `CLIPClassifier`.

    Args:
        model: a strategy's model.
        purpose: what it is wanted for, which the error says after the kind: "which encodes images".
        advice: what to do about it, a sentence at the end of the error.

    Raises:
        TypeError: the model is of another kind.
    """
    if not isinstance(model, CLIPClassifier):
        raise wrong_type("strategy.model", f"a CLIPClassifier, {purpose}", model, advice)
    return model
