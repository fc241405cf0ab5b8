"""Strategies: methods as wiring of parts, on one template."""

from avalanche_vlm.strategies.fine_tune import FineTune
from avalanche_vlm.strategies.template import TemplateArguments, VLMTemplate
from avalanche_vlm.strategies.zero_shot import ZeroShot

__all__ = ["FineTune", "TemplateArguments", "VLMTemplate", "ZeroShot"]
