"""NaN and infinity are no setting of any public function."""

import inspect
import math

import pytest
import torch
from torch.nn import functional as F

from avalanche_vlm import functional
from avalanche_vlm.benchmarks import digits_benchmark, with_validation_stream
from avalanche_vlm.functional import PixelSpace, feature_sums
from avalanche_vlm.functional.splits import held_out_positions
from avalanche_vlm.testing import tiny_benchmark

EYE, IDS = torch.eye(3), torch.arange(3)
IMAGES = torch.full((2, 3, 4, 4), 0.5)
SUMS = feature_sums(EYE, IDS, 3)
PAIRS = {"student": EYE, "teacher": EYE}
LABELLED = {"logits": EYE, "targets": IDS, "columns": IDS}
PGD = {"encode": lambda x: (x.mean(dim=(2, 3)),) * 2, "images": IMAGES, "space": PixelSpace(), "steps": 1}
PGD |= {"text_targets": torch.ones(2, 3), "visual_targets": torch.ones(2, 3)}
FUNCTIONS = {
    "contrastive_distillation": PAIRS,
    "discriminant_weights": {"of": SUMS},
    "dual_targeted_pgd": PGD,
    "fit_predictive_discriminant": {"of": SUMS},
    "mixed_logits": {"first": EYE, "second": EYE, "classes": IDS, "weight": 0.3},
    "rescored_logits": {"first": EYE, "second": EYE, "classes": IDS, "k": 2, "weight": 0.3},
    "fused_logits": {"zero_shot": EYE, "discriminant": EYE, "classes": IDS, "fusion_weight": 0.3},
    "gradient_directions": {"features": EYE, "weights": EYE, "classes": IDS, "groups": IDS, "scale": 10.0},
    "image_text_alignment": {"logits": EYE, "captions": IDS},
    "label_space_cross_entropy": LABELLED,
    "label_space_evaluation_loss": LABELLED,
    "multi_positive_contrast": {
        **{"anchors": EYE, "others": EYE, "anchor_classes": IDS, "other_classes": IDS, "temperature": 0.1}
    },
    "ridge_regression_weights": {"of": SUMS, "ridge": 0.1},
    "semantic_drift": {"before": EYE, "after": EYE, "old": IDS[:2], "new": IDS[2:]},
    "shared_targets": {"captions": IDS},
    "shrunk_covariance": {"of": SUMS},
    "soft_label_divergence": PAIRS,
    "text_geometry_divergence": PAIRS,
    "transferred_prototypes": {"prototypes": EYE, "before": EYE, "after": F.normalize(EYE + 0.1)},
}
# Results, and functions whose numbers are the model's own, as tensors are.
OTHERS = {"SemanticDrift", "PixelSpace", "cosine_logits"}


def float_arguments(function):
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if "float" in str(parameter.annotation)
    ]


def test_every_function_with_a_number_is_asked():
    public = {name: getattr(functional, name) for name in functional.__all__}
    found = {name for name, thing in public.items() if callable(thing) and float_arguments(thing)}
    assert found - OTHERS == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_refuses_numbers_that_are_none(name):
    function, valid = getattr(functional, name), FUNCTIONS[name]
    function(**valid)
    for argument in float_arguments(function):
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match=f"`{argument}` must be a finite number"):
                function(**{**valid, argument: value})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_so_do_functions_that_take_shares(value):
    with pytest.raises(ValueError, match="`fraction`"):
        held_out_positions(IDS, value, torch.Generator())
    with pytest.raises(ValueError, match="`fraction`"):
        with_validation_stream(tiny_benchmark(), fraction=value)
    with pytest.raises(ValueError, match="`test_fraction`"):
        digits_benchmark(test_fraction=value, n_experiences=2)
    with pytest.raises(ValueError, match=r"`space\.std`"):
        functional.dual_targeted_pgd(**{**PGD, "space": PixelSpace(std=(1.0, value, 1.0))})
