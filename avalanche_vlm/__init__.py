"""Continual learning with CLIP-like vision-language models, as parts for Avalanche."""

from avalanche_vlm._version import __version__

__all__ = ["__version__"]
