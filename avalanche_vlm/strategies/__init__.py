"""Strategies: methods as wiring of parts, on one template."""

from avalanche_vlm.strategies.fine_tune import FineTune
from avalanche_vlm.strategies.host_baselines import StrategyBuilder, host_baselines
from avalanche_vlm.strategies.template import TemplateArguments, VLMTemplate
from avalanche_vlm.strategies.zero_shot import ZeroShot

__all__ = ["FineTune", "StrategyBuilder", "TemplateArguments", "VLMTemplate", "ZeroShot", "host_baselines"]
