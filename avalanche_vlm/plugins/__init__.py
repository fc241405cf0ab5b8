"""Thin shells over the parts, on the host's callbacks."""

from avalanche_vlm.plugins.label_space_cross_entropy import LabelSpaceCrossEntropy

__all__ = ["LabelSpaceCrossEntropy"]
