"""The rules as parts: they are their functions, and come back from plain values."""

import json
import math

import pytest
import torch

from avalanche_vlm.functional.discriminant import fused_logits, mixed_logits, rescored_logits
from avalanche_vlm.models import FusionRule, LogLinearFusion, ProbabilityMixture, TopKRescoring
from avalanche_vlm.models.fusion_rules import as_fusion, check_fusion, fusion_config, fusion_from_config

CLASSES = torch.tensor([3, 0, 2])
RULES = [
    (LogLinearFusion(0.3), lambda *a: fused_logits(*a, fusion_weight=0.3)),
    (LogLinearFusion(2.0, 0.5), lambda *a: fused_logits(*a, fusion_weight=2.0, temperature=0.5)),
    (ProbabilityMixture(0.4), lambda *a: mixed_logits(*a, weight=0.4)),
    (TopKRescoring(2), lambda *a: rescored_logits(*a, k=2, weight=1.0)),
    (TopKRescoring(2, 0.1), lambda *a: rescored_logits(*a, k=2, weight=0.1)),
]


def logits():
    draw = torch.Generator().manual_seed(0)
    return 5 * torch.randn(9, 5, generator=draw), 5 * torch.randn(9, 3, generator=draw)


@pytest.mark.parametrize(("rule", "function"), RULES, ids=[repr(rule) for rule, _ in RULES])
def test_a_rule_is_its_function_and_comes_back(rule, function):
    first, second = logits()
    assert torch.equal(rule(first, second, CLASSES), function(first, second, CLASSES))
    told = json.loads(json.dumps(fusion_config(rule)))
    assert told["kind"] == type(rule).__name__
    assert fusion_from_config(told) == rule
    assert as_fusion(rule) is rule


@pytest.mark.parametrize("rule", [LogLinearFusion(0), ProbabilityMixture(0), TopKRescoring(3, 0)])
def test_weight_zero_is_the_first_bit_for_bit(rule):
    first, second = logits()
    assert torch.equal(rule(first, second, CLASSES), first)


@pytest.mark.parametrize("weight", [0, 0.25, 3])
def test_a_number_is_a_weight(weight):
    check_fusion("fusion_weight", weight)
    assert as_fusion(weight) == LogLinearFusion(weight)
    assert fusion_from_config(fusion_config(weight)) == weight


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "1", None, True, LogLinearFusion])
def test_what_is_no_weight_and_no_rule_is_named(wrong):
    with pytest.raises((TypeError, ValueError), match="`fusion_weight`"):
        check_fusion("fusion_weight", wrong)


def test_rules_are_values():
    assert len({LogLinearFusion(1.0), LogLinearFusion(1.0, 1.0), ProbabilityMixture(1.0)}) == 2
    assert all(isinstance(rule, FusionRule) for rule, _ in RULES)
    with pytest.raises(AttributeError):
        LogLinearFusion(1.0).weight = 2.0
