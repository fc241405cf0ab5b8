"""Strategies: methods as wiring of parts, on one template."""

from avalanche_vlm.strategies.auto_seed import AutoSeed
from avalanche_vlm.strategies.cgil import CGIL
from avalanche_vlm.strategies.closed_form import ClosedForm, GaussianDiscriminant
from avalanche_vlm.strategies.fine_tune import FineTune
from avalanche_vlm.strategies.gift import GIFT
from avalanche_vlm.strategies.host_baselines import StrategyBuilder, host_baselines
from avalanche_vlm.strategies.segp_cl import SeGPCL
from avalanche_vlm.strategies.template import VLMTemplate
from avalanche_vlm.strategies.template_arguments import TemplateArguments
from avalanche_vlm.strategies.zero_shot import ZeroShot
from avalanche_vlm.strategies.zscl import ZSCL

__all__ = [
    "CGIL",
    "GIFT",
    "ZSCL",
    "AutoSeed",
    "ClosedForm",
    "FineTune",
    "GaussianDiscriminant",
    "SeGPCL",
    "StrategyBuilder",
    "TemplateArguments",
    "VLMTemplate",
    "ZeroShot",
    "host_baselines",
]
